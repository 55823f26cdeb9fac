"""In-context learning: demonstrations before the question, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorae.combinations import SOUPS
from lorae.methods.base import Method, Regime
from lorae.shapes import most_tokens

if TYPE_CHECKING:
    from lorae.tasks.base import Task
    from lorae.trial import Trial


@dataclass(frozen=True)
class InContext(Method):
    """Trains nothing: before the question, the untouched backbone reads demonstrations, which are training
    examples with their right answers. Several members are an ensemble of prompts.

    A member draws its demonstrations from its own stream, uniformly and without replacement from the training
    examples that fit `Budget(max_tokens)`, in random order.

    Args:
        shots: demonstrations, >= 1; with more shots a member keeps its first demonstrations.
        calibrated: subtract from the class logits the log-probabilities of the classes after the same
            demonstrations and "N/A" as the question: contextual calibration (Zhao et al. 2021,
            arXiv:2102.09690) with W = diag(p_cf)^-1.
    """

    label = "in-context"
    names = ("in-context learning", "in-context ensemble")
    regime: ClassVar[Regime] = "prompted"
    streams: ClassVar[Mapping[str, str]] = {"demonstrations": "demonstrations"}

    shots: int = 4
    calibrated: bool = True

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(
                f"shots={self.shots}: must be >= 1; write InContext(shots=4), or members=0 for none"
            )

    @property
    def init_label(self) -> str:
        return f"{self.shots}-shot" + ("+calibrated" if self.calibrated else "")

    def check(self, trial: Trial) -> None:
        """Refuse training settings, and scorings that demonstrations or calibration do not work with."""
        if trial.task.scoring.trains_head:
            raise ValueError(
                f"{self} with {trial.task.scoring}: an encoder reads no demonstrations; score by Letters(), "
                "LabelWords() or OptionLikelihood() on a causal LM"
            )
        if self.calibrated and trial.task.scoring.scores_texts:
            raise ValueError(
                f"{self} with {trial.task.scoring}: the options are texts, which a content-free question "
                "does not have; write calibrated=False, or score by Letters() or LabelWords()"
            )
        diverse = trial.members and trial.diversity != type(trial.diversity)()
        given = {
            "regularizers": trial.regularizers,
            "draws": trial.draws,
            "cycles": trial.optimizer.cycles,
            "combine": trial.combine if trial.combine in SOUPS else None,
            "diversity": trial.diversity if diverse else None,
        }
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"{name}={value!r} with {self}: it trains nothing and predicts once; leave {name} out, "
                    "or name the trial in Sweep(rivals=[...]) beside those that have it"
                )

    def check_backbone(self, trial: Trial, ood: Sequence[Task], config: Mapping[str, Any]) -> None:
        num_train, longest = len(trial.task.examples("train")), most_tokens(dict(config))
        if self.shots > num_train:
            raise ValueError(
                f"shots={self.shots}: {trial.task.name} has {num_train} training examples; write "
                f"InContext(shots={num_train}) or fewer"
            )
        most, parts = trial.budget.max_tokens, self.shots + 1
        if longest and parts * most > longest:
            raise ValueError(
                f"shots={self.shots} with max_tokens={most}: a prompt of {parts} such parts has "
                f"{parts * most} tokens, {trial.backbone.label} reads at most {longest}; write "
                f"Budget(max_tokens={longest // parts}), or fewer shots"
            )
