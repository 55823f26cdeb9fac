"""A sweep of members that really wrote: its tables and figures, from the store alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from writers import echo_trial

from analysis.data import Trials, load_trials
from analysis.generation import content, main, stored_answers
from analysis.render import markdown
from analysis.report import write_report
from analysis.script import write
from jobs.tables import run_table
from lorae.engine.run import run_stack
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan, soups_of
from lorae.results import trials_table
from lorae.store.store import Store
from lorae.tasks.base import Generate
from lorae.texts import likeness, quality
from lorae.texts.pools import by_example
from lorae.trial import Sweep

WRITING = Generate(6, samples=2, temperature=0.7, lockstep=("logits",))
AXES = {"members": [1, 2], "combine": ["probs", "weights"]}


@pytest.fixture(scope="module")
def trials(tiny_llama, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    trial = echo_trial(tiny_llama, tmp_path_factory.mktemp("echo"))()
    sweep = Sweep(base=replace(trial, task=replace(trial.task, scoring=WRITING)), axes=AXES)
    store = Store(storage := str(tmp_path_factory.mktemp("store")))
    plan = make_plan(sweep, store, Devices("cpu", 1, 1))
    for stack in plan.stacks:
        assert not run_stack(stack, storage).failed
    for stack in soups_of(plan, store).pending:
        run_stack(stack, storage)
    rows = [(t, sweep.eval_tasks(t)) for t in sweep.trials()]
    store.write_table("echo", trials_table(store, "echo", rows, {"command": "x", "commit": "y"}))
    return load_trials(storage, "echo")


@pytest.mark.slow
def test_the_tables_of_a_stored_sweep(trials, tmp_path, capsys):
    found = write(content(trials), tmp_path)
    rows, table, scores = found.tables[:3]
    assert sum(map(len, rows.blocks)) == len(trials.rows) and rows.name == "table"
    (two,) = [x for x in rows.blocks[0] if x["model"].value == "LoRA ensemble of 2"]
    (row,) = [row for row in trials.rows if (row["members"], row["combine"]) == (2, "probs")]
    assert two["token_f1"].value == row["token_f1"] and two["train_tokens"].value == row["train_tokens"]
    lines = {line["text"].value: line for block in table.blocks for line in block}
    assert set(lines) == {
        *("backbone", "one member", "vote of 2 samples of one member", "vote of 2 members"),
        *("lock-step of 2, mean logits", "soup of 2"),
    }
    rows = [row for row in trials.rows if row["members"] == 2 and row["combine"] == "weights"]
    f1 = []
    for row in rows:
        for example in by_example(stored_answers(trials, row, "test") or ()):
            f1.append(quality.token_f1(example.pooled["soup"].text, example.gold))
    assert lines["soup of 2"]["token_f1"].value == pytest.approx(sum(f1) / len(f1))
    assert lines["one member"]["reference_nll"].value > lines["vote of 2 members"]["reference_nll"].value
    assert "mutual information" in markdown(scores) and (tmp_path / "prr.svg").exists()
    assert "temperature" not in (out := capsys.readouterr().out) and "Δ PRR" in out


@pytest.mark.slow
def test_the_report_and_the_standard_table_of_a_sweep_of_texts(trials, tmp_path, capsys):
    storage = trials.store.storage.uri
    assert run_table([storage, "--sweep", "echo", "--out", str(tmp_path / "table")]) == 0
    assert (tmp_path / "table" / "scores.csv").exists()
    page = write_report(storage, "echo", tmp_path / "report").read_text()
    assert "Which part do the members add?" in page and "Calibration" not in page
    assert (tmp_path / "report" / "examples.md").exists()


@pytest.mark.slow
def test_a_likeness_of_a_given_model_is_a_score_of_the_tables(trials, tmp_path, monkeypatch, capsys):
    given: list[str] = []
    monkeypatch.setattr("lorae.texts.models.embedding", lambda model: given.append(model) or likeness.jaccard)
    words = [trials.store.storage.uri, "--sweep", "echo", "--out", str(tmp_path), "--embedding", "own/model"]
    assert main(words) == 0 and given == ["own/model"]
    out = capsys.readouterr().out
    assert "semantic entropy embedding" in out and "semantic entropy nli" not in out
