"""A storage without its weights, in a few Parquet files: everything its tables are computed from.

    python -m analysis.archive pack lorae-results results/study study study_trec
    python -m analysis.archive unpack results/study lorae-results

An archive has a folder for each sweep, and SHA256SUMS:

    <sweep>/trials.parquet         the sweep's table, as it was stored
    <sweep>/predictions.parquet    prediction sets and paths of the entries that no earlier sweep has
    <sweep>/answers.parquet        their texts, where members write any
    <sweep>/curves.parquet         their training curves
    <sweep>/records.parquet        their JSON files: recipes, streams, costs, fits of draws
    <sweep>/files.parquet          size and checksum of each of their files, weights included

Each row begins with its entry (`members/<id>`, `reference/<id>`, `soups/<id>`) and file. Unpacking gives a
storage whose members have no weights: tables, reports, the audit and further sweeps read it like any other,
and only what needs weights fails. `opened` accepts an archive in place of a storage.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.audit_tuning import tuning_folders
from analysis.rows import Row, is_soup, pool, together
from lorae.identity import SCHEMA_VERSION
from lorae.results import read_trials
from lorae.store.answers import ANSWERS
from lorae.store.names import CURVE_FILE, PATH_FILE, member_folder, reference_folder, trials_file
from lorae.store.predictions import PREDICTIONS, parquet_bytes
from lorae.store.records import CURVE
from lorae.store.store import Store
from lorae.store.tables import table as as_table

SUMS = "SHA256SUMS"
OPTIONAL = {"answers"}  # tables that the archive of sweeps without texts does not have
PLACE = [pa.field("entry", pa.string()), pa.field("file", pa.string())]
METADATA = pa.field("metadata", pa.string())  # the schema metadata as JSON: the prompt template
RECORDS = pa.schema([*PLACE, pa.field("text", pa.string())])
FILES = pa.schema([*PLACE, pa.field("sha256", pa.string()), pa.field("bytes", pa.int64())])
SCHEMAS = {
    "predictions": pa.schema([*PLACE, METADATA, *PREDICTIONS]),
    "answers": pa.schema([*PLACE, METADATA, *ANSWERS]),
    "curves": pa.schema([*PLACE, METADATA, *CURVE]),
    "records": RECORDS,
    "files": FILES,
}


def pack(storage: str, sweeps: Sequence[str], folder: Path) -> int:
    """Write an archive of some sweeps, in this order; returns its bytes.

    Raises:
        ValueError: there is no such sweep, or one of its entries is damaged.
    """
    store, packed, sums = Store(storage), set[str](), {}
    for sweep in sweeps:
        rows = read_trials(store, sweep).to_pylist()
        entries = [e for e in entries_of(rows) if e not in packed and store.files(e)]
        packed.update(entries)
        contents = {"trials": _published_table(store, sweep)}
        contents |= {name: parquet_bytes(table) for name, table in _tables(store, entries).items()}
        for name, content in contents.items():
            path = folder / sweep / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            sums[f"{sweep}/{name}.parquet"] = content
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sums.items()]
    (folder / SUMS).write_text("".join(lines))
    return sum(map(len, sums.values()))


def placeless(text: str) -> str:
    """A provenance without the folders of the machine that wrote it, because archives are published."""
    return re.sub(r"(?<=[\s\"=])/(?:[^\s/\"]+/)*([^\s/\"]+)", r"\1", text)


def entries_of(rows: Iterable[Row]) -> list[str]:
    """Entries that the rows are computed from, and those that tuned their recipes."""
    found: dict[str, None] = {}
    for row in rows:
        reference = [] if row["reference_id"] == "none" else [reference_folder(row["reference_id"])]
        members = map(member_folder, row["member_ids"]) if is_soup(row) else ()
        found |= dict.fromkeys([*reference, *pool(row), *members, *together(row), *tuning_folders(row)])
    return list(found)


def _tables(store: Store, entries: Sequence[str]) -> dict[str, pa.Table]:
    """The tables of an archive's folder, by name."""
    parts: dict[str, list[pa.Table]] = {name: [SCHEMAS[name].empty_table()] for name in SCHEMAS}
    for entry in entries:
        listed = dict(sorted(store.checksums(entry).items()))
        for name in sorted(store.files(entry)):
            kind = _kind(name)
            if kind == "records":
                text = _published(store.read(entry, name).decode())
                content = text.encode()
                listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                parts[kind].append(pa.table([[entry], [name], [text]], schema=RECORDS))
            elif kind:
                parts[kind].append(_placed(store, entry, name, SCHEMAS[kind]))
        columns = [
            [entry] * len(listed),
            [*listed],
            *zip(*((f["sha256"], f["bytes"]) for f in listed.values())),
        ]
        parts["files"].append(pa.table(columns, schema=FILES))
    found = {name: pa.concat_tables(of) for name, of in parts.items()}
    return {name: table for name, table in found.items() if len(table) or name not in OPTIONAL}


def _published_table(store: Store, sweep: str) -> bytes:
    """A sweep's trials.parquet with placeless provenances."""
    table, name = store.read_table(sweep), "provenance"
    texts = table[name].to_pylist()
    told = [text and placeless(text) for text in texts]
    if told == texts:
        return store.storage.read(trials_file(sweep))
    place = table.schema.get_field_index(name)
    return parquet_bytes(table.set_column(place, table.schema.field(place), [told]))


def _published(text: str) -> str:
    """A record with a placeless provenance, if any, padded to its old length: rows count stored bytes."""
    record = json.loads(text)
    if "provenance" not in record:
        return text
    record["provenance"] = json.loads(placeless(json.dumps(record["provenance"])))
    return json.dumps(record, indent=1).ljust(len(text))


