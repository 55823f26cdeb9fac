"""LoRA ensembles: several low-rank adapters on one frozen backbone, trained exactly, once, and compared
fairly.

A sweep file needs one line: `from lorae import KL, AdamW, Budget, Lora, Sweep, Trial`, and the file of its
task. Importing `lorae` loads neither torch nor ray.

    lorae.sweep(SWEEP)                          train and compare, as the command `lorae sweep` does
    results = lorae.load("lorae-results")       .frame(), .table(), .figures()
    lorae.Ensemble.load("lorae-results").predict(["a film to remember"])

A name is loaded when it is asked for. Axes of arrays are named by suffix, members first: M members, N
examples, B batch, T tokens, D hidden (inputs of a layer), E outputs of a layer, R rank, C classes, V
vocabulary: `logits_MNC`, `A_MRD`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.notebook import load
    from jobs.notebook import sweep
    from lorae.draws import SWAG, TFB, Laplace, MCDropout, Posterior
    from lorae.engine.ensembles import Ensemble
    from lorae.methods import (
        BatchEnsemble,
        Blob,
        Full,
        Gaussian,
        InContext,
        Kaiming,
        LastLayer,
        Lora,
        Orthogonal,
        PVera,
        Rank1BNN,
        Vera,
        Xavier,
    )
    from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, EarlyStopping, Masksembles
    from lorae.search import ASHA, LogUniform, MedianStopping, Optuna, Uniform
    from lorae.sources import Files, Hub
    from lorae.tasks.scoring import Generate, Head, LabelWords, Letters, OptionLikelihood
    from lorae.trial import AdamW, Budget, Diversity, Sweep, Times, Trial

__version__ = "0.1.0"
__all__ = [
    "ASHA",
    "KL",
    "SWAG",
    "TFB",
    "AdamW",
    "AdapterDropout",
    "BatchEnsemble",
    "Blob",
    "Budget",
    "ClassWeights",
    "DecayB",
    "Diversity",
    "EarlyStopping",
    "Ensemble",
    "Files",
    "Full",
    "Gaussian",
    "Generate",
    "Head",
    "Hub",
    "InContext",
    "Kaiming",
    "LabelWords",
    "Laplace",
    "LastLayer",
    "Letters",
    "LogUniform",
    "Lora",
    "MCDropout",
    "Masksembles",
    "MedianStopping",
    "OptionLikelihood",
    "Optuna",
    "Orthogonal",
    "PVera",
    "Posterior",
    "Rank1BNN",
    "Sweep",
    "Times",
    "Trial",
    "Uniform",
    "Vera",
    "Xavier",
    "load",
    "sweep",
]

_SPECS = ("draws", "methods", "regularizers", "search", "sources", "tasks.scoring", "trial")
_HOMES = {"Ensemble": "lorae.engine.ensembles", "load": "analysis.notebook", "sweep": "jobs.notebook"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lorae' has no attribute {name!r}")
    homes = [_HOMES[name]] if name in _HOMES else [f"lorae.{part}" for part in _SPECS]
    found = next(getattr(m, name) for home in homes if hasattr(m := importlib.import_module(home), name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
