"""How the next token is chosen from the members' logits of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lorae import seeds
from lorae.backbone.loading import Backbone
from lorae.noise import int32

BROKEN = -1  # in the place of a token where the logits are NaN, or infinite
# Numbers that are turned into probabilities at once. On a CPU they stay in its cache: a fifth of the time
PART = {"cpu": 2**20, "cuda": 2**26}


class Chooser:
    """Chooses the next token of every text.

    Attributes:
        draws: K texts that each member writes to each prompt.
        pools: all members write one text together.
    """

    draws: int = 1
    pools: bool = False

    def choose(
        self, backbone: Backbone, logits_MSV: torch.Tensor, rows_MS: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Tokens (M, S) of some columns of texts; BROKEN where a member has no probabilities.

        Args:
            logits_MSV: in the backbone's dtype, not yet `Backbone.capped`.
            rows_MS: number of each text among all M * N * K.
            step: tokens that each text has so far.
        """
        raise NotImplementedError  # abstract: every chooser defines it


class Greedy(Chooser):
    """Each member's most probable token; the first of equal ones."""

    def choose(
        self, backbone: Backbone, logits_MSV: torch.Tensor, rows_MS: torch.Tensor, step: int
    ) -> torch.Tensor:
        return _largest(logits_MSV)


class LockStep(Chooser):
    """All members write one text: the token with the largest mean probability, or the largest mean logit.

    Args:
        rule: "mean" of the probabilities, or of the "logits", which is the product of experts.
    Raises:
        ValueError: it is neither.
    """

    pools = True

    def __init__(self, rule: str = "mean") -> None:
        if rule not in ("mean", "logits"):
            raise ValueError(f'lockstep={rule!r}: must be "mean" or "logits"; write lockstep=("mean",)')
        self.rule = rule

    def choose(
        self, backbone: Backbone, logits_MSV: torch.Tensor, rows_MS: torch.Tensor, step: int
    ) -> torch.Tensor:
        def pooled(part_MSV: torch.Tensor) -> torch.Tensor:
            part_MSV = backbone.capped(part_MSV.float())
            each = part_MSV.softmax(-1) if self.rule == "mean" else part_MSV
            return _largest(each.mean(0, keepdim=True))

        return in_parts(pooled, logits_MSV).expand(len(logits_MSV), -1)


class Sampling(Chooser):
    """K samples of each member, from its probabilities at a temperature, of the most probable tokens only.

    The random number of a token is a hash of its member's stream, the example, the draw and the step, so a
    sample depends neither on the members beside its own nor on the other examples of a batch.

    Args:
        streams: a random stream of each member.
        example_ids: of the N prompts.
        draws: K samples, draw 0, 1, ... of each.
        temperature: > 0, by which logits are divided.
        top_p: in (0, 1]; the most probable tokens that have at least this probability together, and those
            that are as probable as the last of them, share all of it.
    Raises:
        ValueError: the temperature or top_p is outside its range.
    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1 (nucleus sampling).
    """

    def __init__(
        self,
        streams: Sequence[seeds.Key],
        example_ids: Sequence[str],
        draws: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(
                f"temperature={temperature}: must be > 0; leave the samples out for the most probable text"
            )
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: must be in (0, 1]; write top_p=1.0 for all tokens")
        self.draws, self.temperature, self.top_p = draws, temperature, top_p
        named = [(*key, "text") for key in streams]
        self.keys = int32(
            [seeds.key32(*key, name, k) for key in named for name in example_ids for k in range(draws)]
        )

    def choose(
        self, backbone: Backbone, logits_MSV: torch.Tensor, rows_MS: torch.Tensor, step: int
    ) -> torch.Tensor:
        self.keys = self.keys.to(rows_MS.device)
        uniform_MS = seeds.uniforms(self.keys[rows_MS], step)

        def drawn(part_MSV: torch.Tensor, uniform_MS: torch.Tensor) -> torch.Tensor:
            probs_MSV = (backbone.capped(part_MSV.float()) / self.temperature).softmax(-1)
            broken_MS = probs_MSV.amax(-1).isnan()
            cdf_MSV = nucleus(probs_MSV, self.top_p).double().cumsum(-1)
            tokens_MS1 = torch.searchsorted(cdf_MSV, (uniform_MS * cdf_MSV[..., -1])[..., None], right=True)
            last = probs_MSV.shape[-1] - 1
            return tokens_MS1[..., 0].clamp(max=last).masked_fill(broken_MS, BROKEN)

        return in_parts(drawn, logits_MSV, uniform_MS)


def nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities (..., V), zero but for the most probable ones whose sum is at least `top_p`, and those
    equal to the last of them, so that the order in which equal ones are found does not matter."""
    if top_p == 1:
        return probs
    size, most = 256, probs.shape[-1]
    while True:  # until these hold enough of every row
        top = probs.topk(min(size, most), -1).values
        sums = top.double().cumsum(-1)
        if size >= most or bool((sums[..., -1] >= top_p).all()):
            break
        size *= 8
    last = (sums < top_p).sum(-1, keepdim=True).clamp(max=top.shape[-1] - 1)
    return probs.where(probs >= top.gather(-1, last), 0.0)


def in_parts(function: Callable[..., torch.Tensor], *x_MSs: torch.Tensor) -> torch.Tensor:
    """`function` of tensors (M, S, ...) by a few columns S at a time, of results (M, S)."""
    first = x_MSs[0]
    size = max(1, PART[first.device.type] // max(1, first[:, :1].numel()))
    return torch.cat([function(*parts) for parts in zip(*(x.split(size, 1) for x in x_MSs))], 1)


def _largest(values_MSV: torch.Tensor) -> torch.Tensor:
    """Index of the largest value; BROKEN where that is NaN or infinite."""
    found = values_MSV.max(-1)
    return found.indices.masked_fill(~found.values.isfinite(), BROKEN)
