"""How class logits are read from a backbone. To add a scoring, write a file beside `words.py` and name its
class in `AnyScoring`."""

from __future__ import annotations

from typing import get_args

from lorae.tasks.scoring.base import Scoring
from lorae.tasks.scoring.generate import Generate
from lorae.tasks.scoring.head import Head
from lorae.tasks.scoring.letters import Letters
from lorae.tasks.scoring.likelihood import OptionLikelihood
from lorae.tasks.scoring.value import Value
from lorae.tasks.scoring.words import LabelWords

__all__ = [
    "SCORINGS",
    "AnyScoring",
    "Generate",
    "Head",
    "LabelWords",
    "Letters",
    "OptionLikelihood",
    "Scoring",
    "Value",
    "scoring_named",
    "scorings_for",
]

AnyScoring = Letters | LabelWords | OptionLikelihood | Generate | Head | Value
SCORINGS: tuple[type[Scoring], ...] = get_args(AnyScoring)


def scorings_for(kind: str) -> str:
    """The scorings of options that read a kind of backbone, as they are written: "Letters() or ..."."""
    of_options = [s for s in SCORINGS if kind in s.backbones and s.answer == "class"]
    *others, last = (f"{scoring.__name__}()" for scoring in of_options)
    return f"{', '.join(others)} or {last}" if others else last


def scoring_named(name: object) -> type[Scoring]:
    """The scoring whose class has this name, as records have it; `Scoring` itself = none of this lorae."""
    return next((kind for kind in SCORINGS if kind.__name__ == name), Scoring)
