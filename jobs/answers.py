"""`lorae predict STORAGE --text "..."`: what a stored ensemble says of given texts. Nothing is stored."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorae.uris import shown

if TYPE_CHECKING:
    from lorae.engine.ensembles import Ensemble, EnsemblePrediction, EnsembleTexts

AT_ONCE = 2048  # rows of a file between two lines of progress
WRITTEN = (".parquet", ".csv", ".jsonl")
TEXT_WIDTH = 60  # characters of an input that are printed


def read_inputs(file: str, column: str | None) -> list[dict[str, Any]]:
    """Rows of a file, with the text in the column "text".

    Args:
        file: a file of rows, an image or a sound, or a folder of these.
        column: where the text is; None = question, text or sentence.
    Raises:
        ValueError: no such file or column, or no rows.
    """
    from lorae.tasks.readers import MEDIA, file_rows

    path = Path(file).expanduser()
    if not path.exists():
        raise ValueError(
            f"--file {file} is no file; give JSON Lines, CSV, Parquet, an image, a sound, or their folder"
        )
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in MEDIA) if path.is_dir() else [path]
    rows = [dict(row) for part in files for row in file_rows(part)]
    if not rows:
        raise ValueError(f"--file {file} has no rows")
    if column is None:
        return rows
    if column not in rows[0]:
        raise ValueError(f"--column {column}: {file} has the columns {', '.join(rows[0])}")
    return [{"text": row[column]} | {c: row[c] for c in ("id", "options") if c in row} for row in rows]


def run_answers(
    ensemble: Ensemble,
    inputs: Sequence[Any],
    out: str | None,
    coverage: float,
    as_json: bool,
    stop: Sequence[str] = (),
) -> None:
    """Predict in parts, or write texts, and print the answers, or write them to `out` when all are there.

    Args:
        stop: texts before which a written answer ends.
    Raises:
        ValueError: an input that cannot be read, or another ending of `out`; nothing is written then.
    """
    if out and Path(out).suffix not in WRITTEN:
        raise ValueError(f"--out {out}: the name must end with {', '.join(WRITTEN)}")
    if stop and not ensemble.writes:
        raise ValueError(f"--stop {stop[0]!r}: members that choose among classes write no text; leave it out")
    print(ensemble if ensemble.writes else f"{ensemble}\n{_temperature(ensemble)}", file=sys.stderr)
    started, columns, notes = time.monotonic(), dict[str, list[Any]](), dict[str, None]()
    for start in range(0, len(inputs), AT_ONCE):
        part = inputs[start : start + AT_ONCE]
        if ensemble.writes:
            found = ensemble.generate(part, stop=stop)
        else:
            found = ensemble.predict(part, coverage=coverage)
        notes |= dict.fromkeys(found.notes)
        if out:
            _extend(columns, {"text": [_text(value) for value in part], **found.columns()})
            done = start + len(part)
            rate = done / (time.monotonic() - started)
            print(f"{done:,} of {len(inputs):,} predicted, {rate:.3g} a second", file=sys.stderr)
        elif as_json:
            _print_json(found)
        elif ensemble.writes:
            _print_texts(cast("EnsembleTexts", found), part)
        else:
            _print(cast("EnsemblePrediction", found), part)
    for note in notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    if out:
        _write(Path(out), columns, ensemble)
        print(f"{len(inputs):,} predictions: {out}", file=sys.stderr)


def _temperature(ensemble: Ensemble) -> str:
    if ensemble.row["temperature"] is None:
        return "temperature 1: none was found"
    num = ensemble.row["num_examples"]
    return f"temperature {ensemble.temperature:.3g}, cross-fitted on {num} test examples"


def _text(value: Any) -> str:
    """What an input is called in the answers."""
    if isinstance(value, dict):
        cells = ("question", "text", "sentence", "file", "path")
        value = next((value[c] for c in cells if isinstance(value.get(c), str)), "")
    return value if isinstance(value, str) else ""


def _extend(columns: dict[str, list[Any]], more: dict[str, list[Any]]) -> None:
    """Add rows; a column that a part lacks is null there."""
    before, num = len(columns["id"]) if columns else 0, len(more["id"])
    for name in {**columns, **more}:
        columns.setdefault(name, [None] * before).extend(more.get(name, [None] * num))


def _print_json(found: EnsemblePrediction | EnsembleTexts) -> None:
    columns = found.columns()
    for values in zip(*columns.values()):
        print(json.dumps(dict(zip(columns, values)), ensure_ascii=False))


def _short(value: Any) -> str:
    """An input on one line, at most `TEXT_WIDTH` characters."""
    text = " ".join(_text(value).split())
    return text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 3] + "..."


def _print(found: EnsemblePrediction, inputs: Sequence[Any]) -> None:
    """A line for each answer, for a person."""
    width = max(map(len, found.labels))
    sets = found.conformal_sets or [()] * len(found)
    for n, (label, value) in enumerate(zip(found.labels, inputs)):
        p, information = found.probabilities[n].max(), found.mutual_information[n]
        among = f"  {found.coverage:.0%} set: {', '.join(sets[n])}" if sets[n] else ""
        told = f"{label:<{width}} {p:.3f}  disagreement {information:.3f} nats{among}  {_short(value)}"
        print(told if information == information else told.replace("  disagreement nan nats", ""))


def _print_texts(found: EnsembleTexts, inputs: Sequence[Any]) -> None:
    """Each answer, what it cost in certainty, and the answers of members that differ."""
    for n, (text, value) in enumerate(zip(found.texts, inputs)):
        told = [f"NLL per token {found.scores['nll_per_token'][n]:.3f} nats"]
        if information := found.scores.get("mutual_information"):
            told.append(f"disagreement {information[n]:.3f} nats")
        told += [] if found.finished[n] else ["cut at the maximum"]
        print(f"{_short(value)}\n  {text}  ({', '.join(told)})")
        others = dict.fromkeys(other for other in found.member_texts[n] if other != text)
        for other in others:
            print(f"    a member alone: {other}")


def _write(path: Path, columns: dict[str, list[Any]], ensemble: Ensemble) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        said = {"trial": ensemble.row["trial_id"], "temperature": f"{ensemble.temperature:.17g}"}
        pq.write_table(pa.table(columns).replace_schema_metadata(said), path)
        return
    with path.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            rows = (dict(zip(columns, values)) for values in zip(*columns.values()))
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        from analysis.escape import csv_cell

        flat = {n: v for n, v in columns.items() if n not in ("member_probabilities", "probabilities")}
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(csv_cell, flat))
        writer.writerows(_cells(flat))


def _cells(columns: dict[str, list[Any]]) -> Iterator[list[Any]]:
    """Rows of a CSV file: names of a set are parted by "|"."""
    from analysis.escape import csv_cell

    for values in zip(*columns.values()):
        yield [csv_cell("|".join(value) if isinstance(value, list) else value) for value in values]
