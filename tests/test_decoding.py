"""Texts of stacked members: those that PEFT's members write, whatever is beside them."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from test_architectures import ARCHITECTURES, random_trial
from transformers import AutoModelForCausalLM

from lorae.backbone.loading import load_backbone
from lorae.engine.adapters import Adapters
from lorae.engine.decoding import Greedy, decode, read_prompts
from lorae.store import peft_format

# Of several lengths, some beyond the sliding windows of 5; all begin alike
PROMPTS = [[7, 20, 21], [7, 20, 9, 30, 31, 32, 33, 34], [7, 20], [7, 20, 11, 12, 13], [7, 20, 21, 40, 41, 42]]


def states_of(adapters, seed=0, std=0.3):
    """Random parameters of each member, far from the backbone."""
    drawn = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(value.shape, generator=drawn) * std for name, value in adapters.state(m).items()}
        for m in range(adapters.num_members)
    ]


def peft_texts(trial, method, state, folder, prompts, max_new_tokens):
    """What PEFT's member writes to each prompt alone."""
    folder.mkdir()
    for name, content in peft_format.adapter_files(method, trial.backbone, state).items():
        (folder / name).write_bytes(content)
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = PeftModel.from_pretrained(lm, folder).eval()
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=False,  # its cache takes `sliding_window` of any config as that of all layers
        )
        texts.append(tuple(written[0, len(prompt) :].tolist()))
    return texts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_of_a_stack_writes_what_it_writes_in_peft(tiny_trial, tiny_llama, tmp_path, architecture):
    trial = random_trial(tiny_trial, tiny_llama, tmp_path, architecture)
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in range(3)]) as adapters:
        states = states_of(adapters)
        adapters.load(states)
        ours = decode(read_prompts(backbone, PROMPTS), Greedy(), 10)
    assert len({text[0].token_ids for member in ours for text in member}) > 5, (
        "members write texts of their own"
    )
    theirs = peft_texts(trial, trial.method, states[1], tmp_path / "adapter", PROMPTS, 10)
    assert [text[0].token_ids for text in ours[1]] == theirs
