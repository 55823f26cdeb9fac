"""A member as PEFT trains it alone, by a plain loop."""

from __future__ import annotations

import numpy as np
import torch
from peft import get_peft_model
from peft.tuners._buffer_dict import BufferDict
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lorae.backbone.loading import load_backbone
from lorae.engine.order import DataOrder
from lorae.engine.training import TrainingData, learning_rate
from lorae.methods import Vera, drawn_state, frozen_tensors
from lorae.regularizers import KL, DecayB
from lorae.trial import Trial


def peft_loop(trial: Trial, data: TrainingData, config, member: int) -> dict[str, torch.Tensor]:
    """The member trained by PEFT on the same batches: padded rows with a mask, the model's own logits,
    torch's clipping."""
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = get_peft_model(lm, config)
    key = trial.member_key(member)
    layers = trial.method.adapted_layers(load_backbone(trial.backbone, "fp32", "cpu").linears, "tiny")
    parameters = peft_parameters(model)
    with torch.no_grad():
        for name, value in drawn_state(trial.method, layers, key["init"]).items():
            parameters[name].copy_(value)
        if isinstance(trial.method, Vera):
            give_matrices(model, layers, frozen_tensors(trial.method, layers, key["init"]))
    decay = trial.regularizer(DecayB)
    zero = {n for n in parameters if n.endswith((".B", ".b"))}
    groups = [
        {
            "params": [p for n, p in parameters.items() if n not in zero],
            "weight_decay": trial.optimizer.weight_decay,
        },
        {
            "params": [p for n, p in parameters.items() if n in zero],
            "weight_decay": trial.optimizer.weight_decay + (decay.strength if decay else 0),
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=trial.optimizer.lr)
    num_steps = trial.budget.num_steps(len(data.train))
    order = DataOrder(
        key["order"], trial.seed, np.array([len(r.tokens) for r in data.train]), trial.budget.batch_size
    )
    for step in range(num_steps):
        rows = [data.train[n] for n in order.batch(step)]
        length = max(len(r.tokens) for r in rows)
        ids = torch.tensor([list(r.tokens) + [1] * (length - len(r.tokens)) for r in rows])
        mask = torch.tensor([[1] * len(r.tokens) + [0] * (length - len(r.tokens)) for r in rows])
        logits = model(input_ids=ids, attention_mask=mask).logits
        answers = torch.stack([logits[n, len(r.tokens) - 1, list(r.answer_ids)] for n, r in enumerate(rows)])
        loss = F.cross_entropy(answers, torch.tensor([r.label for r in rows]))
        if kl := trial.regularizer(KL):
            reference = torch.from_numpy(data.reference_logits_NC[order.batch(step)]).softmax(1)
            loss = loss + kl.beta * F.kl_div(answers.log_softmax(1), reference, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), trial.optimizer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trial.optimizer, step, num_steps)
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


def give_matrices(model, layers, frozen) -> None:
    """Set VeRA's matrices: one pair for all layers, or one for each, which PEFT itself does not make."""
    for n, layer in enumerate(layers):
        module = model.get_submodule(f"base_model.model.{layer}")
        a, b = frozen if len(frozen) == 2 else frozen[2 * n : 2 * n + 2]
        module.vera_A, module.vera_B = BufferDict({"default": a}), BufferDict({"default": b})


def peft_parameters(model) -> dict[str, torch.nn.Parameter]:
    """PEFT's trainable parameters under our names."""
    ours = {
        "lora_A.default.weight": "A",
        "lora_B.default.weight": "B",
        "vera_lambda_d.default": "d",
        "vera_lambda_b.default": "b",
    }
    found = {}
    for name, parameter in model.named_parameters():
        for theirs, factor in ours.items():
            if name.endswith("." + theirs):
                layer = name.removeprefix("base_model.model.").removesuffix("." + theirs)
                found[f"{layer}.{factor}"] = parameter
    return found
