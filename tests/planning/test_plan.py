"""The planner: what is needed, what is stored, how it is spread, and what is refused before anything
starts."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import Colours, Greys
from transformers import AutoConfig, AutoModelForCausalLM

import jobs.devices
import lorae.planning.estimate
import lorae.planning.plan
from jobs import cli, driver
from jobs.devices import (
    GPUS,
    Seen,
    cpu_has_bf16,
    known_gpu,
    local_devices,
    process_devices,
    ray_devices,
    visible_gpus,
)
from jobs.hosts import shares
from jobs.simulate import Simulation, simulate
from lorae.draws import TFB
from lorae.engine.run import run_stack
from lorae.methods import Lora
from lorae.planning.estimate import FLOOR_SECONDS, Devices, Estimate, Placement, estimate
from lorae.planning.memory import Saving
from lorae.planning.placement import place
from lorae.planning.plan import Plan, make_plan, placed
from lorae.planning.stack import Stack
from lorae.regularizers import KL, DecayB
from lorae.results import trials_table
from lorae.shapes import LLAMA_LIKE, linear_shapes, linears_of, num_backbone_parameters
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.predictions import prediction_file
from lorae.store.store import Store
from lorae.tasks import OpenBookQA
from lorae.trial import AdamW, Budget, Diversity, Sweep
from lorae.trial.axes import with_values
from lorae.trial.tuning import recipe_of, studies

CPU = Devices("cpu", 1, 2)
PIPELINES = sorted(p.stem for p in (Path(__file__).parents[2] / "pipelines").glob("*.py") if p.stem[0] != "_")


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


def test_only_ensembles_record_their_members_paths(tiny_trial, tmp_path):
    ensemble, alone = tiny_trial(members=2), tiny_trial(method=Lora(rank=2))
    plan = make_plan(Sweep(base=ensemble, rivals=[alone], paths=True), Store(str(tmp_path)), CPU)
    paths = {s.trial.method: s.paths for s in plan.stacks if s.members}
    assert paths == {ensemble.method: True, alone.method: False}


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
        ({"method": Lora(targets=("w",))}, "matches no Linear of .*; it has q_proj, k_proj"),
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
    settings = config.to_dict() | {"architectures": [type(model).__name__]}
    assert linear_shapes(settings) == linears_of(model)
    # norms, and position or type embeddings, are what the count leaves out
    assert num_backbone_parameters(settings) == pytest.approx(
        sum(p.numel() for p in model.parameters()), rel=0.05
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_expand_to_the_counts_in_their_docstrings(name):
    sweep = (module := importlib.import_module(f"pipelines.{name}")).SWEEP
    trials = sweep.trials()
    rows, tuned = trials, studies(sweep) if sweep.tune else {}
    if tuned:  # all of them at the first value, as if it were chosen
        first = {recipe: study.points[0].values for recipe, study in tuned.items()}
        rows = [with_values(t, first.get(recipe_of(t), {})) for t in trials]
        rows += [point.trial for study in tuned.values() for point in study.points]
    trained = {
        (t.backbone, t.task, t.regularizers, t.method, t.optimizer, t.budget, t.seed, str(t.member_key(m)))
        for t in rows
        for m in range(t.members)
    }
    counts = f"{sum(t.members > 0 for t in trials)} trials"
    assert counts in module.__doc__, f"the docstring must say {counts!r}"
    assert f"{len(trained)} members" in module.__doc__, f"the docstring must say '{len(trained)} members'"


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["plan"], {"torch", "ray", "transformers", "mlflow", "deepspeed", "datasets"}),
        (
            ["sweep", "--dry-run"],
            {"ray", "mlflow", "deepspeed", "datasets"},
        ),  # it has the tokenizer read texts
    ],
)
def test_planning_loads_little(tiny_llama, data_root, tmp_path, words, heavy):
    code = (
        "import sys, jobs.cli\n"
        "code = jobs.cli.main(sys.argv[1:])\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path))
    command = [sys.executable, "-c", code, *words, str(file), "--json"]
    command += ["--data-root", str(data_root), "--storage", str(tmp_path / "none")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment())
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["members"] == {"needed": 2, "stored": 0, "to_train": 2, "damaged": []}
    assert record["stacks"][0]["memory_bytes"] > 0 and record["stacks"][0]["host"] == "tune"
    assert words == ["plan"] or "LlamaForCausalLM of 30 tensors" in str(record["backbones"])
    assert not (tmp_path / "none").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fma avx2 avx512f", False),
        ("avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("asimd bf16", True),
    ],
)
def test_a_cpu_that_emulates_bf16_is_known_by_its_flags(tmp_path, flags, has):
    (tmp_path / "cpuinfo").write_text(f"model name\t: bf16-less\nflags\t\t: fpu {flags}\n")
    assert cpu_has_bf16(str(tmp_path / "cpuinfo")) is has


@pytest.mark.parametrize(
    ("precision", "devices", "warned"),
    [("bf16", CPU, True), ("fp32", CPU, False), ("bf16", Devices("cuda", 2, 2), False)],
)
def test_a_sweep_that_will_be_slow_in_bf16_says_so(
    tiny_trial, tmp_path, monkeypatch, capsys, precision, devices, warned
):
    monkeypatch.setattr(driver, "cpu_has_bf16", lambda: False)
    plan = make_plan(Sweep(base=tiny_trial(precision=precision)), Store(str(tmp_path)), devices)
    driver._warn_of_slow_bf16(plan, devices)
    assert ("--set precision=fp32" in capsys.readouterr().err) is warned


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": f"{root}:{root / 'tests' / 'support'}"}


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


@pytest.mark.slow
def test_ten_thousand_trials_share_their_recipes(tiny_trial, tmp_path, monkeypatch):
    """Texts, configs and fingerprints are read once for each recipe, whatever the number of seeds."""
    counts = Counter()

    def counted(module, name):
        original = getattr(module, name)

        def call(*args):
            counts[name] += 1
            return original(*args)

        return call

    for module, name in ((lorae.planning.plan, "check_trial"), (lorae.planning.estimate, "stack_memory")):
        monkeypatch.setattr(module, name, counted(module, name))
    axes = {"regularizers": [(), (KL(0.1),)], "members": [1, 2, 4, 8], "seed": list(range(1250))}
    plan = make_plan(sweep(tiny_trial, **axes), Store(str(tmp_path)), CPU)
    assert len(plan.trials) == 10_000 + 1 and len(plan.stacks) == 2500
    assert len(set(plan.needed)) == plan.num_to_train == 2500 * 8
    assert counts["check_trial"] == 1 and counts["stack_memory"] <= 4


def test_plan_reads_only_files_that_changed(tiny_trial, tmp_path):
    """A stored member whose files are older than its DONE.json is believed, one that was touched is read."""
    store, trial = Store(str(tmp_path)), tiny_trial(members=2)
    for member_id in trial.member_ids():
        sets = {prediction_file(trial.task.eval_set(split)): b"p" for split in ("validation", "test")}
        store.write_entry(member_folder(member_id), {WEIGHTS: b"weights", **sets})
        for path in (tmp_path / member_folder(member_id)).rglob("*"):
            if path.name != "DONE.json":
                os.utime(path, (0, 0))
    first, second = (tmp_path / member_folder(m) / WEIGHTS for m in trial.member_ids())
    first.write_bytes(b"WEIGHTS")
    plan = make_plan(Sweep(base=trial), store, CPU)
    assert len(plan.stored) == 1 and first.parent.name in plan.damaged[0]
    second.write_bytes(b"short")
    os.utime(second, (0, 0))
    assert len(make_plan(Sweep(base=trial), store, CPU).damaged) == 2, "another size, whatever its date"


def test_damage_that_no_date_shows_is_found_when_it_is_used(tiny_trial, tmp_path):
    """The plan believes the member, the table refuses it, and the repeated sweep trains it again."""
    store, trial = Store(str(tmp_path)), tiny_trial(budget=Budget(batch_size=4, steps=2))
    run_stack(Stack(trial, (0,)), str(tmp_path))
    name = prediction_file(trial.task.eval_set("test"))
    path = tmp_path / member_folder(trial.member_id(0)) / name
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    os.utime(path, (0, 0))
    plan = make_plan(Sweep(base=trial), store, CPU)
    assert plan.num_to_train == 0
    status = dict(
        zip(*(trials_table(store, "s", plan.trials, {})[c].to_pylist() for c in ("members", "status")))
    )
    assert status == {0: "done", 1: "failed"}
    assert make_plan(Sweep(base=trial), store, CPU).num_to_train == 1


def test_same_members_are_spread_again_for_other_devices(tiny_trial, tmp_path):
    plan = make_plan(sweep(tiny_trial, members=[8]), Store(str(tmp_path)), CPU)
    again = placed(plan, replace(CPU, num=4))
    assert [s.members for s in plan.stacks] == [tuple(range(8))]
    assert sorted(s.members for s in again.stacks) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert again == make_plan(sweep(tiny_trial, members=[8]), Store(str(tmp_path)), replace(CPU, num=4))


def test_what_a_floor_bounds_is_not_divided(tiny_trial, tmp_path):
    """A stack of 5 on 64 GPUs: its halves would take as long, on twice as many GPUs."""
    gpus = Devices("cuda", 64, 4, 80 * 2**30, 8, GPUS["a100-80"].peak_flops)
    cells = sweep(tiny_trial, members=[5])
    plan = make_plan(cells, Store(str(tmp_path)), gpus)
    assert [len(s.members) for s in plan.stacks if s.members] == [5]
    steps = cells.base.budget.num_steps(len(cells.base.task.examples("train")))
    assert plan.estimates[0].train_seconds == pytest.approx(steps * 3 * FLOOR_SECONDS["cuda"])  # 3 layers
    assert len(make_plan(cells, Store(str(tmp_path)), replace(CPU, num=64)).stacks) > 2, "it has no floor"


def simulated(seconds: list[float], gpus: list[int], devices: Devices) -> Simulation:
    places = tuple(Placement("zero" if k > 1 else "tune", k, None, "") for k in gpus)
    estimates = tuple(Estimate(0, 0, s, 0.0) for s in seconds)
    plan = Plan((), (), (), (), (), (), (None,) * len(gpus), places, estimates)  # type: ignore[arg-type]
    return simulate(plan, devices)


def test_simulation_of_schedules_done_by_hand():
    two = Devices("cuda", 2, 1, per_node=2)
    assert simulated([7200, 3600, 3600], [1, 1, 1], two) == Simulation(2, 3, 7200, 4.0, 0.0)
    assert simulated([3600], [1], two) == Simulation(2, 1, 3600, 2.0, 0.5)
    wide = simulated([3600, 3600, 1800], [2, 1, 1], two)  # both GPUs, then one each
    assert (wide.makespan_seconds, wide.gpu_hours, wide.idle_frac) == (7200, 4.0, 0.125)
    nodes = Devices("cuda", 4, 1, per_node=2)  # three GPUs are free, but a stack stays on one node
    assert simulated([3600, 3600], [1, 2], nodes).makespan_seconds == 3600
    assert simulated([3600, 3600, 3600], [1, 2, 2], nodes).makespan_seconds == 7200
    assert simulated([], [], nodes) == Simulation(4, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("num", [1, 2, 7, 8, 17, 64])
def test_stacks_of_several_sizes_run_at_once_as_long_as_there_are_gpus(num):
    """As the simulation has it: not as if all were as wide as the widest."""
    widths = range(1, num + 1)
    mark = dict(zip(widths, shares([Placement("zero", k, None, "") for k in widths], num)))
    rays_own = 0.001 * (num // 2 + 1)
    for wide in widths:
        assert mark[wide] + (num - wide) * mark[1] + rays_own <= 1.0
        assert mark[wide] + (num - wide + 3) * mark[1] > 1.0
    assert shares([Placement("tune", 0, None, "")], num) == [mark[1]], "a share of the CPUs is one device"


def test_gpus_by_the_names_that_drivers_and_ray_give_them():
    assert known_gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30) == GPUS["a100-80"]
    assert known_gpu("A100") == GPUS["a100-40"], "of two sizes the smaller one"
    assert known_gpu("NVIDIA H100 80GB HBM3", 79 * 2**30) == GPUS["h100"]
    assert known_gpu("Tesla V100-SXM2-16GB") == GPUS["v100-16"] and known_gpu("RTX 4090") is None
    node = {"CPU": 48.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
    devices = ray_devices([{"CPU": 4.0}, node, {**node, "GPU": 4.0}])
    assert devices == Devices("cuda", 12, 6, GPUS["a100-40"].memory_bytes, 4, GPUS["a100-40"].peak_flops)
    assert ray_devices([{"CPU": 4.0}, {"CPU": 2.0}]) == Devices("cpu", 4, 1)
    assert ray_devices([{"CPU": 8.0, "GPU": 1.0}]).memory_bytes is None


A100_80 = Seen("0", "GPU-a", "NVIDIA A100-SXM4-80GB", 80 * 2**30)
RTX_4090 = Seen("1", "GPU-b", "NVIDIA GeForce RTX 4090", 24564 * 2**20)
A10G = Seen("2", "GPU-c", "NVIDIA A10G", 23028 * 2**20)


@pytest.mark.parametrize(
    ("names", "seen", "memory_bytes"),
    [
        (["A100"], [A100_80], 80 * 2**30),  # not the 40 GiB of the smaller kind
        (["GeForce-RTX-4090"], [RTX_4090], 24564 * 2**20),  # which no table lists
        (["A100-80G", "GeForce-RTX-4090"], [A100_80, RTX_4090], 24564 * 2**20),
        (["L40S"], [A100_80], GPUS["l40s"].memory_bytes),  # a node to come
        (["L40S"], [A10G], 23028 * 2**20),
        (["GeForce-RTX-4090"], [A100_80], None),  # a node to come, of a kind that is not known
        ([], [Seen("0", "GPU-d", "NVIDIA GB10", None)], None),
    ],
)
def test_memory_of_gpus_is_what_their_nodes_say(names, seen, memory_bytes):
    nodes = [{"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{name}": 1.0} for name in names]
    assert ray_devices(nodes or [{"CPU": 8.0, "GPU": 1.0}], seen).memory_bytes == memory_bytes


@pytest.mark.process
@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, "0123"), ("", ""), ("2,0", "20"), ("GPU-b2,1", "21"), ("1,-1,0", "1"), ("7", "")],
)
def test_gpus_that_this_process_may_use(tmp_path, monkeypatch, visible, indices):
    rows = [f"{n}, GPU-{'abbc'[n]}{n}, {'[N/A]' if n == 3 else 1024 * n}, NVIDIA Kind {n}" for n in range(4)]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = visible_gpus()
    assert [gpu.index for gpu in found] == list(indices)
    assert all(gpu.memory_bytes == (None if gpu.index == "3" else int(gpu.index) * 2**30) for gpu in found)
    assert local_devices().kind == process_devices().kind == ("cuda" if indices else "cpu")
    assert process_devices().num == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4f6a,MIG-77e1")
    assert (local_devices().kind, local_devices().num, local_devices().memory_bytes) == ("cuda", 2, None)


@pytest.mark.process
def test_a_sweep_on_a_cluster_is_planned_for_its_nodes(tiny_llama, data_root, tmp_path, monkeypatch, capsys):
    """Not for the driver's machine, on which it would not fit."""
    ran = []
    nodes = Devices("cuda", 8, 4, 80 * 2**30, 8)
    monkeypatch.setattr(driver, "local_devices", lambda: Devices("cuda", 1, 1, 2**20))
    monkeypatch.setattr(driver, "ray_cluster", lambda address: contextlib.nullcontext(nodes))
    monkeypatch.setattr(driver, "run_tune", lambda plan, request, devices: ran.append((plan, devices)) or {})
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path))
    words = ["sweep", str(file), "--data-root", str(data_root), "--storage", str(tmp_path / "results")]
    assert cli.main(words) == 2
    assert "more than the usable" in capsys.readouterr().err

    assert cli.main([*words, "--address", "auto", "--dry-run"]) == 0
    assert "fit into the usable 72.0 of 80.0 GiB" in capsys.readouterr().out and not ran
    assert cli.main([*words, "--address", "auto", "--zero", "2", "--hpz", "2"]) == 1
    ((plan, devices),) = ran
    assert devices == replace(nodes, stack_devices=2, saving=Saving(hpz=2))
    assert {(where.host, where.gpus) for where in plan.placements} == {("zero", 2)}
    told = capsys.readouterr().err
    assert "on 2 GPUs" in told and "fit into the usable 72.0 of 80.0 GiB" in told
    assert f"lorae sweep {file} --storage {tmp_path}/results --data-root {data_root} --zero 2 --hpz 2" in told
    assert "--address auto\n" in told


