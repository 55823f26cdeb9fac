"""`lorae bench predict`: class logits of five members on test sentences, by the inserted stack, by PEFT's
`set_adapter`, and as many bare forward passes of the backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from jobs.bench.limit import beside_limit
from jobs.bench.peft_side import adapter_name, load_lm, with_adapters, without_cudnn_attention
from jobs.bench.setting import (
    Setting,
    num_tokens,
    peak_memory,
    rows,
    synchronize,
    tokenizer,
)
from lorae.tasks.encoding import Row
from lorae.trial import Trial

REPETITIONS = 2
BATCH_SIZE = 32
B_STD = 0.02  # members that were never trained must differ from the backbone all the same
SIDES = {
    "lorae": "lorae",
    "peft": "PEFT, set_adapter",
    "careful": "PEFT, with care",
    "limit": "limit",
}


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data."""
    trial = replace(where.trial, method=replace(where.trial.method, b_std=B_STD))
    encoded = rows(trial, "test")
    sides = {"lorae": lorae_predict, "peft": peft_loop, "careful": careful_loop}
    with beside_limit(sides, trial, where.device, encoded) as started:
        found = in_turns(started, trial.members, REPETITIONS)
        for name, process in started.items():
            found["sides"][name]["peak_bytes"] = process.call(peak_memory, where.device)
    return {"machine": where.machine, "examples": len(encoded), "tokens": num_tokens(encoded), **found}


def in_turns(sides: dict[str, Any], num_members: int, repetitions: int) -> dict[str, Any]:
    """Run the sides one pass each, again and again; medians and ratios of predictions per second."""
    what = {name: next(side) for name, side in sides.items()}
    what["limit"] = f"{num_members} times " + what["limit"]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    logits = {}
    for _ in range(repetitions):
        for name, side in sides.items():
            taken, result = next(side)
            seconds[name].append(num_members * taken if name == "limit" else taken)
            logits[name] = result
    ours = seconds["lorae"]
    return {
        "members": num_members,
        "sides": {name: {"what": what[name], "seconds": median(seconds[name])} for name in sides},
        "ratios": {name: median([b / a for a, b in zip(ours, seconds[name])]) for name in ("peft", "careful")}
        | {"limit": median([a / b for a, b in zip(ours, seconds["limit"])])},
        "logit_difference": max(
            float(abs(logits["lorae"] - logits[name]).max()) for name in ("peft", "careful")
        ),
    }


def lorae_predict(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, logits (M, N, C))."""
    from lorae.backbone.loading import load_backbone
    from lorae.engine.adapters import Adapters
    from lorae.engine.prediction import predict

    backbone, encoded = load_backbone(trial.backbone, trial.precision, device), rows(trial, "test")
    keys = [trial.member_key(m)["init"] for m in range(trial.members)]
    with Adapters(backbone, trial.method, keys):
        predict(backbone, encoded[:8])  # warm-up
        yield f"lorae's predict: {trial.members} members together, batches sorted by length"
        while True:
            started = time.perf_counter()
            logits = predict(backbone, encoded)
            yield time.perf_counter() - started, logits


def peft_loop(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, logits (M, N, C))."""
    what = (
        f"PEFT's set_adapter one member after another, batches of {BATCH_SIZE} in the data's order, "
        "right-padded with a mask, the model's logits of every position"
    )
    in_order = [list(range(n, min(n + BATCH_SIZE, trial_size(trial)))) for n in _starts(trial)]

    def last(lm: Any, words: Any, batch: Sequence[Row], answers: Any) -> Any:
        words.padding_side = "right"
        inputs = words.pad({"input_ids": [list(r.tokens) for r in batch]}, return_tensors="pt").to(device)
        logits = lm(**inputs, use_cache=False).logits
        return logits[range(len(batch)), inputs["attention_mask"].sum(1) - 1].float().gather(1, answers)

    yield from _passes(what, trial, device, in_order, last)


def careful_loop(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, logits (M, N, C))."""
    what = (
        f"PEFT's set_adapter one member after another, batches of {BATCH_SIZE} sorted by length, "
        "left-padded with a mask, the last position's product with the head's rows of the answers only"
    )
    without_cudnn_attention()
    encoded = rows(trial, "test")
    by_length = sorted(range(len(encoded)), key=lambda n: len(encoded[n].tokens))
    batches = [by_length[n : n + BATCH_SIZE] for n in _starts(trial)]

    def last(lm: Any, words: Any, batch: Sequence[Row], answers: Any) -> Any:
        words.padding_side = "left"
        inputs = words.pad({"input_ids": [list(r.tokens) for r in batch]}, return_tensors="pt").to(device)
        causal = lm.get_base_model()
        hidden_BD = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, -1]
        rows_BCD = causal.get_output_embeddings().weight[answers]
        return (rows_BCD.float() @ hidden_BD.float()[:, :, None])[:, :, 0]

    yield from _passes(what, trial, device, batches, last)


def trial_size(trial: Trial) -> int:
    """Examples that a trial predicts."""
    return len(rows(trial, "test"))


def _starts(trial: Trial) -> range:
    return range(0, trial_size(trial), BATCH_SIZE)


def _passes(
    what: str,
    trial: Trial,
    device: str,
    batches: list[list[int]],
    last: Callable[[Any, Any, Sequence[Row], Any], Any],
) -> Iterator[Any]:
    """What it is, when the model is loaded; then all members on all batches, again and again. `last` gives
    the answers' logits (rows, C)."""
    import numpy as np
    import torch

    model, encoded = with_adapters(load_lm(trial, device), trial), rows(trial, "test")
    words = tokenizer(trial.backbone)
    words.pad_token = words.pad_token or words.eos_token
    yield what
    while True:
        synchronize(device)
        started = time.perf_counter()
        logits_MNC = np.zeros((trial.members, len(encoded), encoded[0].num_classes), np.float32)
        with torch.no_grad():
            for member in range(trial.members):
                model.set_adapter(adapter_name(member))
                for chosen in batches:
                    batch = [encoded[n] for n in chosen]
                    answers = torch.tensor([r.answer_ids for r in batch], device=device)
                    logits_MNC[member, chosen] = last(model, words, batch, answers).cpu().numpy()
        yield time.perf_counter() - started, logits_MNC


def text(found: dict[str, Any]) -> str:
    """The figures as a small table."""
    lines = [
        found["machine"],
        f"\n{found['members']} members on {found['examples']} test sentences, "
        f"{found['tokens'] / found['examples']:.0f} tokens each; medians of passes in turns",
        f"{'side':<18} {'predictions/s':>13} {'lorae is':>9} {'peak':>9}",
    ]
    for key, title in SIDES.items():
        side = found["sides"][key]
        ratio = f"{found['ratios'][key]:.2f} x" if key in found["ratios"] else ""
        rate = found["members"] * found["examples"] / side["seconds"]
        lines.append(f"{title:<18} {rate:>13.1f} {ratio:>9} {side['peak_bytes'] / 2**20:>5.0f} MiB")
    lines += [f"  {title}: {found['sides'][key]['what']}" for key, title in SIDES.items()]
    lines.append(
        "predictions: of all members; lorae is: times as fast as PEFT, times the limit's seconds; logits of "
        f"lorae and PEFT differ by at most {found['logit_difference']:.1e}"
    )
    return "\n".join(lines)
