"""Columns and rows of tables that a paper has room for: `--columns`, `--rows` and `--metric`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from analysis.columns import Column, all_metrics, title
from analysis.data import Trials
from analysis.table import Line, Table, comparison
from lorae.near import did_you_mean

MEASURED = ("metric", "pooled", "difference", "level", "estimate")  # kinds of columns that `--metric` chooses
ALL_ROWS = "Shown are rows with {rows}; marks compare all rows."


def with_metrics(trials: Trials, tables: Sequence[Table], metrics: Sequence[str]) -> list[Table]:
    """The comparison by other metrics, and the columns of these in all other tables.

    Args:
        metrics: names as in trials.parquet, or the heads' words: acc or accuracy.
    Raises:
        ValueError: no such metric.
    """
    names = {key: name for name in all_metrics(trials) for key in (title(name), name)}
    for word in metrics:
        if word not in names:
            known = ", ".join(all_metrics(trials))
            raise ValueError(f"--metric {word}: {did_you_mean(word, names)}there are {known}")
    wanted = [names[word] for word in metrics]

    def chosen(table: Table) -> Table:
        kept = (c for c in table.columns if c.kind not in MEASURED or c.name in wanted)
        return replace(table, columns=tuple(kept))

    return [comparison(trials, wanted) if table.name == "table" else chosen(table) for table in tables]


def those_that_have(tables: Sequence[Table], choose: Callable[[Table], Table]) -> list[Table]:
    """What is chosen of each table; those without it are left out.

    Raises:
        ValueError: none has it.
    """
    found, faults = [], []
    for table in tables:
        try:
            found.append(choose(table))
        except ValueError as error:
            faults.append(error)
    if tables and not found:
        raise faults[0]
    return found


def with_columns(table: Table, names: Sequence[str]) -> Table:
    """The table with these columns alone, in this order; a name is as in trials.parquet, or the head's words.

    Raises:
        ValueError: it has none of them; one that it lacks is left out, as tables differ.
    """
    by_name = {key: column for column in table.columns for key in (title(column.name), column.name)}
    found = [by_name[name] for name in names if name in by_name]
    if not found:
        known = [column.name for column in table.columns if column.kind != "data"]
        raise ValueError(
            f"--columns {','.join(names)}: {did_you_mean(names[0], known)}{table.name} has {', '.join(known)}"
        )
    data = [column for column in table.columns if column.kind == "data"]
    shown = [replace(c, kind="text") if c.kind == "data" else c for c in found]
    return replace(table, columns=(*(c for c in data if c not in found), *shown))


def with_rows(table: Table, words: Sequence[str]) -> Table:
    """The lines that have one of these words in a column of text, whatever its case.

    Raises:
        ValueError: no line has.
    """
    texts = [column for column in table.columns if column.kind in ("text", "data")]
    blocks = [tuple(line for line in block if _has(line, texts, words)) for block in table.blocks]
    kept = tuple(block for block in blocks if block)
    if not kept:
        cells = {str(line[c.name].value) for block in table.blocks for line in block for c in texts[-2:]}
        raise ValueError(
            f"--rows {','.join(words)}: no row of {table.name} has it; there are {sorted(cells)}"
        )
    note = ALL_ROWS.format(rows=" or ".join(words))
    return replace(table, blocks=kept, caption=f"{table.caption} {note}")


def _has(line: Line, columns: Sequence[Column], words: Sequence[str]) -> bool:
    cells = " | ".join(str(line[c.name].value) for c in columns if c.name in line).lower()
    return any(word.lower() in cells for word in words)
