"""Stored identities stay: a trial of every kind has the ids under which its members, soup and predictions
are stored.

A change of `golden_ids.json` orphans somebody's members. Its entries are added (run this file as a script),
never changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
from lorae.regularizers import KL, AdapterDropout, ClassWeights, DecayB, Distill, EarlyStopping, Masksembles
from lorae.results import trial_id
from lorae.sources import Hub
from lorae.store.names import soup_folder
from lorae.tasks.arc import ArcEasy
from lorae.tasks.base import Generate, Head, LabelWords, Letters, OptionLikelihood
from lorae.tasks.cifar import CIFAR10
from lorae.tasks.gsm8k import GSM8K
from lorae.tasks.rotten_tomatoes import RottenTomatoes
from lorae.tasks.trec import TREC
from lorae.trial import AdamW, Budget, Diversity, Trial

FILE = Path(__file__).with_name("golden_ids.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOME = Hub("owner/name", COMMIT)
LM = {"backbone": HOME, "task": ArcEasy(source=HOME), "members": 3}
ENCODER = LM | {"task": TREC(source=HOME, scoring=Head("mean"))}
KINDS = {
    "lora": LM,
    "lora-unscaled": LM | {"method": Lora(4, None, ("q", "v"), b_std=0.1)},
    "kaiming": LM | {"method": Lora(init=Kaiming())},
    "gaussian": LM | {"method": Lora(init=Gaussian(0.1))},
    "xavier": LM | {"method": Lora(init=Xavier(10))},
    "orthogonal": LM | {"method": Lora(init=Orthogonal())},
    "vera": LM | {"method": Vera()},
    "vera-shared": LM | {"method": Vera(64, projection="shared")},
    "pvera": LM | {"method": PVera(), "draws": Posterior(3)},
    "blob": LM | {"method": Blob(), "draws": Posterior(4)},
    "batchensemble": LM | {"method": BatchEnsemble(init="signs")},
    "rank-1-bnn": LM | {"method": Rank1BNN(), "draws": Posterior(2)},
    "last-layer": LM | {"method": LastLayer(0.1), "task": TREC(source=HOME)},
    "full": LM | {"method": Full()},
    "in-context": LM | {"method": InContext(2)},
    "kl": LM | {"regularizers": (KL(0.5, "forward"),)},
    "decay": LM | {"regularizers": (DecayB(10),)},
    "stopping": LM | {"regularizers": (EarlyStopping(3, every=10),)},
    "dropout": LM | {"regularizers": (AdapterDropout(0.2),), "draws": MCDropout(5)},
    "masks": LM | {"regularizers": (Masksembles(),)},
    "weights": LM | {"regularizers": (ClassWeights(),)},
    "distill": LM | {"regularizers": (Distill(2, beta=9.0, lr=1e-3),)},
    "several": LM | {"regularizers": (KL(), DecayB(), EarlyStopping(), AdapterDropout())},
    "tfb": LM | {"draws": TFB(5)},
    "swag": LM | {"draws": SWAG(4)},
    "laplace": LM | {"draws": Laplace(20)},
    "letters": LM | {"task": ArcEasy(source=HOME, scoring=Letters())},
    "words": LM | {"task": TREC(source=HOME, scoring=LabelWords(), num_train=100)},
    "likelihood": LM | {"task": ArcEasy(source=HOME, scoring=OptionLikelihood("chars"), option_seed=1)},
    "text": LM | {"task": GSM8K(source=HOME, scoring=Generate(300, stop=("Q:",), samples=3))},
    "head": ENCODER,
    "image": ENCODER | {"task": CIFAR10(source=HOME, num_train=64)},
    "sentences": LM | {"task": RottenTomatoes(source=HOME)},
    "backbone": LM | {"members": 0},
    "logits": LM | {"combine": "logits"},
    "soup": LM | {"combine": "weights"},
    "greedy soup": LM | {"combine": "greedy"},
    "order": LM | {"diversity": Diversity(init="shared")},
    "init": LM | {"diversity": Diversity(order="shared")},
    "cycles": LM | {"optimizer": AdamW(schedule="cyclic", cycles=3)},
    "optimizer": LM | {"optimizer": AdamW(1e-3, 0.0, "cosine", 0.01, max_grad_norm=None)},
    "steps": LM | {"budget": Budget(4, steps=30, max_tokens=128), "seed": 2, "precision": "fp32"},
}


def ids(trial: Trial) -> dict[str, object]:
    return {
        "members": trial.member_ids(),
        "soup": soup_folder(trial.member_ids(), trial.soup or "weights"),
        "reference": trial.reference_id(),
        "trial": trial_id(trial),
        "sets": [trial.eval_set(trial.task, split) for split in ("train", "validation", "test")],
        "factors": trial.factors(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_stored_ones(kind):
    assert ids(Trial(**KINDS[kind])) == json.loads(FILE.read_text())[kind]


if __name__ == "__main__":
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    added = {kind: ids(Trial(**settings)) for kind, settings in KINDS.items() if kind not in stored}
    FILE.write_text(json.dumps(stored | added, indent=1) + "\n")
