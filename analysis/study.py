"""All tables and figures of the study, and its answers: docs/study.md says which cell answers what.

    python -m analysis.study results/study
    python -m analysis.study lorae-results --sweep study_trec

If a file of pipelines/study*.py was run both as a whole and in part, the whole is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.archive import opened
from analysis.columns import MARGINS, Column, direction, ood_columns, title
from analysis.curves import MARGIN, curves
from analysis.data import Trials, load_trials
from analysis.differences import (
    against_rivals,
    differences,
    ensembling,
    regularising,
    same_compute,
    same_parameters,
    same_predictions,
    souping,
)
from analysis.figures import standard_figures
from analysis.figures_size import size_figures
from analysis.figures_study import gains_figure
from analysis.figures_sweep import diversity_against_gain, quality_against_cost
from analysis.gain import correlations, with_gains
from analysis.plotting import save
from analysis.pooling import INDEPENDENT
from analysis.render import markdown, save_table
from analysis.script import Content, write
from analysis.significance import Difference
from analysis.size import recipes, sizes
from analysis.table import Entry, Line, Table, comparison
from lorae.store.store import Store

FILES = ("study", "study_trec", "study_science", "study_rivals", "study_members", "study_encoders")


def content(trials: Trials) -> Content:
    """What a sweep of the study shows."""
    found = curves(trials, MARGIN)
    changes = (asked.table(trials) for asked in QUESTIONS if asked.is_first)
    tables = [
        comparison(trials),
        *(table for table in changes if table.blocks),
        recipes(trials, found, MARGIN),
        sizes(trials, found),
        correlations(with_gains(of_one_size(trials))),
    ]
    plots = [
        *standard_figures(trials),
        *size_figures(trials, found),
        *diversity_against_gain(trials),
        *quality_against_cost(trials),
    ]
    return Content([table for table in tables if table.blocks], plots)


def of_one_size(trials: Trials) -> Trials:
    """The ensembles of the size that most pools have, the largest on ties: gains grow with the size."""
    sizes = Counter(row["members"] for row in trials.rows if row["members"] > 1)
    size = max(sizes, key=lambda members: (sizes[members], members), default=None)
    return replace(trials, rows=tuple(row for row in trials.rows if row["members"] == size))


# Differences that only the study asks for ------------------------------------------------------------------


def sources(trials: Trials) -> Table:
    """What a shared source of randomness costs: ensembles whose members share their data order or their
    initialisation minus those that share neither."""
    return differences(
        trials,
        lambda cell: (
            cell.factors | {"diversity": INDEPENDENT}
            if cell.members > 1 and cell.factors["diversity"] != INDEPENDENT
            else None
        ),
        name="sources",
        heading="Members that share their data order or initialisation, against those that share neither",
    )


def drawing(trials: Trials) -> Table:
    """What several draws of each member change: cells with draws minus the same members with one."""
    return differences(
        trials,
        lambda cell: (
            cell.factors | {"draws": "none"} if cell.members and cell.factors["draws"] != "none" else None
        ),
        name="drawing",
        heading="Several draws of each member, against its one prediction",
    )


def saturating(trials: Trials) -> Table:
    """What the last members add: the largest ensemble of each setting minus each smaller one."""
    largest = max((cell.members for cell in trials.cells), default=0)
    return differences(
        trials,
        lambda cell: cell.factors | {"members": largest} if 1 < cell.members < largest else None,
        name="saturating",
        heading=f"Smaller ensembles, against the ensemble of {largest}",
    )


# Answers ---------------------------------------------------------------------------------------------------

NLL, CE, SCALED_NLL, SCALED_CE = "ensemble_nll", "debiased_ce15", "ts_ensemble_nll", "ts_debiased_ce15"


@dataclass(frozen=True)
class Question:
    """A question of docs/study.md and the lines that answer it.

    Args:
        number: of the question, and its topic.
        table: makes the table whose differences answer it.
        lines: whether a line of that table answers it.
        metrics: the columns that answer it; "ood" stands for the AUROC of each OOD task.
        is_first: no earlier question has the same table.
    """

    number: str
    table: Callable[[Trials], Table]
    lines: Callable[[Line], bool]
    metrics: tuple[str, ...]
    is_first: bool = True


def _is_plain(line: Line) -> bool:
    return _said(line, "regularizers") == "none" and _is_members_own(line)


def _is_regularised(line: Line) -> bool:
    return _said(line, "regularizers") != "none" and _is_members_own(line)


def _is_members_own(line: Line) -> bool:
    """Whether it averages independent members with one prediction each."""
    said = [_said(line, factor) for factor in ("draws", "diversity")]
    return said == ["none", INDEPENDENT] and _said(line, "combine") == "probs"


def _is_single(line: Line) -> bool:
    return _said(line, "members") == 1


def _is_any(line: Line) -> bool:
    return True


def _said(line: Line, factor: str) -> object:
    entry = line.get(factor)
    return entry.value if isinstance(entry, Entry) else None


QUESTIONS = (
    Question("1 gain of members", ensembling, _is_plain, (NLL, CE, "acc", "ood")),
    Question("1 saturation", saturating, _is_plain, (NLL, SCALED_NLL)),
    Question("2 gain after scaling", ensembling, _is_plain, (SCALED_NLL, SCALED_CE), is_first=False),
    Question("3 regulariser alone", regularising, _is_single, (NLL, CE, "acc", "ood", SCALED_NLL)),
    Question(
        "3 members on top", ensembling, _is_regularised, (NLL, CE, "acc", "ood", SCALED_NLL), is_first=False
    ),
    Question("4 order or initialisation", sources, _is_any, (NLL, SCALED_NLL, "acc")),
    Question("5 rank M r", same_parameters, _is_any, (NLL, SCALED_NLL, "acc")),
    Question("5 M times the training", same_compute, _is_any, (NLL, SCALED_NLL, "acc")),
    Question("5 M samples", same_predictions, _is_any, (NLL, SCALED_NLL, "acc")),
    Question("5 soup", souping, _is_any, (NLL, SCALED_NLL, "acc")),
    Question("5 draws", drawing, _is_any, (NLL, SCALED_NLL, CE)),
    Question("5 rivals", against_rivals, _is_any, (NLL, SCALED_NLL, "acc", "ood")),
)


GAINS = ("2 gain after scaling", "3 members on top")  # questions that the figure shows


def answers(sweeps: Sequence[Trials]) -> Table:
    """A line for each cell that answers a question: the difference, its verdict, and the smallest difference
    that could be detected."""
    lines = [line for asked in QUESTIONS for trials in sweeps for line in _answers(asked, trials)]
    return Table(
        name="answers",
        title="Answers of the study",
        caption=(
            "Each line is a difference of the table that is named, with its simultaneous 95 % interval over "
            "new test examples and trainings. Better, worse: the interval excludes 0; equivalent: it lies "
            "within the margin; undecided: neither. Half-width: the smallest difference that could be told."
        ),
        columns=(
            *(Column(name, "text") for name in ("question", "sweep", "table", "task", "line", "metric")),
            Column("answer", "estimate", 4),
            Column("verdict", "text"),
            Column("half-width", "level", 4),
        ),
        blocks=(tuple(lines),) if lines else (),
    )


def _answers(asked: Question, trials: Trials) -> list[Line]:
    table = asked.table(trials)
    metrics = [m for name in asked.metrics for m in (ood_columns(trials) if name == "ood" else [name])]
    found = []
    for line in (line for block in table.blocks for line in block if asked.lines(line)):
        for metric in metrics:
            if isinstance(difference := line.get(metric), Difference):
                words = {"question": asked.number, "sweep": trials.sweep, "table": table.name}
                words |= {"task": _said(line, "task"), "line": _name(line), "metric": title(metric)}
                found.append({k: Entry(v) for k, v in words.items()} | _numbers(metric, difference))
    return found


def _name(line: Line) -> str:
    """A line's model, with the settings that its name does not show."""
    words = [_said(line, "rival") or _said(line, "model"), _said(line, "regularizers")]
    words += [_said(line, "diversity")]
    return ", ".join(str(word) for word in words if word not in (None, "none", INDEPENDENT))


