"""`lorae landscape STORAGE --task "TREC()"`: the loss between the members of a stored ensemble."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.predict import read_task
from lorae.lookup import find_trial
from lorae.sources import Files
from lorae.store.store import Store
from lorae.tasks import Task

if TYPE_CHECKING:
    from lorae.engine.landscape import Point

LINE_MEMBERS = 4  # whose six lines fit in one figure


def run_landscape(
    storage: str,
    task: str,
    *,
    trial: str | None = None,
    sweep: str | None = None,
    data_root: str | None = None,
    backbone: str | None = None,
    num_line: int = 11,
    num_side: int = 9,
    out: Path = Path("landscape"),
) -> list[str]:
    """Measure the lines between an ensemble's first members and the plane through three, and write
    `landscape.json` and the figures; returns what was found, in words.

    Args:
        task: with labels, as for `lorae predict --task`.
        num_line, num_side: points of a line, and of a side of the plane.
    Raises:
        ValueError: no such trial or task, a single member, or as `lorae.engine.landscape.points`.
    """
    from analysis.landscape import line_figure, plane_figure
    from analysis.plotting import save
    from lorae.engine.landscape import barrier

    if num_line < 3 or num_side < 3:
        raise ValueError(f"--points {num_line}, --side {num_side}: must be >= 3")
    store = Store(storage)
    row = find_trial(store, trial, sweep)
    members = row["member_ids"][:LINE_MEMBERS]
    if len(members) < 2:
        raise ValueError(f"trial {row['trial_id']} has one member; give an ensemble's by --trial")
    located = read_task(task).located(Path(data_root) if data_root else None)
    lines, plane = _measured(store, members, located, num_line, num_side, backbone)
    barriers = {name: barrier([p.nll for p in of_line]) for name, of_line in lines.items()}
    for plot in [line_figure(lines), *([plane_figure(plane)] if plane else [])]:
        save(plot, out)
    record = {
        "trial_id": row["trial_id"],
        "member_ids": members,
        "eval_set": located.eval_set("test"),
        "barriers": barriers,
        "lines": {name: [asdict(p) for p in of_line] for name, of_line in lines.items()},
        "plane": [asdict(p) for p in plane],
    }
    (out / "landscape.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    words = [
        f"members {name}: NLL {found[0].nll:.4f} and {found[-1].nll:.4f}, barrier {barriers[name]:.4f} nats"
        for name, found in lines.items()
    ]
    return [*words, str(out / "landscape.json")]


def _measured(
    store: Store, members: list[str], task: Task, num_line: int, num_side: int, backbone: str | None
) -> tuple[dict[str, list[Point]], list[Point]]:
    """The points of the line of each two members, and of the plane of the first three, [] for fewer."""
    import torch

    from analysis.landscape import line_shares, plane_shares
    from lorae.engine.landscape import points

    device, source = "cuda" if torch.cuda.is_available() else "cpu", Files(backbone) if backbone else None
    pairs = list(itertools.combinations(range(len(members)), 2))
    shares = [point for a, b in pairs for point in line_shares(len(members), a, b, num_line)]
    rest = [0.0] * (len(members) - 3)
    shares += [point + rest for point in plane_shares(num_side)] if len(members) > 2 else []
    found = points(store, members, task, shares, device=device, backbone=source)
    lines = {f"{a} - {b}": found[n * num_line : (n + 1) * num_line] for n, (a, b) in enumerate(pairs)}
    return lines, found[len(pairs) * num_line :]
