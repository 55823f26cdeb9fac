"""A stack on several ranks is the stack on one: shares of rows, a backbone in parts, the same members."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Greys

from jobs.zero import Zero, deepspeed_config, zero_devices
from lorae.methods import Vera
from lorae.plan import Devices
from lorae.ranks import Ranks
from lorae.regularizers import KL, AdapterDropout, EarlyStopping
from lorae.run import run_stack
from lorae.stack import Stack
from lorae.store import Store, member_folder
from lorae.trial import AdamW, Budget, Trial

RUN = """
import functools, pickle, sys
import torch
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
from jobs.zero import load_partitioned
from lorae.run import run_stack
jobs = pickle.load(open(sys.argv[1], "rb"))
for stack, storage, zero, settings in jobs:
    load = functools.partial(load_partitioned, zero=zero)
    run_stack(stack, storage, load=load, **settings)
"""


def on_ranks(jobs, num: int, tmp_path: Path) -> None:
    file = tmp_path / "jobs"
    file.write_bytes(pickle.dumps(jobs))
    root = Path(__file__).parent.parent
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num}", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(file)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-5000:]


def test_it(tiny_trial, data_root, tmp_path):
    trial = tiny_trial(
        optimizer=AdamW(lr=3e-2, max_grad_norm=0.5),
        budget=Budget(batch_size=5, steps=30),
        regularizers=(KL(0.1), AdapterDropout(0.1), EarlyStopping(patience=2, every=5)),
        members=3,
    )
    stack = Stack(trial, (0, 1, 2), (Greys().located(data_root),))
    on_ranks([(stack, str(tmp_path / "zero"), Zero(2), {})], 2, tmp_path)
    run_stack(stack, str(tmp_path / "local"))
    a, b = Store(str(tmp_path / "zero")), Store(str(tmp_path / "local"))
    folders = [member_folder(m) for m in trial.member_ids()]
    for s in stack.eval_sets():
        print(np.abs(a.predictions(folders, s).logits_MNC - b.predictions(folders, s).logits_MNC).max(), b.predictions(folders, s).logits_MNC.std())
    assert 0