def _numbers(metric: str, difference: Difference) -> Line:
    lo, hi, verdict = difference.lo, difference.hi, difference.verdict
    words = {"lower": "better", "higher": "worse"}
    if direction(metric) == "higher":
        words = {"higher": "better", "lower": "worse"}
    return {
        "answer": difference,
        "verdict": Entry(words.get(verdict, verdict) if verdict else "these members only"),
        "half-width": Entry(None if lo is None or hi is None else (hi - lo) / 2),
    }


# Command line ----------------------------------------------------------------------------------------------


def sweeps_of(names: Sequence[str]) -> list[str]:
    """The study's sweeps in a storage, in the order of FILES: each file's whole sweep, or else its parts."""
    found: list[str] = []
    for file in FILES:
        parts = [name for name in names if name.startswith(f"{file}-")]
        found += [file] if file in names else parts
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and the answers; write them and the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.study", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("storage", help="archive, or path or URI that the sweeps wrote to")
    parser.add_argument("--sweep", help="only this one (default: all that the study has)")
    parser.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/report)")
    args = parser.parse_args(argv)
    out = args.out or Path(args.storage).expanduser() / "report"
    try:
        with opened(args.storage) as storage:
            names = [args.sweep] if args.sweep else sweeps_of(Store(storage).storage.names("sweeps"))
            if not names:
                raise ValueError(f"{args.storage} has no sweep of the study; run pipelines/study.py")
            sweeps = [load_trials(storage, name) for name in names]
            for trials in sweeps:
                print(f"## {trials.sweep}\n")
                write(content(trials), out if args.sweep else out / trials.sweep)
            answered = answers(sweeps)
            print(f"## Answers\n\n{markdown(answered)}")
            save_table(answered, out)
            for plot in gains_figure(answered, GAINS, MARGINS[NLL]):
                save(plot, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
