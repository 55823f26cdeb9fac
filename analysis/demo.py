"""The comparison table and figures of a sweep, from its storage alone.

python -m analysis.demo lorae-results                 # the demo; prints the table, writes the rest
python -m analysis.demo lorae-results --sweep mine --out paper/figures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.columns import default_metrics
from analysis.data import fill_command, load_trials, missing_text
from analysis.figures import standard_figures
from analysis.plotting import save
from analysis.render import markdown, save_table
from analysis.resampling import resample
from analysis.table import comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write table.md, .csv, .tex and the figures; the exit code, 2 for a wrong path."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.demo", description="Table and figures of a sweep."
    )
    parser.add_argument("storage", help="path or URI that the sweep wrote to")
    parser.add_argument("--sweep", default="demo", help="name of the sweep (default: demo)")
    parser.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/report/SWEEP)")
    parser.add_argument("--allow-missing", action="store_true", help="leave failed trials out and name them")
    args = parser.parse_args(argv)
    try:
        trials = load_trials(args.storage, args.sweep, args.allow_missing)
        out = args.out or _default_out(args.storage, args.sweep)
        if trials.missing:
            print(missing_text(trials.sweep, trials.missing, fill_command(trials.rows[0])), file=sys.stderr)
        table = comparison(trials, resample(trials, default_metrics(trials)))
        print(markdown(table))
        save_table(table, out)
        for plot in standard_figures(trials):
            save(plot, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"table and figures: {out}")
    return 0


def _default_out(storage: str, sweep: str) -> Path:
    if "://" in storage:
        raise ValueError(
            f"storage {storage} is not a folder of this machine; give one for the files by --out"
        )
    return Path(storage).expanduser() / "report" / sweep


if __name__ == "__main__":
    sys.exit(main())
