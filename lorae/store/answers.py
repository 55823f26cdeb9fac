"""Texts that answer examples, with what every member of a pool says of their tokens; a Parquet file of them.

A member, a soup and the backbone are pools of one. A file belongs to an entry, and says by metadata of which
members it is, with the checksums of their weights: what was written by a member that was trained again since
is not taken for the new one's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lorae import untrusted
from lorae.store.ownership import EVAL_SET, OWNER
from lorae.store.predictions import SCHEMA, parquet_bytes
from lorae.store.tables import MAX_VALUES, table, table_schema

KINDS = ("reference", "greedy", "sample", "lockstep", "soup", "verdict")
MEMBERS = "lorae_members"  # key of metadata: member id -> checksum of its weights, in the pool's order

ANSWERS = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),  # T
        pa.field("log_probs", pa.list_(pa.float32()), nullable=False),  # M * T, member after member
        pa.field("entropies", pa.list_(pa.float32()), nullable=False),  # M * T
        pa.field("mean_entropy", pa.list_(pa.float32()), nullable=False),  # T
    ],
    metadata=SCHEMA,
)
TOKEN_BYTES = 4 * 4  # stored of a token by one member, before compression: id, log-probability, two entropies


@dataclass(frozen=True, eq=False)
class Answer:
    """One text that answers an example, and what each of M members says of its T tokens.

    The pool's probability of a token is the mean over members of exp(log_probs_MT), of any subset as well.

    Where a member's logits were not finite its numbers are NaN, and the mean's too.

    Attributes:
        kind: one of `KINDS`; a reference was written by nobody, a lock-step text by all members at once. A
            verdict answers whether the source's greedy text is true.
        source: position in the pool of the member that wrote it; -1 = no single one.
        draw: which sample of its source, which reference, which rule of `generate.LOCKSTEP`, or which of
            `generate.VERDICTS`; 0 otherwise.
        token_ids: T tokens, the end token included where the text is finished.
        finished: it ended by itself, not at the maximum of tokens.
        log_probs_MT: natural logarithm of each token's probability, by member.
        entropies_MT: of each next-token distribution, in nats, by member.
        mean_entropy_T: of the members' mean distribution, in nats.
    """

    example_id: str
    kind: str
    source: int
    draw: int
    text: str
    token_ids: tuple[int, ...]
    finished: bool
    log_probs_MT: np.ndarray  # float32
    entropies_MT: np.ndarray  # float32
    mean_entropy_T: np.ndarray  # float32


@dataclass(frozen=True, eq=False)
class Answers:
    """All answers of a pool on one evaluation set.

    Attributes:
        members: id -> checksum of its weights, in the pool's order; of a soup or the backbone its own id, and
            no checksum.
        answers: example after example.
    """

    members: dict[str, str]
    answers: tuple[Answer, ...]

    def by_example(self) -> dict[str, list[Answer]]:
        """The answers of each example, in order."""
        found: dict[str, list[Answer]] = {}
        for answer in self.answers:
            found.setdefault(answer.example_id, []).append(answer)
        return found


def answers_file(name: str) -> str:
    """Of an entry's answers.

    Args:
        name: of the evaluation set, and of how members were decoded: see `answer_set`.
    """
    return f"answers/{name}.parquet"


def answer_set(eval_set: str, decoding: str) -> str:
    """Name of the answers to an evaluation set, by a decoding's identity."""
    return f"{eval_set}-{decoding}"


def answers_bytes(owner: str, name: str, members: Mapping[str, str], answers: Sequence[Answer]) -> bytes:
    """Parquet file of an entry's answers.

    Args:
        owner: the entry.
        name: of the answers, see `answer_set`.
        members: as `Answers` has them.
    """
    columns = {
        **{key: [getattr(a, key) for a in answers] for key in ("example_id", "kind", "text", "finished")},
        "source": np.array([a.source for a in answers], np.int32),
        "draw": np.array([a.draw for a in answers], np.int32),
        "token_ids": _lists([np.array(a.token_ids, np.int32) for a in answers], np.int32),
        "log_probs": _lists([a.log_probs_MT for a in answers]),
        "entropies": _lists([a.entropies_MT for a in answers]),
        "mean_entropy": _lists([a.mean_entropy_T for a in answers]),
    }
    said = {OWNER: owner, EVAL_SET: name, MEMBERS: json.dumps(dict(members))}
    schema = ANSWERS.with_metadata(SCHEMA | {key: text.encode() for key, text in said.items()})
    ordered = {field: columns[field] for field in ANSWERS.names}
    return parquet_bytes(pa.table(ordered, schema=schema))


