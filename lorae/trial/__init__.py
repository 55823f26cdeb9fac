"""What is trained and compared: a `Trial` is one row of a table, a `Sweep` is a base trial and its axes."""

from __future__ import annotations

from lorae.trial.recipe import AdamW, Budget, Diversity
from lorae.trial.sharing import cell_of, cells, in_common
from lorae.trial.sweep import Sweep, companions
from lorae.trial.trial import Trial, backbone_id, unchanged
from lorae.trial.tuning import Times

__all__ = [
    "AdamW",
    "Budget",
    "Diversity",
    "Sweep",
    "Times",
    "Trial",
    "backbone_id",
    "cell_of",
    "cells",
    "companions",
    "in_common",
    "unchanged",
]