def _kind(name: str) -> str | None:
    """The table that a file of an entry goes to; None for weights, which are left out."""
    if name.endswith(".json"):
        return "records"
    if name == CURVE_FILE:
        return "curves"
    if name.startswith("answers/"):
        return "answers"
    return "predictions" if name == PATH_FILE or name.startswith("predictions/") else None


def _placed(store: Store, entry: str, name: str, schema: pa.Schema) -> pa.Table:
    """A table of an entry, preceded by columns that say where it was stored."""
    table = pq.read_table(pa.BufferReader(store.read(entry, name)))
    if more := set(table.column_names) - set(schema.names):
        raise ValueError(f"{entry}/{name} has {', '.join(more)}: predictions of numbers are not archived yet")
    texts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    places = [pa.repeat(text, len(table)) for text in (entry, name, json.dumps(texts))]
    return pa.table([*places, *table.columns], schema=schema)


def unpack(folder: Path, storage: str) -> None:
    """Write an archive's entries and sweeps into a folder, as a storage without weights.

    Raises:
        ValueError: a file is missing, or differs from its checksum.
    """
    store = Store(storage)
    for sweep, contents in _checked(folder).items():
        tables = {
            name: as_table(contents[name], f"{folder}/{sweep}/{name}.parquet", schema)
            for name, schema in SCHEMAS.items()
            if name in contents or name not in OPTIONAL
        }
        files = dict(_records(tables["records"]))
        for name in tables.keys() & {"predictions", "answers", "curves"}:
            files |= dict(_split(tables[name]))
        for entry, listed in _listed(tables["files"]).items():
            _write_entry(store, entry, listed, {n: files[entry, n] for n in listed if (entry, n) in files})
        _write(store, trials_file(sweep), contents["trials"])


def _checked(folder: Path) -> dict[str, dict[str, bytes]]:
    """Content of an archive's files, by sweep and name."""
    found: dict[str, dict[str, bytes]] = {}
    for line in (folder / SUMS).read_text().splitlines():
        checksum, _, name = line.partition("  ")
        sweep, _, table = name.partition("/")
        path = folder / Path(sweep).name / Path(table).name
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(
                f"{path} differs from its checksum in {SUMS}, or is missing; restore it, or pack anew"
            )
        found.setdefault(sweep, {})[Path(table).stem] = content
    return found


Place = tuple[str, str]  # entry, file


def _records(table: pa.Table) -> Iterator[tuple[Place, bytes]]:
    for row in table.to_pylist():
        yield (row["entry"], row["file"]), row["text"].encode()


def _split(table: pa.Table) -> Iterator[tuple[Place, bytes]]:
    """The files that make up a table; the rows of each file are contiguous."""
    codes = [table[c].combine_chunks().dictionary_encode().indices.to_numpy() for c in ("entry", "file")]
    starts = np.flatnonzero(np.any([np.diff(code, prepend=-1) for code in codes], axis=0))
    for start, end in itertools.pairwise([*starts.tolist(), len(table)]):
        part = table.slice(start, end - start)
        entry, name, metadata = (part[column][0].as_py() for column in ("entry", "file", "metadata"))
        columns = part.drop_columns(["entry", "file", "metadata"])
        yield (
            (entry, name),
            parquet_bytes(columns.replace_schema_metadata(json.loads(metadata)).combine_chunks()),
        )


def _listed(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Size and checksum of each entry's original files."""
    found: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        found.setdefault(row["entry"], {})[row["file"]] = {"sha256": row["sha256"], "bytes": row["bytes"]}
    return found


def _write_entry(store: Store, entry: str, listed: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write an entry's files and its DONE.json, which says what was left out."""
    for name, content in files.items():
        _write(store, f"{entry}/{name}", content)
    there = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
    absent = {name: entry for name, entry in listed.items() if name not in files}
    done = {"schema": SCHEMA_VERSION, "files": there} | ({"left_out": absent} if absent else {})
    _write(store, f"{entry}/DONE.json", json.dumps(done).encode())


def _write(store: Store, name: str, content: bytes) -> None:
    """Unlike `Storage.write`, do not wait for the disk: an archive can be unpacked again."""
    path = Path(store.storage.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextlib.contextmanager
def opened(storage: str) -> Iterator[str]:
    """The storage itself, or a folder that an archive is unpacked into, deleted after the block."""
    if "://" in storage or not (Path(storage).expanduser() / SUMS).is_file():
        yield storage
        return
    with tempfile.TemporaryDirectory(prefix="lorae-archive-") as unpacked:
        unpack(Path(storage).expanduser(), unpacked)
        yield unpacked


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or unpack; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.archive", description=(__doc__ or "").split("\n")[0]
    )
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack", help="write an archive of some sweeps")
    packing.add_argument("storage", help="path or URI that the sweeps wrote to")
    packing.add_argument("archive", type=Path, help="folder to write")
    packing.add_argument("sweep", nargs="+", help="names of sweeps; an entry is in the first that has it")
    unpacking = actions.add_parser("unpack", help="make a storage of an archive")
    unpacking.add_argument("archive", type=Path, help="folder that was packed")
    unpacking.add_argument("storage", help="folder to write")
    args = parser.parse_args(argv)
    try:
        if args.action == "pack":
            print(f"{pack(args.storage, args.sweep, args.archive) / 1e6:.1f} MB: {args.archive}")
        else:
            unpack(args.archive, args.storage)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
