"""Shared by methods that learn Gaussian weights: samples from named streams, and the KL divergence from a
prior in closed form.

KL(N(m, s^2) || N(m0, s0^2)) has the gradient (m - m0) / s0^2 with respect to m, and s / s0^2 - 1 / s with
respect to s. The gradient is element-wise, so no member affects another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorae import seeds
from lorae.noise import Noise, int32

if TYPE_CHECKING:
    import torch

    from lorae.trial import Trial

FLOOR = 1e-6  # added to a standard deviation, so that 1 / s is finite


def std_gradient(std: torch.Tensor, prior_std: float) -> torch.Tensor:
    """Gradient of the divergence with respect to the standard deviation."""
    return std / prior_std**2 - 1 / (std + FLOOR)


class WeightNoise(Noise):
    """Samples of Gaussian weights: one per member for a training step, and one per member for a draw.

    Args:
        keys: the posterior stream of each member.
        flipout: every row of a training step gets its own sample, the step's sample with random signs (Wen
            et al. 2018, arXiv:1803.04386).
    """

    def __init__(self, keys: Sequence[seeds.Key], flipout: bool) -> None:
        super().__init__(keys)
        self.flipout = flipout
        self.sample_keys: torch.Tensor | None = None  # int32 (M,); None = the means

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Set the sample of a training step, and the signs for these rows of each member's batch."""
        self.sample_keys = int32([seeds.key32(*key, step) for key in self.keys])
        if self.flipout:
            self.of_rows = int32([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Set the sample of one draw, which all examples share."""
        self.sample_keys, self.of_rows = int32([seeds.key32(*key, "draw", draw) for key in self.keys]), None

    def off(self) -> None:
        super().off()
        self.sample_keys = None

    def sample(self, std_M: torch.Tensor, *name: int | str) -> torch.Tensor:
        """Noise for the weights of this name, with standard deviations of shape (M, D) or (M, R, D)."""
        if self.sample_keys is None:
            return std_M.new_zeros(std_M.shape)
        self.sample_keys, width = self.sample_keys.to(std_M.device, non_blocking=True), std_M.shape[-1]
        keys = self.sample_keys ^ seeds.key32(*name)
        return std_M * seeds.normals(keys, std_M[0].numel() // width, width).view_as(std_M)

    def added(self, x: torch.Tensor, std_MRD: torch.Tensor, layer: int) -> torch.Tensor:
        """Sampled noise of a layer's weights times x, (M, S, D) -> (M, S, R); added to the means' product."""
        if self.sample_keys is None:
            return x.new_zeros(())
        noise_MDR = self.sample(std_MRD, "layer", layer).to(x.dtype).transpose(1, 2)
        if self.of_rows is None:
            return x.bmm(noise_MDR)
        keys = (seeds.key32("layer", layer, side) for side in ("in", "out"))
        ins, outs = (self._signs(x, width, key) for width, key in zip(noise_MDR.shape[1:], keys))
        return (x * ins).bmm(noise_MDR) * outs

    def _signs(self, x: torch.Tensor, width: int, key: int) -> torch.Tensor:
        """Random signs (M, S, width) for each token of x, equal within a row."""
        assert self.of_rows is not None and self.tokens is not None, "locate() comes first"
        self.of_rows = self.of_rows.to(x.device, non_blocking=True)
        keys = self.of_rows ^ key
        signs = seeds.keep_mask(keys, keys.new_zeros(keys.shape), width, 0.5).to(x.dtype) * 2 - 1
        return signs[self.tokens[0].reshape(x.shape[:2])]


def check_no_other_noise(trial: Trial) -> None:
    """Refuse a member with Gaussian weights if a regulariser also adds noise to its activations."""
    if noisy := next((r for r in trial.regularizers if r.is_noise), None):
        raise ValueError(f"{noisy} with {trial.method}: its weights have noise; leave it out")
