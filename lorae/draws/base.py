"""What every kind of draws declares, and the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

if TYPE_CHECKING:
    from lorae.draws.sampling import Sampler
    from lorae.methods import Method
    from lorae.regularizers import Regularizer
    from lorae.trial import Trial

T = TypeVar("T")


class Draws:
    """Several predictions of one trained member, independent of its training.

    Draws are a frozen dataclass in its own file, listed in `lorae.draws.AnyDraws`. Its module needs only
    numpy; code that uses torch imports it itself.

    Attributes:
        kind: prefix of the label, before the first "-".
        reads_classes: the draws are fitted on the classes of training examples.
        note: one sentence, printed below a table, on where it departs from its source; None = nowhere.
    """

    kind: ClassVar[str]
    note: ClassVar[str | None] = None
    reads_classes: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name in a row and in a prediction set's name: `kind`, "-" and what `from_label` reads."""
        return f"{self.kind}-{self.num_draws}"

    @property
    def title(self) -> str:
        """Name in tables, with its setting."""
        raise NotImplementedError  # abstract: all draws define it

    @classmethod
    def from_label(cls, size: str) -> Self:
        """The draws with this label, given without `kind` and "-".

        Raises:
            ValueError: no draws have this label.
        """
        return cls(int(size))  # type: ignore[call-arg]

    @property
    def num_draws(self) -> int:
        """Predictions of a member on each example."""
        raise NotImplementedError  # abstract: all draws define it

    def num_passes(self, num_classes: int) -> int:
        """Forward passes of one member for a prediction, plus backward passes, which take as long."""
        return self.num_draws

    def check(self, trial: Trial) -> None:
        """Refuse a trial whose members cannot predict with these draws; ValueError says what to write."""

    def unfit(self, method: Method, regularizers: Iterable[Regularizer]) -> str | None:
        """Why stored members of a recipe cannot predict with these draws, such as "were trained without
        AdapterDropout"; None if they can."""
        return None


@dataclass(frozen=True)
class Sampled(Draws):
    """Draws that are samples.

    Args:
        samples: number of draws, >= 1.
    """

    samples: int = 10

    def __post_init__(self) -> None:
        if self.samples < 1:
            name = type(self).__name__
            raise ValueError(f"samples={self.samples}: must be >= 1; write {name}(samples=10)")

    @property
    def num_draws(self) -> int:
        return self.samples


@dataclass(frozen=True)
class Sizes:
    """Sizes that the memory of draws depends on: bytes per number, tokens of the longest row, classes per
    row."""

    number: int
    tokens: int
    classes: int


@dataclass(frozen=True)
class Fitted(Sampled):
    """Draws that are fitted to trained members on their training examples.

    A member's fit is stored with it: scalars as `<label>.json`, tensors as `<label>.safetensors`.

    Attributes:
        record: expected scalars of a sampler's `fit`, see `lorae.untrusted.check`.
    """

    reads_classes = True
    record: ClassVar[Mapping[str, Any]] = {}

    def check(self, trial: Trial) -> None:
        masks = next((r for r in trial.regularizers if r.num_draws), None)
        if masks or not trial.method.is_low_rank:
            raise ValueError(
                f"draws={self} with {masks or trial.method}: its noise is on what LoRA adds to the "
                "backbone, and its samples are draws already; write Lora() and no Masksembles"
            )

    def passes_to_fit(self, num_classes: int) -> int:
        """Passes of one member over each example that its draws are fitted on."""
        raise NotImplementedError  # abstract: all fitted draws define it

    def fitted_on(self, train: Sequence[T]) -> list[T]:
        """The training examples that the draws are fitted on."""
        return list(train)

    def fitted_at_once(self, rows: int, num_classes: int) -> int:
        """Examples per member in one pass with gradients, where training uses `rows`."""
        return rows

    def fitting_bytes(
        self, method: Method, layers: Mapping[str, tuple[int, int]], num_members: int, rows: int, sizes: Sizes
    ) -> int | None:
        """Bytes that fitting and predicting with a stack need beyond a pass with gradients; None = as much as
        a plain prediction.

        Args:
            layers: the adapted layers, name -> (d_in, d_out).
            rows: examples per member that are trained on at once.
        """
        return None

    def sampler(self) -> type[Sampler[Any]]:
        """The class that fits and draws."""
        raise NotImplementedError  # abstract: all fitted draws define it
