"""Trains the members of a stack together, each exactly as if it were trained alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from lorae.backbone.devices import ToHost, to_device
from lorae.backbone.loading import Backbone
from lorae.engine.adapters import Adapters, State
from lorae.engine.batches import stack_losses
from lorae.engine.checkpoints import Checkpoints, checkpoint, keep_members, load_fitting, restore
from lorae.engine.clock import Stopwatch
from lorae.engine.optimizer import Optimizer, clip_per_member, learning_rate
from lorae.engine.order import DataOrder
from lorae.engine.prediction import draws_nll, labels, pooled_draws, predict_draws
from lorae.methods import Step
from lorae.noise import make_noise
from lorae.regularizers import EarlyStopping
from lorae.regularizers.together import together
from lorae.tasks.encoding import Row
from lorae.trial import Trial, in_common

PATH_PARTS = 5  # of the training; a member's path has a point after each


@dataclass(frozen=True)
class TrainingData:
    """Encoded training and validation rows; with features for `LastLayer`.

    Attributes:
        reference_logits_NC: for KL, the backbone's class logits on the training rows; for `Distill`, the log-
            probabilities of the teacher.
        feature_seconds, feature_process_seconds: time to compute the rows' features, which counts as
            training.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    reference_logits_NC: np.ndarray | None = None
    feature_seconds: float = 0.0
    feature_process_seconds: float = 0.0

    @property
    def num_classes(self) -> int:
        return max(r.num_classes for r in (*self.train, *self.validation))

    @property
    def reference_NC(self) -> np.ndarray:
        """`reference_logits_NC` padded to the members' number of classes with -inf, for classes that occur
        only in validation.

        Raises:
            ValueError: there are no reference logits.
        """
        if self.reference_logits_NC is None:
            raise ValueError(
                "KL needs the backbone's logits on the training rows, Distill the teacher's; give "
                "reference_logits_NC"
            )
        lacking = self.num_classes - self.reference_logits_NC.shape[1]
        return np.pad(self.reference_logits_NC, ((0, 0), (0, lacking)), constant_values=-np.inf)


@dataclass
class MemberRun:
    """The training of one member.

    Attributes:
        state: parameters; of the best step under early stopping, otherwise of the last step.
        snapshots: under a cyclic schedule, parameters at the end of every cycle but the last.
        path: class logits {"logits": (N, C)} on the validation rows at the steps of the path.
        error: None, or why the member failed, with the step and, in training, the example ids.
        best_step: optimiser steps done to reach `state`.
        curve: one record for each step and evaluation: step, split, loss, nll, acc, lr, grad_norm, seconds.
        train_tokens: non-padding tokens that the backbone read; with `LastLayer` each row counts once.
        train_seconds: equal share of the stack's wall time.
        process_seconds: equal share of the time that other work on the machine does not affect, see
            `Stopwatch`; summed over ranks, as if all were like the first.
        train_flops: operations of the training, see `lorae.planning.flops`, including evaluations for early
            stopping.
        shared_flops: the part of `train_flops` that an ensemble does once for all members: the features of
            `LastLayer`. NaN, like the two above, if the training began in a version of lorae that did not
            count them.
    """

    member: int
    state: State = field(default_factory=dict)
    snapshots: list[State] = field(default_factory=list)
    path: list[State] = field(default_factory=list)
    error: str | None = None
    best_step: int = 0
    best_nll: float = math.inf
    bad_evaluations: int = 0
    train_tokens: int = 0
    train_seconds: float = 0.0
    process_seconds: float = 0.0
    train_flops: float = 0.0
    shared_flops: float = 0.0
    curve: list[dict[str, float | int | str]] = field(default_factory=list)


