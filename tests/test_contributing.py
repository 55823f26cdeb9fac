"""The worked examples of CONTRIBUTING: each is its one file, named in its union, and then trains, predicts,
is stored, audited and has its row in a table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from victims import SUPPORT

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```python\n# (lorae/\S+\.py)\n(.*?)```", re.DOTALL)
UNIONS = {"lorae/methods/ia3.py": "Ia3", "lorae/regularizers/confidence_penalty.py": "ConfidencePenalty"}
UNIONS |= {"lorae/draws/jitter.py": "Jitter"}

SWEEP = """
from toys import Colours
from lorae.draws.jitter import Jitter
from lorae.methods.ia3 import Ia3
from lorae.regularizers.confidence_penalty import ConfidencePenalty
from lorae import AdamW, Budget, DecayB, Files, Sweep, Trial

BASE = Trial(
    backbone=Files({backbone!r}), task=Colours(), optimizer=AdamW(lr=1e-2), precision="fp32",
    budget=Budget(batch_size=4, steps=4), members=2,
)
SWEEP = Sweep(
    base=BASE,
    axes={{"draws": [None, Jitter(2, 0.1)]}},
    rivals=[
        Trial(**vars(BASE) | {{"method": Ia3(), "regularizers": (DecayB(1.0),)}}),
        Trial(**vars(BASE) | {{"regularizers": (ConfidencePenalty(0.5),)}}),
    ],
)
"""


def add(tree: Path, file: str, content: str) -> None:
    """What CONTRIBUTING says: write the file, name its class in the union."""
    name, package = UNIONS[file], tree / Path(file).parent / "__init__.py"
    (tree / file).write_text(content)
    module = file.removesuffix(".py").replace("/", ".")
    text, count = re.subn(
        r"^(Any\w+ = )", rf"from {module} import {name}\n\n\1{name} | ", package.read_text(), flags=re.M
    )
    assert count == 1
    package.write_text(text)


@pytest.mark.slow
def test_the_examples_are_whole(tiny_llama, data_root, tmp_path):
    for part in ("lorae", "jobs", "analysis"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert {file for file, _ in blocks} == UNIONS.keys()
    for file, content in blocks:
        add(tmp_path, file, content)
    (tmp_path / "added.py").write_text(SWEEP.format(backbone=tiny_llama.path))
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{SUPPORT}",
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: object) -> str:
        command = [sys.executable, "-m", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    store = tmp_path / "store"
    run("jobs.cli", "sweep", "added.py", "--local", "--storage", store, "--data-root", data_root)
    table = run("jobs.cli", "table", store)
    for name in ("(IA)^3 ensemble of 2", "confidence-0.5", "jitter x2, std 0.1", "decay_b-1"):
        assert name in table, table
    assert "0 failed" in run("jobs.cli", "audit", store)
