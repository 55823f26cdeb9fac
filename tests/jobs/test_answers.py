"""`lorae predict STORAGE --text ...`: answers to raw texts, which leave no trace; and the removal of what was
added."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from toys import OPTIONS
from trained import TEXTS, files

from jobs.cli import main
from lorae.engine.ensembles import Ensemble
from lorae.store.names import member_folder, reference_folder
from lorae.store.predictions import prediction_sets
from lorae.store.store import Store


@pytest.fixture
def expected(stored):
    return Ensemble.load(stored.storage, stored.trial).predict(TEXTS)


def test_texts_are_answered_in_the_terminal(stored, expected, capsys):
    words = [word for text in TEXTS for word in ("--text", text)]
    assert main(["predict", stored.storage, "--trial", stored.trial[:10], *words]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(expected.labels)
    assert [line.split()[1] for line in lines] == [f"{p:.3f}" for p in expected.probabilities.max(axis=1)]
    assert all(line.endswith(text) for line, text in zip(lines, TEXTS)) and "90% set: " in lines[0]
    assert f"trial {stored.trial} of sweep toy" in err and "temperature" in err
    assert main(["predict", stored.storage, "--trial", stored.trial, *words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["p_red"] for row in rows] == pytest.approx(expected.probabilities[:, 0], abs=1e-6)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_becomes_a_file_and_leaves_no_trace(stored, expected, tmp_path, monkeypatch, ending):
    monkeypatch.setattr("jobs.answers.AT_ONCE", 2)
    source, out, before = tmp_path / f"in.{ending}", tmp_path / f"out/found.{ending}", files(stored.storage)
    rows = [{"id": f"n{n}", "review": text} for n, text in enumerate(TEXTS)]
    if ending == "parquet":
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist(rows), source)
    elif ending == "csv":
        source.write_text("id,review\n" + "".join(f"{row['id']},{row['review']}\n" for row in rows))
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["predict", stored.storage, "--trial", stored.trial, "--column", "review"]
    assert main([*words, "--file", str(source), "--out", str(out)]) == 0
    if ending == "parquet":
        table = pq.read_table(out)
        found = table.to_pylist()
        assert table.schema.metadata[b"trial"].decode() == stored.trial
        members = np.array([row["member_probabilities"] for row in found])
        np.testing.assert_allclose(members.transpose(1, 0, 2), expected.member_probabilities, atol=1e-6)
    elif ending == "csv":
        found = list(csv.DictReader(out.open()))
        assert [set(r["conformal_set"].split("|")) for r in found] == [*map(set, expected.conformal_sets)]
    else:
        found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in found] == ["n0", "n1", "n2"] and [row["text"] for row in found] == TEXTS
    assert [row["label"] for row in found] == list(expected.labels)
    p = [[float(row[f"p_{name}"]) for name in OPTIONS] for row in found]
    np.testing.assert_allclose(p, expected.probabilities, atol=1e-6)
    assert files(stored.storage) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file", "nowhere.csv"], "--file nowhere.csv is no file"),
        (["--text", "w1", "--out", "found.xlsx"], "--out found.xlsx: the name must end with .parquet"),
        (["--text", "w1", "--trial", "none"], "has no trial 'none'; it has"),
        (["--text", "w1", "--coverage", "2"], "coverage=2.0: must be in (0, 1)"),
        (["--text", "  "], "input 0: '  '; must be a text that is not empty"),
        (["--text", "w1", "--sweep", "other"], "the storage has the sweeps: toy"),
        (["--task", "TREC", "--out", "x.csv"], "--out belongs to --text and --file"),
        (["--remove", "greys"], "--remove greys: no such set can be removed; those that can: none"),
        (["--remove", "colours"], "no such set can be removed; a sweep asked for it"),
    ],
)
def test_mistakes_are_one_line(stored, capsys, words, message):
    assert main(["predict", stored.storage, *words]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_a_column_that_is_not_there_is_named_with_those_that_are(stored, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("review,stars\nw1 w2,5\n")
    words = ["predict", stored.storage, "--file", str(tmp_path / "in.csv")]
    assert main(words) == 2
    assert "input 0: the columns review, stars; must be" in capsys.readouterr().err
    assert main([*words, "--column", "text"]) == 2
    assert "has the columns review, stars" in capsys.readouterr().err


def test_a_set_that_was_added_by_mistake_is_removed_without_a_trace(stored, data_root, capsys):
    store = Store(stored.storage)
    folders = [member_folder(m) for m in stored.trials[1].member_ids()]
    folders.append(reference_folder(stored.trials[1].reference_id()))
    before = {folder: store.files(folder) for folder in folders}
    task = f"{toys.__file__}:Greys"
    added = ["predict", stored.storage, "--task", task, "--data-root", str(data_root)]
    assert main(added) == 0
    assert "--remove greys" in capsys.readouterr().out
    assert all(len(prediction_sets(store.files(f) - before[f])) == 1 for f in folders)
    assert main(["predict", stored.storage, "--remove", "greys"]) == 0
    assert "removed from 4 entries" in capsys.readouterr().out
    assert {folder: store.files(folder) for folder in folders} == before
    assert not any(map(store.damage, folders))

    assert not list(Path(stored.storage).rglob("*greys*"))
    assert main(added) == 0, "and it can be added again"
    assert main(["predict", stored.storage, "--remove", "greys"]) == 0
