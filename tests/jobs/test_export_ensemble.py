"""An exported ensemble predicts by `peft` alone what it predicts here, by the code of its own README."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import AST
from trained import swept

from jobs.cli import main
from lorae.engine.ensembles import Ensemble
from lorae.methods import Full, Lora, Vera
from lorae.results import trial_id
from lorae.tasks.base import Head, Letters, OptionLikelihood
from lorae.trial import Budget

SHORT = Budget(batch_size=4, steps=4)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def exported(storage: str, trial, folder: Path) -> dict[str, Any]:
    """What the README's code of an exported trial defines."""
    assert main(["export", storage, trial_id(trial), str(folder)]) == 0
    (code,) = CODE.findall((folder / "README.md").read_text())
    before, names = os.getcwd(), {}
    os.chdir(folder)
    try:
        exec(compile(code, "README.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": Lora(rank=2)},
        {"method": Vera(rank=4)},
        {"method": Lora(rank=2), "combine": "logits"},
        {"method": Lora(rank=2), "scoring": Letters()},
    ],
    ids=["lora", "vera", "logits", "letters"],
)
def test_the_readmes_code_gives_the_ensembles_probabilities(tiny_trial, tmp_path, changes):
    scoring = changes.pop("scoring", None)
    trial = tiny_trial(**{"budget": SHORT, "members": 2} | changes)
    if scoring:
        trial = replace(trial, task=replace(trial.task, scoring=scoring))
    storage = swept(tmp_path / "store", trial)
    names = exported(storage, trial, tmp_path / "out")
    for text in ("w3 w17 w5", "w1 w2"):
        expected = Ensemble.load(storage).predict(text)
        found = names["predict"](text)
        assert tuple(found) == expected.options[0]
        np.testing.assert_allclose([*found.values()], expected.probabilities[0], atol=1e-5)


@pytest.mark.parametrize("model", ["bert", "bert-mean", "vit", AST])
def test_the_readmes_code_reads_encoders(encoder_trial, tmp_path, model):
    trial = encoder_trial(model.removesuffix("-mean"), members=2)
    if model == "bert-mean":
        trial = replace(trial, task=replace(trial.task, scoring=Head(pool="mean")))
    storage = swept(tmp_path / "store", trial)
    names, example = exported(storage, trial, tmp_path / "out"), trial.task.examples("test")[0]
    media: Any = example.question
    if model == "vit":
        media = example.media.pixels()
    elif model == AST:
        media = example.media.waveform(16000)
    expected = Ensemble.load(storage).predict(example.media.data if example.media else media)
    inputs = {"sampling_rate": 16000} if model == AST else {}
    found = names["predict"](media, **inputs)
    np.testing.assert_allclose([*found.values()], expected.probabilities[0], atol=1e-4)


@pytest.mark.slow
def test_the_folder_says_what_it_is(tiny_trial, tmp_path, capsys):
    trials = [tiny_trial(budget=SHORT, members=2), tiny_trial(budget=SHORT, members=3)]
    storage = swept(tmp_path / "store", *trials)
    exported(storage, trials[0], tmp_path / "out")
    page = (tmp_path / "out/README.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and "ensemble of 2" in rows[2], "its row of the table and no other"
    said = json.loads((tmp_path / "out/ensemble.json").read_text())
    assert said["member_ids"] == trials[0].member_ids() and said["classes"] == ["red", "green", "blue"]
    config = json.loads((tmp_path / "out/member-1/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == trials[0].backbone.path == said["backbone"]
    for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines():
        assert (tmp_path / "out" / line.split("  ")[1]).is_file()
    assert main(["export", storage, trial_id(trials[0]), str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_before_anything_is_written(tiny_trial, tmp_path, capsys):
    full = tiny_trial(method=Full(), budget=SHORT, members=2)
    soup = tiny_trial(budget=SHORT, members=2, combine="weights")
    texts = tiny_trial(budget=SHORT)
    texts = replace(texts, task=replace(texts.task, scoring=OptionLikelihood()))
    storage = swept(tmp_path / "store", full, soup, texts)
    for trial, message in [
        (full, "members of full, which PEFT does not know"),
        (soup, "predicts by weights"),
        (texts, "scores whole texts has no code by PEFT"),
    ]:
        assert main(["export", storage, trial_id(trial), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
