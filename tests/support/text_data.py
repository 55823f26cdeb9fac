"""Texts with references, and scores of answers that are right or wrong."""

from __future__ import annotations

import numpy as np

TEXTS = [
    "The Eagle is a cheap coffee shop near Burger King.",
    "Zizzi serves sushi, and it's family-friendly.",
    "Nothing here",
]
REFERENCES = [
    [
        "The Eagle is a coffee shop near the Burger King.",
        "A cheap coffee shop, The Eagle, is near Burger King; it is cheap.",
    ],
    ["Zizzi is a family-friendly sushi place.", "It serves sushi and it is called Zizzi."],
    ["There is nothing at all here."],
]


def drawn(num: int = 200, seed: int = 0, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and whether answers are right, the less often the higher the score."""
    rng = np.random.default_rng(seed)
    score_N = np.round(rng.normal(0, 1, num), digits)
    return score_N, (rng.uniform(0, 1, num) > 1 / (1 + np.exp(-score_N))).astype(float)
