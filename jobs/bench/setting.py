"""Shared by the parts of the benchmark: the recipe, the texts with their real lengths, precision, clock."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.bench.apart import peak_bytes
from jobs.devices import known_gpu
from jobs.hosts import ALLOCATOR
from lorae.engine.order import DataOrder
from lorae.methods import Lora
from lorae.sources import Files, Source, backbone_folder
from lorae.tasks import OpenBookQA, RottenTomatoes
from lorae.tasks.encoding import Row, encode
from lorae.trial import AdamW, Budget, Trial
from pipelines._common import SMOLLM2_135M

if TYPE_CHECKING:
    import torch

NUM_TRAIN, NUM_TEST = 256, {"cpu": 48, "cuda": 960}
MEMBERS, BATCH_SIZE, LR = 5, 8, 1e-3
SIZES: dict[str, dict[str, Any]] = {  # of random Llamas, with the vocabulary of the available tokenizer
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "7b": {  # Llama-2-7B
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Setting:
    """The machine and the recipes to measure.

    Attributes:
        trials: recipe of each task, by task name: r 8 on q and v, M = 5, batches of 8.
        device: "cpu" with all cores, or "cuda".
        machine: in words, and how the precision was chosen.
        left_out: tasks without data, and why.
        data_root: local copies of datasets, or None.
    """

    trials: dict[str, Trial]
    device: str
    machine: str
    left_out: tuple[str, ...] = ()
    data_root: str | None = None

    @property
    def trial(self) -> Trial:
        """The recipe on film reviews, which every part measures."""
        return next(iter(self.trials.values()))


@contextmanager
def setting(device: str, data_root: str | None, size: str | None = None) -> Iterator[Setting]:
    """SmolLM2-135M on a CPU; on CUDA a random Llama of this size, kept only while the block runs.

    Args:
        size: one of `SIZES`; None = the smallest.
    Raises:
        ValueError: there is no such device or size, or peft is not installed.
    """
    import torch

    if importlib.util.find_spec("peft") is None:
        raise ValueError("peft, which lorae is measured against, is not installed; pip install 'lorae[dev]'")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device {device}: must be cpu, or cuda where there is one; leave it out for cpu")
    if size and (device != "cuda" or size not in SIZES):
        raise ValueError(f"--size {size}: must be {' or '.join(SIZES)}, with --device cuda; or leave it out")
    root = Path(data_root) if data_root else None
    precision, why = fastest_precision(device)
    with tempfile.TemporaryDirectory() as folder:
        backbone: Source = SMOLLM2_135M
        if device == "cuda":
            backbone = random_llama(folder, SIZES[size or "1b"], device=device)
        base = Trial(
            backbone=backbone,
            task=RottenTomatoes().subset(train=NUM_TRAIN, test=NUM_TEST[device]).located(root),
            method=Lora(rank=8, alpha=16),
            optimizer=AdamW(lr=LR),
            budget=Budget(batch_size=BATCH_SIZE, steps=1),
            precision=precision,
            members=MEMBERS,
        )
        trials, left_out = {base.task.name: base}, []
        if root and (root / OpenBookQA.name).is_dir():
            task = OpenBookQA().subset(train=NUM_TRAIN, test=NUM_TEST["cpu"]).located(root)
            trials[task.name] = replace(base, task=task)
        else:
            left_out.append(f"{OpenBookQA.name}: no copy of it; pass --data-root DIR with openbookqa/ in it")
        machine = f"{_machine(device)}; {why}"
        if device == "cuda":
            machine += f"; a random Llama of the shape of {size or '1b'}"
        yield Setting(trials, device, machine, tuple(left_out), data_root)


def environment() -> dict[str, str]:
    """Environment of every measured process on either side: that of the workers of lorae's sweeps, and one
    GPU, since the Trainer would spread a batch over all visible ones."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return ALLOCATOR | {"CUDA_VISIBLE_DEVICES": gpu}


def peak_memory(device: str) -> int:
    """Peak bytes of this process on the device: resident memory, or tensors on the GPU."""
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()


def fastest_precision(device: str) -> tuple[Any, str]:
    """bf16 on CUDA; on a CPU, the precision with the faster matrix products, by a short measurement."""
    import torch

    if device == "cuda":
        return "bf16", "bf16"
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = torch.randn(1024, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        seconds[name] = min(_seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w)) for _ in range(10))
    best = min(seconds, key=lambda name: seconds[name])
    ratio = seconds["fp32"] / seconds["bf16"]
    return best, f"{best}, since a product in bf16 is {ratio:.1f} times as fast as in fp32"


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _machine(device: str) -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, torch {torch.__version__}"


def random_llama(folder: str, shape: dict[str, Any], precision: str = "bf16", device: str = "cpu") -> Files:
    """A random Llama with SmolLM2's tokenizer in hub layout, made on `device`; speed does not depend on
    weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lorae.backbone.loading import DTYPES

    tokenizer: Any = AutoTokenizer.from_pretrained(backbone_folder(SMOLLM2_135M))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config: Any = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape)
    with torch.device(device):
        lm: Any = LlamaForCausalLM(config)
    lm.to(DTYPES[precision]).save_pretrained(folder)
    return Files(folder)


@functools.lru_cache(maxsize=8)
def rows(trial: Trial, split: Any) -> list[Row]:
    """The split's examples as token rows."""
    return encode(tokenizer(trial.backbone), trial.task, trial.task.examples(split), trial.budget.max_tokens)


@functools.lru_cache(maxsize=1)
def tokenizer(backbone: Source) -> Any:
    """The backbone's tokenizer, as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone_folder(backbone))


def batches(trial: Trial, member: int, train: Sequence[Row]) -> list[list[Row]]:
    """The batches that a member sees, in its order, one per step."""
    lengths, order_key = np.array([len(r.tokens) for r in train]), trial.member_key(member)["order"]
    order = DataOrder(order_key, trial.seed, lengths, trial.budget.batch_size)
    return [[train[n] for n in order.batch(step)] for step in range(trial.budget.num_steps(len(train)))]


def num_tokens(encoded: Sequence[Row]) -> int:
    """Number of real tokens, without padding."""
    return sum(len(r.tokens) for r in encoded)


class StepClock:
    """Records the end of each step, on a GPU by its own clock, so that the host need not wait. The first
    step, which does set-up work, is not counted."""

    def __init__(self, device: str) -> None:
        self.device, self.stamps = device, list[Any]()

    def __call__(self, *_: object) -> None:
        import torch

        if self.device == "cuda":
            self.stamps.append(torch.cuda.Event(enable_timing=True))
            self.stamps[-1].record()
        else:
            self.stamps.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        synchronize(self.device)
        if self.device == "cuda":
            return self.stamps[0].elapsed_time(self.stamps[-1]) / 1e3
        return self.stamps[-1] - self.stamps[0]


def synchronize(device: str) -> None:
    """Wait for a GPU's pending work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: str) -> float | None:
    """Dense bf16 rate of this machine's GPU, or None if it is not a known kind."""
    import torch

    if device != "cuda":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory)
    return gpu.peak_flops if gpu else None


def frozen_flops(lm: torch.nn.Module) -> int:
    """FLOPs of one token's forward pass in the frozen linear layers, without the output head."""
    import torch

    head: Any = lm.get_output_embeddings()  # type: ignore[operator]
    linears = (m for m in lm.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    return 2 * sum(m.in_features * m.out_features for m in linears)
