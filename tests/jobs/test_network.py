"""Who can reach what runs: the addresses on which each host listens, and what goes between ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from victims import SERVER, SWEEP_FILE, exit_code, lorae

from jobs.process_group import interface_of
from lorae.backbone.processes import Ranks

pytestmark = [pytest.mark.cluster, pytest.mark.process]

SWEEP = "from dataclasses import replace\n" + SWEEP_FILE
SEARCH = "\nfrom lorae.search import ASHA\nSWEEP = replace(SWEEP, search=ASHA(every=4, reduction=1.5))\n"


def listeners(pid: int) -> dict[int, set[str]]:
    """Addresses on which a process and its descendants listen, by process, until the first one has ended."""
    found: dict[int, set[str]] = {}
    parent = psutil.Process(pid)
    while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
        for process in (parent, *parent.children(recursive=True)):
            try:
                sockets = process.net_connections("inet")
            except psutil.Error:  # it has just ended
                continue
            addresses = {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
            found.setdefault(process.pid, set()).update(addresses)
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two CPUs")
@pytest.mark.parametrize(
    "host,search,fewest",  # processes that listen: none; gcs, raylet, agents and workers; two ranks as well
    [(("--local",), "", 0), ((), "", 4), ((), SEARCH, 4), (("--zero", "2"), "", 6)],
    ids=["local", "tune", "search", "zero"],
)
def test_a_sweep_listens_on_this_machine_alone(tiny_llama, data_root, tmp_path, host, search, fewest):
    """Every socket of the driver, of Ray's daemons, of the workers and of their process group."""
    file = tmp_path / "listening.py"
    file.write_text(SWEEP.format(backbone=tiny_llama.path, steps=8) + search)
    words = ("sweep", file, "--storage", tmp_path / "results", "--json", *host)
    command = lorae(*words, data_root=data_root, num_threads=1)
    found = listeners(command.process.pid)
    outcome, _ = command.finished(0)
    assert outcome["trained"] in ((2, 4) if search else (4,))  # ASHA may end a stack, by who comes first
    assert sum(map(bool, found.values())) >= fewest and not (host == ("--local",) and any(found.values()))
    assert set().union(*found.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, found


SENT = {
    "none": None,
    "numbers": [1, 2.5, float("inf"), True],
    "text": {"ä": "ß"},
    "tensors": [torch.arange(6.0).reshape(2, 3).t(), {"deep": torch.tensor(3, dtype=torch.bfloat16)}],
    "empty": torch.zeros(0, 2, dtype=torch.bool),
}


def test_results_reach_the_other_rank_without_a_pickle(tmp_path):
    ranks = [SERVER.Process(target=_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    assert [exit_code(rank) for rank in ranks] == [0, 0]


def _rank(rank: int, folder: Path) -> None:
    dist.distributed_c10d._tensor_to_object = dist.distributed_c10d._object_to_tensor = (
        None  # torch's pickles
    )
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    got = Ranks(rank, 2).once(lambda: SENT if rank == 0 else 1 / 0)
    assert {k: v for k, v in got.items() if k not in ("tensors", "empty")} == {
        k: v for k, v in SENT.items() if k not in ("tensors", "empty")
    }
    for one, other in zip([got["tensors"][0], got["tensors"][1]["deep"], got["empty"]], _tensors()):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    dist.destroy_process_group()


def _tensors() -> list[torch.Tensor]:
    return [SENT["tensors"][0], SENT["tensors"][1]["deep"], SENT["empty"]]


@pytest.mark.parametrize("value", [{1: "a"}, [({"a": {2: None}},)], np.zeros(3), Path("x"), {"a": {3}}])
def test_what_json_would_change_or_not_take_is_refused(value):
    with pytest.raises(TypeError, match="sent to other ranks"):
        Ranks(0, 2).once(lambda: value)


def test_an_address_of_another_machine_is_refused():
    assert interface_of("127.0.0.1").startswith("lo")
    with pytest.raises(ValueError, match=r"192\.0\.2\.254, but .*127\.0\.0\.1.*--node-ip-address"):
        interface_of("192.0.2.254")
