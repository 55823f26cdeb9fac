"""A Sweep: a base trial, the axes that vary, and the trials that it expands to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorae.combinations import SOUPS
from lorae.draws import TFB
from lorae.regularizers import EarlyStopping
from lorae.search import EarlyEnd, Optuna, Search, Uniform
from lorae.sources import resolve
from lorae.tasks.base import Task
from lorae.trial.axes import value_at, with_value, with_values
from lorae.trial.trial import Trial, without_idle_settings
from lorae.trial.tuning import Times, check_tuning

SHARED = {"backbone", "task", "seed", "precision", "budget"}  # axes that also apply to a sweep's rivals


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base trial and the axes that vary: their product, in order, the last axis fastest.

    Args:
        base: the trial whose fields the axes replace.
        axes: field of Trial, or dotted path into one (`"method.rank"`, `"regularizers.DecayB.strength"`) ->
            its values, or the `Uniform` or `LogUniform` range that a search samples.
        ood: tasks that the members also predict; their prompt template must be the trained task's.
        zero_shot: add the backbone itself as a row for each task; it has no row where members train heads.
        companions: add the single adapters that every ensemble must beat, see `companions`.
        rivals: other recipes beside the grid's, with their own number of members; only the axes in `SHARED`
            and dotted paths into them apply to rivals. A rival that is trained k times as long as the base
            stays k times as long when an axis changes the budget.
        paths: store the validation predictions of each ensemble's members during training, see
            `analysis.paths`.
        search: sample continuous axes, or stop stacks early; None runs the whole grid.
        tune: dotted path into a trial (`"optimizer.lr"`) -> the values that each recipe is tuned over before
            it is compared, see `lorae.trial.tuning`: the same values for all recipes, or `Times` each
            recipe's own. The value, or combination of values, with the lowest validation NLL is chosen; a
            recipe that lacks an axis is not tuned over it.
        tune_members: members that are trained to judge each value, with the recipe's first seed.
        uneven_tuning: allow comparing recipes that lack an axis with recipes that have it, although they were
            tuned over fewer points; otherwise the audit fails.
    """

    base: Trial
    axes: dict[str, Any] = field(default_factory=dict)
    ood: tuple[Task, ...] | list[Task] = ()
    zero_shot: bool = True
    companions: bool = False
    rivals: tuple[Trial, ...] | list[Trial] = ()
    paths: bool = False
    search: Search | None = None
    tune: Mapping[str, Times | tuple[Any, ...] | list[Any]] = field(default_factory=dict)
    tune_members: int = 2
    uneven_tuning: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", tuple(self.ood))
        object.__setattr__(self, "rivals", tuple(self.rivals))
        point = self.base
        for axis, values in self.grid.items():
            if not values:
                raise ValueError(f"axis {axis!r} has no values; give a list such as [1, 2, 4], or remove it")
            for value in values:
                with_value(point, axis, value)
            point = with_value(point, axis, values[0])
        self._rivals()
        _check_search(self)
        check_tuning(self)

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The axes with listed values."""
        return {axis: values for axis, values in self.axes.items() if not isinstance(values, Uniform)}

    @property
    def continuous(self) -> dict[str, Uniform]:
        """The axes that a search samples."""
        return {axis: values for axis, values in self.axes.items() if isinstance(values, Uniform)}

    def trials(self) -> list[Trial]:
        """Every combination of the axes once, zero-shot rows first, companions last; searched and tuned
        fields have the value of the base or the rival."""
        grid = [self.base]
        for axis, values in self.grid.items():
            grid = [with_value(trial, axis, value) for trial in grid for value in values]
        grid = [without_idle_settings(trial) for trial in grid]
        zero = (
            [
                replace(t, members=0, seed=0, regularizers=(), combine="probs", draws=None)
                for t in grid
                if t.task.scoring.backbone_has_classes
            ]
            if self.zero_shot
            else []
        )
        first_of_reference = {
            (t.backbone, t.task, t.precision, t.budget.max_tokens): t for t in reversed(zero)
        }
        matched = [c for t in grid for c in companions(t)] if self.companions else []
        return list(dict.fromkeys([*reversed(first_of_reference.values()), *grid, *self._rivals(), *matched]))

    def _rivals(self) -> list[Trial]:
        """The rivals at every point of the axes in `SHARED`.

        Raises:
            ValueError: an axis varies the budget, and a rival's budget is no multiple of the base's.
        """
        shared = {axis: values for axis, values in self.grid.items() if axis.split(".")[0] in SHARED}
        ours, found = self.base.budget, []
        for rival in self.rivals:
            points, factor = [rival], 1
            if axis := next((a for a in shared if a.split(".")[0] == "budget"), None):
                factor = max(1, rival.budget.length // ours.length)
                if rival.budget != ours.times(factor):
                    raise ValueError(
                        f"axis {axis!r} beside a rival of {rival.budget}: it is no multiple of the base's "
                        f"{ours}, so its value is not known; write a sweep without the axis for each value"
                    )
                points = [replace(rival, budget=ours)]
            for axis, values in shared.items():
                points = [with_value(point, axis, value) for point in points for value in values]
            points = [replace(point, budget=point.budget.times(factor)) for point in points]
            found += map(without_idle_settings, points)
        return found

    def space(self, trial: Trial) -> dict[str, Uniform]:
        """The continuous axes that a trial has: without `DecayB` it has no `DecayB.strength` to tune."""
        return {axis: values for axis, values in self.continuous.items() if value_at(trial, axis) is not None}

    def located(self, data_root: Path | None) -> Sweep:
        """The sweep with every source fixed: hub branches become commits, tasks are found under
        `data_root`."""

        def fix(trial: Trial) -> Trial:
            return replace(trial, backbone=resolve(trial.backbone), task=trial.task.located(data_root))

        axes = dict(self.axes)
        if "backbone" in axes:
            axes["backbone"] = [resolve(v) for v in axes["backbone"]]
        if "task" in axes:
            axes["task"] = [v.located(data_root) for v in axes["task"]]
        return replace(
            self,
            base=fix(self.base),
            axes=axes,
            ood=tuple(t.located(data_root) for t in self.ood),
            rivals=tuple(map(fix, self.rivals)),
        )

    def eval_tasks(self, trial: Trial) -> list[Task]:
        """The OOD tasks of a trial, scored like its own task.

        Raises:
            ValueError: an OOD task's modality or prompt template differs from the trained task's.
        """
        others = [t for t in self.ood if t.name != trial.task.name]
        for task in others:
            if task.modality != trial.task.modality:
                raise ValueError(
                    f"OOD task {task.name} has {task.modality} examples, {trial.task.name} has "
                    f"{trial.task.modality}; name tasks of one modality in Sweep(ood=[...])"
                )
            if task.scoring.answer != trial.task.scoring.answer:
                raise ValueError(
                    f"OOD task {task.name} is scored by {task.scoring}, {trial.task.name} by "
                    f"{trial.task.scoring}: members write answers, choose among options or predict numbers; "
                    "name tasks of the same kind in Sweep(ood=[...])"
                )
        tasks = [replace(t, scoring=trial.task.scoring) for t in others]
        for task in tasks:
            ours, theirs = trial.task.prompt_template(), task.prompt_template()
            if ours != theirs:
                raise ValueError(
                    f"OOD task {task.name} has the prompt template {theirs!r}, {trial.task.name} has "
                    f"{ours!r}; detection would see the template, so use a task that shares it"
                )
        return tasks


def companions(trial: Trial) -> list[Trial]:
    """The single members that an ensemble of M is fairly compared with; none for a single member.

    These are one of its members, whose row includes temperature-scaled metrics; unless nothing is trained, a
    member trained M times as long, at the training cost of the ensemble; for LoRA, a member of rank M * r and
    equal scaling, with the parameter count of the ensemble (no other method has a size to match), and M
    samples around one member, with the forward passes of the ensemble (not for tasks that write text).
    """
    if trial.members < 2:
        return []
    single = replace(trial, members=1, combine="probs" if trial.is_soup else trial.combine)
    if not trial.method.trains:
        return [single]
    found = [single, replace(single, budget=trial.budget.times(trial.members))]
    if larger := trial.method.times(trial.members):
        found.append(replace(single, method=larger))
    if trial.method.is_low_rank and trial.num_draws == 1 and trial.task.scoring.answer == "class":
        found.append(replace(single, draws=TFB(trial.members)))
    return found


def _check_search(sweep: Sweep) -> None:
    """Refuse a search that does not fit the axes, before anything is trained."""
    search, continuous = sweep.search, sweep.continuous
    if continuous and not isinstance(search, Optuna):
        axis, values = next(iter(continuous.items()))
        raise ValueError(
            f"axis {axis!r} is {values}: only a search samples it; write search=Optuna(num_samples=20), or "
            "a list of values"
        )
    if isinstance(search, Optuna) and not continuous:
        raise ValueError(
            f"search={search} has no continuous axis; write axes={{'optimizer.lr': LogUniform(1e-5, 1e-3)}}, "
            "or search=ASHA() for a grid"
        )
    if search and sweep.companions:
        raise ValueError("companions=True with a search: compare what it finds in a sweep without search")
    soups = [c for c in (sweep.base.combine, *sweep.axes.get("combine", ())) if c in SOUPS]
    if search and soups:
        raise ValueError(f'combine="{soups[0]}" with a search: compare soups in a sweep without search')
    if search and not all(trial.method.trains for trial in sweep.trials()):
        raise ValueError(
            f"search={search} with InContext: nothing is trained that it could end or tune; compare the "
            "numbers of shots in a sweep without search"
        )
    if search and sweep.rivals:
        raise ValueError("rivals with a search: compare what it finds with them in a sweep without search")
    if search and (taught := next((trial for trial in sweep.trials() if trial.teacher), None)):
        raise ValueError(
            f"{taught.factors()['regularizers']} with a search: a student waits for its teacher; compare "
            "what the search finds in a sweep without search"
        )
    if isinstance(search, EarlyEnd) and any(t.regularizer(EarlyStopping) for t in sweep.trials()):
        raise ValueError(
            f"search={search} with EarlyStopping: an ensemble of which a member has stopped cannot be "
            "compared with whole ones; leave EarlyStopping out, or write a sweep without search"
        )
    if search and len(seeds := sweep.axes.get("seed", [0])) > 1:
        raise ValueError(
            f"axis 'seed' has {seeds}: a search has one seed; write seed=[{seeds[0]}], and compare what it "
            "finds over seeds in a sweep without search"
        )
    _check_ranges(sweep)


def _check_ranges(sweep: Sweep) -> None:
    """Refuse a range with an end that is no valid setting, or without the value that the search begins at."""
    trained = [trial for trial in sweep.trials() if trial.members] if sweep.continuous else []
    for axis, values in sweep.continuous.items():
        if all(value_at(trial, axis) is None for trial in trained):
            with_value(sweep.base, axis, values.low)
            raise ValueError(f"axis {axis!r} is {values}, but no trial has a value of it to begin with")
    for trial in trained:
        space = sweep.space(trial)
        for end in ("low", "high"):
            with_values(trial, {axis: getattr(values, end) for axis, values in space.items()})
        for axis, values in space.items():
            if not values.low <= (start := value_at(trial, axis)) <= values.high:
                raise ValueError(
                    f"axis {axis!r}: the search begins at the base's {start:g}, which is outside {values}"
                )
