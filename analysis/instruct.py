"""Alpaca-cleaned: perplexity and texts of ensembles, and MT-Bench's answers for judges; twin of
pipelines/instruct.py.

python -m analysis.instruct lorae-results

Besides the tables it writes `model_answer/<model>.jsonl` for every member, lock-step and soup, in the format
that FastChat's llm_judge reads: https://github.com/lm-sys/FastChat.
"""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Iterator, Sequence

from analysis import generation
from analysis.cells import Cell
from analysis.data import Trials
from analysis.plotting import method_name
from analysis.rows import Row, eval_sets
from analysis.script import Content, run
from lorae.store.answers import Answer
from lorae.tasks.scoring.generate import LOCKSTEP
from lorae.texts.mt_bench import model_answers

BENCH = "mt_bench"  # name of the task


def content(trials: Trials) -> Content:
    """The tables of texts, and MT-Bench's answers beside them."""
    found = generation.content(trials)
    return Content(found.tables, found.plots, files=model_answer_files(trials))


def model_answer_files(trials: Trials) -> dict[str, str]:
    """Name and content of each writer's file; empty if no row answered MT-Bench."""
    found = {}
    for cell in trials.cells:
        for row in cell.rows if cell.members else cell.rows[:1]:
            if BENCH in eval_sets(row):
                answers = generation.stored_answers(trials, row, BENCH) or ()
                for writer, texts in _writers(cell, answers):
                    model = _model(cell, row, writer)
                    found[f"model_answer/{model}.jsonl"] = model_answers(texts, model, time.time())
    return found


def _writers(cell: Cell, answers: Sequence[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    """Each writer of a row's answers, and its texts; for several members, those that they wrote together."""
    if cell.is_soup:
        yield "soup", [a for a in answers if a.kind == "soup"]
    elif cell.members > 1:
        for number, rule in enumerate(LOCKSTEP):
            if texts := [a for a in answers if a.kind == "lockstep" and a.draw == number]:
                yield f"lockstep-{rule}", texts
    else:
        yield "member" if cell.members else "backbone", [a for a in answers if a.kind == "greedy"]


def _model(cell: Cell, row: Row, writer: str) -> str:
    """A writer's name, which shows everything that differs between rows."""
    told = [
        method_name(str(row["method"])),
        row["regularizers"],
        f"members{cell.members}",
        f"seed{row['seed']}",
    ]
    words = [*(told if cell.members else [str(row["backbone"])]), writer, row["trial_id"][:6]]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-")


main = functools.partial(run, "instruct", content)

if __name__ == "__main__":
    sys.exit(main())
