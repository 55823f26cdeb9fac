"""A prediction set as a Parquet file: the class logits of one entry's draws on one evaluation set."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lorae.identity import SCHEMA_VERSION
from lorae.store.ownership import EVAL_SET, OWNER
from lorae.store.tables import MAX_VALUES, table_schema

if TYPE_CHECKING:
    from lorae.tasks.base import Task
    from lorae.tasks.encoding import Row

_TEMPLATE = "lorae_template"
SCHEMA = {b"lorae_schema": str(SCHEMA_VERSION).encode()}  # metadata of every table

PREDICTIONS = pa.schema(
    [
        pa.field("member_id", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # -1: unlabelled
        pa.field("logits", pa.list_(pa.float32()), nullable=False),  # only of the example's classes
    ],
    metadata=SCHEMA,
)
# For numbers, "logits" are a member's outputs, and the label is 0 if the number is known
VALUE = pa.field("value", pa.float64())
VALUE_PREDICTIONS = PREDICTIONS.append(VALUE)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class logits of the draws of some members on one evaluation set; classes an example lacks are -inf. For
    numbers, the members' outputs, and floating labels, NaN where a number is not known."""

    logits_MNC: np.ndarray
    labels_N: np.ndarray
    example_ids: tuple[str, ...]


def prediction_file(eval_set: str) -> str:
    """File name of an entry's predictions on an evaluation set."""
    return f"predictions/{eval_set}.parquet"


def prediction_sets(files: Iterable[str]) -> set[str]:
    """Names of the prediction sets among an entry's files."""
    folder, suffix = prediction_file("").split(".")
    return {f.removeprefix(folder).removesuffix("." + suffix) for f in files if f.startswith(folder)}


def prediction_bytes(
    member_id: str,
    eval_set: str,
    example_ids: Sequence[str],
    labels: Sequence[int],
    num_classes: Sequence[int],
    logits_KNC: np.ndarray,
    template: str = "",
    values: Sequence[float] | None = None,
) -> bytes:
    """Parquet file of the K draws of one member on one evaluation set `<task>__<split>__<hash>[-<draws>]`.

    Args:
        template: template of the prompts, kept in the file's metadata, as an audit compares those of two
            sets.
        values: the numbers to predict, NaN where one is not known; None = classes are predicted.
    Raises:
        ValueError: a logit of an existing class is not finite; names the example.
    """
    task, split, _ = eval_set.rsplit("__", 2)
    num_draws, num_examples, width = logits_KNC.shape
    total = num_draws * num_examples
    has_NC = np.arange(width) < np.asarray(num_classes)[:, None]
    bad_KN = (has_NC & ~np.isfinite(logits_KNC)).any(axis=2)
    if bad_KN.any():
        k, n = np.argwhere(bad_KN)[0]
        row = logits_KNC[k, n, : num_classes[n]].tolist()
        raise ValueError(f"member {member_id} predicts logits {row} on {example_ids[n]} of {eval_set}")
    ends = np.cumsum(np.tile(has_NC.sum(axis=1), num_draws))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    logits = pa.ListArray.from_arrays(offsets, logits_KNC[:, has_NC].ravel().astype(np.float32))
    columns = {
        "member_id": [member_id] * total,
        "draw": np.repeat(np.arange(num_draws, dtype=np.int32), num_examples),
        "task": [task] * total,
        "split": [split] * total,
        "example_id": list(example_ids) * num_draws,
        "label": np.tile(np.asarray(labels, np.int32), num_draws),
        "logits": logits,
    }
    said = {EVAL_SET: eval_set, OWNER: member_id, _TEMPLATE: template}
    if values is not None:
        known = np.tile(np.asarray(values, np.float64), num_draws)
        columns[VALUE.name] = pa.array(known, mask=np.isnan(known))
    schema = (PREDICTIONS if values is None else VALUE_PREDICTIONS).with_metadata(
        SCHEMA | {key: text.encode() for key, text in said.items()}
    )
    return parquet_bytes(pa.table(columns, schema=schema))


