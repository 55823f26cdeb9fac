"""Tables of texts: how good they are, which score tells wrong ones, and what members add to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.cells import Cell
from analysis.columns import MARGINS, Column, direction, margin_name, title
from analysis.data import Trials
from analysis.influence_texts import JUDGES
from analysis.plotting import method_name
from analysis.significance import ALPHA, Difference, Estimate, Family, Mark
from analysis.table import MARKS, THESE, Entry, Line, Table, cell_columns, cell_line, made_by
from analysis.texts import OF_QUALITY, UNTESTED, Texts
from analysis.texts import Line as ScoreLine
from lorae.tasks.scoring.generate import LOCKSTEP

SHARES = ("exact_match", "number_match")
Estimates = Mapping[str, Estimate]  # of one row, by column
ADDED = ("auroc_wrong", "prr", "aurc_wrong")  # of which differences are shown
BASELINE = "nll_per_token"  # that scores which need several members or texts are compared with
ORACLE = "PRR: 1 for an oracle that rejects wrong answers first, 0 for chance."


# Quality --------------------------------------------------------------------------------------------------


def quality_table(texts: Texts) -> Table:
    """Every way to get one text from M members, in blocks of one test set."""
    metrics = _quality_metrics(texts)
    blocks = []
    for cells in _by_test_set(texts):
        rows = {key: texts.quality(*key) for cell in cells for key in writers(texts, cell)}
        marks = {name: _marks(texts, rows, name) for name in metrics}
        lines = []
        for key, found in rows.items():
            line = _settings(key[0]) | {"text": Entry(writer_name(texts, *key)), "M": Entry(key[2])}
            line |= {n: _entry(found.get(n), marks[n].get(key), n) for n in metrics}
            lines.append(line | {"perplexity": _perplexity(found.get("reference_nll"))})
        blocks.append(tuple(lines))
    columns = [Column("perplexity", "metric"), *(Column(n, "metric") for n in OF_QUALITY[1:])]
    return Table(
        name="quality",
        title=f"Quality of the texts of sweep {texts.trials.sweep}",
        caption=_caption(texts, metrics),
        columns=(
            *_setting_columns(texts),
            Column("text", "text"),
            Column("M", "amount"),
            *(Column(n, "metric") for n in metrics if n not in OF_QUALITY[1:]),
            *columns,
        ),
        blocks=tuple(blocks),
        notes=(*texts.lacking, *missing(texts.trials)),
    )


def writers(texts: Texts, cell: Cell) -> list[tuple[Cell, str, int]]:
    """Ways to a text that a cell stands for; one member and its samples are those of the largest cell."""
    stored, found = texts.of(cell.rows[0]), []
    if not cell.members or cell.is_soup:
        return [(cell, "soup" if cell.is_soup else "member", max(1, cell.members))]
    if cell is texts.largest(cell.recipe):
        found = [(cell, name, 1) for name in ("member", "vote of samples") if stored.has(name)]
    if cell.members > 1:
        found += [(cell, n, cell.members) for n in ("vote of members", *LOCKSTEP) if stored.has(n)]
    return found


def writer_name(texts: Texts, cell: Cell, writer: str, members: int) -> str:
    """What a text comes from, in words."""
    names = {
        "member": "one member" if cell.members else "backbone",
        "vote of samples": f"vote of {texts.of(cell.rows[0]).num_samples} samples of one member",
        "vote of members": f"vote of {members} members",
        "mean": f"lock-step of {members}, mean probability",
        "logits": f"lock-step of {members}, mean logits",
        "soup": f"soup of {members}",
    }
    return names[writer]


# Scores ---------------------------------------------------------------------------------------------------


def scores_table(texts: Texts) -> Table:
    """Every score from every source as a detector of wrong answers, in blocks of one recipe."""
    metrics, blocks = [*JUDGES, *UNTESTED], []
    for recipe in texts.recipes:
        rows = {line: texts.judged(recipe, line) for line in texts.lines(recipe)}
        marks = {name: _marks(texts, rows, name) for name in metrics}
        for_all = _settings(texts.largest(recipe))
        blocks.append(
            tuple(
                for_all
                | _score_entries(texts, recipe, line)
                | {n: _entry(found.get(n), marks[n].get(line), n) for n in metrics}
                for line, found in rows.items()
            )
        )
    return Table(
        name="scores",
        title="Which score tells a wrong answer?",
        caption=f"{_asked(texts)} {ORACLE} {_caption(texts, metrics)}",
        columns=(*_setting_columns(texts), *_score_columns(), *(Column(n, "metric") for n in metrics)),
        blocks=tuple(blocks),
        notes=missing(texts.trials),
    )


def added_table(texts: Texts) -> Table:
    """Each score minus the same of one member, or minus its NLL per token where it has no such score."""
    blocks = []
    for recipe in texts.recipes:
        rows = {line: texts.judged(recipe, line) for line in texts.lines(recipe)}
        pairs = [(line, _alone(line, rows)) for line in rows if line.source != "one"]
        families = {name: replace(_family(texts, rows, name), pairs=pairs) for name in ADDED}
        lines = []
        for line, base in pairs:
            against = Entry("itself" if base.score == line.score else title(base.score))
            settings = _settings(texts.largest(recipe)) | _score_entries(texts, recipe, line)
            lines.append(
                settings
                | {"against": against}
                | {name: _difference(families[name], line, base) for name in ADDED}
            )
        blocks.append(tuple(lines))
    return Table(
        name="added",
        title="Which part do the members add?",
        caption=(
            f"A score minus the same score from one member, or minus one member's NLL per token. "
            f"{_asked(texts)} Simultaneous {1 - ALPHA:.0%} intervals over test examples and trainings, one "
            f"family of all differences of a column; ≈: equivalent within the margin "
            f"({_margins(texts, ADDED)}). {made_by(texts.trials)}"
        ),
        columns=(
            *_setting_columns(texts),
            *_score_columns(),
            Column("against", "text"),
            *(Column(n, "difference") for n in ADDED),
        ),
        blocks=tuple(block for block in blocks if block),
        notes=missing(texts.trials),
    )


def _alone(line: ScoreLine, rows: Mapping[ScoreLine, Estimates]) -> ScoreLine:
    """What a score is compared with: itself from one member, if that is a score of one text."""
    same = ScoreLine(line.score, "one")
    return same if same in rows else ScoreLine(BASELINE, "one")


def source_name(texts: Texts, recipe: str, line: ScoreLine) -> str:
    """Where a score comes from, in words."""
    cell = texts.largest(recipe)
    samples = texts.of(cell.rows[0]).num_samples
    return {
        "one": "one member",
        "samples": f"{samples} samples of one member",
        "members": f"{cell.members} members",
        "members' samples": f"{samples} samples of each of {cell.members} members",
    }[line.source]


def _asked(texts: Texts) -> str:
    """What is right or wrong."""
    kinds = (texts.of(texts.largest(recipe).rows[0]).kind for recipe in texts.recipes)
    rights = " or ".join(dict.fromkeys(title(kind.right) for kind in kinds))
    return (
        f"Asked is which greedy texts of single members are wrong, by {rights}: the same texts in every row, "
        "whatever the score is computed from."
    )


# Entries --------------------------------------------------------------------------------------------------


def _entry(found: Estimate | None, mark: Mark | None, name: str) -> Entry:
    if found is None:
        return Entry(None)
    return Entry(found.mean, found.stderr, mark, is_of_these=_is_tested(name) and not found.is_comparable)


def _perplexity(nll: Estimate | None) -> Entry:
    return Entry(nll and math.exp(nll.value))


def _is_tested(name: str) -> bool:
    return name in MARGINS or name in JUDGES


def _marks(texts: Texts, rows: Mapping[Any, Estimates], name: str) -> dict[Any, Mark]:
    """How each row compares with the best of a tested column."""
    return _family(texts, rows, name).marks(direction(name)) if _is_tested(name) else {}


def _family(texts: Texts, rows: Mapping[Any, Estimates], name: str) -> Family[Any]:
    """All rows that have a column; the rest is "-"."""
    told = {key: found[name] for key, found in rows.items() if name in found}
    return Family(told, _margin(texts, name), is_share=name in SHARES)


def _margin(texts: Texts, name: str) -> float:
    return texts.trials.margins.get(margin_name(name), MARGINS[margin_name(name)])


def _difference(family: Family, line: ScoreLine, base: ScoreLine) -> Entry | Difference:
    if line not in family.rows or base not in family.rows:
        return Entry(None)
    return family.difference(line, base)


def _quality_metrics(texts: Texts) -> list[str]:
    kinds = {texts.of(texts.largest(recipe).rows[0]).kind.name: recipe for recipe in texts.recipes}
    stored = [texts.of(texts.largest(recipe).rows[0]) for recipe in kinds.values()]
    names = [n for one in stored for n in (*one.kind.metrics, *one.kind.corpus)]
    return [*dict.fromkeys(names), *OF_QUALITY]


def _by_test_set(texts: Texts) -> list[list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in texts.cells:
        groups.setdefault(cell.test_set, []).append(cell)
    return list(groups.values())


def _setting_columns(texts: Texts) -> list[Column]:
    return [column for column in cell_columns(texts.trials) if column.name != "members"]


def _settings(cell: Cell) -> Line:
    return cell_line(cell) | ({"model": Entry(method_name(cell.factors["method"]))} if cell.members else {})


def _score_columns() -> list[Column]:
    return [Column("score", "text"), Column("from", "text")]


def _score_entries(texts: Texts, recipe: str, line: ScoreLine) -> Line:
    return {"score": Entry(title(line.score)), "from": Entry(source_name(texts, recipe, line))}


def _margins(texts: Texts, names: Sequence[str]) -> str:
    return ", ".join(f"{title(n)} {_margin(texts, n):g}" for n in names)


def _caption(texts: Texts, names: Sequence[str]) -> str:
    tested = [n for n in names if _is_tested(n)]
    untested = [title(n) for n in names if not _is_tested(n) and direction(n) != "none"]
    lacking = f" Not tested: {', '.join(untested)}." if untested else ""
    return f"{MARKS.format(margins=_margins(texts, tested))} {THESE}{lacking} {made_by(texts.trials)}"


def missing(trials: Trials) -> tuple[str, ...]:
    """What `--allow-missing` left out."""
    return tuple(f"missing: {what}" for what in trials.missing)
