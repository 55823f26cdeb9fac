"""Decoding: tokens of all texts of all members, one step of one stacked forward pass after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorae.backbone.loading import Backbone
from lorae.backbone.past import Continuation
from lorae.backbone.tokens import end_tokens
from lorae.engine.decoding.choosing import BROKEN, Chooser
from lorae.engine.decoding.ending import decoded, stop_strings
from lorae.engine.decoding.prompts import Prompts, by_weights, check_length
from lorae.planning.decoding import LOGIT_BYTES

COMPACTED = 0.5  # texts are dropped once so many of the prompts, or fewer, still have an unfinished one


@dataclass(frozen=True)
class Text:
    """A text that members wrote.

    Attributes:
        token_ids: with the end token, or the tokens that complete a stop, where it is finished.
        text: without them.
        finished: it ended by itself; not at the maximum of tokens, or because logits were NaN or infinite.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: bool


@torch.no_grad()
def decode(
    prompts: Prompts, chooser: Chooser, max_new_tokens: int, stop: Sequence[str] = ()
) -> list[list[list[Text]]]:
    """Texts [m][n][k]: K of each member, or of all members together where the chooser pools (m = 0 only), to
    each of N prompts. The stack that read the prompts must still be inserted.

    A text ends at an end token of the model or its tokenizer, with a stop in its text, at `max_new_tokens`,
    or where its logits are NaN.

    Raises:
        ValueError: `max_new_tokens` is below 1 or leaves the backbone's range, or a stop cannot be written.
    """
    backbone, draws = prompts.backbone, chooser.draws
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be >= 1")
    check_length(backbone, prompts.longest, max_new_tokens)
    num_members, num_prompts, _ = prompts.hidden_MND.shape
    sheet = _Sheet(backbone, num_members * num_prompts * draws, max_new_tokens, tuple(stop))
    texts = [Continuation(reading, draws, max_new_tokens) for reading in prompts.readings]
    hidden_MSD = prompts.hidden_MND.repeat_interleave(draws, 1)
    rows_MS = torch.arange(sheet.length_R.numel(), device=backbone.device).view(num_members, -1)
    going_MS = torch.ones_like(rows_MS, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen_MS = _chosen(prompts, chooser, hidden_MSD, rows_MS, step)
        going_MS = sheet.add(rows_MS, chosen_MS, going_MS, step)
        unfinished_MN = going_MS.unflatten(1, (-1, draws)).any(-1)
        most = int(unfinished_MN.sum(1).max())
        if not most or step + 1 == max_new_tokens:
            break
        if most <= COMPACTED * unfinished_MN.shape[1]:
            kept_MS = _keep(texts, unfinished_MN, most, draws)
            rows_MS, going_MS, chosen_MS = (x.gather(1, kept_MS) for x in (rows_MS, going_MS, chosen_MS))
        hidden_MSD = _step(prompts, texts, chosen_MS.clamp(min=0))
    nested_MNK = sheet.texts().reshape(num_members, num_prompts, draws)
    return nested_MNK[: 1 if chooser.pools else None].tolist()


class _Sheet:
    """Tokens of all R texts, how many each has, and which of them ended by themselves."""

    def __init__(self, backbone: Backbone, num_texts: int, room: int, stop: tuple[str, ...]) -> None:
        lm, self.tokenizer = backbone.lm, backbone.tokenizer
        self.stops = stop_strings(self.tokenizer, stop, lm.config.vocab_size)
        self.ends = torch.tensor(end_tokens(lm, self.tokenizer), dtype=torch.long, device=backbone.device)
        self.tokens_RT = torch.full((num_texts, room), BROKEN, device=backbone.device)
        self.length_R = torch.zeros_like(self.tokens_RT[:, 0])
        self.finished_R = torch.zeros_like(self.length_R, dtype=torch.bool)

    def add(
        self, rows_MS: torch.Tensor, chosen_MS: torch.Tensor, going_MS: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Write one token of each text that goes on; which texts (M, S) still do."""
        going_MS = going_MS & (chosen_MS != BROKEN)
        rows = rows_MS[going_MS]
        self.tokens_RT[rows, step], self.length_R[rows] = chosen_MS[going_MS], step + 1
        ended_MS = going_MS & torch.isin(chosen_MS, self.ends)
        ended_MS |= self.stops.complete(self.tokens_RT, rows_MS, chosen_MS, going_MS & ~ended_MS)
        self.finished_R[rows_MS[ended_MS]] = True
        return going_MS & ~ended_MS

    def texts(self) -> np.ndarray:
        """Every `Text`, (R,)."""
        found, ends = np.empty(len(self.length_R), object), set(self.ends.tolist())
        columns = zip(self.tokens_RT.tolist(), self.length_R.tolist(), self.finished_R.tolist())
        written = [(tuple(ids[:length]), finished) for ids, length, finished in columns]
        shown = [ids[:-1] if finished and ids[-1] in ends else ids for ids, finished in written]
        for r, ((ids, finished), text) in enumerate(zip(written, decoded(self.tokenizer, shown))):
            found[r] = Text(ids, self.stops.cut(text), finished)
        return found


def _chosen(
    prompts: Prompts, chooser: Chooser, hidden_MSD: torch.Tensor, rows_MS: torch.Tensor, step: int
) -> torch.Tensor:
    """Next token (M, S) of every text, from logits of a bounded block of texts at a time."""
    size = LOGIT_BYTES // (hidden_MSD[:, :1, :1].nbytes * prompts.backbone.lm.config.vocab_size)
    parts = zip(hidden_MSD.split(max(1, size), 1), rows_MS.split(max(1, size), 1))
    return torch.cat(
        [chooser.choose(prompts.backbone, logits(prompts, part), rows, step) for part, rows in parts], 1
    )


def logits(prompts: Prompts, hidden_MSD: torch.Tensor) -> torch.Tensor:
    """Logits (M, S, V) as `Backbone.vocabulary` has them."""
    parts = hidden_MSD.chunk(len(prompts.readings))
    return by_weights(prompts.backbone, prompts.backbone.vocabulary, parts)


def _step(prompts: Prompts, texts: list[Continuation], ids_MS: torch.Tensor) -> torch.Tensor:
    """Hidden states (M, S, D) of one more token of every text."""
    backbone = prompts.backbone

    def hidden(part: tuple[Continuation, torch.Tensor]) -> torch.Tensor:
        text, ids = part
        return backbone.hidden(ids, text.positions.view_as(ids), text)

    found = by_weights(backbone, hidden, [*zip(texts, ids_MS.chunk(len(texts)))])
    for text in texts:
        text.advance()
    return found


def _keep(texts: list[Continuation], unfinished_MN: torch.Tensor, most: int, draws: int) -> torch.Tensor:
    """Go on with `most` prompts of each member, among them all with an unfinished text; the kept columns
    (M, S') of the texts."""
    num_prompts = unfinished_MN.shape[1]
    kept_MN = torch.argsort((~unfinished_MN).int(), dim=1, stable=True)[:, :most]
    for text, part in zip(texts, kept_MN.chunk(len(texts))):
        first = num_prompts * torch.arange(len(part), device=part.device)
        text.keep((part + first[:, None]).flatten())
    return (kept_MN[..., None] * draws + torch.arange(draws, device=kept_MN.device)).flatten(1)