def rows_bytes(
    entry_id: str, eval_set: str, task: Task, rows: Sequence[Row], logits_KNC: np.ndarray
) -> bytes:
    """`prediction_bytes` of a task's encoded examples."""
    scoring = rows[0].scoring
    predicted = scoring.predicted_rows(rows)
    ids, labels, classes = zip(*((r.id, r.label, r.num_classes) for r in predicted))
    values = scoring.gold(rows).tolist() if scoring.answer == "value" else None
    template = task.prompt_template()
    return prediction_bytes(entry_id, eval_set, ids, labels, classes, logits_KNC, template, values)


def template_of(content: bytes, where: str) -> str:
    """The prompt template that a prediction file names; "" if it names none.

    Raises:
        ValueError: the file is damaged.
    """
    found = (table_schema(content, where).metadata or {}).get(_TEMPLATE.encode(), b"")
    return found.decode(errors="replace")


def _examples(table: pa.Table) -> pa.Table:
    """Id, label and number of classes of each row."""
    classes = pc.call_function("list_value_length", [table["logits"]])
    columns = {"example_id": table["example_id"], "label": table["label"], "classes": classes}
    return pa.table(columns | {name: table[name] for name in table.column_names if name == VALUE.name})


def gold_of(examples: pa.Table) -> np.ndarray:
    """Labels (N,) of the examples of `draws_of`: classes, or numbers, NaN where one is not known."""
    named = VALUE.name if VALUE.name in examples.column_names else "label"
    return examples[named].to_numpy()


def draws_of(table: pa.Table, where: str) -> tuple[pa.Table, np.ndarray]:
    """The N examples of one entry's table, and its logits (K, N, C) padded with -inf.

    Raises:
        ValueError: the rows are not the same N examples, each once, for draw 0, 1, ..., with finite logits.
    """
    rows, num_draws = _examples(table), table["draw"][-1].as_py() + 1 if len(table) else 0
    if fault := _fault(table, rows, num_draws):
        raise ValueError(f"{where} cannot be used: {fault}; delete it and repeat the sweep that made it")
    classes = rows["classes"].to_numpy()
    logits = np.full((len(rows), classes.max()), -np.inf, np.float32)
    logits[np.arange(classes.max()) < classes[:, None]] = (
        table["logits"].combine_chunks().flatten().to_numpy()
    )
    examples = rows.slice(0, len(rows) // num_draws)
    return examples, logits.reshape(num_draws, len(examples), -1)


def _fault(table: pa.Table, rows: pa.Table, num_draws: int) -> str | None:
    """What is wrong with the rows of a prediction set, or None."""
    if not 1 <= num_draws <= len(rows) or len(rows) % num_draws:
        return f"{len(rows)} rows, the last of draw {num_draws - 1}"
    size = len(rows) // num_draws
    if not np.array_equal(table["draw"].to_numpy(), np.repeat(np.arange(num_draws), size)):
        return "the rows of a draw are missing, repeated or not together"
    if not rows.take(np.tile(np.arange(size), num_draws)).equals(rows):
        return "the draws saw different examples, or in another order"
    if pc.call_function("count_distinct", [rows["example_id"]]).as_py() < size:
        return "an example repeats"
    labels, classes, logits = rows["label"].to_numpy(), rows["classes"].to_numpy(), table["logits"]
    if VALUE.name in rows.column_names:
        known = rows[VALUE.name].drop_null().to_numpy()
        if not np.isfinite(known).all() or len(known) != (labels == 0).sum():
            return "a number is not finite, or its label does not say that it is known"
    if (labels < -1).any() or (labels >= classes).any():
        return "a label is no class of its example"
    if len(rows) * int(classes.max()) > MAX_VALUES:
        return f"{len(rows)} rows of up to {classes.max()} classes, at most {MAX_VALUES} logits are read"
    values = logits.combine_chunks().flatten()
    if values.null_count or not np.isfinite(values.to_numpy()).all():
        return "a logit is not finite"
    return None


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a compressed Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
