"""Texts that answer examples, with what every member of a pool says of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("reference", "greedy", "sample", "lockstep", "soup")


@dataclass(frozen=True, eq=False)
class Answer:
    """One text that answers an example, and what each of M members says of its T tokens.

    The pool's probability of a token is the mean over members of exp(log_probs_MT), of any subset as well.

    Attributes:
        kind: one of `KINDS`; a reference was written by nobody, a lock-step text by all members at once.
        source: position in the pool of the member that wrote it; -1 = no single one.
        draw: which sample of its source, or which reference; 0 otherwise.
        token_ids: T tokens, the end token included where the text is finished.
        finished: it ended by itself, not at the maximum of tokens.
        log_probs_MT: natural logarithm of each token's probability, by member.
        entropies_MT: of each next-token distribution, in nats, by member.
        mean_entropy_T: of the members' mean distribution, in nats.
    """

    example_id: str
    kind: str
    source: int
    draw: int
    text: str
    token_ids: tuple[int, ...]
    finished: bool
    log_probs_MT: np.ndarray  # float32
    entropies_MT: np.ndarray  # float32
    mean_entropy_T: np.ndarray  # float32
