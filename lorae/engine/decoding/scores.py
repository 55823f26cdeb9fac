"""What every member of a stack says of given texts, by one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorae.backbone.loading import Backbone
from lorae.engine.batches import Batch, collate, hidden
from lorae.engine.decoding.choosing import in_parts
from lorae.engine.decoding.prompts import by_weights, check_decodes, check_length, has_own_weights
from lorae.engine.prediction import length_batches
from lorae.planning.decoding import LOGIT_BYTES
from lorae.planning.memory import PREDICT_TOKENS
from lorae.tasks.encoding import Row
from lorae.tasks.scoring import OptionLikelihood


@dataclass(frozen=True, eq=False)
class Says:
    """What M members say of the T tokens of a text, in nats; NaN where a member's logits are.

    Attributes:
        log_probs_MT: of each token after those before it.
        entropies_MT: of each distribution of the next token.
        mean_entropy_T: of the members' mean distribution.
    """

    log_probs_MT: np.ndarray
    entropies_MT: np.ndarray
    mean_entropy_T: np.ndarray


@torch.no_grad()
def score(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    batch_tokens: int | None = None,
) -> list[list[Says]]:
    """What the inserted stack, or else the backbone itself, says of texts [n][k]: any number of answers k to
    each of N prompts. A prompt is computed once for all its answers.

    Args:
        answers: token ids; one without tokens is scored by arrays without columns.
        batch_tokens: members' tokens of one forward pass; None = PREDICT_TOKENS.
    Raises:
        ValueError: the members cannot write (see `check_decodes`), or a text leaves the backbone's range.
    """
    check_decodes(backbone)
    for prompt, own in zip(prompts, answers, strict=True):
        check_length(backbone, len(prompt), max(map(len, own), default=0))
    num_members = backbone.num_members
    rows = [_row(prompt, own) for prompt, own in zip(prompts, answers)]
    found: list[list[Says]] = [[] for _ in rows]
    written = [n for n, own in enumerate(answers) if any(map(len, own))]
    tokens = (batch_tokens or PREDICT_TOKENS[backbone.device.type]) // num_members
    for chosen in length_batches([len(rows[n].tokens) for n in written], max(1, tokens)):
        part = [written[n] for n in chosen]
        values = _values(backbone, [rows[n] for n in part])  # (2 M + 1, L)
        lengths = [len(answer) for n in part for answer in answers[n]]
        says = iter(np.split(values, np.cumsum(lengths)[:-1], axis=1))
        for n in part:
            found[n] = [_says(next(says), num_members) for _ in answers[n]]
    nothing = _says(np.zeros((2 * num_members + 1, 0), np.float32), num_members)
    return [says or [nothing] * len(own) for says, own in zip(found, answers)]


def _row(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Row:
    """A prompt with its answers, each of which attends to the prompt and to itself only."""
    tokens = (*prompt, *(token for answer in answers for token in answer))
    segments = (-1,) * len(prompt) + tuple(k for k, answer in enumerate(answers) for _ in answer)
    norms = (1.0,) * len(answers)
    return Row("", -1, len(answers), tokens, segments=segments, norms=norms, scoring=OptionLikelihood())


def _values(backbone: Backbone, rows: Sequence[Row]) -> np.ndarray:
    """Log-probability and entropy by each member, and entropy of the mean (2 M + 1, L) of all L tokens of the
    rows' answers, in order."""
    num_members, num_classes = backbone.num_members, max(row.num_classes for row in rows)

    def before(size: int) -> torch.Tensor:
        """Hidden states (M, L, D) that predict the tokens."""
        batch = collate([*rows] * size, num_classes, backbone, size)
        assert isinstance(batch, Batch)
        place_K, token_K, *_ = batch.scored
        targets.append(token_K.view(size, -1)[0])
        return hidden(backbone, batch)[place_K].view(size, len(targets[-1]), -1)

    targets: list[torch.Tensor] = []
    parts = [1] * num_members if has_own_weights(backbone) else [num_members]
    hidden_MLD = by_weights(backbone, before, parts)
    values, size = [], LOGIT_BYTES // (hidden_MLD[:, :1, :1].nbytes * backbone.lm.config.vocab_size)
    for part_MLD, token_L in zip(hidden_MLD.split(max(1, size), 1), targets[0].split(max(1, size))):
        logits_MLV = by_weights(backbone, backbone.vocabulary, part_MLD.chunk(len(parts)))
        token_ML = token_L.expand(num_members, -1)
        values.append(in_parts(lambda z, token: _statistics(backbone, z, token), logits_MLV, token_ML))
    return torch.cat(values, 1).cpu().numpy()


def _statistics(backbone: Backbone, logits_MLV: torch.Tensor, token_ML: torch.Tensor) -> torch.Tensor:
    """(2 M + 1, L) as `_values`."""
    logp_MLV = backbone.capped(logits_MLV.float()).log_softmax(-1)
    probs_MLV = logp_MLV.exp()
    mean_LV = probs_MLV.mean(0)
    own_ML = logp_MLV.gather(-1, token_ML[..., None])[..., 0]
    entropy_ML = -(probs_MLV * logp_MLV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    mean_entropy_L = -(mean_LV * mean_LV.clamp(min=1e-38).log()).sum(-1)
    return torch.cat([own_ML, entropy_ML, mean_entropy_L[None]])


def _says(values: np.ndarray, num_members: int) -> Says:
    return Says(values[:num_members], values[num_members : 2 * num_members], values[-1])
