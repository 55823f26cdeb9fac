"""LoRA ensembles: several low-rank adapters on one frozen backbone, trained exactly, once, and compared
fairly.

A sweep file needs one import, `from lorae import KL, AdamW, Budget, Lora, Sweep, Trial`, and the file of its
task. Importing `lorae` loads neither torch nor ray.

    lorae.sweep(SWEEP)                          train and compare, as the command `lorae sweep` does
    results = lorae.load("lorae-results")       .frame(), .table(), .figures()
    lorae.Ensemble.load("lorae-results").predict(["a film to remember"])

Names are imported on first use. Axes of arrays are named by suffix, members first, as in `logits_MNC` and
`A_MRD`: M members, N examples, B batch, T tokens, D hidden (inputs of a layer), E outputs of a layer, R rank,
C classes, V vocabulary.
"""

# The names are in __init__.pyi
# pyright: reportUnsupportedDunderAll=false

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "ASHA",
    "KL",
    "SWAG",
    "TFB",
    "AdamW",
    "AdapterDropout",
    "Augment",
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

_SPECS = ("augmentation", "draws", "methods", "regularizers", "search", "sources", "tasks.scoring", "trial")
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
