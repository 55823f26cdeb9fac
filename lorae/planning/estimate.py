"""What stacks run on, and what they will take there: memory and rough times, from a backbone's config and the
lengths of texts."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, cast

from lorae.draws import Fitted
from lorae.planning.decoding import decoding_memory
from lorae.planning.flops import Flops, Passes
from lorae.planning.memory import BYTES, PREDICT_TOKENS, Memory, Saving, Texts, stack_memory
from lorae.planning.stack import Stack
from lorae.shapes import linear_shapes, num_backbone_parameters, num_tokens
from lorae.sources import backbone_config
from lorae.tasks.base import Generate, Split, Task
from lorae.tasks.scoring.generate import LOGITS_AT_ONCE
from lorae.trial import AdamW, Diversity, Trial

Host = Literal["local", "tune", "zero"]

CHARS_PER_TOKEN = 4  # rough, for plans; the tokenizer is not loaded
# Rough sustained rates, for the time estimates only. CPU: one thread with AMX, bf16, as in the demo (30 s
# estimated, 33 s measured per member); without AMX it is slower. GPU: an assumed share of the data sheet's
# dense bf16 rate.
CPU_FLOPS = 1.2e11
SUSTAINED_FRAC, A100_FLOPS = 0.35, 3.12e14
FP32_SLOWDOWN = {"cpu": 2.5, "cuda": 16.0}  # measured; A100's data sheet, 312 against 19.5 TFLOP/s
# What launching the kernels of a layer takes the host, forward and backward, however few the tokens (measured
# with an H200, 48 to 65 ms for 16 layers); on a CPU nothing waits for launches
FLOOR_SECONDS = {"cpu": 0.0, "cuda": 3.5e-3}
FORWARD_FRAC = 1 / 3  # of it without a backward pass
RECOMPUTE_SLOWDOWN = 1.4  # measured 1.38, five members on SmolLM2-135M
ZERO_BYTES_PER_SECOND = 5e10  # assumed rate at which a rank receives the weights of the others


@dataclass(frozen=True)
class Devices:
    """What a stack can run on: `num` devices at once, each a GPU with some memory, or a share of the CPUs.

    Attributes:
        memory_bytes: of one GPU; None on a CPU, or if it is not known.
        per_node: GPUs of one node, the most that one stack may take.
        peak_flops: dense bf16 rate of one GPU by its data sheet; None = an A100's.
        stack_devices: that every stack takes together, by ZeRO-3; None = one, or as few as suffice.
        saving: what every stack does to take less memory.
    """

    kind: str  # "cpu" or "cuda"
    num: int
    cpus_per_stack: int
    memory_bytes: int | None = None
    per_node: int = 1
    peak_flops: float | None = None
    stack_devices: int | None = None
    saving: Saving = Saving()

    def flops(self, precision: str) -> float:
        """Rough sustained rate of one device."""
        rate = CPU_FLOPS if self.kind == "cpu" else SUSTAINED_FRAC * (self.peak_flops or A100_FLOPS)
        return rate / (FP32_SLOWDOWN[self.kind] if precision == "fp32" else 1.0)

    def floor_seconds(self, num_layers: int) -> float:
        """Least time of a forward and backward pass."""
        return FLOOR_SECONDS[self.kind] * num_layers


@dataclass(frozen=True)
class Placement:
    """Where a stack runs, and why.

    Attributes:
        host: this process, a Ray Tune trial on at most one GPU, or DeepSpeed ZeRO-3 on several.
        gpus: that it takes, or workers of ZeRO-3; 0 on a CPU.
        micro_batch: examples of each member per forward pass on one device; None = its whole share.
    """

    host: Host
    gpus: int
    micro_batch: int | None
    reason: str


@dataclass(frozen=True)
class Estimate:
    """What a stack will take: peak memory of one device, and times that are rough."""

    memory_bytes: int
    train_tokens: int
    train_seconds: float
    predict_seconds: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.predict_seconds


def estimate(stack: Stack, devices: Devices, where: Placement) -> Estimate:
    """Memory and time of a stack from the backbone's config and the lengths of the texts."""
    found = together(stack, devices, where)
    if not stack.beside:
        return found
    alone = [together(part, devices, where) for part in stack.parts]
    return replace(
        found,
        memory_bytes=max(e.memory_bytes for e in (found, *alone)),
        predict_seconds=sum(e.predict_seconds for e in alone),
    )


def together(stack: Stack, devices: Devices, where: Placement) -> Estimate:
    """The same as if all parts were of one recipe: what their training takes, but not their predictions."""
    paces = len({part.trial.seed for part in (stack, *stack.beside)})
    return _estimate(typical(stack), devices, replace(where, reason=""), paces)


