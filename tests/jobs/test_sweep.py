"""A grid on a tiny model, through the command line, real Ray Tune and real MLflow on sqlite."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from demo_file import DEMO_ON_A_TINY_MODEL
from victims import lorae

from jobs.cli import main
from lorae.store.store import Store

pytestmark = pytest.mark.ray


@pytest.fixture
def demo_file(tiny_llama, tmp_path) -> Path:
    file = tmp_path / "demo.py"
    file.write_text(DEMO_ON_A_TINY_MODEL.format(backbone=tiny_llama.path))
    return file


def test_demo_through_ray_and_mlflow_then_again_then_more_members(demo_file, data_root, tmp_path):
    storage = tmp_path / "results"
    words = ("sweep", demo_file, "--storage", storage, "--json")
    first, _ = lorae(*words, data_root=data_root).finished(0)
    assert (first["trials"], first["trained"], first["incomplete"]) == (10, 12, 0)

    rows = pq.read_table(storage / "sweeps/demo/trials.parquet").to_pylist()
    assert [r["members"] for r in rows] == [0, 1, 2, 4, 1, 2, 4, 1, 2, 4]
    assert all(
        r["status"] == "done" and 0 <= r["ece15"] <= 1 and 0 <= r["auroc_msp__greys"] <= 1 for r in rows
    )
    fours = [r for r in rows if r["members"] == 4]
    assert all(r["ensemble_nll"] <= r["mean_member_nll"] for r in fours)
    assert len({m for r in rows for m in r["member_ids"]}) == 12

    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(children) == 10 and len(runs) == 11
    assert len({frozenset(r.data.params) for r in children}) == 1, "every factor on every run"

    started = time.monotonic()
    again, _ = lorae(*words, data_root=data_root).finished(0)
    assert again["trained"] == 0 and time.monotonic() - started < 60
    assert pq.read_table(storage / "sweeps/demo/trials.parquet").select(
        ["trial_id", "ensemble_nll"]
    ).to_pylist() == [{"trial_id": r["trial_id"], "ensemble_nll": r["ensemble_nll"]} for r in rows]
    same = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=100)
    assert {r.info.run_id for r in same} == {r.info.run_id for r in runs}, (
        "running again does not duplicate runs"
    )

    assert main(["audit", str(storage)]) == 0
    assert main(["report", str(storage), "--out", str(tmp_path / "report")]) == 0
    assert "Read this first" not in (tmp_path / "report/index.html").read_text(), "the audit found nothing"

    grown = ("--set", "members=6", "--set", "combine=probs,weights")
    more, _ = lorae(*words, *grown, data_root=data_root).finished(0)
    assert (more["trials"], more["trained"]) == (7, 6), "two members per regulariser, not six; and soups"
    assert len(Store(str(storage)).storage.names("soups")) == 3


def test_local_host_gives_the_same_members_as_tune(demo_file, data_root, tmp_path):
    tables = []
    for host in ([], ["--local"]):
        storage = tmp_path / ("local" if host else "tune")
        words = (
            "sweep",
            demo_file,
            "--storage",
            storage,
            "--set",
            "members=2",
            "--set",
            "regularizers=kl-0.3",
            "--set",
            "draws=none,tfb-2x0.003",
            *host,
        )
        lorae(*words, data_root=data_root, num_threads=1).finished(0)
        (name,) = Store(str(storage)).storage.names("sweeps")
        tables.append(pq.read_table(storage / f"sweeps/{name}/trials.parquet").to_pylist())
    assert [row["draws"] for row in tables[0] if row["members"]] == ["none", "tfb-2x0.003"]
    for one, other in zip(*tables):
        assert one["member_ids"] == other["member_ids"]
        assert one["ensemble_nll"] == pytest.approx(other["ensemble_nll"], abs=1e-4)


def test_a_stack_that_fails_loses_no_other_and_exits_with_1(demo_file, data_root, tmp_path):
    """One cell's training raises in its worker; the other cells are stored, and the message says how to
    resume."""
    broken = tmp_path / "broken.py"
    broken.write_text(demo_file.read_text() + BREAK_KL)
    storage = tmp_path / "results"
    outcome, err = lorae("sweep", broken, "--storage", storage, "--json", data_root=data_root).finished(1)
    assert (outcome["incomplete"], outcome["trained"], len(outcome["failed"])) == (3, 8, 1)
    assert "kl-7" in next(iter(outcome["failed"])) and "out of order" in next(
        iter(outcome["failed"].values())
    )
    assert "resume with: lorae sweep" in err
    rows = pq.read_table(storage / "sweeps/broken/trials.parquet").to_pylist()
    assert [r["status"] for r in rows].count("done") == 7


BREAK_KL = """
from lorae.regularizers import KL
class Broken(float):
    def __mul__(self, other):
        if "ray" in __import__("sys").modules and __import__("ray").is_initialized():
            import threading
            if threading.current_thread() is not threading.main_thread():
                raise RuntimeError("out of order")
        return float(self) * other
regularizers = [(), (KL(Broken(7.0)),), SWEEP.axes["regularizers"][2]]
SWEEP = replace(SWEEP, axes=SWEEP.axes | {"regularizers": regularizers})
"""


def test_wrong_usage_is_one_line_and_exit_code_2(demo_file, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LORAE_DATA_ROOT", str(data_root))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    (tmp_path / "taken").write_text("a file where the storage should be")
    cases = [
        (["sweep", "nowhere.py"], "nowhere.py is no file"),
        (["sweep", str(empty)], "defines no SWEEP"),
        (["sweep", str(demo_file), "--set", "colour=1"], "'colour' is no axis"),
        (["sweep", str(demo_file), "--set", "members=many"], "members='many': must be int"),
        (
            ["sweep", str(demo_file), "--set", "regularizers=l2"],
            "the file gives it the values none, kl-0.3, decay_b-",
        ),
        (
            ["sweep", str(demo_file), "--set", "draws=swag"],
            "write none, mc-10, tfb-10x0.003, laplace-100x10 or posterior-10",
        ),
        (["sweep", str(demo_file), "--set", "members"], "write axis=value"),
        (["sweep", str(demo_file), "--set", "method.rank=99"], "rank=99 exceeds"),
        (["sweep", str(demo_file), "--data-root", str(tmp_path / "none")], "none"),
        (["sweep", str(demo_file), "--storage", str(tmp_path / "taken")], "cannot be written"),
        (["export", "ffff", str(tmp_path / "out"), "--storage", str(tmp_path)], "no stored member"),
    ]
    for words, message in cases:
        assert main(words) == 2, words
        err = capsys.readouterr().err.strip()
        assert message in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.glob("*/members")), "nothing was written"
