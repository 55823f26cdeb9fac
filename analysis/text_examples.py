"""Examples of texts: what the members of one seed wrote, side by side."""

from __future__ import annotations

import numpy as np

from analysis.columns import Column, title
from analysis.figures_texts import ACROSS, recipe_suffix
from analysis.table import Entry, Table
from analysis.texts import OF_ALL, PoolTexts, Texts
from lorae.texts.pools import vote

SHOWN_EXAMPLES, SHOWN_CHARACTERS = 12, 160


def examples_table(texts: Texts, recipe: str) -> Table:
    """Members' greedy answers side by side: the examples that they disagree on most, then others in order."""
    cell = texts.largest(recipe)
    stored = texts.of(cell.rows[0])
    everyone, pooled = tuple(range(len(stored.members))), [n for n in OF_ALL if stored.has(n)]
    heads, together = [f"member {m}" for m in stored.members], [ACROSS[n] for n in pooled]
    lines = []
    for place in _featured(stored):
        example = stored.examples[place]
        view = example.view("members", stored.members[0], stored.members, stored.kind.key)
        said = {h: example.greedy[m].text for h, m in zip(heads, stored.members)}
        said |= {ACROSS[n]: example.pooled[n].text for n in pooled} | {"vote": vote(view).text}
        judged = {n: _judged_text(t, stored.kind.quality(t, example.gold)) for n, t in said.items()}
        line = {"example": example.example_id, "references": " / ".join(map(_cut, example.gold[:3]))}
        lines.append({n: Entry(value) for n, value in (line | judged).items()})
    unfinished = sum(not e.greedy[m].finished for e in stored.examples for m in stored.members)
    return Table(
        name=f"examples{recipe_suffix(texts, recipe)}",
        title="Members' answers side by side",
        caption=(
            f"Greedy texts of the {len(everyone)} members of seed {cell.rows[0]['seed']}, each with its "
            f"{title(stored.kind.right)}: first the examples that the members disagree on most. "
            f"{unfinished} of {len(stored.examples) * len(everyone)} greedy texts did not end by themselves."
        ),
        columns=tuple(Column(n, "text") for n in ("example", "references", *heads, *together, "vote")),
        blocks=(tuple(lines),),
    )


def _featured(stored: PoolTexts) -> list[int]:
    """Places of half of the shown examples by disagreement, then of as many others in order."""
    keys = [[stored.kind.key(e.greedy[m].text) for m in stored.members] for e in stored.examples]
    distinct_N = np.array([len(set(row)) for row in keys])
    split = np.argsort(-distinct_N, kind="stable")[: SHOWN_EXAMPLES // 2].tolist()
    others = [n for n in range(len(keys)) if n not in split]
    return [*split, *others[: SHOWN_EXAMPLES - len(split)]]


def _judged_text(text: str, quality: float) -> str:
    mark = {0.0: "✗", 1.0: "✓"}.get(quality, f"{quality:.2f}")
    return f"{_cut(text)} [{mark}]"


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_CHARACTERS else words[: SHOWN_CHARACTERS - 1] + "…"
