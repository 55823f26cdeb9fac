"""What happens to machines: processes killed, storage that refuses or is full, interrupts. Each ends with
every member trained once, and with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from toys import Colours
from victims import (
    SERVER,
    STEP_SECONDS,
    SWEEP_FILE,
    append,
    contents,
    exit_code,
    lines,
    lorae_process,
    printed,
    stack_process,
    wait_until,
)

from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout
from lorae.store.names import member_folder
from lorae.store.storage import Storage
from lorae.trial import AdamW, Budget, Trial

pytestmark = [pytest.mark.cluster, pytest.mark.process]

STEPS = 16


@pytest.fixture(scope="module")
def stack(tiny_llama, data_root) -> Stack:
    trial = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        optimizer=AdamW(lr=1e-2),
        budget=Budget(batch_size=4, steps=12),
        regularizers=(KL(0.1), AdapterDropout(0.1)),
        precision="fp32",
    )
    return Stack(trial, (0, 1))


@pytest.fixture(scope="module")
def undisturbed(stack, tmp_path_factory) -> tuple[dict[str, bytes], list[str]]:
    """What an undisturbed run of the stack stores, and its log."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(stack_process(stack, folder / "store", folder / "log")) == 0
    return contents(folder / "store"), lines(folder / "log")


@pytest.fixture(scope="module")
def sweep(tiny_llama, data_root, tmp_path_factory) -> tuple[object, ...]:
    """Words of a sweep of two stacks on the local host; the storage is to be appended."""
    file = tmp_path_factory.mktemp("sweep") / "faults.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path, steps=STEPS))
    return ("sweep", file, "--local", "--data-root", data_root, "--storage")


@pytest.fixture(scope="module")
def swept(sweep, tmp_path_factory) -> Path:
    """The storage of an undisturbed run of the sweep."""
    storage = tmp_path_factory.mktemp("swept") / "store"
    assert exit_code(lorae_process((*sweep, storage), storage.with_name("log"))) == 0
    return storage


def trained_steps(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in lines(log) if line.startswith("train ") and line != "train 0"]


def stored(log: Path) -> Counter[str]:
    """How many times each member was stored; a crash while they are may repeat the very same."""
    return Counter(line.split()[1] for line in {*lines(log)} if line.startswith("stored members/"))


@pytest.mark.parametrize("seed", range(20))
def test_kill_9_anywhere_resumes_and_ends_with_the_same_bytes(stack, undisturbed, tmp_path, seed):
    rng, log = random.Random(seed), tmp_path / "log"
    goal = rng.randrange(len(undisturbed[1]))
    victim = stack_process(stack, tmp_path / "store", log)
    wait_until(lambda: len(lines(log)) > goal, victim)
    time.sleep(rng.uniform(0, 0.02))  # within a step, a checkpoint or the storing of a member
    victim.kill()
    victim.join()
    assert exit_code(stack_process(stack, tmp_path / "store", log)) == 0
    assert contents(tmp_path / "store") == undisturbed[0]
    assert set(stored(log).values()) == {1}
    steps = trained_steps(log)
    assert all(a < b for a, b in pairwise(steps)), "a step that was saved is not made again"


def test_lock_of_a_live_owner_is_respected_and_of_a_dead_one_taken_over(stack, tmp_path):
    held, free = (stack.trial.member_id(m) for m in stack.members)
    owner = SERVER.Process(target=hold_lock, args=(str(tmp_path / "store"), held, tmp_path / "owner"))
    owner.start()
    wait_until(lambda: lines(tmp_path / "owner"), owner)
    os.kill(owner.pid, signal.SIGSTOP)  # alive, though it does nothing
    try:
        waiting = stack_process(stack, tmp_path / "store", tmp_path / "log")
        wait_until(lambda: member_folder(free) in stored(tmp_path / "log"), waiting)
        time.sleep(1.5)  # it asks for the lock once a second
        assert member_folder(held) not in stored(tmp_path / "log") and waiting.is_alive()
    finally:
        owner.kill()
    assert exit_code(waiting) == 0
    assert set(stored(tmp_path / "log").values()) == {1}


def hold_lock(storage: str, name: str, ready: Path) -> None:
    with Storage(storage).lock(name):
        append(ready, "held")
        time.sleep(600)


def test_storage_that_refuses_for_a_while_is_tried_again(stack, undisturbed, tmp_path):
    """A file where the folder of the members should be: each write is refused until it is gone."""
    log, obstacle = tmp_path / "log", tmp_path / "store/members"
    obstacle.parent.mkdir()
    obstacle.write_text("")
    process = stack_process(stack, tmp_path / "store", log)
    wait_until(lambda: "trying again" in printed(log), process)
    obstacle.unlink()
    assert exit_code(process) == 0
    assert contents(tmp_path / "store") == undisturbed[0]
    assert trained_steps(log) == list(range(1, 13)), "nothing is trained again"


