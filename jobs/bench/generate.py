"""`lorae bench generate`: texts of five members, by the stack and by PEFT's `set_adapter` and `generate`; as
many bare `generate` runs of the backbone; all members in lock-step.

No side ends a text early, so all write as many tokens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from jobs.bench.apart import Rounds, forget_peak, resident_bytes
from jobs.bench.peft_side import adapter_name, best_attention, load_lm, with_adapters, without_cudnn_attention
from jobs.bench.predict import B_STD
from jobs.bench.setting import Setting, environment, peak_memory, rows, synchronize, tokenizer
from lorae.trial import Trial

NUM_PROMPTS = {"cpu": 16, "cuda": 64}  # on two cores 16 take up to ten minutes, 64 half an hour
NEW_TOKENS, REPETITIONS = 32, 2
SIDES = {
    "lorae": "lorae",
    "lockstep": "lorae, lock-step",
    "peft": "PEFT, set_adapter",
    "bare": "bare generate",
}


def measure(where: Setting) -> dict[str, Any]:
    """Every figure as plain data."""
    num_prompts = NUM_PROMPTS[where.device]
    task = where.trial.task.subset(train=8, test=num_prompts)
    trial = replace(where.trial, task=task, method=replace(where.trial.method, b_std=B_STD))
    with contextlib.ExitStack() as processes:
        sides = {"lorae": greedy, "lockstep": lockstep, "peft": peft_loop, "bare": bare}
        started = {
            name: processes.enter_context(Rounds(side, trial, where.device, environment=environment()))
            for name, side in sides.items()
        }
        found = in_turns(started, trial.members, REPETITIONS)
        memory = started["lorae"].call(memory_of_last)
    found["sides"]["lorae"]["memory"] = memory
    tokens = sum(len(row.tokens) for row in rows(trial, "test"))
    return {"machine": where.machine, "prompts": num_prompts, "prompt_tokens": tokens, **found}


def in_turns(sides: dict[str, Any], num_members: int, repetitions: int) -> dict[str, Any]:
    """Run the sides one pass each, again and again; medians, and ratios taken pass by pass, of seconds on the
    clock and of the process's seconds on all cores."""
    what = {name: next(side) for name, side in sides.items()}
    what["bare"] = f"{num_members} times " + what["bare"]
    passes: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    texts = {}
    for _ in range(repetitions):
        for name, side in sides.items():
            seconds, process_seconds, texts[name] = next(side)
            times = num_members if name == "bare" else 1
            passes[name].append((times * seconds, times * process_seconds))

    def ratio(a: str, b: str, clock: int) -> float:
        return median(x[clock] / y[clock] for x, y in zip(passes[a], passes[b]))

    return {
        "members": num_members,
        "new_tokens": len(texts["lorae"][0][0]),
        "sides": {
            name: {"what": what[name], "seconds": median(s for s, _ in passes[name])} for name in sides
        },
        **{
            key: {
                "peft": ratio("peft", "lorae", clock),
                "bare": ratio("lorae", "bare", clock),
                "lockstep": ratio("lockstep", "lorae", clock),
            }
            for clock, key in enumerate(("ratios", "process_ratios"))
        },
        "same_first_tokens": agreement(texts["lorae"], texts["peft"]),
    }


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Share of texts [m][n] whose first token is the same."""
    pairs = [(a[0], b[0]) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


Texts = Sequence[Sequence[Sequence[int]]]  # [m][n] token ids


def greedy(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, process seconds, token ids [m][n])."""
    from lorae.engine.decoding import Greedy

    yield from _stack(trial, device, Greedy(), f"{trial.members} members together, each its own text")


