"""PVeRA: VeRA with a Gaussian latent for each token (Fillioux et al. 2025, arXiv:2512.07703)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorae import seeds
from lorae.methods.base import Factors, Linears
from lorae.methods.gaussian_weights import check_no_other_noise
from lorae.methods.vera import Vera
from lorae.noise import Noise, int32

if TYPE_CHECKING:
    import torch

    from lorae.engine.adapters import Stacked
    from lorae.trial import Trial


@dataclass(frozen=True)
class PVera(Vera):
    """h = W0 x + Lb B z with z ~ N(mean, exp(logvar)) for each token, where mean and logvar are the halves of
    Ld A x: VeRA with twice as many rows in A and d.

    Each step draws one sample of z for every token of every training example. A member predicts with the
    mean, or by `lorae.draws.Posterior`.

    The authors add the KL divergence between z and N(0, 1), averaged over tokens and channels and summed over
    layers, with weights of 1e-6 to 1e-16. It is left out here, as in PEFT.

    Args:
        rank, targets, d_init, projection: as for `Vera`; both halves of d start at `d_init`, as in PEFT. The
            authors draw the initial value from [1e-5, 1].
    Source: Fillioux et al. 2025, arXiv:2512.07703.
    """

    label = "pvera"
    names = ("single PVeRA", "PVeRA ensemble")
    streams: ClassVar[Mapping[str, str]] = {"posterior": "posterior"}
    is_bayesian: ClassVar[bool] = True
    peft_type = "PVERA"
    peft_names: ClassVar[Mapping[str, str]] = {"d": "pvera_lambda_d", "b": "pvera_lambda_b"}
    peft_frozen: ClassVar[tuple[str, ...]] = ("base_model.pvera_A", "base_model.pvera_B")

    def check(self, trial: Trial) -> None:
        check_no_other_noise(trial)

    @property
    def width(self) -> int:
        """Width of the mean and the log-variance together."""
        return 2 * self.rank

    def make_noise(self, streams: Sequence[Mapping[str, seeds.Key]]) -> LatentNoise:
        return LatentNoise([s["posterior"] for s in streams])

    def latent(self, layer: Stacked, h: torch.Tensor) -> torch.Tensor:
        """A sample of each token's z, or the mean: (M, S, 2 R) -> (M, S, R)."""
        mean_MSR, logvar_MSR = h.chunk(2, dim=-1)
        noise = layer.noise
        if noise is None or noise.of_rows is None:
            return mean_MSR
        assert isinstance(noise, LatentNoise)
        return mean_MSR + (logvar_MSR / 2).exp() * noise.normals_like(mean_MSR, layer.number)

    def kept_bytes(self, layers: Linears, size: int, noisy: bool) -> int:
        """As for `Vera`, plus the noise, the standard deviation and z."""
        return super().kept_bytes(layers, size, noisy) + size * 3 * self.rank * len(layers)

    def peft_settings(self) -> dict[str, Any]:
        return {
            "projection_prng_key": 0,
            "save_projection": True,
            "d_initial": self.d_init,
            "pvera_dropout": 0.0,
            "sample_at_inference": False,
        }

    @classmethod
    def update_reader(
        cls,
        settings: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        parameters: Mapping[str, np.ndarray],
        d_in: Callable[[str], int] | None,
    ) -> Callable[[str], Factors]:
        """The update of the mean."""
        A = cls.peft_frozen[0]
        means = {name: value[: settings["r"]] for name, value in parameters.items() if name.endswith(".d")}
        tensors = {**tensors, A: tensors[A][: settings["r"]]}
        return super().update_reader(settings, tensors, {**parameters, **means}, d_in)


class LatentNoise(Noise):
    """Standard normal noise for each token, a pure function of the row's key, the position and the layer.

    Args:
        keys: the posterior stream of each member.
    """

    def train(self, step: int, rows: Sequence[int]) -> None:
        """Set the noise of a training step on these rows of each member's batch."""
        self.of_rows = int32([seeds.key32(*key, step, b) for key in self.keys for b in rows])

    def predict(self, draw: int, example_ids: Sequence[str]) -> None:
        """Set the noise of one draw on examples that all members predict."""
        streams = [(*key, "draw", draw) for key in self.keys]
        self.of_rows = int32([seeds.key32(*stream, name) for stream in streams for name in example_ids])

    def normals_like(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Noise (M, S, R) for the tokens of x in a layer."""
        keys, places = self.of_tokens(x)
        drawn = seeds.normals_at(keys ^ seeds.key32("layer", layer), places, x.shape[-1])
        return drawn.view_as(x).to(x.dtype)