def _lists(arrays: Sequence[np.ndarray], dtype: type = np.float32) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([array.size for array in arrays])]).astype(np.int32)
    flat = np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)])
    return pa.ListArray.from_arrays(offsets, flat.astype(dtype))


def read_answers(content: bytes, where: str) -> Answers:
    """The answers of a file.

    Raises:
        ValueError: it is damaged, another table, or its rows contradict one another: see `fault`.
    """
    found, members = table(content, where, ANSWERS), members_of(content, where)
    if why := fault(found, len(members)):
        raise ValueError(f"{where} cannot be used: {why}; delete it and repeat the sweep that made it")
    return Answers(members, tuple(_answers(found, len(members))))


def members_of(content: bytes, where: str) -> dict[str, str]:
    """The members of a file of answers, with the checksums of their weights.

    Raises:
        ValueError: it is damaged.
    """
    said = (table_schema(content, where).metadata or {}).get(MEMBERS.encode(), b"{}")
    return untrusted.json_object(said, f"{where} {MEMBERS}", {str: str})


def fault(found: pa.Table, num_members: int) -> str | None:
    """What is wrong with the rows of a table of answers, or None.

    Each text is there once; its arrays are as long as its tokens; log-probabilities are at most 0, entropies
    at least 0, both NaN where a member broke; who wrote it is of the pool.
    """
    if not num_members:
        return "it does not say whose members it is of"
    if not len(found):
        return "it has no answers"
    lengths = {n: pc.call_function("list_value_length", [found[n]]).to_numpy() for n in _ARRAYS}
    if int(sum(length.sum() for length in lengths.values())) > MAX_VALUES:
        return f"it has more than {MAX_VALUES} numbers"
    tokens = lengths["token_ids"]
    for name, length in lengths.items():
        expected = tokens * (num_members if name in ("log_probs", "entropies") else 1)
        if (length != expected).any():
            n = int((length != expected).argmax())
            return f"row {n} has {length[n]} {name} of {tokens[n]} tokens by {num_members} members"
    values = {name: found[name].combine_chunks().flatten() for name in _ARRAYS}
    if any(v.null_count or np.isinf(v.to_numpy()).any() for v in values.values()):
        return "a number is infinite"
    if (np.isnan(values["log_probs"].to_numpy()) != np.isnan(values["entropies"].to_numpy())).any():
        return "a token has an entropy and no log-probability by a member, or the reverse"
    if (values["log_probs"].to_numpy() > 0).any():
        return "a log-probability is above 0"
    if any((values[name].to_numpy() < 0).any() for name in ("entropies", "mean_entropy")):
        return "an entropy is below 0"
    source, kinds = found["source"].to_numpy(), set(found["kind"].unique().to_pylist())
    if unknown := kinds - set(KINDS):
        return f"kind {sorted(unknown)[0]!r}, must be one of {', '.join(KINDS)}"
    if (source < -1).any() or (source >= num_members).any():
        return f"a text is of no member of the pool of {num_members}"
    keys = found.select(["example_id", "kind", "source", "draw"])
    if keys.group_by(keys.column_names).aggregate([]).num_rows < len(keys):
        return "a text repeats"
    return None


_ARRAYS = ("token_ids", "log_probs", "entropies", "mean_entropy")


def _answers(found: pa.Table, num_members: int) -> Iterator[Answer]:
    lists = {}
    for name in _ARRAYS:
        column = found[name].combine_chunks()
        lists[name] = column.flatten().to_numpy(), column.offsets.to_numpy() - column.offsets[0].as_py()
    scalars = found.drop_columns(list(_ARRAYS)).to_pylist()
    for n, row in enumerate(scalars):
        ids, log_probs, entropies, mean = (
            values[offsets[n] : offsets[n + 1]] for values, offsets in (lists[name] for name in _ARRAYS)
        )
        yield Answer(
            **row,
            token_ids=tuple(ids.tolist()),
            log_probs_MT=log_probs.reshape(num_members, -1),
            entropies_MT=entropies.reshape(num_members, -1),
            mean_entropy_T=mean,
        )
