"""A stack on several ranks is the stack on one: shares of rows, a backbone in parts, the same members.

The ranks are two processes that talk through gloo; DeepSpeed partitions every matrix of the tiny backbone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toys import Colours, Greys
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from victims import lorae

from jobs.cli import main
from jobs.zero import PERSISTENT_NUMBERS, Zero, _has_died, deepspeed_config, zero_devices
from lorae.backbone.loading import load_backbone
from lorae.backbone.processes import Ranks
from lorae.draws import SWAG, TFB, Laplace, Posterior
from lorae.engine.run import run_stack
from lorae.methods import Blob, PVera, Rank1BNN, Vera
from lorae.planning.estimate import Devices
from lorae.planning.stack import Stack, StackResult
from lorae.regularizers import KL, AdapterDropout, EarlyStopping
from lorae.shapes import linear_shapes, linears_of, num_backbone_parameters
from lorae.sources import Files
from lorae.store.names import member_folder, soup_folder
from lorae.store.store import Store
from lorae.tasks.base import OptionLikelihood
from lorae.trial import AdamW, Budget, Trial

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

ROOT = Path(__file__).parents[2]

# Any touch of the store by another rank than 0 is an error: its storage is below a file
RUN = """
import pickle, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
dist.distributed_c10d._tensor_to_object = None  # nothing that a rank gets from another one is unpickled
from jobs import zero
from lorae.engine.run import run_stack
zero.PERSISTENT_NUMBERS = 100

def run(case, storage):
    parts, steps = {}, []
    def load(*arguments):
        backbone = zero.load_partitioned(*arguments, zero=case.zero)
        for name, p in backbone.lm.named_parameters():
            parts[name] = (p.ds_numel, p.ds_tensor.numel(), p.numel())
        return backbone
    def on_progress(progress):
        steps.append(progress.step)
        if progress.step == case.stop_at:
            raise InterruptedError
    storage = storage if dist.get_rank() == 0 else __file__ + "/forbidden"
    try:
        result = run_stack(case.stack, storage, load=load, on_progress=on_progress, **case.settings)
    except InterruptedError:
        result = None
    return result, [s for s in steps if s], parts

with open(sys.argv[1], "rb") as stream:
    outcomes = [run(*job) for job in pickle.load(stream)]
with open(f"{sys.argv[1]}.{dist.get_rank()}", "wb") as stream:
    pickle.dump(outcomes, stream)
dist.destroy_process_group()  # else gloo's threads abort the process at its exit
"""


@dataclass
class Case:
    """A stack, how it is spread, and settings of `run_stack`; all ranks stop after step `stop_at`."""

    stack: Stack
    zero: Zero = Zero(2)
    settings: dict[str, Any] = field(default_factory=dict)
    stop_at: int = -1


@dataclass
class Outcome:
    """What both ranks returned of a case, the steps they reported, and (size, size of the part, size held) of
    the backbone's parameters."""

    storage: Path
    results: list[StackResult | None]
    steps: list[int]
    parts: dict[str, tuple[int, int, int]]


def tied_llama(untied: Files, folder: Path) -> Files:
    """The tiny Llama with its embedding as output head."""
    lm = AutoModelForCausalLM.from_pretrained(untied.path)
    lm.config.tie_word_embeddings = True
    lm.set_output_embeddings(torch.nn.Linear(32, lm.config.vocab_size, bias=False))
    lm.get_output_embeddings().weight = lm.get_input_embeddings().weight
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(untied.path).save_pretrained(folder)
    return Files(str(folder))


