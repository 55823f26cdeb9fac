"""Terms and rules added to a member's training, one file each; they combine freely, at most one of a kind.

The protocol of Wang, Aitchison and Rudolph 2023, arXiv:2310.00035: KL to the pre-trained model, weight decay
on B only, early stopping, dropout on the adapters. To add a regulariser, write its file and name it in
`AnyRegularizer`.
"""

from __future__ import annotations

from typing import get_args

from lorae.regularizers.base import Regularizer
from lorae.regularizers.class_weights import ClassWeights
from lorae.regularizers.decay_b import DecayB
from lorae.regularizers.distill import Distill
from lorae.regularizers.dropout import AdapterDropout
from lorae.regularizers.early_stopping import EarlyStopping
from lorae.regularizers.kl import KL
from lorae.regularizers.masksembles import Masksembles

__all__ = [
    "KL",
    "REGULARIZERS",
    "AdapterDropout",
    "AnyRegularizer",
    "ClassWeights",
    "DecayB",
    "Distill",
    "EarlyStopping",
    "Masksembles",
    "Regularizer",
]

AnyRegularizer = KL | DecayB | EarlyStopping | AdapterDropout | Masksembles | ClassWeights | Distill
REGULARIZERS: tuple[type[Regularizer], ...] = get_args(AnyRegularizer)
