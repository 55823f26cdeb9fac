"""`lorae predict STORAGE --text ...` and `Ensemble.generate` where members write texts: the answers are those
that the sweep stored for the same questions."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from trained import files
from writers import echo_trial

from jobs.cli import main
from lorae.engine.ensembles import Ensemble
from lorae.engine.run import run_stack
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan, soups_of
from lorae.results import row_answers, trials_table
from lorae.store.store import Store
from lorae.tasks.base import Generate
from lorae.texts.pools import by_example
from lorae.texts.uncertainty import SCORES
from lorae.trial import Sweep


@pytest.fixture(scope="module")
def written(tiny_llama, tmp_path_factory) -> SimpleNamespace:
    """A storage with a member, an ensemble of two and their soup; the test questions in order."""
    root = tmp_path_factory.mktemp("written")
    trial = echo_trial(tiny_llama, root)()
    trial = replace(trial, task=replace(trial.task, scoring=Generate(6)))
    sweep = Sweep(base=trial, axes={"members": [1, 2], "combine": ["probs", "weights"]})
    store = Store(storage := str(root / "store"))
    plan = make_plan(sweep, store, Devices("cpu", 1, 1))
    for stack in plan.stacks:
        assert not run_stack(stack, storage).failed
    for stack in soups_of(plan, store).pending:
        run_stack(stack, storage)
    trials = [(t, sweep.eval_tasks(t)) for t in sweep.trials()]
    store.write_table("echo", trials_table(store, "echo", trials, {"command": "x", "commit": "y"}))
    rows = {(r["members"], r["combine"]): r for r in store.read_table("echo").to_pylist()}
    questions = {e.id: e.question for e in trial.task.examples("test")}
    return SimpleNamespace(storage=storage, rows=rows, questions=questions)


@pytest.mark.parametrize("which", [(1, "probs"), (2, "probs"), (2, "weights")])
def test_answers_and_scores_are_those_that_the_sweep_stored(written, which):
    row, store = written.rows[which], Store(written.storage)
    stored = by_example(row_answers(store, row, json.loads(row["eval_sets"])["test"]))
    before = files(written.storage)
    inputs = [{"id": name, "text": text} for name, text in written.questions.items()]
    found = Ensemble.load(written.storage, row["trial_id"]).generate(inputs)
    assert files(written.storage) == before, "nothing is stored"
    assert found.ids == tuple(e.example_id for e in stored)
    of = {(1, "probs"): "greedy", (2, "probs"): "mean", (2, "weights"): "soup"}[which]
    expected = [e.greedy[0] if of == "greedy" else e.pooled[of] for e in stored]
    assert found.texts == tuple(a.text for a in expected)
    assert found.finished == tuple(a.finished for a in expected)
    if which == (2, "probs"):
        assert found.member_texts == tuple(tuple(e.greedy[m].text for m in (0, 1)) for e in stored)
        views = [replace(e.view("members", 0, (0, 1)), answer=a) for e, a in zip(stored, expected)]
        for name in ("nll", "mutual_information", "disagreement", "semantic_entropy"):
            by_hand = [SCORES[name].function(view) for view in views]
            np.testing.assert_allclose(found.scores[name], by_hand, atol=1e-4)
    else:
        assert "mutual_information" not in found.scores and "nll_per_token" in found.scores


def test_the_command_line_prints_and_writes_answers(written, tmp_path, capsys):
    texts = [*written.questions.values()][:3]
    trial = written.rows[2, "probs"]["trial_id"]
    words = ["predict", written.storage, "--trial", trial, *(w for t in texts for w in ("--text", t))]
    expected = Ensemble.load(written.storage, trial).generate(texts)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {text}  (NLL per token" in out for text in expected.texts) and "disagreement" in out
    assert main([*words, "--out", str(tmp_path / "found.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == list(expected.texts)
    assert [row["nll"] for row in rows] == pytest.approx(expected.scores["nll"], abs=1e-6)
    assert all(len(row["member_answers"]) == 2 for row in rows)


def test_what_members_cannot_do_is_one_line(written, stored, capsys):
    trial = written.rows[2, "probs"]["trial_id"]
    words = ["predict", written.storage, "--trial", trial, "--text", "w1"]
    assert main([*words, "--stop", "~~"]) == 2
    assert "no token of this tokenizer ends it" in capsys.readouterr().err
    assert main(["predict", stored.storage, "--text", "w1", "--stop", "w"]) == 2
    assert "choose among classes write no text" in capsys.readouterr().err
    ensemble = Ensemble.load(written.storage, trial)
    with pytest.raises(ValueError, match="write texts; call generate"):
        ensemble.predict(["w1"])
    with pytest.raises(ValueError, match="choose among classes; call predict"):
        Ensemble.load(stored.storage, stored.trial).generate(["w1"])
    with pytest.raises(ValueError, match="input 1: ' '; must be a text"):
        ensemble.generate(["w1", " "])


def test_a_stop_cuts_the_answer(written):
    ensemble = Ensemble.load(written.storage, written.rows[2, "probs"]["trial_id"])
    texts = [*written.questions.values()]
    whole = ensemble.generate(texts)
    word = next(w for text in whole.texts for w in text.split()[1:2])
    cut = ensemble.generate(texts, stop=[word])
    assert cut.texts != whole.texts
    assert all(c == w.partition(word)[0] for c, w in zip(cut.texts, whole.texts))
