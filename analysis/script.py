"""What every `python -m analysis.<name> STORAGE` does: load a sweep, print its tables, write all as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from analysis.archive import opened
from analysis.columns import margins
from analysis.data import Trials, load_trials
from analysis.plotting import Plot, save
from analysis.render import markdown, save_table
from analysis.rows import fill_command, missing_text
from analysis.selection import those_that_have, with_columns, with_metrics, with_rows
from analysis.table import Table


@dataclass(frozen=True)
class Content:
    """The tables and figures of a paper file, in order, and other files by their name."""

    tables: Sequence[Table]
    plots: Sequence[Plot]
    files: Mapping[str, str] = field(default_factory=dict)


def run(
    sweep: str,
    content: Callable[..., Content],
    argv: Sequence[str] | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Print the tables of a sweep; write them as .md, .csv, .tex and the figures as .pdf, .svg.

    Args:
        sweep: name of the sweep unless `--sweep` gives another, such as its small variant.
        content: of the sweep's trials, and the options that are given.
        options: names of models that `content` may be given, with what they are for.
    Returns:
        The exit code: 0, or 2 for a sweep that is not there or incomplete.
    """
    parser = argparse.ArgumentParser(prog=f"python -m analysis.{sweep}", description=content.__doc__)
    parser.add_argument("storage", help="path or URI that the sweep wrote to")
    parser.add_argument("--sweep", default=sweep, help=f"name of the sweep (default: {sweep})")
    parser.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/report/SWEEP)")
    parser.add_argument("--allow-missing", action="store_true", help="leave failed trials out and name them")
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=X",
        help="largest difference that does not matter, such as ensemble_nll=0.01",
    )
    lists = {
        "columns": "columns of the tables, in order: model,acc,ensemble_nll",
        "rows": "words; rows that have one of them: ensemble,zero-shot",
        "metric": "metrics of the comparison in place of the usual ones: acc,ensemble_nll",
    }
    for name, what in lists.items():
        parser.add_argument(f"--{name}", type=lambda words: words.split(","), metavar="A,B", help=what)
    for name, what in options.items():
        parser.add_argument(f"--{name}", metavar="MODEL", help=what)
    args = parser.parse_args(argv)
    given = {name: model for name in options if (model := getattr(args, name))}
    try:
        out = args.out or _default_out(args.storage, args.sweep)
        with opened(args.storage) as storage:
            trials = load_trials(storage, args.sweep, args.allow_missing, margins(args.margin))
            if trials.missing:
                print(
                    missing_text(trials.sweep, trials.missing, fill_command(trials.rows[0])), file=sys.stderr
                )
            found = write(_chosen(trials, content(trials, **given), args), out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(found.tables)} tables, {len(found.plots)} figures: {out}")
    return 0


def _chosen(trials: Trials, content: Content, args: argparse.Namespace) -> Content:
    """The content with the metrics, columns and rows that were asked for, and its sweep's name on tables."""
    tables = [*content.tables]
    if args.metric:
        tables = with_metrics(trials, tables, args.metric)
    if args.columns:
        tables = those_that_have(tables, lambda table: with_columns(table, args.columns))
    if args.rows:
        tables = those_that_have(tables, lambda table: with_rows(table, args.rows))
    return replace(content, tables=[replace(table, sweep=trials.sweep) for table in tables])


def write(content: Content, out: Path) -> Content:
    """Print the tables, write them, the figures and the other files; returns the content."""
    for table in content.tables:
        print(markdown(table))
        save_table(table, out)
    for plot in content.plots:
        save(plot, out)
    for name, text in content.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return content


def _default_out(storage: str, sweep: str) -> Path:
    if "://" in storage:
        raise ValueError(
            f"storage {storage} is not a folder of this machine; give one for the files by --out"
        )
    return Path(storage).expanduser() / "report" / sweep