def test_one_process_trains_a_stack_in_one_piece(
    tiny_llama, data_root, tmp_path, monkeypatch, capsys, no_floor
):
    """Divided members would run one part after another, each as long as all together."""
    monkeypatch.setattr(jobs.devices, "visible_gpus", lambda: 8 * [A100_80])
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path))
    words = ["sweep", str(file), "--data-root", str(data_root), "--storage", str(tmp_path / "results")]
    for more, num_stacks in ([], 8), (["--local"], 1):
        assert cli.main([*words, "--set", "members=8", "--dry-run", "--json", *more]) == 0
        assert len(json.loads(capsys.readouterr().out)["stacks"]) == num_stacks


def test_plan_command_refuses_gpus_that_it_does_not_simulate(capsys):
    assert cli.main(["plan", "pipelines/demo.py", "--gpus", "64"]) == 2
    assert "add --simulate" in capsys.readouterr().err


def test_plan_command_simulates_gpus_that_are_not_there(tiny_llama, data_root, tmp_path, capsys, no_floor):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP_FILE.format(backbone=tiny_llama.path))
    command = ["plan", str(file), "--data-root", str(data_root), "--storage", str(tmp_path / "none")]
    command += ["--set", "members=16", "--simulate"]
    assert cli.main([*command, "--gpus", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["stacks"]) == 8 == record["simulation"]["gpus"]
    assert record["simulation"]["makespan_seconds"] > 0 and record["simulation"]["idle_frac"] < 0.1
    assert {s["host"] for s in record["stacks"]} == {"tune"} and "fit" in record["stacks"][0]["reason"]
    assert cli.main([*command, "--gpus", "8", "--gpu", "h100"]) == 0
    assert "simulated: 8 stacks on 8 GPUs" in capsys.readouterr().out
    assert cli.main([*command, "--gpu", "a1"]) == 2 and "must be one of t4" in capsys.readouterr().err


def test_shared_data_plans_from_local_copies(tiny_trial, tmp_path):
    root = Path(__file__).parents[3] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    base = tiny_trial(task=OpenBookQA().located(root), optimizer=AdamW())
    plan = make_plan(Sweep(base=base), Store(str(tmp_path)), CPU)
    assert plan.estimates[0].train_tokens > 1e5


def test_companions_cost_what_their_ensemble_costs(tiny_trial):
    base = tiny_trial(method=Lora(rank=2, alpha=6), budget=Budget(epochs=3), members=4)
    singles = [t for t in Sweep(base=base, companions=True).trials() if t.members == 1]
    member, longer, larger, sampled = singles
    assert member.member_ids() == base.member_ids()[:1], "the single member is the ensemble's first"
    assert longer.budget.num_steps(53) == 4 * base.budget.num_steps(53)
    assert larger.method.num_parameters(32, 16) == 4 * base.method.num_parameters(32, 16)
    assert larger.method.alpha / larger.method.rank == base.method.alpha / base.method.rank
    assert sampled.member_ids() == member.member_ids() and sampled.num_draws == 4


def test_samples_cost_their_predictions_and_their_search(tiny_trial):
    """An example's forward pass takes about half as long as its share of training, which sends nothing back
    below the first adapted layer."""
    trial, samples = tiny_trial(budget=Budget(batch_size=4, steps=5)), TFB(4)
    plain, sampled = (
        estimate(stack, CPU, place(stack, CPU))
        for stack in (Stack(trial, (0, 1), draws=(draws,)) for draws in (None, samples))
    )
    searched = samples.passes_to_fit(3) * len(samples.fitted_on(trial.task.examples("train"))) / (4 * 5)
    assert sampled.train_seconds == plain.train_seconds
    expected = 4 * plain.predict_seconds + searched * plain.train_seconds / 2
    assert sampled.predict_seconds == pytest.approx(expected, rel=0.05)


def test_a_single_adapter_has_no_companions(tiny_trial):
    assert [t.members for t in Sweep(base=tiny_trial(), companions=True).trials()] == [0, 1]