@pytest.fixture(scope="module")
def cases(tiny_llama, data_root, tmp_path_factory) -> dict[str, Case]:
    """Batches of 5 rows, which 2 ranks cannot share evenly, and an epoch that ends with a batch of 4."""
    trial = Trial(
        backbone=tiny_llama,
        task=Colours().located(data_root),
        regularizers=(KL(0.1), AdapterDropout(0.1), EarlyStopping(patience=1, every=3)),
        optimizer=AdamW(lr=1e-2, max_grad_norm=0.5),
        budget=Budget(batch_size=6, steps=16),
        precision="fp32",
    )
    stack = Stack(trial, (0, 1, 2), (Greys().located(data_root),))
    plain = replace(stack, trial=replace(trial, regularizers=(), budget=Budget(batch_size=3, steps=16)))
    tied = replace(trial, backbone=tied_llama(tiny_llama, tmp_path_factory.mktemp("tied")))
    options = replace(tied, task=replace(trial.task, scoring=OptionLikelihood()))
    return {
        "lora": Case(stack),
        "vera": Case(replace(stack, trial=replace(trial, method=Vera(rank=16)))),
        "pvera": Case(
            replace(plain, trial=replace(plain.trial, method=PVera(rank=16)), draws=(None, Posterior(2)))
        ),
        "blob": Case(
            replace(
                stack,
                trial=replace(trial, method=Blob(gamma=1000), regularizers=(KL(0.1),)),
                draws=(None, Posterior(2)),
            )
        ),
        "rank-1-bnn": Case(replace(plain, trial=replace(plain.trial, method=Rank1BNN()))),
        "recomputed": Case(replace(stack, micro_batch=2), settings={"recompute": True}),
        "tied": Case(Stack(tied, (0, 1))),
        "options, offloaded": Case(Stack(options, (0, 1)), Zero(2, cpu_offload=True)),
        "interrupted": Case(plain, settings={"checkpoint_seconds": 0.0}, stop_at=7),
        "resumed": Case(replace(plain, draws=(None, TFB(2), Laplace(3, 2), SWAG(2, 2, 1e-3, 1, 3)))),
        "soup": Case(replace(plain, soup="weights")),
        "failing": Case(replace(stack, trial=replace(trial, optimizer=AdamW(lr=1e37)))),
    }


