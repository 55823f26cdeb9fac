"""The planner: what is needed, what is stored, how it is spread, and what is refused before anything
starts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import Colours, Greys
from transformers import AutoConfig, AutoModelForCausalLM

from lorae.methods import Lora
from lorae.plan import Devices, make_plan
from lorae.regularizers import KL, DecayB
from lorae.shapes import LLAMA_LIKE, linear_shapes, linears_of, num_backbone_parameters
from lorae.store import Store
from lorae.tasks import OpenBookQA
from lorae.trial import AdamW, Budget, Diversity, Sweep

CPU = Devices("cpu", 1, 2)
PIPELINES = sorted(
    p.stem for p in (Path(__file__).parent.parent / "pipelines").glob("*.py") if p.stem[0] != "_"
)


def sweep(tiny_trial, **axes) -> Sweep:
    return Sweep(base=tiny_trial(), axes=axes)


def test_members_axis_costs_the_largest_only(tiny_trial, tmp_path):
    plan = make_plan(
        sweep(tiny_trial, regularizers=[(), (KL(0.1),)], members=[1, 2, 4]), Store(str(tmp_path)), CPU
    )
    assert len(plan.trials) == 6 + 1, "and the zero-shot row"
    assert len(plan.needed) == plan.num_to_train == 8
    assert [s.members for s in plan.stacks] == [(0, 1, 2, 3), (0, 1, 2, 3)]


def test_shared_sources_are_trained_once(tiny_trial, tmp_path):
    both = [Diversity(), Diversity(init="shared", order="shared")]
    plan = make_plan(sweep(tiny_trial, diversity=both, members=[5]), Store(str(tmp_path)), CPU)
    assert sorted(len(s.members) for s in plan.stacks) == [1, 5]


@pytest.mark.parametrize("num", [1, 2, 3, 4, 8, 64])
def test_no_device_idles_while_another_has_several_members(tiny_trial, tmp_path, num):
    cells = [(), (KL(0.1),), (DecayB(1.0),)]
    plan = make_plan(
        sweep(tiny_trial, regularizers=cells, members=[4]), Store(str(tmp_path)), replace(CPU, num=num)
    )
    trained = [(s.trial.regularizers, m) for s in plan.stacks for m in s.members]
    assert len(trained) == len(set(trained)) == 12
    assert len(plan.stacks) >= min(num, 12) or max(len(s.members) for s in plan.stacks) == 1


def test_zero_shot_rows_are_one_per_task_and_scored_alike(tiny_trial, data_root):
    tasks = [Colours().located(data_root), Colours(num_train=10).located(data_root)]
    trials = sweep(tiny_trial, task=tasks, members=[1, 3], seed=[0, 1]).trials()
    assert sum(t.members == 0 for t in trials) == 2 and len(trials) == 2 + 8


def test_axes_are_checked_against_the_fields(tiny_trial):
    cases = [
        ({"membres": [1]}, "axis 'membres' is no field of Trial; it has backbone"),
        ({"method.rnk": [1]}, "axis 'rnk' is no field of Lora"),
        ({"members": ["four"]}, "members='four': must be int"),
        ({"members": []}, "no values"),
        ({"method": [8]}, "method=8: must be Lora or Vera"),
        ({"regularizers": [KL(0.1)]}, "regularizers="),
        ({"precision": ["fp16"]}, "'fp32' or 'bf16'"),
        ({"method.rank": [0]}, "rank=0"),
    ]
    for axes, message in cases:
        with pytest.raises(ValueError, match=message):
            sweep(tiny_trial, **axes)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"method": Lora(rank=33)}, "rank=33 exceeds the smaller side"),
        ({"method": Lora(targets=("q",))}, "matches no Linear of .*; it has q_proj, k_proj"),
        ({"budget": Budget(epochs=1, max_tokens=10**6)}, "reads at most"),
        ({"task": "greys"}, "can only be an OOD task"),
    ],
    ids=["rank", "targets", "length", "no-train"],
)
def test_what_cannot_work_is_refused_before_training(tiny_trial, data_root, tmp_path, change, message):
    if change.get("task") == "greys":
        change = {"task": Greys().located(data_root)}
    with pytest.raises(ValueError, match=message):
        make_plan(Sweep(base=tiny_trial(**change)), Store(str(tmp_path)), CPU)


def test_ood_task_with_another_prompt_is_refused(tiny_trial, data_root, tmp_path):
    class Other(Greys):
        template = "different : {question}"

    with pytest.raises(ValueError, match="prompt template"):
        make_plan(Sweep(base=tiny_trial(), ood=[Other().located(data_root)]), Store(str(tmp_path)), CPU)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("kind", [*LLAMA_LIKE, "gpt_neox", "phi3"])
def test_shapes_from_the_config_are_those_of_the_model(kind):
    config = AutoConfig.for_model(kind, **SMALL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    settings = config.to_dict()
    assert linear_shapes(settings) == linears_of(model)
    # norms, and position or type embeddings, are what the count leaves out
    assert num_backbone_parameters(settings) == pytest.approx(
        sum(p.numel() for p in model.parameters()), rel=0.05
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_expand_to_the_counts_in_their_docstrings(name):
    module = importlib.import_module(f"pipelines.{name}")
    trials = module.SWEEP.trials()
    trained = {
        (t.task, t.regularizers, t.method, t.optimizer, t.budget, t.seed, str(t.member_key(m)))
        for t in trials
        for m in range(t.members)
    }
    counts = f"{sum(t.members > 0 for t in trials)} trials"
    assert counts in module.__doc__, f"the docstring must say {counts!r}"
    assert f"{len(trained)} members" in module.__doc__, f"the docstring must say '{len(trained)} members'"


def test_dry_run_loads_neither_torch_nor_ray(tiny_llama, data_root, tmp_path):
    code = (
        "import sys, jobs.cli\n"
        "code = jobs.cli.main(sys.argv[1:])\n"
        "heavy = {'torch', 'ray', 'transformers', 'mlflow', 'deepspeed', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path))
    command = [sys.executable, "-c", code, "sweep", str(file), "--dry-run", "--json"]
    command += ["--data-root", str(data_root), "--storage", str(tmp_path / "none")]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment())
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["members"] == {"needed": 2, "stored": 0, "to_train": 2, "damaged": []}
    assert record["stacks"][0]["memory_bytes"] > 0 and record["stacks"][0]["host"] == "tune"
    assert not (tmp_path / "none").exists(), "a dry run writes nothing"


def environment() -> dict[str, str]:
    import os

    root = Path(__file__).parent.parent
    return os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}


SWEEP_FILE = """
from toys import Colours, Greys
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
SWEEP = Sweep(
    base=Trial(backbone=Files({backbone!r}), task=Colours(), precision="fp32", optimizer=AdamW(lr=1e-2),
               budget=Budget(batch_size=4, epochs=2)),
    axes={{"members": [1, 2]}},
    ood=[Greys()],
)
"""


def test_shared_data_plans_from_local_copies(tiny_trial, tmp_path):
    root = Path(__file__).parent.parent.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    base = tiny_trial(task=OpenBookQA().located(root), optimizer=AdamW())
    plan = make_plan(Sweep(base=base), Store(str(tmp_path)), CPU)
    assert plan.estimates[0].train_tokens > 1e5


def test_companions_cost_what_their_ensemble_costs(tiny_trial):
    base = tiny_trial(method=Lora(rank=2, alpha=6), budget=Budget(epochs=3), members=4)
    singles = [t for t in Sweep(base=base, companions=True).trials() if t.members == 1]
    member, longer, larger = singles
    assert member.member_ids() == base.member_ids()[:1], "the single member is the ensemble's first"
    assert longer.budget.num_steps(53) == 4 * base.budget.num_steps(53)
    assert larger.method.num_parameters(32, 16) == 4 * base.method.num_parameters(32, 16)
    assert larger.method.alpha / larger.method.rank == base.method.alpha / base.method.rank


def test_a_single_adapter_has_no_companions(tiny_trial):
    assert [t.members for t in Sweep(base=tiny_trial(), companions=True).trials()] == [0, 1]
