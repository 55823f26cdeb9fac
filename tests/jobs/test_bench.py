"""The benchmarks' sides do the same work, and every figure is there."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from toys import Colours
from victims import PYTHON_PATH, SUPPORT

from jobs import cli
from jobs.bench import (
    everything,
    generate,
    growth,
    memory,
    naive_sweep,
    overhead,
    predict,
    sweep,
    train,
    vera,
)
from jobs.bench.apart import apart
from jobs.bench.limit import bare_forwards, ways
from jobs.bench.peft_side import best_loop, hf_trainer, load_lm, lora_config
from jobs.bench.setting import Setting, batches, environment, rows
from lorae.backbone.loading import load_backbone
from lorae.methods import Lora, Vera
from lorae.regularizers import KL, DecayB
from lorae.store.store import Store
from lorae.trial import AdamW, Budget, Sweep


@pytest.fixture
def trial(tiny_trial):
    return tiny_trial(members=2, budget=Budget(batch_size=4, steps=6))


@pytest.mark.slow
def test_sides_that_write_texts_write_the_same(trial, monkeypatch):
    monkeypatch.setattr(generate, "NEW_TOKENS", 6)
    trial = replace(trial, method=Lora(b_std=0.5))
    pooled = generate.lockstep(trial, "cpu")
    passes = [next(pooled) for _ in range(3)]
    pooled.close()
    load_backbone.cache_clear()  # each has a backbone of its own, whose texts never end
    sides = {
        "lorae": generate.greedy(trial, "cpu"),
        "lockstep": iter(passes),
        "peft": generate.peft_loop(trial, "cpu"),
        "bare": generate.bare(trial, "cpu"),
    }
    found = generate.in_turns(sides, trial.members, 1)
    assert found["new_tokens"] == 6 and found["same_first_tokens"] == 1
    texts = {name: [list(map(list, member)) for member in next(side)[2]] for name, side in sides.items()}
    assert texts["lorae"] == texts["peft"], "and not only their first tokens"
    assert len(texts["lorae"]) == 2 and len(texts["lockstep"]) == len(texts["bare"]) == 1
    assert texts["lorae"][0] != texts["lorae"][1] != texts["bare"][0]
    memory = generate.memory_of_last()
    assert min(memory.values()) > 0
    found |= {"machine": "here", "prompts": 20, "prompt_tokens": 200}
    found["sides"]["lorae"]["memory"] = memory
    assert generate.text(found).count("times as fast as PEFT") == 2
    load_backbone.cache_clear()


def test_ratios_of_texts_are_taken_pass_by_pass():
    """On the clock and of processor time, bare runs once for each member."""

    def side(seconds: float, process_seconds: float):
        yield "a side"
        for slowness in (1, 2, 2):
            yield slowness * seconds, slowness * process_seconds, [[[1, 2]]]

    sides = {"lorae": side(1, 2), "lockstep": side(1.1, 3), "peft": side(4, 4), "bare": side(0.5, 0.5)}
    found = generate.in_turns(sides, 5, 3)
    assert found["ratios"] == pytest.approx({"peft": 4.0, "bare": 0.4, "lockstep": 1.1})
    assert found["process_ratios"] == pytest.approx({"peft": 2.0, "bare": 0.8, "lockstep": 1.5})
    assert found["sides"]["bare"]["seconds"] == 5.0


@pytest.mark.slow
def test_training_sides_do_the_same_work(trial):
    """The losses compared are of every step: a loop that took another step anywhere would differ."""
    seen = [row for m in range(2) for batch in batches(trial, m, rows(trial, "train"))[1:] for row in batch]
    sides = {
        "lorae": train.lorae_stack(trial, "cpu"),
        "trainer": hf_trainer(trial, "cpu"),
        "loop": best_loop(trial, "cpu"),
        "limit": bare_forwards(trial, "cpu", seen),
    }
    found = train.in_turns(sides, 2)
    ours, theirs = (found["sides"][name]["mean_losses"] for name in ("lorae", "loop"))
    assert ours.keys() == theirs.keys() == {0, 1} and abs(ours[0] - ours[1]) > 1e-2
    assert found["loss_difference"] < 1e-3
    assert next(sides["loop"])[3] == pytest.approx({0: ours[0]}, abs=1e-3), (
        "it starts from the initialisation"
    )
    assert all(found["sides"][name]["tokens_per_second"] > 0 for name in sides)
    assert found["ratios"].keys() == {"trainer", "loop", "limit"} and min(found["ratios"].values()) > 0


def test_ratios_are_taken_round_by_round():
    """A machine that is half as fast in the second round leaves the ratios as they are."""

    def side(seconds: float, *counts: object):
        yield "a side"
        for slowness in (1, 2, 2):
            yield (slowness * seconds, *counts)

    sides = {
        "lorae": side(1.0, 40, 1000, {0: 0.5}),
        "trainer": side(1.0, 8, 200, {0: 9.0}),
        "loop": side(1.0, 20, 500, {0: 0.25}),
        "limit": side(0.4, 1000),
    }
    found = train.in_turns(sides, 3)
    assert found["ratios"] == pytest.approx({"trainer": 5.0, "loop": 2.0, "limit": 1.25})
    assert found["loss_difference"] == 0.25


def test_prediction_sides_have_the_same_logits(trial):
    trial = replace(trial, method=Lora(b_std=0.5))
    sides = {
        "lorae": predict.lorae_predict(trial, "cpu"),
        "peft": predict.peft_loop(trial, "cpu"),
        "careful": predict.careful_loop(trial, "cpu"),
        "limit": bare_forwards(trial, "cpu", rows(trial, "test")),
    }
    found = predict.in_turns(sides, trial.members, 1)
    assert found["logit_difference"] < 1e-4
    logits = next(sides["lorae"])[1]
    assert logits.shape == (2, 20, 3) and abs(logits[0] - logits[1]).max() > 0.1
    assert all(side["seconds"] > 0 for side in found["sides"].values())


def test_the_limit_processes_every_real_token_once(trial):
    encoded = rows(trial, "train")
    tokens = sorted(token for row in encoded for token in row.tokens)
    for name, cut in ways("cpu"):
        ids = cut(encoded, "cpu")
        if "packed" in name:
            assert sorted(token for batch in ids for token in batch.flatten().tolist()) == tokens
        else:
            assert sum(len(batch) for batch in ids) == len(encoded)


def test_no_sweep_on_a_gpu_is_compared_with_one_on_the_cpu(trial):
    with pytest.raises(ValueError, match="compares on a CPU"):
        sweep.measure(Setting({"colours": trial}, "cuda", "a GPU"))


def test_memory_is_split_and_bounded(trial):
    one, two = (memory.stack_bytes(replace(trial, members=m), "cpu") for m in (1, 2))
    assert two["adapter_bytes"] == 2 * one["adapter_bytes"] > 0
    assert two["backbone_bytes"] == one["backbone_bytes"] > 0
    stacks = [
        {"members": 1, "backbone_bytes": 100, "adapter_bytes": 1, "activation_bytes": 19, "peak_bytes": 120},
        {
            "members": 10,
            "backbone_bytes": 100,
            "adapter_bytes": 10,
            "activation_bytes": 140,
            "peak_bytes": 250,
        },
    ]
    found = memory.against_bound(stacks)
    assert found["over_bound"] == pytest.approx(250 / 300) and found["over_one"] == pytest.approx(250 / 120)
    assert "0.83 times" in memory.text({"machine": "here", "stacks": stacks, "largest": found})


@pytest.mark.slow
def test_growth_has_every_size_and_its_shares(trial):
    found = growth.grow(trial, "cpu", (1, 3), (8, 16))
    assert [at["members"] for at in found["members"]] == [1, 3]
    assert [(at["length"], at["batch_size"]) for at in found["lengths"]] == [(8, 64), (16, 32)]
    for at in (*found["members"], *found["lengths"]):
        assert at["seconds_per_member_step"] > 0 and at["tokens_per_second"] > 0
        assert sum(at["shares"].values()) == pytest.approx(1) and at["shares"]["frozen products"] > 0
    assert {len(row.tokens) for row in growth.of_length(trial, 16, 4)} == {16}


@pytest.mark.process
def test_lora_and_vera_are_compared_at_equal_rank(trial, monkeypatch):
    monkeypatch.setattr(vera, "SIDES", {"LoRA": Lora(rank=8), "VeRA": Vera(rank=8)})
    sides = vera.compare(trial, "cpu", 1)
    assert list(sides) == ["LoRA", "VeRA"] and sides["LoRA"]["time_over_lora"] == 1
    lora, ours = (side["trained_parameters"] for side in sides.values())
    assert lora == 3 * 8 * (32 + 32 + 32 + 16) and ours == 3 * (8 + 32 + 8 + 16)  # q and v of three layers
    assert all(side["seconds_per_step"] > 0 and side["peak_bytes"] > 2**20 for side in sides.values())
    printed = vera.text({"machine": "here", "rank": 8, "steps": 5, "sides": sides})
    assert f"{lora:,}" in printed and f"{ours:,}" in printed


def test_growth_ends_where_no_further_size_gains():
    sizes = [
        {"members": m, "tokens_per_second": rate, "shares": {"frozen products": 0.7}}
        for m, rate in ((1, 100), (2, 150), (5, 180), (10, 182), (20, 170))
    ]
    assert growth.limit(sizes, "members") == {"members": 5, "frozen_frac": 0.7}
    assert growth.limit(sizes[:1], "members")["members"] == 1


@pytest.mark.process
def test_naive_sweep_and_lorae_read_one_file(tiny_trial, data_root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SUPPORT)
    base = replace(tiny_trial(budget=Budget(batch_size=8, steps=3)), task=Colours())
    grid = Sweep(base=base, axes={"regularizers": [(KL(0.1), DecayB(1.0))], "members": [1, 2]})

    def in_this_process(words: list[str]) -> float:
        if words[0] == "jobs.cli":
            assert cli.main([*words[1:], "--local"]) == 0
        else:
            trials = [t for t in grid.located(data_root).trials() if t.members]
            found = [naive_sweep.train_and_evaluate({"number": n}, trials) for n in range(len(trials))]
            with open(words[2], "w") as stream:
                json.dump({"rows": found, "seconds": 1.0}, stream)
        return 10.0 if words[0] == "jobs.cli" else 90.0

    monkeypatch.setattr(sweep, "command", in_this_process)
    found = sweep.against_naive(grid, tmp_path / "bench", str(data_root))
    assert found["ratio"] == 9 and found["trials"] == len(found["table"]) == 2
    assert found["parts"]["lorae"]["members"] == 2 and found["parts"]["naive"]["members"] == 3
    assert min(found["full_seconds_computed"].values()) > 0
    for row in found["table"]:
        assert min(*row["acc"], *row["nll"], row["nll_error"]) > 0
        assert row["nll_difference"] == pytest.approx(row["nll"][1] - row["nll"][0], abs=1e-5)


@pytest.mark.slow
def test_naive_members_learn(tiny_trial):
    """Against KL to a backbone that knows nothing, which a member without it would leave behind further."""
    trial = tiny_trial(optimizer=AdamW(lr=2e-2), budget=Budget(batch_size=8, steps=40))
    losses = []
    for regularizers in ((), (KL(5.0),)):
        changed, train_rows = replace(trial, regularizers=regularizers), rows(trial, "train")
        torch.manual_seed(0)
        model = get_peft_model(load_lm(changed, "cpu"), lora_config(changed))
        before = naive_sweep.probabilities(model, train_rows)
        naive_sweep.train_member(model, changed, train_rows)
        after = naive_sweep.probabilities(model, train_rows)
        labels = torch.tensor([row.label for row in train_rows])[:, None]
        losses.append([-p.gather(1, labels).log().mean().item() for p in (before, after)])
    (start, free), (same_start, held) = losses
    assert start == same_start and free < 0.5 * start and free < held


@pytest.mark.process
@pytest.mark.ray
def test_stacks_on_one_worker(tiny_trial, data_root, tmp_path):
    base = replace(tiny_trial(budget=Budget(batch_size=4, steps=3), members=2), task=Colours())
    two = Sweep(base=base, axes={"seed": [0, 1]}, zero_shot=False)
    variables = environment() | {"PYTHONPATH": PYTHON_PATH}
    found = apart(overhead.run_stacks, two, tmp_path / "two", 1, str(data_root), environment=variables).result
    assert found["seconds"] > found["further_stack_seconds"] > 0


def test_plans_are_timed(tiny_trial, tmp_path):
    assert overhead.plan_many(tiny_trial(), str(tmp_path / "empty"), 16) > 0
    assert overhead.plan_stored(tiny_trial(), str(tmp_path / "stored"), 8) > 0
    assert len(Store(str(tmp_path / "stored")).storage.names("members")) == 8


def test_table_of_ratios_says_what_falls_short():
    side = {"trainer": 4.5, "loop": 1.7, "limit": 1.4}
    found = {
        "train": {"tasks": {"reviews": {"ratios": side}}},
        "predict": {"ratios": {"peft": 3.5, "careful": 1.5, "limit": 1.1}},
        "memory": {"largest": {"members": 10, "over_bound": 0.9}},
    }
    table = everything.ratios(found)
    assert [row["met"] for row in table] == [True, False, False, True, False, True, True]
    text = everything.text({"ratios": table, "seconds": {"train": 60.0}})
    assert text.count("falls short") == 3 and "at least 1.8" in text and "1 min in all" in text


def test_without_peft_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "train"]) == 2
    assert "pip install 'lorae[dev]'" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(capsys):
    assert cli.main(["bench", "memory", "--device", "tpu"]) == 2
    assert "--device tpu: must be cpu, or cuda" in capsys.readouterr().err


def test_json_is_all_that_is_on_stdout(tiny_llama, data_root, monkeypatch, capsys):
    """DeepSpeed, say, prints when a library imports it."""

    def noisy(where):
        print("a library speaks")
        return {"peak": 1}

    monkeypatch.setattr(memory, "measure", noisy)
    assert cli.main(["bench", "memory", "--json", "--data-root", str(data_root)]) == 0
    assert json.loads(capsys.readouterr().out) == {"peak": 1}
