"""Several predictions of one trained member, which its training does not depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Sampled:
    """Draws that are samples.

    Args:
        samples: number of draws, >= 1.

    Attributes:
        note: in one sentence, where it departs from its source; None = nowhere. For below a table.
    """

    note: ClassVar[str | None] = None

    samples: int = 10

    def __post_init__(self) -> None:
        if self.samples < 1:
            name = type(self).__name__
            raise ValueError(f"samples={self.samples}: must be >= 1; write {name}(samples=10)")

    @property
    def num_draws(self) -> int:
        return self.samples

    def num_passes(self, num_classes: int) -> int:
        """Forward passes of one member for a prediction, and backward passes, which take as long."""
        return self.samples


@dataclass(frozen=True)
class MCDropout:
    """Predicts with dropout active, several times; the passes are draws of the member's predictions.

    Needs `AdapterDropout` in the recipe. The trained member is the one that predicts without dropout, too.

    Args:
        passes: number of draws, >= 1.
    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """

    note: ClassVar[str | None] = None

    passes: int = 10

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: must be >= 1; write MCDropout(passes=10)")

    @property
    def label(self) -> str:
        return f"mc-{self.passes}"

    @property
    def num_draws(self) -> int:
        return self.passes

    def num_passes(self, num_classes: int) -> int:
        """Forward passes of one member for a prediction."""
        return self.passes


@dataclass(frozen=True)
class TFB(Sampled):
    """Training-free Bayesianisation: samples of a Gaussian around a trained LoRA member, whose noise on the
    update is of equal size in all directions that B has: W0 + scale (B A + sigma U E), with U the left
    singular vectors of B and E (rank x d_in) standard normal.

    sigma is one number for all layers of a member: the largest for which the NLL of the samples' mean
    probability on training examples differs from the member's own by at most `tolerance` of it.

    The authors' code (Wang-ML-Lab/bayesian-peft, bc6a4a7) searches otherwise. Its labels are the member's own
    most probable classes on 500 training examples; here they are the true ones of at most 256. It divides the
    relative difference once more by the number of examples, and so tolerates 500 times as much. Its scripts
    halve [0.001, 0.015] five times and take the last sigma that was too large, 0.015 if none was; here
    [1e-4, 1] is halved seven times on a log scale, and the largest tolerable one taken.

    Args:
        samples: number of draws, >= 1; as many are taken in the search for sigma.
        tolerance: of the NLL, relative, > 0.
    Source: Shi et al. 2024, arXiv:2412.05723.
    """

    note: ClassVar[str | None] = (
        "TFB searches sigma by the true labels of at most 256 training examples; its authors' code takes the "
        "member's own answers to 500 as labels, and tolerates 500 times the change in NLL."
    )

    tolerance: float = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: must be > 0; write TFB(tolerance=0.003)")

    @property
    def label(self) -> str:
        return f"tfb-{self.samples}x{float(self.tolerance)}"

    def passes_to_fit(self, num_classes: int) -> int:
        """Passes of one member over each example that its draws are fitted on."""
        return SEARCH_STEPS * self.samples

    def fitted_on(self, train: Sequence[T]) -> list[T]:
        """Training examples that sigma is searched on, from everywhere in their order."""
        chosen = np.linspace(0, len(train) - 1, min(ANCHORS, len(train))).astype(int)
        return [train[n] for n in chosen]


@dataclass(frozen=True)
class Posterior(Sampled):
    """Samples of the weights that a Bayesian member (`Blob`, `Rank1BNN`) has learned a distribution of. The
    trained member is the one that predicts with their mean, too.

    Args:
        samples: number of draws, >= 1.
    """

    @property
    def label(self) -> str:
        return f"posterior-{self.samples}"


@dataclass(frozen=True)
class Laplace(Sampled):
    """Linearised Laplace approximation around a trained LoRA member ("Laplace-LoRA"): its weights are
    Gaussian, with the curvature of the training NLL (generalised Gauss-Newton, in Kronecker factors) and a
    prior as precision; its logits are drawn from the Gaussian that follows where they are linear in the
    weights.

    The prior's precision is one number for all layers of a member, and maximises the marginal likelihood of
    the training examples. A draw takes no further pass of the backbone: the logits' covariance is found by a
    backward pass for each class. A classification head stays as it is.

    Both Kronecker factors are sums over tokens, as in the authors' code: tokens count as if they were
    examples of their own. The curvature's trace is about as many times that of the exact Gauss-Newton matrix
    as a row has tokens (on a tiny Llama 5 times for 5 tokens, 9 for 10, 35 for 60), so variances are as many
    times too small where the data, not the prior, determine them; and the prior is found with that matrix.

    Args:
        samples: number of draws, >= 1.
        rank: eigenvalues that are kept of those factors that are as wide as a layer, >= 1.
    Source: Yang et al. 2023, arXiv:2308.13111.
    """

    note: ClassVar[str | None] = (
        "Laplace treats tokens as examples of their own, as its authors' code does: its curvature's trace "
        "exceeds the exact Gauss-Newton matrix's about as many times as a prompt has tokens."
    )

    samples: int = 100
    rank: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be >= 1; write Laplace(rank=10)")

    @property
    def label(self) -> str:
        return f"laplace-{self.samples}x{self.rank}"

    @property
    def columns(self) -> int:
        """Of the random matrix by whose products the kept eigenvalues are found."""
        return 4 * self.rank

    def num_passes(self, num_classes: int) -> int:
        return 1 + num_classes

    def passes_to_fit(self, num_classes: int) -> int:
        """Passes of one member over each example that its draws are fitted on."""
        return self.num_passes(num_classes)

    def fitted_on(self, train: Sequence[T]) -> list[T]:
        """Training examples whose NLL's curvature is taken: all."""
        return list(train)


ANCHORS = 256  # training examples that sigma is searched on
SIGMAS = 1e-4, 1.0  # between which
SEARCH_STEPS = 7  # of bisection on a log scale, to 7 %


Fitted = TFB | Laplace  # to trained members
Draws = MCDropout | Posterior | Fitted


def read_draws(label: str) -> Draws | None:
    """The draws that a row of a table names; None for those that a member has by its training alone, and for
    a label of no draws."""
    kind, _, size = label.partition("-")
    num, _, setting = size.partition("x")
    try:
        if kind == "tfb":
            return TFB(int(num), float(setting))
        if kind == "laplace":
            return Laplace(int(num), int(setting))
        of_size = {"mc": MCDropout, "posterior": Posterior}.get(kind)
        return of_size(int(size)) if of_size else None
    except ValueError:
        return None


def drawn_set(eval_set: str, draws: Draws | None) -> str:
    """Name of a prediction set with these draws beside the plain one, `<task>__<split>__<hash>`."""
    return eval_set if draws is None else f"{eval_set}-{draws.label}"


def plain_set(eval_set: str) -> str:
    """Name of the plain set with the same examples."""
    head, _, tail = eval_set.rpartition("__")
    return f"{head}__{tail.partition('-')[0]}"
