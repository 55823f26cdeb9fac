"""`lorae check`, and what a dry run refuses: all that is wrong with data, labels, prompts and tokens, found
without the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from toys import OPTIONS, Colours, colour_rows, write_split

from jobs.cli import main
from lorae.methods import InContext
from lorae.planning.faults import input_faults
from lorae.sources import Files
from lorae.tasks import Example, OptionLikelihood, Scoring
from lorae.tasks.base import Prompt
from lorae.trial import Budget, Trial

SWEEP_FILE = """
from toys import Colours, Greys
from lorae.methods import Lora
from lorae.sources import Files
from lorae.trial import Budget, Sweep, Trial
SWEEP = Sweep(
    base=Trial(backbone=Files({backbone!r}), task=Colours(), budget=Budget(epochs=1, max_tokens={most}),
               precision="fp32"),
    axes={{"method.rank": [2, {rank}]}},
    ood=[Greys()],
)
"""


@pytest.fixture
def write(tiny_llama: Files, data_root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Write a sweep file, and data with these changes of rows; returns the words after `lorae check`."""

    def write(
        most: int = 64, rank: int = 4, changes: Mapping[str, dict[int, dict[str, Any]]] = MappingProxyType({})
    ) -> list[str]:
        (tmp_path / "sweep.py").write_text(SWEEP_FILE.format(backbone=tiny_llama.path, most=most, rank=rank))
        for task, split, size in (("colours", "train", 30), ("colours", "test", 12), ("greys", "test", 6)):
            rows = colour_rows(f"{task}-{split}", size, size)
            for number, cells in changes.get(f"{task}/{split}", {}).items():
                rows[number] |= cells
            write_split(tmp_path / "data" / task, split, rows)
        return [str(tmp_path / "sweep.py"), "--data-root", str(tmp_path / "data")]

    return write


def test_a_sound_sweep_has_no_faults(write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", *write()]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'sweep.py'}: no faults\n"


def test_all_faults_of_all_files_are_one_report(
    write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changes = {
        "colours/train": {4: {"label": 9}, 20: {"text": " "}},
        "colours/test": {7: {"label": None}},
        "greys/test": {1: {"text": None}, 5: {"text": ""}},
    }
    words = write(changes=changes)
    assert main(["check", *words]) == 1
    *told, last = capsys.readouterr().out.splitlines()
    places = ["colours/train.parquet", "colours/train.parquet", "colours/test.parquet", "greys/test.parquet"]
    expected = [*zip(places, (4, 20, 7)), ("greys/test.parquet", 1), ("greys/test.parquet", 5)]
    for place, number in expected:
        (line,) = [t for t in told if f"row {number} of {tmp_path / 'data' / place}" in t]
        assert f" row {number} (" in line
    assert len(told) == 5 and last.endswith("sweep.py: 5 faults")
    assert main(["sweep", *words, "--dry-run", "--storage", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_recipes_and_prompts_are_looked_at_where_the_data_are_sound(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *write(rank=99)]) == 1
    assert "rank=99 exceeds" in capsys.readouterr().out
    assert main(["check", *write(most=5)]) == 0
    assert main(["check", *write(most=4)]) == 1
    out = capsys.readouterr().out
    assert out.count("the prompt has 4 tokens without the example's own text, 4 fit") >= 3
    assert "more examples cannot be encoded" in out


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda file: file.write_text("SWEEP = Swep()\n"), 1, "sweep.py:1: NameError: name 'Swep'"),
        (lambda file: file.write_text("x = 1\n"), 1, "defines no SWEEP"),
        (
            lambda file: shutil.rmtree(file.parent / "data" / "greys"),
            1,
            "greys needs data/test-*.parquet",
        ),
        (
            lambda file: (file.parent / "data" / "colours" / "test.parquet").write_bytes(b"PAR1"),
            1,
            "is damaged or",
        ),
        (lambda file: file.unlink(), 2, "is no file"),
    ],
)
def test_what_cannot_be_loaded_is_a_fault_and_no_file_is_wrong_usage(
    write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, change: Any, code: int, message: str
) -> None:
    words = write()
    change(tmp_path / "sweep.py")
    assert main(["check", *words]) == code
    told = capsys.readouterr()
    assert message in (told.out if code == 1 else told.err)


