"""The loss between members: ends are the members, the middle is their soup, any point is merged weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import jobs.landscape
from jobs.cli import main
from lorae import metrics
from lorae.backbone.loading import read_backbone
from lorae.engine.landscape import barrier, points
from lorae.engine.prediction import predict
from lorae.engine.run import run_stack
from lorae.methods import Lora
from lorae.planning.stack import Stack
from lorae.results import trials_table
from lorae.store.names import member_folder, soup_folder
from lorae.store.peft_format import read_stages
from lorae.store.store import Store
from lorae.tasks.encoding import encode
from lorae.trial import Budget


@pytest.fixture
def trained(tiny_trial, tmp_path):
    trial = tiny_trial(members=3, method=Lora(rank=2), budget=Budget(batch_size=4, steps=6))
    uri = str(tmp_path / "store")
    run_stack(Stack(trial, (0, 1, 2)), uri)
    run_stack(Stack(trial, (0, 1, 2), soup="weights"), uri)
    return trial, Store(uri)


def nll(store: Store, folder: str, trial) -> float:
    found = store.predictions([folder], trial.task.eval_set("test"))
    return metrics.ensemble_nll(metrics.combine(found.logits_MNC), found.labels_N)


def test_corners_are_the_members_and_the_middle_is_their_soup(trained):
    trial, store = trained
    ids = trial.member_ids()
    found = points(store, ids, trial.task, [*np.eye(3).tolist(), [1 / 3] * 3])
    expected = [nll(store, member_folder(m), trial) for m in ids] + [nll(store, soup_folder(ids), trial)]
    assert [p.nll for p in found] == pytest.approx(expected, abs=1e-5)
    assert len({round(p.nll, 4) for p in found}) == 4


def test_a_point_outside_is_the_backbone_with_the_weighted_updates_merged(trained):
    trial, store = trained
    ids, shares = trial.member_ids(), (-0.4, 0.5, 0.9)
    (found,) = points(store, ids, trial.task, [shares])
    backbone = read_backbone(trial.backbone, "fp32", "cpu", recompute=False)
    with torch.no_grad():
        for share, state in zip(shares, read_stages(store, ids)[-1], strict=True):
            for name in (n.removesuffix(".A") for n in state if n.endswith(".A")):
                weight = backbone.lm.get_submodule(name).weight
                weight += share * trial.method.scale * state[f"{name}.B"] @ state[f"{name}.A"]
    rows = encode(backbone.tokenizer, trial.task, trial.task.examples("test"), trial.budget.max_tokens)
    logp_NC = metrics.combine(predict(backbone, rows))
    assert found.nll == pytest.approx(
        metrics.ensemble_nll(logp_NC, np.array([r.label for r in rows])), abs=1e-4
    )


def test_a_barrier_is_the_height_above_the_straight_line_between_the_ends():
    t = np.linspace(0, 1, 11)
    assert barrier(2 + t + 3 * t * (1 - t)) == pytest.approx(3 / 4), "a quadratic's, in the middle"
    assert barrier(2 + t - 3 * t * (1 - t)) == pytest.approx(0.0, abs=1e-12), "a valley has none"


def test_the_command_writes_points_and_figures(trained, tmp_path, monkeypatch, capsys):
    trial, store = trained
    store.write_table("toy", trials_table(store, "toy", [(trial, ())], {}))
    monkeypatch.setattr(jobs.landscape, "read_task", lambda text: trial.task)
    words = ["landscape", store.storage.uri, "--task", "Colours()", "--points", "3", "--side", "3"]
    assert main([*words, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "landscape.json").read_text())
    assert [*record["lines"]] == ["0 - 1", "0 - 2", "1 - 2"] and len(record["plane"]) == 9
    first = [p["nll"] for p in record["lines"]["0 - 1"]]
    assert first[0] == pytest.approx(nll(store, member_folder(trial.member_id(0)), trial), abs=1e-5)
    assert record["barriers"]["0 - 1"] == pytest.approx(max(0.0, first[1] - (first[0] + first[2]) / 2))
    assert {p.stem for p in tmp_path.glob("*.svg")} == {"landscape-lines", "landscape-plane"}
    assert main([*words, "--trial", "nosuch"]) == 2


def test_shares_and_members_that_do_not_fit_are_refused(trained):
    trial, store = trained
    with pytest.raises(ValueError, match="must be 3 numbers that add up to 1"):
        points(store, trial.member_ids(), trial.task, [[0.5, 0.6, 0.1]])
