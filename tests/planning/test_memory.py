"""The memory that a plan computes from a config against the peak that a process measures, and where stacks of
7B to 13B are placed by it, without their weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import Colours

from lorae.draws import Laplace
from lorae.methods import BatchEnsemble, Blob, Full, Lora, Method, PVera
from lorae.planning.estimate import Devices, Placement, memory
from lorae.planning.memory import Memory, Saving, Texts, stack_memory
from lorae.planning.placement import USABLE_FRAC, place
from lorae.planning.plan import Plan, placed
from lorae.planning.stack import Stack
from lorae.regularizers import AdapterDropout, EarlyStopping
from lorae.shapes import num_backbone_parameters
from lorae.sources import Files
from lorae.trial import Budget, Trial

LLAMA = {
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
SMOLLM = {  # SmolLM2-135M's layers, six of them
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 2000,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "tie_word_embeddings": True,
}

# Trains a stack for two steps in a process of its own, or draws from one; prints how far its resident memory
# grows beyond that of the process with the backbone loaded.
PROBE = """
import gc, json, sys
import numpy as np, torch
from transformers import AutoConfig, AutoModelForCausalLM
from test_memory import DRAWN, METHODS, of, trial
from lorae.engine.adapters import Adapters
from lorae.backbone.loading import Backbone, fuse_kernels, recompute_layers
from lorae.tasks.encoding import Row
from lorae.draws.laplace.linearised import Linearised
from lorae.backbone.packing import ATTENTION, register_attention
from lorae.tasks.base import LabelWords
from lorae.engine.training import TrainingData, train_stack

config, shapes, tokens = json.loads(sys.argv[1])
torch.set_num_threads(1)
register_attention()
settings = {k: v for k, v in config.items() if k != "model_type"}
lm = AutoModelForCausalLM.from_config(
    AutoConfig.for_model(config["model_type"], **settings), attn_implementation=ATTENTION
).eval().requires_grad_(False)
if config["model_type"] == "gpt2":
    fuse_kernels(lm)
backbone = Backbone("probe", lm, None)

def train(members, batch, tokens, method="lora"):
    def row(n):
        return Row(str(n), 0, 3, (n, *(7,) * (tokens - 1)), (1, 2, 3), scoring=LabelWords())

    rows = [row(n) for n in range(2 * batch)]
    recipe = trial(batch, method=of(config, method))
    if method == "laplace":
        return draw(recipe, members, rows)
    train_stack(backbone, recipe, range(members), TrainingData(rows, rows[:1]))

def draw(recipe, members, rows):
    with Adapters(backbone, recipe.method, [(m,) for m in range(members)]) as adapters:
        states = [adapters.state(m) for m in range(members)]
        sampler = Linearised(adapters, states, [str(m) for m in range(members)], DRAWN, len(rows) // 2)
        sampler.fit(rows)
        sampler.predict(rows)

def status(field):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(field))

train(1, 1, 4)
for members, batch, method in shapes:
    if method == "recomputed":
        recompute_layers(lm)
    gc.collect()
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    train(members, batch, tokens, method)
    print(status("VmHWM") - before)
