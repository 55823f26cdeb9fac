"""Cells: rows of a table that differ only in their seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.rows import (
    Row,
    eval_sets,
    is_soup,
)
from lorae.combinations import COMBINATIONS
from lorae.draws import Draws, plain_set, read_draws
from lorae.methods import METHODS

METHOD_NAMES = {method.label: method.names for method in METHODS}  # single member, ensemble
PROMPTED = {method.label for method in METHODS if method.regime == "prompted"}  # methods that train nothing


@dataclass(frozen=True, eq=False)
class Cell:
    """The rows of one setting, one for each seed."""

    factors: dict[str, Any]  # without seed; None for settings that the bare backbone lacks
    rows: tuple[Row, ...]  # by ascending seed

    @property
    def members(self) -> int:
        """Ensemble size; 0 is the backbone itself."""
        return self.factors["members"]

    @property
    def name(self) -> str:
        """What is compared, in plain words."""
        if self.members == 0:
            return "zero-shot"
        method = self.factors["method"]
        single, several = METHOD_NAMES.get(method, (f"single {method}", f"{method} ensemble"))
        draws = draws_name(self.factors["draws"])
        if method in PROMPTED:
            shots = self.factors["init"].replace("+", ", ")
            return f"{several} of {self.members}, {shots}" if self.members > 1 else f"{single}, {shots}"
        if self.is_soup:
            soup = COMBINATIONS[self.factors["combine"]].soup
            return f"{single.removeprefix('single ').removesuffix(' member')} {soup} of {self.members}"
        if self.members > 1:
            each = draws if draws.startswith("x") else f"a {draws}"
            return f"{several} of {self.members}" + (f", each {each}" if draws else "")
        if not draws:
            return single
        if draws.startswith("x"):
            return f"{single.removeprefix('single ')} {draws}"
        return draws if method == "lora" else f"{draws} ({single.removeprefix('single ')})"

    @property
    def recipe(self) -> str:
        """What it shares with cells of other ensemble sizes."""
        return json.dumps([self.test_set, self.factors | {"members": None}])

    @property
    def is_soup(self) -> bool:
        return is_soup(self.factors)

    @property
    def regularised(self) -> bool:
        return self.factors["regularizers"] not in (None, "none")

    @cached_property
    def test_set(self) -> str:
        """The prediction set that its metrics are computed on, whatever the draws; only cells that share it
        can be compared."""
        return plain_set(eval_sets(self.rows[0])["test"])

    @property
    def draws(self) -> Draws | None:
        """How draws of each member are made, if its training does not provide them."""
        return read_draws(self.rows[0]["draws"])

    @property
    def settings(self) -> dict[str, Any]:
        """Factors, with a regulariser's label replaced by its strength ("KL beta", "DecayB strength"), and an
        initialisation's label by its number ("Xavier gain", "Gaussian std")."""
        found = {name: value for name, value in self.factors.items() if name != "regularizers"}
        if not self.members:
            return found
        recipe = json.loads(self.rows[0]["recipe"])
        init = recipe["method"].get("init")
        if isinstance(init, dict) and (number := _strength(init)) and not recipe["method"].get("b_std"):
            found = {name: value for name, value in found.items() if name != "init"} | number
        for regularizer in recipe["regularizers"]:
            found |= _strength(regularizer)
        return found


def _strength(spec: dict[str, Any]) -> dict[str, float]:
    """The first number of a spec in canonical JSON, by name: {"KL beta": 0.1}; {} if it has none."""
    numbers = [name for name, value in spec.items() if isinstance(value, (int, float))]
    return {f"{spec['type']} {name}": spec[name] for name in numbers[:1]}


def draws_name(label: str) -> str:
    """Name of a model with several draws of each member; "" for one draw."""
    if draws := read_draws(label):
        return draws.title
    kind, _, size = label.partition("-")
    if kind == "snapshots":
        return f"snapshot ensemble of {size}"
    return f"Masksembles of {size.replace('x', ', scale ')}" if kind == "masks" else ""