@pytest.fixture(scope="module")
def outcomes(cases, tmp_path_factory) -> dict[str, Outcome]:
    """Every case on the same two processes, one after the other; "resumed" and "soup" have the store of
    "interrupted"."""
    folder = tmp_path_factory.mktemp("ranks")
    stores = {name: folder / name for name in cases}
    stores |= dict.fromkeys(("resumed", "soup"), folder / "interrupted")
    (folder / "run.py").write_text(RUN)
    (folder / "jobs").write_bytes(pickle.dumps([(case, str(stores[name])) for name, case in cases.items()]))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [str(folder / "run.py"), str(folder / "jobs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    ranks = [pickle.loads((folder / f"jobs.{rank}").read_bytes()) for rank in (0, 1)]
    return {
        name: Outcome(stores[name], [first[0], second[0]], first[1], first[2])
        for name, first, second in zip(cases, *ranks)
    }


def logits(storage: Path, stack: Stack) -> dict[str, np.ndarray]:
    folders = [member_folder(stack.trial.member_id(m)) for m in stack.members]
    store = Store(str(storage))
    return {name: store.predictions(folders, name).logits_MNC for name in stack.eval_sets()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["lora", "vera", "pvera", "blob", "rank-1-bnn", "recomputed", "tied", "options, offloaded", "resumed"],
)
def test_stack_on_two_ranks_equals_the_stack_on_one(cases, outcomes, tmp_path, name):
    """Same members, best steps, logits and costs, whether or not the backbone is whole."""
    stack, outcome = cases[name].stack, outcomes[name]
    alone = run_stack(stack, str(tmp_path))
    assert outcome.results == [alone, alone] and len(alone.trained) == len(stack.members)
    ours, theirs = logits(outcome.storage, stack), logits(tmp_path, stack)
    assert max(np.abs(ours[s] - theirs[s]).max() for s in stack.eval_sets()) < 1e-4
    for member_id in alone.trained:
        one, other = (
            json.loads(Store(str(s)).read(member_folder(member_id), "member.json"))
            for s in (outcome.storage, tmp_path)
        )
        assert (one["best_step"], one["recipe"], one["streams"]) == (
            other["best_step"],
            other["recipe"],
            other["streams"],
        )
        assert one["cost"]["train_tokens"] == other["cost"]["train_tokens"]
        assert (one["provenance"]["ranks"], other["provenance"]["ranks"]) == (2, 1)
        curves = [
            pq.read_table(s / member_folder(member_id) / "curve.parquet") for s in (outcome.storage, tmp_path)
        ]
        for column in ("loss", "nll", "acc", "grad_norm"):
            assert np.allclose(*(c[column].to_numpy() for c in curves), atol=1e-3, equal_nan=True), column


@pytest.mark.slow
def test_early_stopping_ends_members_at_different_steps(cases, outcomes):
    """Otherwise the test above would not see a rank that goes on alone."""
    stack, store = cases["lora"].stack, Store(str(outcomes["lora"].storage))
    folders = [member_folder(stack.trial.member_id(m)) for m in stack.members]
    assert len({len(store.read(f, "curve.parquet")) for f in folders}) > 1


@pytest.mark.slow
def test_no_rank_holds_the_backbone(outcomes):
    parts = outcomes["lora"].parts
    assert all(part == math.ceil(size / 2) for size, part, _ in parts.values())
    assert sum(held for _, _, held in parts.values()) == 0, "gathered only while a layer runs"


@pytest.mark.slow
def test_checkpoint_of_several_ranks_is_resumed(outcomes):
    assert outcomes["interrupted"].results == [None, None] and outcomes["interrupted"].steps[-1] == 7
    assert outcomes["resumed"].steps[0] == 8


@pytest.mark.slow
def test_soup_on_two_ranks_is_that_on_one(cases, outcomes, tmp_path):
    stack, storage = cases["soup"].stack, outcomes["soup"].storage
    folder = soup_folder(stack.member_ids())
    shutil.copytree(storage, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / folder)
    run_stack(stack, str(tmp_path))
    for name in stack.eval_sets():
        ours, theirs = (Store(str(s)).predictions([folder], name).logits_MNC for s in (storage, tmp_path))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_members_that_fail_on_two_ranks_are_the_ones_that_fail_on_one(cases, outcomes, tmp_path):
    alone = run_stack(cases["failing"].stack, str(tmp_path))
    assert len(alone.failed) == 3
    for result in outcomes["failing"].results:
        assert result is not None and result.failed == alone.failed


@pytest.mark.parametrize("num,size,most", [(7, 2, None), (7, 3, 2), (1, 4, None), (8, 2, 3), (5, 1, 2)])
def test_shares_cover_every_row_once_and_are_equally_long(num, size, most):
    shares = [list(Ranks(rank, size).parts(num, most)) for rank in range(size)]
    assert sorted(n for share in shares for part, real in share for n in part[:real]) == list(range(num))
    assert len({tuple(len(part) for part, _ in share) for share in shares}) == 1
    assert all(n < num and len(part) <= (most or num) for share in shares for part, _ in share for n in part)


def test_recomputed_layers_give_the_same_members(tiny_trial, tmp_path):
    """One device; each layer then runs twice a step, and the bytes of the members do not change."""
    trial = tiny_trial(regularizers=(AdapterDropout(0.1),), budget=Budget(batch_size=4, steps=4), members=2)
    runs = {}
    for recompute in (False, True):
        backbone = load_backbone(trial.backbone, "fp32", "cpu", recompute)
        calls = []
        handle = backbone.linears and backbone.lm.model.layers[1].mlp.up_proj.register_forward_hook(
            lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
        )
        run_stack(Stack(trial, (0, 1)), str(tmp_path / str(recompute)), recompute=recompute)
        handle.remove()
        runs[recompute] = (sum(calls), logits(tmp_path / str(recompute), Stack(trial, (0, 1))))
    assert (runs[False][0], runs[True][0]) == (4, 8)
    assert all(np.array_equal(runs[False][1][s], runs[True][1][s]) for s in runs[False][1])


SWEEP = """
from beside import Nearby
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
base = Trial(backbone=Files({backbone!r}), task=Nearby(), optimizer=AdamW(lr=1e-2), precision="fp32",
             budget=Budget(batch_size=5, steps=12))
SWEEP = Sweep(base=base, axes={{"members": [2]}})
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two CPUs")
def test_sweep_on_ray_train_workers_gives_the_table_of_the_local_host(tiny_llama, data_root, tmp_path):
    """Of a task in a module beside the sweep file, which workers cannot import."""
    file = tmp_path / "small.py"
    file.write_text(SWEEP.format(backbone=tiny_llama.path))
    (tmp_path / "beside.py").write_text("from toys import Colours\n\n\nclass Nearby(Colours): ...\n")
    tables = []
    for host in (["--zero", "2"], ["--local"]):
        storage = tmp_path / host[0]
        words = ("sweep", file, "--storage", storage, "--json", *host)
        outcome, _ = lorae(*words, data_root=data_root, num_threads=1).finished(0)
        assert (outcome["trained"], outcome["failed"]) == (2, {})
        tables.append(pq.read_table(storage / "sweeps/small/trials.parquet").to_pylist())
    for one, other in zip(*tables):
        assert one["member_ids"] == other["member_ids"]
        assert one["ensemble_nll"] == pytest.approx(other["ensemble_nll"], abs=1e-4)


def test_only_a_worker_that_died_is_begun_again():
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = RuntimeError("Connection reset by peer")  # what the other ranks of a dead one see
    dead = WorkerHealthCheckFailedError("rank 0", RayActorError())
    assert _has_died(WorkerGroupError("", {0: dead, 1: lost}))
    assert not _has_died(WorkerGroupError("", {0: ValueError("bad data"), 1: lost}))
    assert not _has_died(lost)


@pytest.mark.parametrize(
    "zero,offload,hpz", [(Zero(8), None, 1), (Zero(8, hpz=4), None, 4), (Zero(8, cpu_offload=True), "cpu", 1)]
)
def test_deepspeed_reads_its_settings_as_they_are_meant(zero, offload, hpz):
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(deepspeed_config(zero, "bf16", "cuda"))
    partitioning = read.zero_config
    assert (partitioning.stage, partitioning.zero_hpz_partition_size) == (3, hpz)
    assert partitioning.param_persistence_threshold == PERSISTENT_NUMBERS
    assert (partitioning.offload_param and partitioning.offload_param.device) == offload
    assert read.gradient_clipping == 0 and read.bfloat16_config.enabled


def test_model_of_13b_without_weights_has_the_shapes_and_parts_of_the_plan():
    """Llama-2-13B on torch's meta device: only norms stay whole, and 8 ranks hold an eighth each."""
    config = LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        vocab_size=32000,
    )
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    assert linears_of(lm) == linear_shapes(config.to_dict())
    sizes = {name: p.numel() for name, p in lm.named_parameters()}
    whole = {name for name, size in sizes.items() if size <= PERSISTENT_NUMBERS}
    assert len(whole) == 2 * 40 + 1 and all("norm" in name for name in whole)
    planned = num_backbone_parameters(config.to_dict())
    assert sum(sizes.values()) == pytest.approx(planned, rel=1e-4)
    held = sum(size if name in whole else math.ceil(size / 8) for name, size in sizes.items())
    assert held == pytest.approx(planned / 8, rel=1e-3)


def test_workers_that_cannot_be_had_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="ZeRO needs >= 2"):
        Zero(1)
    with pytest.raises(ValueError, match="hpz=3: must be >= 2 and divide the 8 workers"):
        Zero(8, hpz=3)
    with pytest.raises(ValueError, match="--zero 8: there are 6 GPUs"):
        zero_devices(Devices("cuda", 6, 4), Zero(8))
    assert zero_devices(Devices("cuda", 17, 4), Zero(8)).stack_devices == 8
    for words, message in (
        (["--offload"], "add --zero K"),
        (["--zero", "2", "--local"], "leave one of them"),
    ):
        assert main(["sweep", "pipelines/demo.py", *words]) == 2
        assert message in capsys.readouterr().err
