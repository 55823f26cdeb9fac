"""What a sweep prints at its end: the head of its table, and the commands that follow."""

from __future__ import annotations

import contextlib
import shlex

from jobs.parser import coloured

MAX_LINES, MAX_TRIALS = 8, 60  # of the table; intervals of a larger sweep take longer than anyone waits
METRICS, OF_TEXTS = ("acc", "ensemble_nll", "ece15"), ("ensemble_nll",)


def table_head(storage: str, sweep: str) -> str:
    """The first lines of a sweep's comparison, "" if it has none yet."""
    from analysis.data import load_trials
    from analysis.generation import text_metrics, writes_texts
    from analysis.render import markdown
    from analysis.table import comparison

    with contextlib.suppress(ValueError):
        trials = load_trials(storage, sweep, allow_missing=True)
        if len(trials.rows) > MAX_TRIALS:
            return ""
        metrics = (*text_metrics(trials), *OF_TEXTS) if writes_texts(trials) else METRICS
        head, rule, *lines = markdown(comparison(trials, metrics, costs=())).partition("\n\n")[0].splitlines()
        more = [f"... {len(lines) - MAX_LINES} more rows"] if len(lines) > MAX_LINES else []
        return "\n".join([head, rule, *lines[:MAX_LINES], *more])
    return ""


def next_commands(storage: str, sweep: str) -> str:
    """What to do with the results."""
    where = shlex.quote(storage)
    commands = {
        f"lorae table {where} --sweep {sweep}": "how to read it: docs/reading_tables.md",
        f"lorae report {where} --sweep {sweep} --out report": "one HTML page with figures",
        f"lorae predict {where} --sweep {sweep} --file new.csv": "the best ensemble on your own inputs",
    }
    width = max(map(len, commands))
    lines = [f"  {coloured(c.ljust(width), 'bold')}  {what}" for c, what in commands.items()]
    return "\n".join(["next:", *lines])