@functools.lru_cache(maxsize=4096)
def _estimate(stack: Stack, devices: Devices, where: Placement, paces: int = 1) -> Estimate:
    trial, num, gpus = stack.trial, len(stack.to_train), max(1, where.gpus)
    config = backbone_config(trial.backbone)
    per = Passes.of(trial.method, config, linear_shapes(config))
    train = _lengths(trial.task, "train", *_token_limits(trial))
    untrained = not (num and trial.method.trains)
    steps, batch = 0 if untrained else trial.budget.num_steps(train.num), trial.budget.batch_size
    epochs = num * steps * batch / train.num  # of all members together
    step = per.step(trial.rereads_backbone)
    train_tokens, train_flops = int(epochs * train.total), epochs * train.flops(step)
    sets, each = stack.eval_sets(), [stack.eval_sets(m) for m in stack.members] or [stack.eval_sets()]
    classes = len(trial.task.examples("train")[0].options)
    ways = {name: replace(trial, draws=s.draws).num_passes(classes) for name, s in sets.items()}
    lengths = dict(zip(sets, _eval_lengths(stack)))
    predict_flops = sum(ways[n] * lengths[n].flops(per.forward) for of_member in each for n in of_member)
    fitted = [d for of_member in each for d in {s.draws for s in of_member.values()} if isinstance(d, Fitted)]
    num_fitted = sum(d.passes_to_fit(classes) * len(d.fitted_on(range(train.num))) for d in fitted)
    predict_flops += num_fitted * train.flops(per.forward) / train.num
    if trial.method.regime == "features":  # the frozen backbone reads each example once
        train_tokens = train.total * bool(num)
        train_flops += train.flops(per.features) * bool(num)
        predict_flops += sum(of_set.flops(per.features) for of_set in lengths.values())
    predict_flops += writing_flops(stack, per) if stack.answer_sets() else 0.0
    rate = gpus * devices.flops(trial.precision)
    rows, floor = where.micro_batch or -(-batch // gpus), devices.floor_seconds(config["num_hidden_layers"])
    passes = steps * -(-batch // (rows * gpus))
    train_seconds = train_flops / rate * (RECOMPUTE_SLOWDOWN if devices.saving.recompute else 1.0)
    train_seconds *= train.padding(paces)
    if trial.method.regime != "features":  # those train a head alone
        train_seconds = max(train_seconds, passes * floor)
    read = sum(ways[n] * lengths[n].total for of_member in each for n in of_member)
    batches = -(-read // PREDICT_TOKENS[devices.kind])
    predict_seconds = max(predict_flops / rate, batches * floor * FORWARD_FRAC)
    needs = memory(stack, rows, where.gpus, devices.saving)
    if where.host == "zero":  # every rank receives the others' weights for each forward and backward pass
        received = BYTES[trial.precision] * num_backbone_parameters(config) * (gpus - 1) / gpus
        train_seconds += 2 * passes * received / ZERO_BYTES_PER_SECOND
    return Estimate(needs.total, train_tokens, train_seconds, predict_seconds)


@dataclass(frozen=True)
class _Lengths:
    """Tokens of a split's rows: how many rows, their sum, the longest, and the most in one row's answers; and
    the sum of these. And the mean of each eighth of the rows by length."""

    num: int
    total: int
    longest: int
    answers: int = 0
    answered: int = 0
    eighths: tuple[float, ...] = (1.0,)

    def padding(self, paces: int) -> float:
        """Tokens of a step's batches, padded to the longest, over their mean: a seed visits the batches of a
        window, which is sorted by length, in its own order, so the longest is that of `paces` draws."""
        num, mean = len(self.eighths), sum(self.eighths) / len(self.eighths)
        chances = [((k + 1) / num) ** paces - (k / num) ** paces for k in range(num)]
        return sum(tokens * chance for tokens, chance in zip(self.eighths, chances)) / mean

    def flops(self, per: Flops) -> float:
        """Of one pass over all rows, as if they were equally long."""
        tokens = per.row * self.num + per.token * self.total + per.square * self.total**2 / self.num
        return tokens + per.answer * self.answered


def _token_limits(trial: Trial) -> tuple[int, int]:
    """Tokens that a text has at most, and that every image or piece of audio has (0 for texts)."""
    return trial.budget.max_tokens, num_tokens(backbone_config(trial.backbone))


@functools.lru_cache(maxsize=1024)
def _lengths(task: Task, split: Split, max_tokens: int, media_tokens: int) -> _Lengths:
    if media_tokens:
        num = len(task.examples(split))
        return _Lengths(num, num * media_tokens, media_tokens)
    rows, answers = [], [0]
    for example in task.examples(split):
        prompt = task.prompt(example)
        tokens = len(prompt.text) // CHARS_PER_TOKEN + 2
        if task.scoring.scores_texts:
            texts = prompt.answers[:1] if task.scoring.writes_text else prompt.answers  # in a row
            answers.append(sum(len(a) // CHARS_PER_TOKEN + 1 for a in texts))
            tokens += answers[-1]
        rows.append(min(max_tokens, tokens))
    rows.sort()
    parts = [rows[k * len(rows) // 8 : (k + 1) * len(rows) // 8] or rows for k in range(8)]
    eighths = tuple(sum(part) / len(part) for part in parts)
    return _Lengths(len(rows), sum(rows), max(rows), max(answers), sum(answers), eighths)


def _eval_lengths(stack: Stack) -> list[_Lengths]:
    """Of what members predict, with their demonstrations. (A batch computes these once, but not their
    attention, which takes as long on a CPU.)"""
    trial, limits = stack.trial, _token_limits(stack.trial)
    every = [_lengths(s.task, s.split, *limits) for s in stack.eval_sets().values()]
    if trial.method.trains or not stack.members:
        return every
    train, shots = _lengths(trial.task, "train", *limits), trial.method.shots
    before, longest = shots * train.total // train.num, shots * train.longest
    return [replace(e, total=e.total + e.num * before, longest=e.longest + longest) for e in every]


def _longest(stack: Stack) -> Texts:
    """Sizes of the longest row that is trained on or predicted."""
    task = stack.trial.task
    evaluated = _eval_lengths(stack)
    every = [_lengths(task, "train", *_token_limits(stack.trial)), *evaluated]
    longest, answers = (max(getattr(lengths, f) for lengths in every) for f in ("longest", "answers"))
    options = len(task.examples("train")[0].options)
    at_once = LOGITS_AT_ONCE if task.scoring.writes_text else None
    classes = options if task.scoring.trains_head else 0
    predicted = max((of_set.num for of_set in evaluated), default=0)
    return Texts(longest, answers, classes, options, at_once, predicted)


def memory(stack: Stack, rows: int, gpus: int, saving: Saving = Saving()) -> Memory:
    """Peak memory of a stack on one of its GPUs (0: on a CPU), with `rows` examples of each member at
    once."""
    trial, config, num_members = stack.trial, backbone_config(stack.trial.backbone), len(stack.members)
    fitted = {s.draws for s in stack.eval_sets().values() if isinstance(s.draws, Fitted)}
    found = stack_memory(trial, config, num_members, rows, _longest(stack), gpus, saving, fitted)
    return max([found, *_writing_memory(stack, gpus, saving)], key=lambda memory: memory.total)


def _writing_memory(stack: Stack, gpus: int, saving: Saving) -> list[Memory]:
    """The same while texts are written, of each set; none where none are."""
    trial, config, scoring = stack.trial, backbone_config(stack.trial.backbone), _writing(stack)
    limits = _token_limits(trial)
    sets = [_lengths(s.task, s.split, *limits) for s in stack.answer_sets().values()]
    return [
        decoding_memory(
            trial,
            config,
            max(1, len(stack.members)),
            [of_set.longest] * of_set.num,
            scoring.max_new_tokens,
            max(1, scoring.samples),
            gpus,
            saving,
        )
        for of_set in sets
    ]


def _writing(stack: Stack) -> Generate:
    return cast(Generate, stack.trial.task.scoring)  # no other one has `answer_sets`


def writing_flops(stack: Stack, per: Passes) -> float:
    """Operations of the texts that a stack writes and scores, as if they were as long as references: every
    member's own, and in a pool those that all write together, which every member scores."""
    scoring, total = _writing(stack), 0.0
    for wanted in stack.answer_sets().values():
        of_set = _lengths(wanted.task, wanted.split, *_token_limits(stack.trial))
        each = of_set.flops(per.forward)  # of reading the prompts with a text of each
        num, own = max(1, len(stack.members)), 1 + scoring.samples
        texts = len(scoring.lockstep) if stack.pool else own
        scored = num * own + len(scoring.lockstep) if stack.pool else own
        total += num * (texts + scored + 1) * each
    return total


def answers_bytes(stack: Stack) -> int:
    """Most bytes of the answers that a stack stores, before compression: every text at the maximum of tokens,
    references as they are."""
    scoring, total = _writing(stack), 0
    for wanted in stack.answer_sets().values():
        examples, num = wanted.task.examples(wanted.split), max(1, len(stack.members))
        references = sum(len(example.options) for example in examples)
        own = len(examples) * (1 + scoring.samples)
        texts = references + (num * own + len(examples) * len(scoring.lockstep) if stack.pool else own)
        entries = (1, num) if stack.pool else (num, 1)  # and the members in each
        total += entries[0] * texts * scoring.max_new_tokens * (8 + 8 * entries[1])
    return total


@functools.lru_cache(maxsize=16384)
def typical(stack: Stack) -> Stack:
    """The stack without what its memory and time do not depend on: the seed, numbers of the optimiser, and
    which members they are. A soup takes what one of them does; the parts of a stack train as one recipe."""
    if stack.beside:
        every = tuple(range(stack.num_members))
        stack = replace(stack, members=every, beside=(), draws=(), draw_members=(), stored=())
    schedule = AdamW(schedule=stack.trial.optimizer.schedule, cycles=stack.trial.optimizer.cycles)
    trial = replace(stack.trial, seed=0, diversity=Diversity(), optimizer=schedule)
    members = tuple(range(1 if stack.soup else len(stack.members)))
    drawing = tuple(sum(m < num for m in stack.members) for num in stack.draw_members)
    stored = members[len(stack.to_train) :]
    return replace(stack, trial=trial, members=members, draw_members=drawing, micro_batch=None, stored=stored)
