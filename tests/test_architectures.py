"""Every family of causal LM that lorae names: its own logits, packed options, and exact stacks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stacks import largest_difference, prepared
from transformers import AutoConfig, AutoModelForCausalLM

from lorae.backbones import load_backbone
from lorae.encoding import class_logits, collate, encode
from lorae.methods import Lora
from lorae.sources import Files
from lorae.tasks.base import OptionLikelihood
from lorae.training import train_stack
from lorae.trial import AdamW, Budget

TARGETS = {"gpt_neox": ("query_key_value", "dense")}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.2,
    "sliding_window": 5,  # of those that have one; prompts and options together are longer
}


@pytest.fixture(params=["mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt_neox"])
def trial(request, tiny_trial, tiny_llama, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES)).save_pretrained(tmp_path)
    for file in Path(tiny_llama.path).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    method = Lora(rank=4, targets=TARGETS.get(request.param, ("q_proj", "v_proj")))
    optimizer, budget = AdamW(lr=5e-3), Budget(batch_size=4, steps=6)
    return tiny_trial(backbone=Files(str(tmp_path)), method=method, optimizer=optimizer, budget=budget)


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