def lockstep(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, process seconds, token ids [0][n])."""
    from lorae.engine.decoding import LockStep

    yield from _stack(trial, device, LockStep(), f"{trial.members} members together, one text of all")


_memory: dict[str, int] = {}  # of this process's stack


def _stack(trial: Trial, device: str, chooser: Any, what: str) -> Iterator[Any]:
    import torch

    from lorae.backbone.loading import load_backbone
    from lorae.engine.adapters import Adapters
    from lorae.engine.decoding import decode, prompt_batches, read_prompts

    backbone = load_backbone(trial.backbone, trial.precision, device)
    backbone.lm.generation_config.eos_token_id, backbone.tokenizer.eos_token = [], None
    prompts = [row.tokens for row in rows(trial, "test")]
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in range(trial.members)]):

        def texts(half: bool = False) -> Texts:
            found: dict[int, Any] = {}
            for batch in prompt_batches(backbone, prompts, NEW_TOKENS):
                read = read_prompts(backbone, [prompts[n] for n in batch])
                how = half_way(chooser, len(batch)) if half else chooser
                found |= zip(map(int, batch), zip(*decode(read, how, NEW_TOKENS)))
            return [[found[n][m][0].token_ids for n in range(len(prompts))] for m in range(len(found[0]))]

        yield what
        weights = sum(p.numel() * p.element_size() for p in backbone.lm.parameters())
        before = 0 if device == "cuda" else resident_bytes() - weights
        torch.cuda.reset_peak_memory_stats() if device == "cuda" else forget_peak()
        texts(half=True)
        _memory["peak_bytes"] = peak_memory(device) - before
        _memory["planned_bytes"] = planned(trial, device)
        yield from _timed(texts, device)


def half_way(chooser: Any, num_prompts: int) -> Any:
    """The chooser, but that every other prompt's texts end half way: then what is kept of the others is
    copied, and memory peaks."""
    from lorae.engine.decoding.choosing import BROKEN

    class HalfWay(type(chooser)):
        def choose(self, backbone: Any, logits_MSV: Any, rows_MS: Any, step: int) -> Any:
            tokens_MS = chooser.choose(backbone, logits_MSV, rows_MS, step)
            ends = rows_MS % num_prompts % 2 == 0
            return tokens_MS.masked_fill(ends, BROKEN) if step >= NEW_TOKENS // 2 else tokens_MS

    return HalfWay()


def planned(trial: Trial, device: str) -> int:
    """What the plan says that these texts take at most."""
    from lorae.planning.decoding import decoding_memory
    from lorae.sources import backbone_config

    lengths = [len(row.tokens) for row in rows(trial, "test")]
    gpus = int(device == "cuda")
    return decoding_memory(
        trial, backbone_config(trial.backbone), trial.members, lengths, NEW_TOKENS, gpus=gpus
    ).total


def memory_of_last() -> dict[str, int]:
    """Of this process's stack: peak of a pass in which half of the texts end half way, without libraries, and
    what the plan says."""
    return _memory


def peft_loop(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, process seconds, token ids [m][n])."""
    model = with_adapters(_bare_lm(trial, device), trial)
    attention = best_attention(model.get_base_model(), device, lambda: _generated(model, trial, device, 4))
    yield (
        f"PEFT's set_adapter and transformers' generate, one member after another, a batch of "
        f"{NUM_PROMPTS[device]}, left-padded, {attention} attention"
    )

    def texts() -> Texts:
        found = []
        for member in range(trial.members):
            model.set_adapter(adapter_name(member))
            found.append(_generated(model, trial, device, NEW_TOKENS))
        return found

    yield from _timed(texts, device)


def bare(trial: Trial, device: str) -> Iterator[Any]:
    """Yields what it is, then for each pass (seconds, process seconds, token ids [0][n])."""
    lm = _bare_lm(trial, device)
    attention = best_attention(lm, device, lambda: _generated(lm, trial, device, 4))
    yield f"transformers' generate of the backbone, a batch of {NUM_PROMPTS[device]}, {attention} attention"
    yield from _timed(lambda: [_generated(lm, trial, device, NEW_TOKENS)], device)


def _bare_lm(trial: Trial, device: str) -> Any:
    without_cudnn_attention()
    lm = load_lm(trial, device)
    lm.generation_config.eos_token_id = None
    return lm


def _generated(model: Any, trial: Trial, device: str, num: int) -> list[list[int]]:
    """Greedy texts of all prompts in one batch."""
    words = tokenizer(trial.backbone)
    words.pad_token, words.padding_side = words.pad_token or words.eos_token, "left"
    prompts = [list(row.tokens) for row in rows(trial, "test")]
    inputs = words.pad({"input_ids": prompts}, return_tensors="pt").to(device)
    ids = model.generate(**inputs, max_new_tokens=num, do_sample=False, pad_token_id=words.pad_token_id)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def _timed(texts: Callable[[], Texts], device: str) -> Iterator[tuple[float, float, Texts]]:
    """Seconds, seconds of this process on all cores, and texts, again and again."""
    while True:
        synchronize(device)
        started, used = time.perf_counter(), time.process_time()
        found = texts()
        synchronize(device)
        yield time.perf_counter() - started, time.process_time() - used, found


def text(found: dict[str, Any]) -> str:
    """The figures as a small table."""
    members, memory = found["members"], found["sides"]["lorae"]["memory"]
    lines = [
        found["machine"],
        f"\n{members} members, {found['prompts']} prompts of {found['prompt_tokens'] / found['prompts']:.0f} "
        f"tokens, {found['new_tokens']} new ones each; medians of passes in turns",
        f"{'side':<18} {'seconds':>8} {'tokens/s':>9}",
    ]
    for key, title in SIDES.items():
        side = found["sides"][key]
        written = found["prompts"] * found["new_tokens"] * (1 if key == "lockstep" else members)
        lines.append(f"{title:<18} {side['seconds']:>8.2f} {written / side['seconds']:>9.1f}")
    lines += [f"  {title}: {found['sides'][key]['what']}" for key, title in SIDES.items()]
    for key, clock in (("ratios", "on the clock"), ("process_ratios", "of processor time")):
        ratios = found[key]
        lines.append(
            f"{clock}: lorae is {ratios['peft']:.2f} times as fast as PEFT and takes {ratios['bare']:.2f} "
            f"times the seconds of {members} bare runs; lock-step takes {ratios['lockstep']:.2f} times those "
            "of the members alone"
        )
    lines.append(
        f"peak of lorae, libraries left out: {memory['peak_bytes'] / 2**20:.0f} MiB, planned "
        f"{memory['planned_bytes'] / 2**20:.0f} MiB; {found['same_first_tokens']:.0%} of the texts begin as "
        "PEFT's do"
    )
    return "\n".join(lines)
