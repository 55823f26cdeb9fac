"""The same members with PEFT: trained by the HF Trainer, and by the best loop around PEFT that can be
written.

Nothing here uses lorae's model code: the model is transformers' own, the adapters are PEFT's.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from jobs.bench.setting import StepClock, batches, num_tokens, rows, synchronize, tokenizer
from lorae.backbone.devices import to_device
from lorae.backbone.loading import DTYPES
from lorae.engine.training import learning_rate
from lorae.methods import Lora, drawn_state
from lorae.shapes import linears_of
from lorae.sources import backbone_folder
from lorae.tasks.encoding import Row
from lorae.trial import Trial

ATTENTION = ("eager", "sdpa")


def without_cudnn_attention() -> None:
    """Disable cuDNN's attention, whose plans for every new length cost more than they gain."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_lm(trial: Trial, device: str) -> Any:
    """transformers' model in the trial's precision, with its default attention."""
    from transformers import AutoModelForCausalLM

    folder, dtype = backbone_folder(trial.backbone), DTYPES[trial.precision]
    lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return lm.to(torch.device(device)).eval()


def lora_config(trial: Trial) -> Any:
    """PEFT's config of the trial's adapters."""
    from peft import LoraConfig

    assert isinstance(trial.method, Lora)
    return LoraConfig(
        r=trial.method.rank,
        lora_alpha=int(trial.method.alpha or trial.method.rank),
        target_modules=list(trial.method.targets),
        task_type="CAUSAL_LM",
    )


def adapter_name(member: int) -> str:
    """A member's adapter name in PEFT's model."""
    return f"member{member}"


def with_adapters(lm: Any, trial: Trial) -> Any:
    """A PEFT model with an adapter for each member, all initialised as lorae's."""
    from peft import get_peft_model

    layers = trial.method.adapted_layers(linears_of(lm), trial.backbone.label)
    model: Any = get_peft_model(lm, lora_config(trial), adapter_name=adapter_name(0))
    for member in range(1, trial.members):
        model.add_adapter(adapter_name(member), lora_config(trial))
    for member in range(trial.members):
        reset(model, trial, member, layers)
    return model


@torch.no_grad()
def reset(model: Any, trial: Trial, member: int, layers: dict[str, tuple[int, int]]) -> None:
    """Set a member's adapter to its initialisation."""
    assert isinstance(trial.method, Lora)
    state = drawn_state(trial.method, layers, trial.member_key(member)["init"])
    for name, value in state.items():
        layer, _, factor = name.rpartition(".")
        module = model.get_submodule(f"base_model.model.{layer}.lora_{factor}.{adapter_name(member)}")
        module.weight.copy_(value)


# What users do ---------------------------------------------------------------------------------------------


def hf_trainer(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each member in turn (seconds, examples, tokens, {member: mean loss})."""
    yield "PEFT + HF Trainer, its defaults: a causal LM with labels on the answer only, padded by its mask"
    for member in itertools.cycle(range(trial.members)):
        yield _train_by_trainer(trial, member, device)


def _train_by_trainer(trial: Trial, member: int, device: str) -> tuple[float, int, int, dict[int, float]]:
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    clock = StepClock(device)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    model: Any = get_peft_model(load_lm(trial, device).train(), lora_config(trial))
    words = tokenizer(trial.backbone)
    words.pad_token = words.pad_token or words.eos_token
    # The Trainer shuffles them itself
    seen = [row for batch in batches(trial, member, rows(trial, "train")) for row in batch]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=trial.budget.batch_size,
                max_steps=trial.budget.num_steps(len(seen)),
                learning_rate=trial.optimizer.lr,
                seed=member,
                use_cpu=device == "cpu",
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=[_labelled(row) for row in seen],  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(words),
            callbacks=[Clock()],
        )
        loss = trainer.train().training_loss
    share = (len(clock.stamps) - 1) / len(clock.stamps)
    return clock.seconds, round(share * len(seen)), round(share * num_tokens(seen)), {member: loss}


def _labelled(row: Row) -> dict[str, list[int]]:
    answer = row.answer_ids[row.label]
    return {
        "input_ids": [*row.tokens, answer],
        "attention_mask": [1] * (len(row.tokens) + 1),
        "labels": [-100] * len(row.tokens) + [answer],
    }


# The best loop around PEFT ---------------------------------------------------------------------------------


def best_loop(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each member in turn (seconds, examples, tokens, {member: mean loss})."""
    without_cudnn_attention()
    lm = load_lm(trial, device)
    layers = trial.method.adapted_layers(linears_of(lm), trial.backbone.label)
    model = with_adapters(lm, trial)
    first = batches(trial, 0, rows(trial, "train"))[:2]

    def steps() -> None:
        _train_alone(model, trial, 0, first, device)

    attention = best_attention(lm, device, steps)
    yield (
        f"PEFT's set_adapter on one shared backbone: batches of similar length as lorae's, {attention} "
        "attention without padding mask, only the answers' rows of the head, fused AdamW"
    )
    for member in itertools.cycle(range(trial.members)):
        reset(model, trial, member, layers)
        yield _train_alone(model, trial, member, batches(trial, member, rows(trial, "train")), device)


def best_attention(lm: Any, device: str, run: Callable[[], object]) -> str:
    """Set the model's attention to the implementation with which `run` is faster, and return it."""
    seconds = {}
    for attention in ATTENTION:
        lm.set_attn_implementation(attention)
        run()
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds[attention] = time.perf_counter() - started
    best = min(seconds, key=lambda attention: seconds[attention])
    lm.set_attn_implementation(best)
    return best


def _train_alone(
    model: Any, trial: Trial, member: int, steps: Sequence[Sequence[Row]], device: str
) -> tuple[float, int, int, dict[int, float]]:
    """Train one member's adapter on its batches."""
    model.set_adapter(adapter_name(member))
    parameters = [p for p in model.parameters() if p.requires_grad]
    spec = trial.optimizer
    optimizer = torch.optim.AdamW(parameters, spec.lr, spec.betas, spec.eps, spec.weight_decay, fused=True)
    clock, losses = StepClock(device), []
    for step, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(spec, step, len(steps))
        labels = to_device([row.label for row in batch], device)
        loss = F.cross_entropy(answer_logits(model, batch, device), labels)
        optimizer.zero_grad()
        loss.backward()
        if spec.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
        clock()
    timed = [row for batch in steps[1:] for row in batch]
    return clock.seconds, len(timed), num_tokens(timed), {member: torch.stack(losses).mean().item()}


def answer_logits(model: Any, batch: Sequence[Row], device: str) -> torch.Tensor:
    """Class logits (rows, C) of right-padded rows from the last real token's hidden state."""
    lm = model.get_base_model()
    ids, last = padded(batch, device)
    hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden = hidden[torch.arange(len(batch), device=device), last].float()
    answers = to_device([row.answer_ids for row in batch], device)
    return torch.einsum("nd,ncd->nc", hidden, lm.get_output_embeddings().weight[answers].float())


def padded(batch: Sequence[Row], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids (rows, T) and the index (rows,) of each row's last real token."""
    longest = max(len(row.tokens) for row in batch)
    ids = [row.tokens + (0,) * (longest - len(row.tokens)) for row in batch]
    return to_device(ids, device), to_device([len(row.tokens) - 1 for row in batch], device)
