"""The loss on the lines between a stored ensemble's members, and on the plane through three of them.

python -m analysis.landscape lorae-results --task "RottenTomatoes()" --trial 3f2a

The task is scored as the members' own is. Prints the barrier of each line; writes `landscape.json` with every
point, and the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.plotting import MAX_LINES, Plot, axes_of, legend_above, look, save, styled
from lorae.lookup import find_trial
from lorae.sources import Files
from lorae.store.store import Store
from lorae.tasks import Task

if TYPE_CHECKING:
    from lorae.engine.landscape import Point

LINE_MEMBERS = 4  # whose six lines fit in one figure
MARGIN = 0.25  # of the plane around its members, in shares


def line_shares(members: int, one: int, other: int, num: int) -> list[list[float]]:
    """Shares of `num` points from one of the members to another, both ends included."""
    eye = np.eye(members)
    return [((1 - t) * eye[one] + t * eye[other]).tolist() for t in np.linspace(0, 1, num)]


def plane_shares(num: int) -> list[list[float]]:
    """Shares of three members on a grid of `num` x `num` points: those of the second and third are its
    coordinates, the first has what remains."""
    side = np.linspace(-MARGIN, 1 + MARGIN, num)
    return [[1 - u - v, u, v] for v in side for u in side]


@styled
def line_figure(lines: Mapping[str, Sequence[Point]]) -> Plot:
    """NLL along the line of each pair of members."""
    figure, axes = axes_of()
    for number, (name, found) in enumerate(itertools.islice(lines.items(), MAX_LINES)):
        axes.plot(np.linspace(0, 1, len(found)), [p.nll for p in found], label=name, **look(number))
    axes.set(xlabel="share of the second member", ylabel="NLL")
    legend_above(figure, axes)
    caption = (
        "NLL of the models between two members: their updates and heads, weighted by shares that add up to 1."
    )
    return Plot("landscape-lines", caption, figure)


@styled
def plane_figure(plane: Sequence[Point]) -> Plot:
    """NLL on the plane through three members, by the shares of the second and the third."""
    num = round(len(plane) ** 0.5)
    nll = np.array([point.nll for point in plane]).reshape(num, num)
    side = np.linspace(-MARGIN, 1 + MARGIN, num)
    figure, axes = axes_of(2.8)
    drawn = axes.contourf(side, side, nll, levels=12, cmap="Blues_r")
    figure.colorbar(drawn, ax=axes, label="NLL")
    for name, (u, v) in {"first": (0, 0), "second": (1, 0), "third": (0, 1), "mean": (1 / 3, 1 / 3)}.items():
        axes.plot([u], [v], "o", color="black")
        axes.annotate(name, (u, v), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="share of the second member", ylabel="share of the third")
    axes.grid(False)
    caption = (
        "NLL of the models on the plane through three members, by their shares, which add up to 1; axes are "
        "shares, not distances. Mean: the soup of the three."
    )
    return Plot("landscape-plane", caption, figure)


def measure(
    store: Store, members: Sequence[str], task: Task, num_line: int, num_plane: int, backbone: str | None
) -> tuple[dict[str, list[Point]], list[Point]]:
    """The points of the lines between at most `LINE_MEMBERS` members, and of the plane of the first three, []
    for fewer."""
    import torch

    from lorae.engine.landscape import points

    device, source = "cuda" if torch.cuda.is_available() else "cpu", Files(backbone) if backbone else None
    kept = members[:LINE_MEMBERS]
    pairs = list(itertools.combinations(range(len(kept)), 2))
    shares = [point for a, b in pairs for point in line_shares(len(kept), a, b, num_line)]
    rest = [0.0] * (len(kept) - 3)
    shares += [point + rest for point in plane_shares(num_plane)] if len(kept) > 2 else []
    found = points(store, kept, task, shares, device=device, backbone=source)
    lines = {f"{a} - {b}": found[n * num_line : (n + 1) * num_line] for n, (a, b) in enumerate(pairs)}
    return lines, found[len(pairs) * num_line :]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, draw and write; the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m analysis.landscape", description=__doc__)
    parser.add_argument("storage", help="path or URI that a sweep wrote to")
    parser.add_argument("--task", required=True, help='with labels, as for lorae predict: "TREC()"')
    parser.add_argument("--trial", help="its trial_id, or a beginning of it (default: the best ensemble)")
    parser.add_argument("--sweep", help="where to look for it (default: all sweeps)")
    parser.add_argument("--data-root", type=Path, help="local copies of datasets")
    parser.add_argument("--backbone", help="folder where the members' backbone is now")
    parser.add_argument("--points", type=int, default=11, help="of a line (default: 11)")
    parser.add_argument("--side", type=int, default=9, help="points of a side of the plane (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("landscape"), help="folder for the files")
    args = parser.parse_args(argv)
    try:
        from jobs.predict import read_task
        from lorae.engine.landscape import barrier

        if args.points < 3 or args.side < 3:
            raise ValueError(f"--points {args.points}, --side {args.side}: must be >= 3")
        store = Store(args.storage)
        row = find_trial(store, args.trial, args.sweep)
        if row["members"] < 2:
            raise ValueError(f"trial {row['trial_id']} has one member; give an ensemble's by --trial")
        task = read_task(args.task).located(args.data_root)
        found = measure(store, row["member_ids"], task, args.points, args.side, args.backbone)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines, plane = found
    barriers = {name: barrier([p.nll for p in of_line]) for name, of_line in lines.items()}
    for name, height in barriers.items():
        ends = lines[name][0].nll, lines[name][-1].nll
        print(f"members {name}: NLL {ends[0]:.4f} and {ends[1]:.4f}, barrier {height:.4f} nats")
    for plot in [line_figure(lines), *([plane_figure(plane)] if plane else [])]:
        save(plot, args.out)
    record = {
        "trial_id": row["trial_id"],
        "member_ids": row["member_ids"][:LINE_MEMBERS],
        "eval_set": task.eval_set("test"),
        "barriers": barriers,
        "lines": {name: [asdict(p) for p in of_line] for name, of_line in lines.items()},
        "plane": [asdict(p) for p in plane],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "landscape.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{args.out}/landscape.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