def train_stack(
    backbone: Backbone,
    trials: Trial | Sequence[Trial],
    members: Sequence[int],
    data: TrainingData,
    *,
    micro_batch: int | None = None,
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[int, int, Sequence[MemberRun]], None] = lambda step, num_steps, runs: None,
    evaluate_every: int | None = None,
    on_evaluation: Callable[[int, int, float], None] = lambda step, num_steps, nll: None,
    path: bool = False,
) -> list[MemberRun]:
    """Train members together and return their parameters, curves and costs, in order.

    The stack's loss is the sum of the members' own mean losses, so no member affects another. A member whose
    loss, gradient or validation NLL is not finite fails alone; a member that stops early leaves, and the
    stack gets cheaper. If several ranks hold the backbone, each computes its share of every member's batch;
    all ranks then have the same gradients and take the same steps and decisions.

    Args:
        trials: the members' trial, or that of each; all have equal `in_common`.
        members: indices that name the members' random streams.
        micro_batch: examples per member and forward pass; None = the whole batch, or the rank's share of it.
            Results depend on it only by rounding.
        checkpoints: continue from the last checkpoint, and save when due; only rank 0 reads or writes them.
        on_step: called after each step with the steps done, their total and the members' records so far.
        evaluate_every: steps between calls of `on_evaluation`, except after the last step; None = no calls.
        on_evaluation: called with the steps done, their total and the validation NLL of the ensemble, while
            the NLL is finite and no member has left: a partial ensemble is not compared with whole ones. A
            search may end the stack there, as it has been checkpointed.
        path: record the members' predictions on the validation rows, before the first step and after each
            fifth of the steps.
    """
    trials = [trials] * len(members) if isinstance(trials, Trial) else trials
    trial = trials[0]  # for all that members have in common
    assert {*map(in_common, trials)} == {in_common(trial)}, "only the same steps can be shared"
    keys, stopping = [t.member_key(m) for t, m in zip(trials, members)], trial.regularizer(EarlyStopping)
    reference_NC = data.reference_NC if any(t.stores_reference or t.teacher for t in trials) else None
    batch_size, num_steps = trial.budget.batch_size, trial.budget.num_steps(len(data.train))
    snapshot_steps = trial.optimizer.snapshot_steps(num_steps)
    path_steps = {k * num_steps // PATH_PARTS for k in range(1, PATH_PARTS + 1)}
    every = stopping and (stopping.every or trial.budget.steps_per_epoch(len(data.train)))
    labels_N = np.array([r.label for r in data.train])
    class_weight_MC = class_weights(trials, labels_N, data.num_classes)
    if class_weight_MC is not None:
        class_weight_MC = class_weight_MC.to(backbone.device)
    lengths = np.array([len(r.tokens) for r in data.train])
    orders = [DataOrder(k["order"], t.seed, lengths, batch_size) for k, t in zip(keys, trials)]
    seconds = data.feature_seconds / len(members), data.feature_process_seconds / len(members)
    runs = [MemberRun(m, train_seconds=seconds[0], process_seconds=seconds[1]) for m in members]
    step_tokens_N = lengths  # tokens that a step reads
    on_features = trial.method.regime == "features"
    if on_features:  # read once before, not by steps
        step_tokens_N = np.zeros_like(lengths)
        for run in runs:
            run.train_tokens = int(lengths.sum())
    active = list(range(len(runs)))  # positions in `runs` of the members still training
    unread: list[StepDone] = []
    ranks, noise = backbone.ranks, make_noise(trial.method, trial.regularizers, keys)
    inits, answer_ids = [k["init"] for k in keys], data.train[0].answer_ids

    with Adapters(backbone, trial.method, inits, noise, answer_ids) as adapters:
        step_flops_N = adapters.passes.step(trial.rereads_backbone).of(data.train)
        num_draws = (noise and noise.num_draws) or 1
        evaluation_flops = float(num_draws * adapters.passes.forward.of(data.validation).sum())
        if on_features:
            for run in runs:
                read = [*data.train, *data.validation]
                run.train_flops = run.shared_flops = float(adapters.passes.features.of(read).sum())
        optimizer = Optimizer(adapters, trials)
        step = 0
        if checkpoints and (saved := ranks.once(load_fitting, checkpoints, runs, adapters)):
            step, active = restore(*saved, runs, adapters, optimizer)
            path = path and bool(runs[0].path)  # a partial path is useless
            for run in () if path else runs:
                run.path = []
        elif path:
            record_path(backbone, data.validation, runs)

        while step < num_steps and active:
            watch = Stopwatch(backbone.device, ranks.size)

            # Each member's own batch, concatenated members first, and its own settings
            chosen_MB = np.stack([orders[m].batch(step) for m in active])
            specs = [trials[m].optimizer for m in active]
            lr_M = [learning_rate(spec, step, num_steps) for spec in specs]
            regularizers = together([trials[m].regularizers for m in active])
            adapters.zero_gradients()

            # Forward and backward of this rank's rows; a member's loss is the mean over its batch, and the
            # stack's loss is the sum over members
            num, losses_M = chosen_MB.shape[1], torch.zeros(len(active), device=backbone.device)
            nll_M, correct_M = torch.zeros_like(losses_M), torch.zeros_like(losses_M)
            for part, real in ranks.parts(num, micro_batch):
                part_MB = chosen_MB[:, part]
                if noise:
                    noise.train(step, part)
                each = [orders[m].rows(data.train, step, part, trial.task.augment) for m in active]
                rows, reference = [row for of_member in each for row in of_member], None
                if reference_NC is not None:
                    reference = to_device(reference_NC[part_MB.ravel()], backbone.device)
                losses = stack_losses(backbone, rows, data.num_classes, regularizers, reference)  # (M*B, 3)
                nll_MB, penalty_MB, correct_MB = losses.unflatten(0, part_MB.shape).unbind(2)
                loss_MB = nll_MB
                if class_weight_MC is not None:
                    labels_MB = to_device(labels_N[part_MB], backbone.device)
                    loss_MB = nll_MB * class_weight_MC[active].gather(1, labels_MB)
                loss_MB = loss_MB + penalty_MB
                (loss_MB[:, :real].sum() / num).backward()
                losses_M += loss_MB.detach()[:, :real].sum(1) / num
                nll_M += nll_MB.detach()[:, :real].sum(1) / num
                correct_M += correct_MB.detach()[:, :real].sum(1) / num
            if noise:
                noise.off()
            ranks.sum_([losses_M, nll_M, correct_M, *adapters.gradients()])
            now = Step(step, num_steps, len(data.train), batch_size, lr_M[0] / specs[0].lr)
            trial.method.before_clip(adapters, now)

            # Each member's own gradient norm; a non-finite gradient stays in its own member
            norms_M = clip_per_member(adapters, [spec.max_grad_norm for spec in specs])
            optimizer.step(lr_M)
            trial.method.after_step(adapters, now)
            step += 1

            # Records and each member's share of the time. A step is read after the next one has begun, so
            # that a GPU always has work, or at once if something depends on it; then failed members leave
            validating = every and (step % every == 0 or step == num_steps)
            evaluating = evaluate_every and step % evaluate_every == 0 and step < num_steps
            saving = checkpoints and ranks.rank == 0 and (evaluating or checkpoints.due())
            numbers = ToHost(torch.stack((losses_M, nll_M, correct_M, norms_M), 1))
            unread.append(StepDone(step, lr_M, [runs[m] for m in active], chosen_MB, numbers, watch))
            at_once = validating or evaluating or saving or step in (*snapshot_steps, num_steps)
            read = unread if at_once or ranks.size > 1 else unread[:-1]
            record(read, unread[-1], data.train, step_tokens_N, step_flops_N)
            unread = unread[len(read) :]
            failed = [i for i, m in enumerate(active) if runs[m].error]

            # Early stopping on each member's own validation NLL
            stopped: list[int] = []
            if stopping and validating:
                watch = Stopwatch(backbone.device, ranks.size)
                evaluated = evaluate(backbone, data.validation)
                seconds = watch.stop().seconds / len(active)
                for i, (nll, acc) in enumerate(evaluated):
                    run = runs[active[i]]
                    run.train_seconds += seconds
                    run.process_seconds += watch.process_seconds / len(active)
                    run.train_flops += evaluation_flops
                    run.curve.append(_record(step, "validation", nll, nll, acc, lr_M[i], math.nan, seconds))
                    if not math.isfinite(nll):
                        run.error = run.error or f"validation NLL {nll} at step {step}"
                        failed.append(i)
                    elif nll < run.best_nll:
                        run.best_nll, run.best_step, run.bad_evaluations = nll, step, 0
                        run.state = adapters.state(i)
                    else:
                        run.bad_evaluations += 1
                    if run.bad_evaluations >= stopping.patience:
                        stopped.append(i)

            # Snapshots at the end of a learning-rate cycle
            if step in snapshot_steps:
                for i, m in enumerate(active):
                    runs[m].snapshots.append(adapters.state(i))

            # A point of each member's path in function space
            if path and step in path_steps:
                record_path(backbone, data.validation, [runs[m] for m in active])

            # Members that failed or stopped leave; the others continue
            if leaving := {*failed, *stopped}:
                staying = [i for i in range(len(active)) if i not in leaving]
                active = [active[i] for i in staying]
                keep_members(adapters, optimizer, staying)
            if saving:
                assert checkpoints is not None
                checkpoints.save(*checkpoint(step, active, runs, adapters, optimizer))
            if evaluating and len(active) == len(runs):
                nll = validation_nll(backbone, data.validation)
                if math.isfinite(nll):
                    on_evaluation(step, num_steps, nll)
            on_step(step, num_steps, runs)

        for i, m in enumerate(active):
            if not stopping or not runs[m].state:
                runs[m].state, runs[m].best_step = adapters.state(i), step
    return runs


@dataclass
class StepDone:
    """An optimiser step whose numbers are being copied to the CPU.

    Attributes:
        lr_M, runs, chosen_MB: of each member that took the step: learning rate, run, rows of its batch.
        numbers: (M, 4) loss, NLL, accuracy and gradient norm.
        watch: stopwatch of the step, whose time its members share equally.
    """

    step: int
    lr_M: list[float]
    runs: list[MemberRun]
    chosen_MB: np.ndarray
    numbers: ToHost
    watch: Stopwatch


def record(
    read: Sequence[StepDone],
    last: StepDone,
    train: Sequence[Row],
    step_tokens_N: np.ndarray,
    step_flops_N: np.ndarray,
) -> None:
    """Wait for steps and add them to their members' curves and costs; a member whose loss or gradient is not
    finite has failed. The last step's time ends after the wait."""
    numbers = [done.numbers.tolist() for done in read]
    last.watch.stop()
    for done, numbers_M4 in zip(read, numbers):
        seconds, process_seconds = (
            total / len(done.runs) for total in (done.watch.seconds, done.watch.process_seconds)
        )
        of_members = zip(done.runs, done.lr_M, done.chosen_MB, numbers_M4)
        for run, lr, chosen_B, (loss, nll, acc, norm) in of_members:
            if run.error:  # failed in the previous step
                continue
            if not (math.isfinite(loss) and math.isfinite(norm)):
                ids = ", ".join(train[n].id for n in chosen_B)
                run.error = f"loss {loss}, gradient norm {norm} at step {done.step}, examples {ids}"
            run.train_tokens += int(step_tokens_N[chosen_B].sum())
            run.train_flops += float(step_flops_N[chosen_B].sum())
            run.train_seconds += seconds
            run.process_seconds += process_seconds
            run.curve.append(_record(done.step, "train", loss, nll, acc, lr, norm, seconds))


def class_weights(trials: Sequence[Trial], labels_N: np.ndarray, num_classes: int) -> torch.Tensor | None:
    """Weight (M, C) of each class in the members' losses, the product over a member's regularisers; None = 1
    for all."""
    weight_MC, found = np.ones((len(trials), num_classes)), False
    for weight_C, trial in zip(weight_MC, trials):
        for regularizer in trial.regularizers:
            if (of_classes := regularizer.class_weights(labels_N.tolist(), num_classes)) is not None:
                weight_C *= of_classes
                found = True
    return torch.from_numpy(weight_MC.astype(np.float32)) if found else None


def evaluate(backbone: Backbone, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Mean NLL (nats) and accuracy of each member of the inserted stack; the accuracy is NaN for texts and
    numbers, which are neither right nor wrong."""
    if rows[0].scoring.answer == "value":
        gold_N = labels(rows)
        return [(draws_nll(values, gold_N), math.nan) for values in predict_draws(backbone, rows)]
    logits_MNC = torch.from_numpy(pooled_draws(predict_draws(backbone, rows)))
    labels_N = torch.from_numpy(labels(rows))
    accs = (logits_MNC.argmax(2) == labels_N).float().mean(1).tolist()
    if rows[0].scoring.writes_text:
        accs = [math.nan] * len(accs)
    return [(F.cross_entropy(logits_NC, labels_N).item(), acc) for logits_NC, acc in zip(logits_MNC, accs)]


def validation_nll(backbone: Backbone, rows: Sequence[Row]) -> float:
    """NLL (nats) of the mean probability of the inserted stack's members; NaN if a member has none."""
    logits_MKNC = predict_draws(backbone, rows)
    return draws_nll(logits_MKNC.reshape(-1, *logits_MKNC.shape[2:]), labels(rows))


def record_path(backbone: Backbone, rows: Sequence[Row], runs: Sequence[MemberRun]) -> None:
    """Add a point to the paths of the inserted members."""
    for run, logits_NC in zip(runs, pooled_draws(predict_draws(backbone, rows))):
        run.path.append({"logits": torch.from_numpy(logits_NC)})


def _record(
    step: int, split: str, loss: float, nll: float, acc: float, lr: float, grad_norm: float, seconds: float
) -> dict[str, float | int | str]:
    return {
        "step": step, "split": split, "loss": loss, "nll": nll, "acc": acc, "lr": lr, "grad_norm": grad_norm,
        "seconds": seconds,
    }  # fmt: skip
