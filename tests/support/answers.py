"""Stored answers of a pool of members that never existed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorae.metrics.probability import combine, entropy, log_softmax
from lorae.store.answers import Answer

VOCABULARY = 7


def answer(
    text: str,
    logits_MTV: np.ndarray,
    tokens: Sequence[int] | None = None,
    *,
    example: str = "e0",
    kind: str = "greedy",
    source: int = 0,
    draw: int = 0,
    finished: bool = True,
) -> Answer:
    """An answer of the tokens that the first member finds most probable, or of these."""
    ids = logits_MTV[0].argmax(axis=1) if tokens is None else np.asarray(tokens)
    logp_MTV = log_softmax(logits_MTV)
    return Answer(
        *(example, kind, source, draw, text, tuple(ids.tolist()), finished),
        log_probs_MT=np.take_along_axis(logp_MTV, ids[None, :, None], axis=2)[:, :, 0].astype(np.float32),
        entropies_MT=entropy(logp_MTV).astype(np.float32),
        mean_entropy_T=entropy(combine(logits_MTV)).astype(np.float32),
    )


def pool(num: int = 60, members: int = 3, samples: int = 4, seed: int = 0, lockstep: int = 1) -> list[Answer]:
    """Answers of `num` questions whose answer is their number; an unsure member errs more."""
    rng, found = np.random.default_rng(seed), []
    hard_N = np.random.default_rng(1000).uniform(0, 1, num)  # the questions are the same for every seed
    for n, hard in enumerate(hard_N):
        example = f"q{n}"

        def written(kind: str, source: int, draw: int = 0, hard=hard, n=n, example=example) -> Answer:
            wrong = rng.uniform() < (0.75 if kind == "greedy" else 1) * hard
            text = f"The answer is {n + (rng.integers(1, 4) if wrong else 0)}"
            logits = rng.normal(0, 1, (members, 3, VOCABULARY))
            logits[:, :, 0] += 4 * (1 - hard)
            return answer(text, logits, [0, 0, 0], example=example, kind=kind, source=source, draw=draw)

        found.append(
            answer(
                str(n),
                rng.normal(0, 1, (members, 2, VOCABULARY)),
                example=example,
                kind="reference",
                source=-1,
            )
        )
        found += [written("greedy", m) for m in range(members)]
        found += [written("sample", m, k) for m in range(members) for k in range(samples)]
        found += [written("lockstep", -1, rule) for rule in range(lockstep)]
    return found


def with_soup(answers: list[Answer], num: int = 60, seed: int = 0) -> list[Answer]:
    """Answers of members, and those of their soup, which is one model."""
    of_soup = [a for a in pool(num, members=1, samples=0, seed=seed + 100, lockstep=0) if a.kind == "greedy"]
    return [*answers, *(replace(a, kind="soup", source=-1) for a in of_soup)]
