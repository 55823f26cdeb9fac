"""What an ensemble says of given inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class EnsemblePrediction:
    """What an ensemble says of N inputs.

    Attributes:
        ids: of the inputs: as given, else a hash of the content.
        labels: the most probable class of each, by name.
        options: the classes of each input, by name, in the order of the probabilities.
        probabilities: (N, C), of the ensemble, at `temperature`; 0 for a class that an input does not have.
        member_probabilities: (M, N, C), of each member, at temperature 1; of a soup only its own.
        entropy: (N,), of `probabilities`, in nats: all uncertainty.
        mutual_information: (N,), in nats, between prediction and member or draw, at temperature 1: how much
            they disagree. NaN where one model predicts once.
        conformal_sets: of each input the classes that hold the true one with a probability of `coverage`, if
            the input is like the test examples; None where these have no labels.
        temperature: that the ensemble's probabilities are scaled by.
        notes: what must be known beside the numbers.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    probabilities: np.ndarray
    member_probabilities: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    conformal_sets: tuple[tuple[str, ...], ...] | None
    coverage: float
    temperature: float
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def columns(self) -> dict[str, list[Any]]:
        """Columns of a table with a row for each input: a probability for each class where all inputs have
        the same, else a list."""
        top_N = self.probabilities.max(axis=1)
        found: dict[str, list[Any]] = {"id": list(self.ids), "label": list(self.labels)}
        found |= {"probability": top_N.tolist(), "entropy": self.entropy.tolist()}
        found["mutual_information"] = self.mutual_information.tolist()
        if self.conformal_sets is not None:
            found["conformal_set"] = [list(names) for names in self.conformal_sets]
        if len(set(self.options)) == 1:
            names, columns = self.options[0], self.probabilities.T
            found |= {f"p_{name}": column.tolist() for name, column in zip(names, columns)}
        else:
            found["options"] = [list(names) for names in self.options]
            found["probabilities"] = [p[: len(o)].tolist() for p, o in zip(self.probabilities, self.options)]
        by_input = self.member_probabilities.transpose(1, 0, 2)
        found["member_probabilities"] = [p[:, : len(o)].tolist() for p, o in zip(by_input, self.options)]
        return found

    def frame(self) -> pd.DataFrame:
        """`columns` as a pandas DataFrame, without the members' probabilities."""
        import pandas as pd

        found = self.columns()
        del found["member_probabilities"]
        frame = pd.DataFrame(found)
        frame.attrs = {"temperature": self.temperature, "coverage": self.coverage, "notes": list(self.notes)}
        return frame

    def _repr_html_(self) -> str:
        import html

        said = f"temperature {self.temperature:.3g}; conformal sets at {self.coverage:.0%}"
        notes = "".join(f"<br>{html.escape(note)}" for note in self.notes)
        return f"{self.frame().to_html(float_format='{:.3f}'.format)}<p>{said}{notes}</p>"
