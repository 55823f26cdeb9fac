"""Searches: Optuna proposes points on the continuous axes; ASHA or the median rule ends a grid's stacks.

Optuna works in rounds: it proposes points, the host trains the members that the store lacks, and Optuna is
told the NLLs that the store then has. There is no other state, so a repeated search proposes the same points,
finds them stored, and continues where it stopped.

Ray Tune's schedulers end stacks, in the order in which their reports happen to arrive. The reports are kept
in `sweeps/<name>/search.json`: when the command is repeated, an ended stack stays ended, and the others are
judged against the same reports. A sweep without the search continues an ended stack from its checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobs.devices import process_devices
from jobs.hosts import ray_cluster, run_local, run_tune, stack_name
from jobs.request import Request, driver_id
from jobs.search_record import OBJECTIVE, TIME, SearchRecord, evaluated_on
from lorae.metrics import pooled_nll
from lorae.planning.estimate import Devices
from lorae.planning.plan import Plan, make_plan, placed
from lorae.planning.stack import Stack
from lorae.results import Pruned
from lorae.search import ASHA, EarlyEnd, LogUniform, MedianStopping, Optuna, Search, Uniform
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.trial import Sweep, Trial, cell_of
from lorae.trial.axes import value_at, with_values

if TYPE_CHECKING:
    import optuna

LOG = logging.getLogger("lorae")


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        plan: of every row: the sweep's own, or the proposed points.
        failed: member or stack -> reason.
        trained: number of trained members.
        pruned: members of the stacks that were ended early.
        best: best point of each study, in words.
    """

    plan: Plan
    failed: dict[str, str] = field(default_factory=dict)
    trained: int = 0
    pruned: dict[str, Pruned] = field(default_factory=dict)
    best: tuple[str, ...] = ()


def check_search(search: Search, plan: Plan, request: Request, local: bool) -> None:
    """Refuse a search that cannot work on this plan or host.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if not isinstance(search, EarlyEnd):
        return
    if local:
        raise ValueError(f"{type(search).__name__} needs Ray Tune, which --local does without; leave it out")
    if request.zero:
        raise ValueError(f"{type(search).__name__} ends stacks that run in one process; leave --zero out")
    for trial, _ in plan.trials:
        if trial.members:
            search.num_evaluations(trial.budget, _num_train(trial))


def search_text(sweep: Sweep, plan: Plan) -> str:
    """What a search adds to the plan, for a person; "" without one."""
    search = sweep.search
    if search is None:
        return ""
    if isinstance(search, EarlyEnd):
        return f"search {search}: at most these stacks; those ended early become no rows of a table"
    studies = len({cell_of(trial) for trial, _ in plan.trials if trial.members})
    sampled = ", ".join(f"{axis} in {values}" for axis, values in sweep.continuous.items())
    return (
        f"search {search} of {sampled}: {studies} studies, {studies * search.num_samples} points at most; "
        "these are the first of each, with the base's values"
    )


def run_search(
    search: Search, plan: Plan, request: Request, store: Store, *, local: bool, address: str | None
) -> Found:
    """Run a search, or what remains of it."""
    if isinstance(search, EarlyEnd):
        return _end_early(search, plan, request, store, address)
    return _sample(search, request, store, local, address)


# Optuna ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """Rows that share their members, and the axes tuned for them."""

    rows: tuple[Trial, ...]
    space: dict[str, Uniform]
    optuna: optuna.Study

    def ask(self, num: int) -> list[tuple[optuna.trial.Trial, tuple[Trial, ...]]]:
        """Proposed points, each with its rows."""
        return [(asked, self.at(asked.params)) for asked in (self._ask() for _ in range(num))]

    def at(self, point: dict[str, float]) -> tuple[Trial, ...]:
        rounded = {axis: self.space[axis].rounded(value) for axis, value in point.items()}
        return tuple(with_values(row, rounded) for row in self.rows)

    def _ask(self) -> optuna.trial.Trial:
        from optuna.distributions import FloatDistribution

        return self.optuna.ask(
            {
                a: FloatDistribution(v.low, v.high, log=isinstance(v, LogUniform))
                for a, v in self.space.items()
            }
        )


def _studies(search: Optuna, sweep: Sweep) -> list[_Study]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = []
    trained = [trial for trial in sweep.trials() if trial.members]
    for cell in dict.fromkeys(map(cell_of, trained)):
        # Without the liar, the points of a round would crowd around the best one
        sampler = optuna.samplers.TPESampler(seed=search.seed, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        space = sweep.space(cell)
        study.enqueue_trial({axis: value_at(cell, axis) for axis in space})
        studies.append(_Study(tuple(t for t in trained if cell_of(t) == cell), space, study))
    return studies


def _sample(search: Optuna, request: Request, store: Store, local: bool, address: str | None) -> Found:
    """Run all studies side by side, one round of each at a time."""
    import optuna

    studies = _studies(search, request.sweep)
    shared = [trial for trial in request.sweep.trials() if not trial.members]
    rows, failed, trained = dict.fromkeys(shared), {}, 0
    host, run = ("local", run_local) if local else ("tune", run_tune)
    with contextlib.ExitStack() as opened:
        cluster = functools.cache(lambda: opened.enter_context(ray_cluster(address)))
        for begin in range(0, search.num_samples, search.batch):
            num = min(search.batch, search.num_samples - begin)
            asked = [(study, *point) for study in studies for point in study.ask(num)]
            proposed = dict.fromkeys([*shared, *(row for *_, at in asked for row in at)])
            rows |= proposed
            plan = make_plan(request.sweep, store, None, rows=[*proposed])
            if not plan.is_done:
                devices = request.on(process_devices() if local else cluster())
                failed |= run(placed(plan, devices, host), request, devices)
            trained += num_trained(store, plan)
            for study, point, at in asked:
                nll = objective(store, at)
                study.optuna.tell(point, nll, None if nll is not None else optuna.trial.TrialState.FAIL)
    plan = make_plan(request.sweep, store, None, rows=[*rows])
    return Found(plan, failed, trained, best=_best(studies))


def objective(store: Store, rows: Sequence[Trial]) -> float | None:
    """Validation NLL of the largest ensemble's mean probability; None if a member is not stored."""
    trial = max(rows, key=lambda row: row.members)
    try:
        stored = store.predictions(
            [member_folder(m) for m in trial.member_ids()], trial.eval_set(trial.task, "validation")
        )
    except ValueError:
        return None
    return pooled_nll(stored.logits_MNC, stored.labels_N)