def test_an_override_is_checked_with_the_file(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = write()
    assert main(["check", *words, "--set", "method.rank=2,99"]) == 1
    assert "rank=99" in capsys.readouterr().out
    assert main(["check", *words, "--set", "method.rnk=2"]) == 2


# Tokens


def told(trial: Trial, *ood: Any) -> list[str]:
    return input_faults([(trial, ood)])


@dataclass(frozen=True, kw_only=True)
class Unknowns(Colours):
    """Label words that this tokenizer does not know: each is its token for unknown words."""

    def example(self, row: dict[str, Any]) -> Example:
        return replace(super().example(row), options=("crimson", "teal", "navy"))


def test_label_words_that_begin_alike_are_found_without_the_weights(
    tiny_trial: Any, data_root: Path, write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trial = tiny_trial(task=Unknowns().located(data_root))
    found = told(trial)
    assert "two answers of (' crimson', ' teal', ' navy') start with the same token" in found[0]
    assert any("more examples cannot be encoded" in f for f in found) and len(found) < 20
    assert told(replace(trial, task=replace(trial.task, scoring=OptionLikelihood()))) == []


def test_one_rare_set_of_options_is_in_the_sample(tiny_trial: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rare(Colours):
        def example(self, row: dict[str, Any]) -> Example:
            return replace(super().example(row), options=tuple(row["words"]))

    for split, size in (("train", 400), ("test", 9)):
        rows = [row | {"words": list(OPTIONS)} for row in colour_rows(split, size, size)]
        if split == "train":
            rows[333]["words"] = ["red", "mauve", "puce"]
        write_split(tmp_path / "colours", split, rows)
    (fault,) = told(tiny_trial(task=Rare().located(tmp_path)))
    assert "colours train-333: two answers of (' red', ' mauve', ' puce')" in fault


def test_the_longest_prompts_are_in_the_sample(tiny_trial: Any, tmp_path: Path) -> None:
    write_split(tmp_path / "colours", "train", colour_rows("x", 400, 0))
    write_split(tmp_path / "colours", "test", colour_rows("y", 9, 1))

    @dataclass(frozen=True, kw_only=True)
    class OneLong(Colours):
        scoring: Scoring = OptionLikelihood()

        def example(self, row: dict[str, Any]) -> Example:
            example = super().example(row)
            long = (*example.options[:2], "w1 " * 40)
            return replace(example, options=long) if row["id"] == "x-250" else example

    (fault,) = told(tiny_trial(task=OneLong().located(tmp_path), budget=Budget(epochs=1, max_tokens=32)))
    assert "x-250: an option has 40 tokens, max_tokens=32" in fault


def test_prompts_that_do_not_show_the_question_are_refused(tiny_trial: Any, data_root: Path) -> None:
    class Constant(Colours):
        def prompt(self, example: Example) -> Prompt:
            return Prompt("which colour :", tuple(f" {o}" for o in example.options))

    found = told(tiny_trial(task=Constant().located(data_root)))
    assert found and all("are equal, though their questions differ" in fault for fault in found)


def test_too_few_demonstrations_are_found(tiny_trial: Any) -> None:
    trial = tiny_trial(method=InContext(shots=2), budget=Budget(epochs=1, max_tokens=6))
    (fault,) = told(trial)
    assert "shots=2: " in fault and "fit max_tokens=6" in fault
    assert told(replace(trial, budget=Budget(epochs=1, max_tokens=64))) == []


def test_a_folder_without_tokenizer_is_named(tiny_trial: Any, tiny_llama: Files, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llama.path, folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (fault,) = told(tiny_trial(backbone=Files(str(folder))))
    assert f"{folder} has no tokenizer that can be read" in fault
