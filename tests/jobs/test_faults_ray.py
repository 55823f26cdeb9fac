"""The faults of `test_faults.py` under Ray Tune: workers, nodes and the driver are lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from ray_processes import descendants, ray_folder  # noqa: F401  (a fixture)
from victims import (
    LOG,
    SWEEP_FILE,
    contents,
    exit_code,
    lines,
    lorae_process,
    printed,
    wait_until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.ray]
STEPS = 40


@pytest.fixture(scope="module")
def sweep(tiny_llama, data_root, tmp_path_factory) -> tuple[object, ...]:
    """Words of a sweep of two stacks; the storage is to be appended."""
    file = tmp_path_factory.mktemp("sweep") / "faults.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=STEPS))
    return ("sweep", file, "--data-root", data_root, "--storage")


@pytest.fixture(scope="module")
def swept(sweep, tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed run on the local host stores."""
    storage = tmp_path_factory.mktemp("swept") / "store"
    assert exit_code(lorae_process((*sweep, storage, "--local"), storage.with_name("log"))) == 0
    return contents(storage)


def workers(log: Path) -> dict[str, list[int]]:
    """Processes that trained each stack, one for each of its steps."""
    found: dict[str, list[int]] = {}
    for pid, beta in (line.split() for line in lines(log)):
        found.setdefault(beta, []).append(int(pid))
    return found


def in_training(log: Path) -> bool:
    """Whether both stacks have made some steps."""
    return len(workers(log)) == 2 and min(map(len, workers(log).values())) > 5


def test_worker_killed_and_worker_preempted(sweep, swept, tmp_path):
    """One worker gets SIGKILL and its stack is trained again; one gets SIGTERM and no step is lost."""
    log = tmp_path / "log"
    driver = lorae_process((*sweep, tmp_path / "store"), log)
    wait_until(lambda: in_training(log), driver)
    (killed, (*_, victim)), (preempted, (*_, leaving)) = workers(log).items()
    os.kill(victim, signal.SIGKILL)
    os.kill(leaving, signal.SIGTERM)
    assert exit_code(driver) == 0, printed(log)
    assert contents(tmp_path / "store") == swept
    after = workers(log)
    assert len(set(after[killed])) == len(set(after[preempted])) == 2, "another worker went on"
    assert len(after[preempted]) == STEPS < len(after[killed])


def test_ctrl_c_saves_every_stack_and_leaves_no_process(sweep, swept, tmp_path):
    words, log = (*sweep, tmp_path / "store"), tmp_path / "log"
    driver = lorae_process(words, log)
    wait_until(lambda: in_training(log), driver)
    started = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGINT)
    assert exit_code(driver) == 130, printed(log)
    assert "repeat the command to resume" in printed(log) and "Traceback" not in printed(log)
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert len(list((tmp_path / "store").glob("checkpoints/*.safetensors"))) == 2
    assert exit_code(lorae_process((*words, "--local"), log)) == 0
    assert {len(pids) for pids in workers(log).values()} == {STEPS}, "no step is lost, none is made twice"
    assert contents(tmp_path / "store") == swept


def test_ctrl_c_twice_leaves_no_process(sweep, tmp_path):
    log = tmp_path / "log"
    driver = lorae_process((*sweep, tmp_path / "store"), log)
    wait_until(lambda: in_training(log), driver)
    started = descendants(driver.pid)
    for worker in {pids[-1] for pids in workers(log).values()}:
        os.kill(worker, signal.SIGSTOP)  # they cannot save
    os.kill(driver.pid, signal.SIGINT)
    wait_until(lambda: "once more" in printed(log), driver)
    os.kill(driver.pid, signal.SIGINT)
    assert exit_code(driver) == 130, printed(log)
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_driver_killed_and_the_command_repeated(sweep, swept, tmp_path):
    words, log = (*sweep, tmp_path / "store"), tmp_path / "log"
    driver = lorae_process(words, log)
    wait_until(lambda: in_training(log), driver)
    started = descendants(driver.pid)
    driver.kill()
    training = {pid for pids in workers(log).values() for pid in pids}
    _, alive = psutil.wait_procs([p for p in started if p.pid in training], timeout=60)
    assert not alive, "the workers go with the driver"
    assert exit_code(lorae_process((*words, "--local"), log)) == 0
    assert contents(tmp_path / "store") == swept


def test_node_killed_and_another_joins(sweep, swept, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    log = tmp_path / "log"
    monkeypatch.setenv(LOG, str(log))  # the nodes are started here, not by the driver
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=1)
        driver = lorae_process((*sweep, tmp_path / "store", "--address", cluster.address), log)
        wait_until(lambda: in_training(log), driver)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert exit_code(driver) == 0, printed(log)
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "store") == swept
    assert sorted(len(set(pids)) for pids in workers(log).values()) == [1, 2]
