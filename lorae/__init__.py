"""LoRA ensembles: several low-rank adapters on one frozen backbone, trained exactly, once, and compared
fairly.

A sweep file needs one line: `from lorae import KL, AdamW, Budget, Lora, Sweep, Trial`, and the file of its
task. Importing `lorae` loads neither torch nor ray.

Axes of arrays are named by suffix, members first: M members, N examples, B batch, T tokens, D hidden (inputs
of a layer), E outputs of a layer, R rank, C classes, V vocabulary: `logits_MNC`, `A_MRD`.
"""

from lorae.draws import SWAG, TFB, Laplace, MCDropout, Posterior
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
from lorae.tasks.scoring import Head, LabelWords, Letters, OptionLikelihood
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
    "Files",
    "Full",
    "Gaussian",
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
]