def test_storage_that_refuses_for_long_ends_the_stack_which_resumes(stack, undisturbed, tmp_path):
    log, obstacle = tmp_path / "log", tmp_path / "store/members"
    obstacle.parent.mkdir()
    obstacle.write_text("")
    assert exit_code(stack_process(stack, tmp_path / "store", log, retry_seconds=1.5)) == 1
    error = printed(log)
    assert f"storage {tmp_path / 'store'} refused members/" in error and "repeat the command" in error
    obstacle.unlink()
    assert exit_code(stack_process(stack, tmp_path / "store", log)) == 0
    assert contents(tmp_path / "store") == undisturbed[0]
    assert trained_steps(log) == list(range(1, 13)), "it went on from the checkpoint of the last step"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A tmpfs of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_storage_keeps_the_rest_and_the_repeated_command_finishes(sweep, swept, small_disk, tmp_path):
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    paths = [p for p in swept.rglob("*") if p.is_file() and "mlflow" not in str(p.relative_to(swept))]
    pages = sum(-(-p.stat().st_size // 4096) for p in paths)
    resize(small_disk, pages * 6 // 10)
    log, words = tmp_path / "log", (*sweep, small_disk, *tracking)
    assert exit_code(lorae_process(words, log, retry_seconds=0.5)) == 1
    error = printed(log)
    assert "No space left on device" in error and "resume with: lorae sweep" in error
    assert "Traceback" not in error
    kept = contents_of_members(small_disk)
    assert kept.items() < contents(swept).items() and kept, "what was stored before stays as it was"
    resize(small_disk, 10 * pages)
    assert exit_code(lorae_process(words, log)) == 0
    assert contents(small_disk) == contents(swept)


def contents_of_members(storage: Path) -> dict[str, bytes]:
    """`contents` of the members that exist, where there is also what was not finished."""
    done = {p.parent.name for p in storage.glob("members/*/DONE.json")}
    return {name: path.read_bytes() for name, path in files(storage).items() if name.split("/")[1] in done}


def files(storage: Path) -> dict[str, Path]:
    found = [*storage.glob("members/*/*.safetensors"), *storage.glob("members/*/predictions/*.parquet")]
    return {str(p.relative_to(storage)): p for p in found}


def resize(folder: Path, pages: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={4 * pages}k", folder], check=True)


def test_two_drivers_on_one_storage_train_each_member_once(sweep, swept, tmp_path):
    words = (*sweep, tmp_path / "store")
    drivers = [lorae_process(words, tmp_path / "log") for _ in range(2)]
    assert [exit_code(d) for d in drivers] == [0, 0], printed(tmp_path / "log")
    assert len(lines(tmp_path / "log")) == 2 * STEPS
    assert contents(tmp_path / "store") == contents(swept)


def test_driver_killed_and_the_command_repeated(sweep, swept, tmp_path):
    words, log = (*sweep, tmp_path / "store"), tmp_path / "log"
    driver = lorae_process(words, log)
    wait_until(lambda: len(lines(log)) > STEPS * 3 // 2, driver)  # in the middle of the second stack
    driver.kill()
    driver.join()
    assert exit_code(lorae_process(words, log)) == 0
    assert Counter(line.split()[1] for line in lines(log))[lines(log)[0].split()[1]] == STEPS
    assert contents(tmp_path / "store") == contents(swept)


@pytest.mark.parametrize("notice", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "preemption"])
def test_interrupt_saves_a_checkpoint_and_the_next_run_goes_on_from_that_step(sweep, swept, tmp_path, notice):
    words, log = (*sweep, tmp_path / "store"), tmp_path / "log"
    driver = lorae_process(words, log)
    wait_until(lambda: len(lines(log)) > STEPS // 2, driver)
    os.kill(driver.pid, notice)
    assert exit_code(driver) == 130
    assert "repeat the command to resume" in printed(log)
    assert len(list((tmp_path / "store").glob("checkpoints/*.safetensors"))) == 1
    assert exit_code(lorae_process(words, log)) == 0
    assert len(lines(log)) == 2 * STEPS, "no step is lost, none is made twice"
    assert contents(tmp_path / "store") == contents(swept)


def test_second_interrupt_exits_at_once(sweep, tmp_path, monkeypatch):
    """The first one waits for a step that never ends."""
    monkeypatch.setenv(STEP_SECONDS, "600")
    log = tmp_path / "log"
    driver = lorae_process((*sweep, tmp_path / "store"), log)
    wait_until(lambda: lines(log), driver)
    os.kill(driver.pid, signal.SIGINT)
    wait_until(lambda: "once more" in printed(log), driver)
    assert driver.is_alive()
    os.kill(driver.pid, signal.SIGINT)
    assert exit_code(driver) == 130
    assert not list((tmp_path / "store").glob("checkpoints/*.safetensors"))
