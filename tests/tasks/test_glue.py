"""GLUE's tasks from copies of their files: sizes, splits, labels, pairs, prompts; and their paper files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from toys import write_split

from analysis.glue import mean_over
from analysis.table import Entry
from lorae.tasks import MRPC, QNLI, RTE, SST2, STSB, CoLA, Head, LabelWords, Task
from lorae.tasks.glue import Glue
from lorae.tasks.splits import label_faults, row_faults
from pipelines import glue_minilm, vera_glue

COPIES = Path(os.environ.get("LORAE_DATA_ROOT") or Path(__file__).parents[3] / "shared" / "data")
SIZES = {
    "cola": (7662, 854, 1043),
    "mrpc": (3327, 341, 408),
    "rte": (2229, 259, 277),
    "stsb": (5083, 617, 1500),
}


@pytest.mark.parametrize("task", [CoLA(), MRPC(), RTE(), STSB()], ids=lambda task: task.name)
def test_all_rows_of_the_copies_are_examples(task: Task):
    if not (COPIES / "nyu-mll" / "glue" / task.name).is_dir():
        pytest.skip(f"no copy of {task.name} is at hand")
    located = task.located(COPIES)
    splits = located.splits()
    assert tuple(len(splits[s]) for s in ("train", "validation", "test")) == SIZES[task.name]
    assert not row_faults(located, "train") and not row_faults(located, "test") and not label_faults(located)
    assert all((example.pair is not None) == task.is_pair for example in splits["test"])
    if task.name == "stsb":
        assert {0.0, 5.0} <= {e.value for e in splits["train"]} and all(
            0 <= e.value <= 5 for e in splits["train"]
        )


def row_of(task: Glue, label: float) -> dict[str, object]:
    return {**dict(zip(task.columns, ("One here.", "Two there."))), "sentence": "Two there.", "label": label}


@pytest.mark.parametrize("task", [MRPC(), QNLI(), RTE()], ids=lambda task: task.name)
def test_a_prompt_has_both_sentences_and_answers_with_words(task: Glue):
    example = task.example(row_of(task, 0))
    prompt = task.prompt(example)
    assert prompt.text.index("One here.") < prompt.text.index("Two there.")
    assert set(prompt.answers) == {" yes", " no"} and (prompt.answers[0] == " yes") == (task.name != "mrpc")
    pair = replace(task, scoring=Head()).prompt(example)
    assert (pair.text, pair.pair) == ("One here.", "Two there.")


def test_hidden_labels_are_refused_in_splits_that_are_scored(tmp_path):
    rows = [row_of(STSB(), label) | {"sentence1": f"One {label}."} for label in (-1.0, 2.5)]
    write_split(tmp_path / "stsb", "train", rows[1:])
    write_split(tmp_path / "stsb", "validation", rows)
    task = STSB().located(tmp_path)
    assert [example.value for example in task.examples("test")] == [None, 2.5]
    assert ["no label" in fault for fault in label_faults(task)] == [True]


def test_a_mean_over_tasks_is_there_only_if_all_of_them_are():
    found = mean_over([Entry(0.4, 0.03), Entry(0.8, 0.04)])
    assert found.value == pytest.approx(0.6) and found.stderr == pytest.approx(0.025)
    assert mean_over([Entry(0.4, 0.03), Entry(None)]).value is None
    assert mean_over([Entry(0.4, 0.03), Entry(0.8)]).stderr is None


# Paper files


def test_the_paper_file_has_every_task_model_and_method():
    trials = vera_glue.SWEEP.trials()
    assert len(trials) == 2 * 6 * 2 * 2 * 5
    assert {t.task.name for t in trials} == {kind.name for kind in (CoLA, SST2, MRPC, QNLI, RTE, STSB)}
    ranks = {(t.backbone, type(t.method).__name__): t.method.rank for t in trials}
    assert [ranks[b, "Vera"] for b in (vera_glue.BASE, vera_glue.LARGE)] == [1024, 256]
    assert {r for (_, kind), r in ranks.items() if kind == "Lora"} == {8}
    assert {t.budget.max_tokens for t in trials if t.backbone == vera_glue.LARGE} == {128}
    assert all((t.optimizer.head_lr is None) == (t.method.rank == 8) for t in trials)


def test_the_embedded_variant_has_what_its_docstring_says():
    trials = glue_minilm.SWEEP.trials()
    assert len(trials) == 96 and len({m for t in trials if t.members == 4 for m in range(4)}) == 4
    assert {t.task.name for t in glue_minilm.SMOKE.trials()} == {"cola", "stsb"}
    assert all(type(t.task.scoring) is not LabelWords for t in trials)
