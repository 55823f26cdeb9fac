"""Sweep files with errors, and names on the command line that do not exist: one line that says where and what
was meant; exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from toys import Colours

from jobs.cli import main
from jobs.labels import spec_of_label
from jobs.request import load_module, with_override
from lorae.methods import Vera
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping, Masksembles
from lorae.sources import Files
from lorae.tasks import TREC, OptionLikelihood
from lorae.trial import Budget, Sweep, Trial

GOOD = """
from lorae.methods import Lora
from lorae.regularizers import KL
from lorae.methods import Vera
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping, Masksembles
from lorae.sources import Files
from lorae.tasks import TREC, OptionLikelihood
from lorae.trial import AdamW, Budget, Sweep, Trial
from toys import Colours
SWEEP = Sweep(
    base=Trial(backbone=Files("/nowhere"), task=Colours(), regularizers=(KL(0.3),), budget=Budget(epochs=1)),
    axes={"method": [Lora(), Lora(rank=4)]},
)
"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = [1, 2\nz = 3\n", "sweep.py:2: SyntaxError: '[' was never closed; correct that line"),
        ("if True:\nx = 1\n", "sweep.py:2: IndentationError: expected an indented block"),
        ("\nimport nowhere_at_all\n", "sweep.py:2: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("from lorae.trial import Tral\n", "sweep.py:1: ImportError: cannot import name 'Tral'"),
        ("x = 1\n\nfrom beside import broken\n", "beside.py:4: KeyError: 'a'"),
        ("import unreadable\n", "unreadable.py:1: SyntaxError"),
        (
            "from lorae.trial import Budget\n\nBudget(\n    epocs=3)\n",
            "sweep.py:3: TypeError: Budget.__init__() got an unexpected keyword argument 'epocs'; did you "
            "mean epochs? it takes batch_size, epochs, steps, max_tokens",
        ),
        ("from lorae.methods import Lora\nLora(rank=-1)\n", "sweep.py:2: rank=-1: must be >= 1; write Lora"),
        ("tasks = 1\nprint(task)\n", "sweep.py:2: NameError: name 'task' is not defined"),
        ("raise SystemExit('no')\n", "sweep.py:1: SystemExit: no"),
        ("assert False\n", "sweep.py:1: AssertionError"),
        ("x = '\xff'\n", "sweep.py:1: SyntaxError"),
    ],
)
def test_an_error_in_a_sweep_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "sweep.py").write_bytes(content.encode("latin-1"))
    (tmp_path / "beside.py").write_text("\n\ndef f():\n    return {}['a']\nbroken = f()\n")
    (tmp_path / "unreadable.py").write_text("def (\n")
    try:
        assert main(["sweep", str(tmp_path / "sweep.py"), "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("lorae: ") and f"{tmp_path}/{message}" in line
        assert "lorae_sweep_sweep" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))
        for name in ("beside", "unreadable"):
            sys.modules.pop(name, None)


def test_a_sweep_file_is_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.txt").write_text(GOOD)
    assert main(["sweep", str(tmp_path / "sweep.txt"), "--dry-run"]) == 2
    assert "sweep.txt is no Python file; give one whose name ends with .py" in capsys.readouterr().err


def test_a_sweep_file_without_error_is_a_module(tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text(GOOD)
    assert load_module(tmp_path / "fine.py").SWEEP.base.regularizers[0].beta == 0.3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", "'learning_rate' is no axis; the trial has backbone, task, method"),
        ("lr=1e-3", "did you mean optimizer.lr? the trial has backbone"),
        ("memberz=2", "did you mean members?"),
        ("method.rnk=2", "did you mean method.rank?"),
        ("methods.rank=2", "did you mean method.rank?"),
        ("KL.beta=1", "did you mean regularizers.KL.beta?"),
        ("budget.max_token=9", "did you mean budget.max_tokens?"),
        ("regularizers=kl_0.33", "did you mean kl-0.3? the file gives it the values kl-0.3"),
        ("task=Trec", "did you mean TREC? the file gives it the values colours; others are A"),
        ("method=vara", "did you mean vera?"),
    ],
)
def test_a_name_that_does_not_exist_suggests_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    (tmp_path / "sweep.py").write_text(GOOD)
    assert main(["sweep", str(tmp_path / "sweep.py"), "--dry-run", "--set", override]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--set {override}: " in line and message in line


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("regularizers=kl-0.5", (KL(0.5),)),
        ("regularizers=decay_b-50+kl-0.3", (DecayB(50.0), KL(0.3))),
        ("regularizers=none", ()),
        ("regularizers=kl-0.3", (KL(0.3),)),
        ("method=vera", Vera()),
        ("task=TREC", TREC()),
        ("task.scoring=likelihood-sum", OptionLikelihood()),
    ],
)
def test_a_label_is_any_that_a_spec_has(override, value):
    trial = Trial(
        backbone=Files("/nowhere"), task=Colours(), regularizers=(KL(0.3),), budget=Budget(epochs=1)
    )
    axis = override.split("=")[0]
    assert with_override(Sweep(base=trial, axes={}), override).axes[axis] == [value]


def test_every_regulariser_is_made_from_its_own_label():
    for spec in (KL(0.05), DecayB(1e-05), AdapterDropout(0.1), Masksembles(4, 2.0), EarlyStopping(3)):
        assert spec_of_label("regularizers", spec.label) == (spec,)


@pytest.mark.parametrize(
    "words", ["-" * 4000 + "1", "(" * 4000, "[" * 4000 + "]" * 4000, "9" * 4900, "-" * 100_000]
)
def test_an_override_that_nests_deeper_than_python_is_refused(words):
    """As text it is no learning rate; nothing recurses, or ends the process."""
    trial = Trial(backbone=Files("/nowhere"), task=Colours(), budget=Budget(epochs=1))
    with pytest.raises(ValueError, match=r"--set|lr=") as caught:
        with_override(Sweep(base=trial, axes={}), f"optimizer.lr={words}").trials()
    assert len(str(caught.value)) < 12_000