def _best(studies: Sequence[_Study]) -> tuple[str, ...]:
    lines = []
    for study in studies:
        told = [t for t in study.optuna.trials if t.value is not None]
        if not told:
            continue
        best = study.optuna.best_trial
        row = max(study.at(best.params), key=lambda row: row.members)
        point = ", ".join(f"{axis}={value_at(row, axis):g}" for axis in study.space)
        factors = row.factors()
        lines.append(
            f"best of {len(told)} for {factors['task']} {factors['method']} {factors['regularizers']} "
            f"members {row.members}: {point}, validation NLL {best.value:.4f}"
        )
    return tuple(lines)


# Ending stacks early ---------------------------------------------------------------------------------------


def _end_early(search: EarlyEnd, plan: Plan, request: Request, store: Store, address: str | None) -> Found:
    """Let the stacks of each task compete, one task after another."""
    record, failed = SearchRecord(store, request.name, search), {}
    remaining = [stack for stack in plan.pending if not record.ended(stack)]
    if remaining:
        with ray_cluster(address) as found:
            devices = request.on(found)
            for name in dict.fromkeys(map(evaluated_on, remaining)):
                group = _on_one_device(
                    replace(plan, pending=tuple(s for s in remaining if evaluated_on(s) == name)), devices
                )
                scheduler = _scheduler(search, group.stacks)
                for stack_id, entry in record.stacks.items():
                    if entry["evaluated_on"] == name:
                        _replay(scheduler, stack_id, entry["reports"])
                failed |= run_tune(group, request, devices, scheduler, [_recorder(record, group.stacks)])
    return Found(plan, failed, num_trained(store, plan), record.pruned(plan.pending))


def _on_one_device(plan: Plan, devices: Devices) -> Plan:
    """The plan on these devices, with no stack divided.

    Raises:
        ValueError: a stack needs several GPUs.
    """
    plan = placed(plan, devices)
    for stack, where in zip(plan.stacks, plan.placements):
        if where.host == "zero":
            raise ValueError(
                f"a search ends stacks that run on one GPU: {stack_name(stack)}: {where.reason}; write fewer "
                "members, or leave the search out"
            )
    return plan


def _scheduler(search: EarlyEnd, stacks: Sequence[Stack]) -> Any:
    """Tune's scheduler."""
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    class Median(MedianStoppingRule):
        def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
            """Ignore a stack's last report: it is not an evaluation, but would be taken for one."""

    shared: dict[str, Any] = {"time_attr": TIME, "metric": OBJECTIVE, "mode": "min"}
    shared["grace_period"] = search.grace
    if isinstance(search, MedianStopping):
        # An infinite slice: otherwise Tune pauses stacks until there are others to compare them with
        shared |= {"min_samples_required": search.min_stacks, "min_time_slice": math.inf}
        return Median(**shared)
    assert isinstance(search, ASHA)
    longest = max(search.num_evaluations(s.trial.budget, _num_train(s.trial)) for s in stacks)
    return ASHAScheduler(**shared, max_t=longest, reduction_factor=search.reduction)


@dataclass(frozen=True)
class _Past:
    """A stack of an earlier run of the search, in place of a Tune trial."""

    trial_id: str


def _replay(scheduler: Any, stack_id: str, reports: Sequence[dict[str, Any]]) -> None:
    """Tell a new scheduler a stack's earlier reports, so that others are judged as if it ran now."""
    past = _Past(stack_id)
    scheduler.on_trial_add(None, past)
    for report in reports:
        scheduler.on_trial_result(None, past, report)


def _recorder(record: SearchRecord, stacks: Sequence[Stack]) -> Any:
    from ray.tune import Callback

    class Recorder(Callback):
        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            if result["phase"] == "evaluate":  # "done" if the scheduler has ended it
                record.add(stacks[trial.config["stack"]["number"]], result, bool(result.get("done")))

    return Recorder()


def _num_train(trial: Trial) -> int:
    return len(trial.task.examples("train"))


def num_trained(store: Store, plan: Plan) -> int:
    """Number of members that the plan lacked and this driver trained; other drivers may have trained some."""
    num, shape = 0, {"provenance": {}}
    for member in plan.needed:
        if member not in plan.stored and store.is_member(member):
            with contextlib.suppress(ValueError):  # damaged since
                record = store.record(member_folder(member), shape)
                num += record["provenance"].get("driver") == driver_id()
    return num