"""


METHODS = {method.label: method for method in (Lora(), Blob(), PVera(), BatchEnsemble(), Full())} | {
    "recomputed": Lora(),
    "laplace": Lora(rank=32),
}
DRAWN = Laplace(2, rank=4)


def of(config: dict[str, Any], method: str) -> Method:
    """The method, of GPT-2 on its fused projection."""
    found = METHODS[method]
    gpt2 = config["model_type"] == "gpt2" and not isinstance(found, Full)
    return replace(found, targets=("c_attn",)) if gpt2 else found


def trial(batch_size: int, **changes) -> Trial:
    budget = Budget(batch_size=batch_size, steps=2)
    return Trial(backbone=Files("."), task=Colours(), budget=budget, **{"precision": "fp32"} | changes)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("config", [LLAMA, SMOLLM, GPT2], ids=["llama", "smollm", "gpt2"])
def test_computed_memory_is_the_measured_peak(config):
    """Every tensor in a mapping of its own, so that what is resident is what is in use: glibc's heap keeps
    holes between tensors, up to as much again."""
    shapes = [(1, 4, "lora"), (1, 8, "lora"), (4, 2, "lora"), (2, 4, "batchensemble"), (2, 4, "full")]
    shapes += [(1, 4, "blob"), (4, 2, "blob"), (3, 1, "laplace"), (6, 1, "laplace"), (2, 4, "pvera")]
    shapes += [(4, 4, "recomputed")]  # it stays so
    tokens = 128
    tests = Path(__file__).parents[1]
    path = f"{tests.parent}:{tests}/support:{tests}/planning"
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PROBE, json.dumps([config, shapes, tokens])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    ratios = {}
    for (members, batch, method), measured in zip(shapes, done.stdout.split(), strict=True):
        recipe = trial(batch, method=of(config, method))
        saving = Saving(recompute=method == "recomputed")
        texts, draws = Texts(tokens, options=3), [DRAWN] if method == "laplace" else []
        computed = stack_memory(recipe, config, members, batch, texts, saving=saving, draws=draws)
        adapters = computed.adapters // (4 if draws else 1)  # neither gradients nor moments
        ratios[members, batch, method] = (adapters + computed.activations) / int(measured)
    assert all(ratio == pytest.approx(1.0, abs=0.15) for ratio in ratios.values()), str(ratios)


def stack_bytes(trial: Trial, members: int = 1, rows: int = 32, longest: int = 400, **more) -> Memory:
    return stack_memory(trial, LLAMA, members, rows, Texts(longest), **more)


def test_members_and_rows_add_activations_but_no_backbone():
    one, four = stack_bytes(trial(8)), stack_bytes(trial(8), members=4)
    assert four.adapters == 4 * one.adapters and four.backbone == one.backbone
    assert four.activations == 4 * one.activations == stack_bytes(trial(8), rows=128).activations


def test_layers_below_the_first_adapted_one_keep_nothing():
    whole = stack_bytes(trial(8)).activations
    top = stack_bytes(trial(8, method=Lora(targets=("5.self_attn.q_proj", "5.self_attn.v_proj")))).activations
    assert top < whole / 4


def test_what_regularisers_and_targets_add():
    plain = stack_bytes(trial(8))
    stopping = stack_bytes(trial(8, regularizers=(EarlyStopping(),)))
    assert stopping.adapters * 4 == plain.adapters * 5, "the best state beside parameter, gradient, moments"
    dropout = stack_bytes(trial(8, regularizers=(AdapterDropout(0.1),)))
    assert dropout.activations > plain.activations, "q_proj and v_proj no longer share their input"
    down = stack_bytes(trial(8, method=Lora(targets=("q_proj", "v_proj", "down_proj"))))
    inner = 6 * 32 * 400 * 1408 * 4
    assert inner <= down.activations - plain.activations < 1.05 * inner


def test_scores_are_in_memory_on_a_cpu_only():
    grown = [
        stack_bytes(trial(8), longest=n, rows=12800 // n, gpus=g).activations
        for g in (0, 1)
        for n in (100, 400)
    ]
    assert grown[1] > grown[0] and grown[3] == grown[2]


def test_zero_partitions_the_backbone_and_nothing_else():
    one, eight = (stack_bytes(trial(8), gpus=g) for g in (1, 8))
    layer = 2000 * 512  # the embedding; a decoder layer is larger, and two are gathered
    assert one.backbone / 8 + 4 * layer < eight.backbone < one.backbone
    assert (eight.adapters, eight.activations) == (one.adapters, one.activations)


def test_parts_elsewhere_or_twice():
    def backbone(**saving) -> int:
        return stack_bytes(trial(8), gpus=8, saving=Saving(**saving)).backbone

    whole = stack_bytes(trial(8)).backbone
    assert backbone() - backbone(offload=True) == -(-whole // 8)
    assert backbone(hpz=4) - backbone() == -(-whole // 4)


def test_layers_that_are_computed_again_keep_their_inputs_only():
    kept, again = (stack_bytes(trial(8), saving=Saving(recompute=r)).activations for r in (False, True))
    inputs = 6 * 32 * 400 * 512 * 4
    assert inputs < again < kept / 2


# Public config.json values
CONFIGS = {
    "Llama-2-7b": (32000, 4096, 11008, 32, 32, 32, 4096, 6.738e9),
    "Llama-2-13b": (32000, 5120, 13824, 40, 40, 40, 4096, 13.016e9),
    "Llama-3.1-8B": (128256, 4096, 14336, 32, 32, 8, 131072, 8.030e9),
    "Mistral-7B-v0.3": (32768, 4096, 14336, 32, 32, 8, 32768, 7.248e9),
    "Qwen3-8B": (151936, 4096, 12288, 36, 32, 8, 40960, 8.191e9),
}
KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
KINDS = {"Mistral-7B-v0.3": "mistral", "Qwen3-8B": "qwen3"}


def config_folder(folder: Path, name: str) -> Files:
    """A backbone that has a config and no weights."""
    more = {"model_type": KINDS.get(name, "llama"), "tie_word_embeddings": False, "head_dim": 128}
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(dict(zip(KEYS, CONFIGS[name])) | more))
    return Files(str(folder / name))


def node(gib: float, per_node: int = 8) -> Devices:
    return Devices("cuda", 8, 1, int(gib * 2**30), per_node)


@pytest.fixture
def large_stack(tmp_path: Path, data_root: Path):
    """Five members of a recipe on a backbone named above, in bf16, with long prompts."""

    def make(name: str, members: int = 5) -> Stack:
        budget = Budget(batch_size=8, epochs=3)
        task = Long().located(data_root)
        return Stack(
            Trial(backbone=config_folder(tmp_path, name), task=task, budget=budget), tuple(range(members))
        )

    return make


class Long(Colours):
    """The toy task with prompts of about 300 tokens."""

    template = "words " * 200 + ": {question} colour :"


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_of_public_models(name):
    config = dict(zip(KEYS, CONFIGS[name])) | {"model_type": KINDS.get(name, "llama"), "head_dim": 128}
    assert num_backbone_parameters(config) == pytest.approx(CONFIGS[name][-1], rel=0.001)


@pytest.mark.parametrize("gib", [24, 40, 80])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_gpu_holds_8b_on_24_gib_and_13b_on_40(large_stack, name, gib):
    pending = large_stack(name)
    plan = placed(Plan((), (), (), (), pending=(pending,)), node(gib))
    assert sorted(m for stack in plan.stacks for m in stack.members) == [0, 1, 2, 3, 4]
    for stack, where in zip(plan.stacks, plan.placements):
        assert stack.micro_batch == where.micro_batch
        if (name, gib) == ("Llama-2-13b", 24):
            assert where.host == "zero" and 2 <= where.gpus <= 8 and "exceed" in where.reason
        else:
            assert where.host == "tune" and where.gpus == 1


def test_micro_batch_is_the_largest_that_fits(large_stack):
    stack = large_stack("Llama-2-13b")
    where = place(stack, node(40))
    assert where.micro_batch is not None and f"micro-batches of {where.micro_batch}" in where.reason
    limit = USABLE_FRAC * 40 * 2**30
    assert memory(stack, where.micro_batch, 1).total <= limit < memory(stack, where.micro_batch + 1, 1).total
    assert place(stack, node(160)) == Placement("tune", 1, None, place(stack, node(160)).reason)


def test_what_is_longer_than_its_floor_is_divided(large_stack):
    """A stack of 8B on 8 GPUs, down to single members."""
    plan = placed(Plan((), (), (), (), pending=(large_stack("Llama-3.1-8B", 8),)), node(80))
    assert [len(s.members) for s in plan.stacks] == 8 * [1]


def test_zero_takes_as_few_gpus_as_suffice(large_stack):
    stack = large_stack("Llama-2-13b", members=1)
    gpus = [place(stack, node(gib)).gpus for gib in (12, 16, 24, 80)]
    assert gpus == sorted(gpus, reverse=True) and gpus[0] > gpus[2] > gpus[3] == 1


def test_what_saves_memory_is_placed_by_what_it_takes(large_stack):
    """--offload is for what does not fit without; of a second copy each GPU has a share; --recompute leaves
    room for more examples at once."""
    stack, two = large_stack("Llama-2-13b", members=1), replace(node(16), stack_devices=2)
    with pytest.raises(ValueError, match="on each of 2 GPUs"):
        place(stack, two)
    assert place(stack, replace(two, saving=Saving(offload=True))).gpus == 2
    eight = replace(node(16), stack_devices=8)
    alone, copied = (memory(stack, 1, 8, Saving(hpz=hpz)).total for hpz in (None, 2))
    assert place(stack, eight).gpus == 8 and copied > alone + 12 * 2**30
    with pytest.raises(ValueError, match="on each of 8 GPUs"):
        place(stack, replace(eight, saving=Saving(hpz=2)))
    small = large_stack("Llama-2-7b")
    kept, again = (place(small, replace(node(24), saving=Saving(recompute=r))) for r in (False, True))
    assert (kept.micro_batch or 8) < (again.micro_batch or 8)


def test_what_fits_nowhere_is_refused(large_stack):
    stack = large_stack("Llama-2-13b")
    with pytest.raises(ValueError, match=r"needs .* GiB on each of 8 GPUs.*take larger GPUs"):
        place(stack, node(4))
    with pytest.raises(ValueError, match="leave --local out"):
        place(stack, node(24), "local")
    with pytest.raises(ValueError, match="on each of 1 GPUs"):
        place(stack, node(24, per_node=1))
