"""A stored table of trials, checked."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lorae import untrusted
from lorae.combinations import COMBINATIONS
from lorae.planning.choice import TUNING
from lorae.results.columns import (
    FACTORS,
    FLAGS,
    LATER,
    OLDER,
    POOLED_FLAG,
    SCALED,
    trial_schema,
)
from lorae.store.names import (
    trials_file,
)
from lorae.store.store import Store


def _targets(value: Any) -> bool:
    """Names of layers, or nothing."""
    return value is None or (type(value) is list and all(type(name) is str for name in value))


def _init(value: Any) -> bool:
    """A spec with a type, a name, or nothing."""
    return type(value.get("type")) is str if type(value) is dict else untrusted.text_if_any(value)


_JSON = {  # what readers of these columns rely on
    "eval_sets": {"test": str, "validation": str, str: str},
    "recipe": {
        "backbone": {"type": str},
        "task": {"task": str},
        "method": {"type": str, "targets": _targets, "init": _init},
        "regularizers": [{"type": str}],
        "budget": {},
        "precision": str,
    },
    "provenance": dict.fromkeys(("command", "commit"), untrusted.text_if_any),
}


_NEVER_NULL = ("trial_id", "sweep", "status", *FACTORS, "member_ids", "reference_id", *_JSON)


def read_trials(store: Store, sweep: str) -> pa.Table:
    """`sweeps/<sweep>/trials.parquet`, with the columns of `trial_schema` and rows that can be relied on.

    Raises:
        ValueError: there is no such sweep, or its table is of an older lorae, damaged or no table of trials.
    """
    where = trials_file(sweep)
    table, expected = store.read_table(sweep), trial_schema(())
    table = _with_later_columns(table)
    absent = [name for name in expected.names if name not in table.column_names]
    if absent:
        raise ValueError(
            f"{where} has no column {', '.join(absent)}: an older lorae wrote it; repeat the sweep, which "
            "rebuilds the table and trains nothing that is stored"
        )
    metrics_of_ood = [name for name in table.column_names if name not in expected.names]
    schema = pa.schema([*expected, *((name, pa.float64()) for name in metrics_of_ood)])
    if not table.schema.equals(pa.schema([schema.field(name) for name in table.column_names])):
        raise ValueError(f"{where} has columns of other types; delete it and repeat the sweep")
    for number, row in enumerate(table.to_pylist()):
        if fault := _row_fault(row) or (row["sweep"] != sweep and f"it is of the sweep {row['sweep']}"):
            raise ValueError(f"{where} row {number}: {fault}; delete it and repeat the sweep")
        shapes = _JSON if row["tuning"] is None else _JSON | {"tuning": TUNING}
        for column, shape in shapes.items():
            untrusted.json_object(row[column].encode(), f"{where} row {number} {column}", shape)
    return table


def _with_later_columns(table: pa.Table) -> pa.Table:
    """A table of a lorae that lacked some columns, with nulls in them. Its temperatures were fitted on
    validation, and are no values of today's columns."""
    if POOLED_FLAG not in table.column_names:
        table = table.drop_columns([name for name in SCALED if name in table.column_names])
        for flag in FLAGS:
            table = table.append_column(flag, pa.array([OLDER] * len(table), pa.string()))
    for name, kind in LATER.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), kind))
    return table


def _row_fault(row: dict[str, Any]) -> str | None:
    if null := [name for name in _NEVER_NULL if row[name] is None]:
        return f"{', '.join(null)} is null"
    if row["status"] not in ("done", "failed", "pruned"):
        return f"status {row['status']!r}, must be done, failed or pruned"
    if row["status"] != "done" and row["error"] is None:
        return f"{row['status']} without an error"
    if row["combine"] not in COMBINATIONS:
        return f"combine {row['combine']!r}, must be {', '.join(COMBINATIONS)}"
    if row["members"] < 0 or None in row["member_ids"]:
        return f"members={row['members']}, member_ids {row['member_ids']}"
    return None
