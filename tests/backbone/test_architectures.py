"""Every family of causal LM that lorae names: its own logits, packed options, and stacks as exact as PEFT."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, SIZES, random_trial
from peft import LoraConfig, PeftModel
from peft_loop import peft_loop
from stacks import largest_difference, prepared
from transformers import AutoConfig, AutoModelForCausalLM

from lorae.backbone.loading import load_backbone
from lorae.engine.adapters import Adapters
from lorae.engine.batches import class_logits, collate
from lorae.engine.prediction import predict
from lorae.engine.training import train_stack
from lorae.sources import Files
from lorae.store import peft_format
from lorae.tasks.base import OptionLikelihood
from lorae.tasks.encoding import encode


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_of_a_stack_is_the_one_that_peft_trains(tiny_trial, tiny_llama, tmp_path, architecture):
    """And the exported one predicts in PEFT what it predicts here."""
    trial = random_trial(tiny_trial, tiny_llama, tmp_path, architecture)
    backbone, data = prepared(trial)
    ours, method = train_stack(backbone, trial, [0, 1, 2], data)[1], trial.method
    transposed = {"fan_in_fan_out": True} if architecture == "gpt2" else {}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(method.targets), lora_dropout=0.0, **transposed
    )
    theirs = peft_loop(trial, data, config, member=1)
    assert ours.state.keys() == theirs.keys()
    for name, value in ours.state.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    assert all(value.abs().max() > 1e-3 for name, value in ours.state.items() if name.endswith(".B"))

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name, content in peft_format.adapter_files(method, trial.backbone, ours.state).items():
        (adapter / name).write_bytes(content)
    with Adapters(backbone, method, [trial.member_key(1)["init"]]) as adapters:
        adapters.load([ours.state])
        expected = predict(backbone, data.validation)[0]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trial.backbone.path), adapter)
    for row, logits in zip(data.validation, expected):
        found = model(input_ids=torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
        assert np.allclose(found.detach().numpy(), logits, atol=1e-4)
    with torch.no_grad():  # what PEFT merges by `fan_in_fan_out`
        merged = model.merge_and_unload()
        found = merged(input_ids=torch.tensor([row.tokens])).logits[0, -1, list(row.answer_ids)]
    assert np.allclose(found.numpy(), logits, atol=1e-4)


@pytest.fixture(params=["mistral", "qwen3", "gemma", "gemma2", "gemma3", "gpt-neox", "gpt2"])
def trial(request, tiny_trial, tiny_llama, tmp_path):
    return random_trial(tiny_trial, tiny_llama, tmp_path, request.param)


def test_stacked_member_is_the_one_trained_alone_and_has_moved(trial):
    backbone, data = prepared(trial)
    stacked = train_stack(backbone, trial, [0, 1], data)
    alone = train_stack(backbone, trial, [1], data)
    assert largest_difference(stacked[1], alone[0]) < 1e-5
    assert all(value.abs().max() > 0 for name, value in stacked[1].state.items() if name.endswith(".B"))


def test_options_that_share_their_question_are_scored_as_if_apart(trial):
    task = replace(trial.task, scoring=OptionLikelihood())
    backbone, _ = prepared(trial)
    examples = [replace(e, options=tuple(f"{o} w1 w2" for o in e.options)) for e in task.examples("test")[:4]]
    rows = encode(backbone.tokenizer, task, examples, 64)
    ours = class_logits(backbone, collate(rows, 3, backbone))
    backbone.lm.set_attn_implementation("eager")  # transformers' own
    for example, logits in zip(examples, ours):
        prompt = task.prompt(example)
        start = len(backbone.tokenizer(prompt.text)["input_ids"])
        for k, answer in enumerate(prompt.answers):
            ids = backbone.tokenizer(prompt.text + answer)["input_ids"]
            log_probs = backbone.lm(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            expected = sum(log_probs[t - 1, ids[t]] for t in range(start, len(ids)))
            assert logits[k].item() == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_head_that_scales_its_logits_is_refused(precision, tiny_llama, tmp_path):
    config = AutoConfig.for_model("granite", logits_scaling=4.0, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in Path(tiny_llama.path).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match=r"GraniteForCausalLM.* not supported"):
        load_backbone(Files(str(tmp_path)), precision, "cpu")
