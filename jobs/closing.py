"""What a sweep prints at its end: what was done, the head of its table, and the commands that follow."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

from jobs.parser import coloured
from jobs.simulate import duration

if TYPE_CHECKING:
    from jobs.request import Request
    from lorae.planning.plan import Plan

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


def outcome_text(outcome: dict[str, Any], request: Request, plan: Plan) -> str:
    """What was done, what failed, and the commands that follow."""
    prompted = not all(trial.method.trains for trial, _ in plan.trials)
    made = "trained or prompted" if prompted else "trained"
    lines = [
        f"{outcome['trials']} trials, {outcome['trained']} members {made} in "
        f"{duration(outcome['seconds'])}; results in {request.storage}/sweeps/{request.name}"
    ]
    if outcome["pruned"]:
        lines.append(f"{outcome['pruned']} trials were ended early by the search and are in no table")
    lines += outcome["best"]
    lines += [f"{coloured('failed:', 'red')} {what}: {why}" for what, why in outcome["failed"].items()]
    if outcome["incomplete"]:
        lines.append(f"{outcome['incomplete']} trials lack predictions")
    if outcome["incomplete"] or outcome["failed"]:
        lines.append(f"resume with: {request.command}")
    return "\n".join(lines)
