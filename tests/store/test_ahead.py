"""Many entries are read in parallel, each DONE.json once, in bounded memory; what changed is read again."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from sweeps import make_sweep, tabulate, toy_trials

from lorae.store import ahead as ahead_module
from lorae.store.ahead import ahead
from lorae.store.names import member_folder
from lorae.store.objects import Objects
from lorae.store.store import Store

AXES = {"optimizer.lr": [1e-4, 1e-3, 1e-2], "members": [1, 4]}


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each file was read, and each folder listed."""
    counted: Counter[str] = Counter()
    for kind in ("read_once", "names", "details"):
        original = getattr(Objects, kind)

        def counting(self, name, *rest, original=original):
            counted[name] += 1
            return original(self, name, *rest)

        monkeypatch.setattr(Objects, kind, counting)
    return counted


def test_a_table_reads_each_done_json_once_and_each_other_file_once_a_row(tmp_path, reads):
    storage, trials = make_sweep(tmp_path, AXES), toy_trials(tmp_path, AXES)
    reads.clear()
    tabulate(Store(storage), trials)
    done = {name: num for name, num in reads.items() if name.endswith("DONE.json")}
    assert len(done) == 3 * 4 + 1 and max(done.values()) <= 2, "two threads may ask for the same one at once"
    rows = Counter(member for trial, _ in trials for member in trial.member_ids())
    others = {n: num for n, num in reads.items() if n.startswith("members/") and n not in done}
    assert all(num == rows[name.split("/")[1]] for name, num in others.items())
    assert sum(others.values()) == 4 * sum(rows.values())  # three prediction sets and member.json


def test_what_is_not_stored_costs_one_listing(tmp_path, reads):
    store = Store(str(tmp_path / "empty"))
    with store.remembering():
        assert not any(store.is_member(f"{n:016x}") for n in range(100))
    assert reads == {"members": 1}


def test_a_done_json_that_has_changed_meanwhile_is_read_again(tmp_path):
    mine, others, folder = Store(str(tmp_path)), Store(str(tmp_path)), member_folder("m")
    mine.write_entry(folder, {"a.json": b'{"n": 1}'})
    with mine.remembering():
        mine.read(folder, "a.json")
        others.write_entry(folder, {"a.json": b'{"n": 2}', "b.json": b"{}"})
        assert b'"n": 2' in mine.read(folder, "a.json"), "by the checksum of today"
        others.write_entry(folder, {"a.json": b'{"n": 3}'})
        assert mine.damage(folder) is None
        assert mine.read(folder, "b.json")
        mine.write_entry(folder, {"c.json": b"{}"})
        assert mine.files(folder) == {"a.json", "b.json", "c.json"}
        mine.discard(folder)
        assert mine.files(folder) == set()


def test_rot_is_found_within_it(tmp_path):
    store, folder = Store(str(tmp_path)), member_folder("m")
    store.write_entry(folder, {"a.json": b'{"n": 1}'})
    with store.remembering():
        assert store.damage(folder) is None
        (tmp_path / folder / "a.json").write_bytes(b'{"n": 7}')
        assert "differs from its checksum" in str(store.damage(folder))
        with pytest.raises(ValueError, match="differs from its checksum"):
            store.read(folder, "a.json")
        store.set_damaged_aside([folder])
        assert store.files(folder) == set() and not store.is_member("m")


def test_results_come_in_order_and_threads_wait_together():
    together = threading.Barrier(8)

    def wait(n: int) -> int:
        if n:  # the first is computed alone
            together.wait(timeout=30)
        return n

    assert list(ahead(wait, range(1 + 8 * 4))) == list(range(1 + 8 * 4))


def test_no_more_is_computed_ahead_than_memory_is_for(monkeypatch):
    monkeypatch.setattr(ahead_module, "MAX_AHEAD_BYTES", 300)
    computed, lock = [0], threading.Lock()

    def compute(n: int) -> int:
        with lock:
            computed[0] += 1
        return n

    for used, _ in enumerate(ahead(compute, range(40), size=lambda result: 100)):
        time.sleep(0.002)
        assert computed[0] <= used + 1 + 3


def test_an_error_comes_where_its_result_would():
    def fails_at_three(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    results = ahead(fails_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
