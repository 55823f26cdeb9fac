"""`lorae bench all`: every part in one document, and a table of ratios beside their targets."""

from __future__ import annotations

import sys
import time
from typing import Any

from jobs.bench import generate, growth, memory, predict, sweep, train
from jobs.bench.setting import Setting

PARTS = {
    "train": train,
    "predict": predict,
    "generate": generate,
    "sweep": sweep,
    "memory": memory,
    "growth": growth,
}


def measure(where: Setting) -> dict[str, Any]:
    """The figures of every part, the seconds they took, and the table of ratios. Each part's tables are
    printed to stderr as soon as they are ready."""
    found: dict[str, Any] = {}
    seconds = {}
    for name, part in PARTS.items():
        if name == "sweep" and where.device != "cpu":
            continue  # the naive sweep is written for a CPU
        started = time.perf_counter()
        found[name] = part.measure(where)
        seconds[name] = time.perf_counter() - started
        print(f"== {name}\n{part.text(found[name])}\n", file=sys.stderr, flush=True)
    return found | {"seconds": seconds, "ratios": ratios(found)}


def ratios(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target, what was measured, and whether the target is met."""
    table = []

    def add(what: str, measured: float, least: float | None = None, most: float | None = None) -> None:
        met = measured >= least if least is not None else measured <= (most or 0.0)
        target = {"least": least} if least is not None else {"most": most}
        table.append({"what": what, "measured": measured, **target, "met": met})

    for task, at in found["train"]["tasks"].items():
        add(f"training, {task}: times as fast as PEFT + HF Trainer", at["ratios"]["trainer"], least=4.0)
        add(f"training, {task}: times as fast as the best PEFT loop", at["ratios"]["loop"], least=1.8)
        add(f"training, {task}: times the limit's time", at["ratios"]["limit"], most=1.35)
    predicted = found["predict"]["ratios"]
    add("prediction: times as fast as PEFT's set_adapter", predicted["peft"], least=3.0)
    add("prediction: times as fast as the same with care", predicted["careful"], least=3.0)
    add("prediction: times the limit's time", predicted["limit"], most=1.2)
    if "generate" in found:
        written, memory = found["generate"]["ratios"], found["generate"]["sides"]["lorae"]["memory"]
        add("texts: times as fast as PEFT's set_adapter and generate", written["peft"], least=3.0)
        add("texts: times the time of bare generate runs", written["bare"], most=1.3)
        add("texts in lock-step: times the time of the members alone", written["lockstep"], most=1.2)
        add("texts: peak memory over the planned", memory["peak_bytes"] / memory["planned_bytes"], most=1.15)
    if "sweep" in found:
        demo, over = found["sweep"]["demo"], found["sweep"]["overhead"]
        add("sweep: times as fast as naive, as measured", demo["ratio"], least=8.0)
        add("sweep: times as fast as naive, full demo, computed", demo["full_ratio_computed"], least=8.0)
        add(
            "seconds of a further stack beyond training",
            over["workers"][1]["further_stack_seconds"],
            most=2.0,
        )
        add(f"seconds to plan {over['planned_trials']:,} trials", over["plan_seconds"], most=5.0)
        add(f"seconds to resume {over['stored_members']:,} members", over["resume_seconds"], most=10.0)
    largest = found["memory"]["largest"]
    add(f"memory of {largest['members']} members over its bound", largest["over_bound"], most=1.0)
    return table


def text(found: dict[str, Any]) -> str:
    """The table of ratios."""
    width = max(len(row["what"]) for row in found["ratios"])
    lines = [f"{'':<{width}} {'measured':>9} {'wanted':>13}"]
    for row in found["ratios"]:
        wanted = f"at least {row['least']:g}" if "least" in row else f"at most {row['most']:g}"
        short = "" if row["met"] else "  falls short"
        lines.append(f"{row['what']:<{width}} {row['measured']:>9.2f} {wanted:>13}{short}")
    total = sum(found["seconds"].values())
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["seconds"].items())
    lines.append(f"\n{total / 60:.0f} min in all; seconds: {parts}")
    return "\n".join(lines)
