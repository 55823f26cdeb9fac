"""The tutorial, end to end; messages that are explained are ours; attributes that are documented exist."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from tutorials import blocks, with_backbone

from jobs import driver
from jobs.cli import main
from lorae.engine.ensembles import EnsemblePrediction
from lorae.media import Image
from lorae.sources import Files
from lorae.tasks.data import parquet, read_rows

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_tutorial_leads_from_a_csv_to_a_prediction(backbones, tmp_path, monkeypatch, capsys):
    """By its own files and commands; the encoder is a tiny one."""
    files = blocks("tutorial.md") | blocks("api.md")
    assert files.keys() == {"make_tickets.py", "tickets.py", "predict.py", "example.py"}
    tiny = f"Files({backbones['bert'].path!r})"
    files["tickets.py"] = with_backbone(files["tickets.py"], tiny)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "_tracked", lambda *arguments: None)
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    runpy.run_path("make_tickets.py", run_name="__main__")
    assert len((tmp_path / "tickets/train.csv").read_text().splitlines()) == 91
    assert main(["check", "tickets.py"]) == 0
    assert main(["sweep", "tickets.py", "--local"]) == 0
    assert "LoRA ensemble of 3" in capsys.readouterr().err
    runpy.run_path("predict.py", run_name="__main__")
    runpy.run_path("example.py", run_name="__main__")
    out = capsys.readouterr().out
    assert "LoRA ensemble of 3" in out and "ensemble_nll" in out and "conformal_set" in out
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["a", "b"]
    Path("new.csv").write_text("text\nI cannot open the invoice\n")
    assert (
        main(["predict", "lorae-results", "--file", "new.csv", "--column", "text", "--out", "p.parquet"]) == 0
    )
    assert Path("p.parquet").is_file()


@pytest.mark.slow
def test_images_lead_from_a_folder_to_a_prediction(backbones, tmp_path, monkeypatch, capsys):
    """By the page's own files and commands; the ViT is a tiny one."""
    files = blocks("images.md")
    assert files.keys() == {"make_shapes.py", "pack_csv.py", "shapes.py"}
    files["shapes.py"] = with_backbone(files["shapes.py"], f"Files({backbones['vit'].path!r})")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "_tracked", lambda *arguments: None)
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    runpy.run_path("make_shapes.py", run_name="__main__")
    assert main(["check", "shapes.py"]) == 0
    assert main(["sweep", "shapes.py", "--local"]) == 0
    assert "LoRA ensemble of 3" in capsys.readouterr().err
    test = sorted(Path("shapes/test/circle").iterdir())
    assert main(["predict", "lorae-results", "--file", str(test[0])]) == 0
    one = capsys.readouterr().out
    assert main(["predict", "lorae-results", "--file", "shapes/test/circle", "--out", "found.csv"]) == 0
    assert len(Path("found.csv").read_text().splitlines()) == 1 + len(test)
    Path("new.csv").write_text(f"photo\n{test[0]}\n")
    assert main(["predict", "lorae-results", "--file", "new.csv", "--column", "photo"]) == 0
    assert capsys.readouterr().out == one and str(test[0]) in one
    Path("labels.csv").write_text("file,label\n" + "".join(f"{path},circle\n" for path in test))
    runpy.run_path("pack_csv.py")
    (row, *_) = read_rows(Files("."), parquet("labels"))
    assert row["label"] == "circle" and Image.of(row["image"]).pixels().shape == (32, 32, 3)


def texts(tree: ast.AST) -> str:
    """All string literals of a module; where an f-string has a value stands nothing."""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.append("".join(str(v.value) for v in node.values if isinstance(v, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts.append(node.value)
    return "\n".join(parts)


def test_every_note_that_is_explained_is_one_of_ours():
    """`tests/jobs/test_mistakes.py` makes the mistakes."""
    sources = [p for folder in ("lorae", "jobs", "analysis") for p in (ROOT / folder).rglob("*.py")]
    ours = "\n".join(texts(ast.parse(p.read_text())) for p in sources).replace("=", "")
    page = (ROOT / "docs/troubleshooting.md").read_text().partition("## No mistakes")[2]
    rows = re.findall(r"(?m)^\| (`.*?) \|", page)
    assert len(rows) == 3
    for phrase in (phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)):
        assert phrase.replace("=", "") in ours, phrase


def test_the_attributes_that_are_documented_exist():
    page = (ROOT / "docs/api.md").read_text().partition("attribute of a prediction")[2]
    named = [n for row in re.findall(r"(?m)^\| (`.*?) \|", page) for n in re.findall(r"`(\w+)", row)]
    assert len(named) == 10
    known = {*EnsemblePrediction.__dataclass_fields__, *vars(EnsemblePrediction)}
    assert set(named) <= known
