"""Distillation of an ensemble into one member (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorae.regularizers.base import Regularizer
from lorae.regularizers.kl import kl_divergence

if TYPE_CHECKING:
    import torch

    from lorae.trial import Trial


@dataclass(frozen=True)
class Distill(Regularizer):
    """Adds beta times KL(teacher || member) between the class distributions on the training examples.

    The teacher is the ensemble of the member's own recipe without `Distill`, with the member's seed: the mean
    probability of its members, from their stored predictions. The first of them starts as the member does and
    sees the same batches, so that the two differ by the targets alone.

    Args:
        members: size of the teacher, >= 1; 1 shows what soft targets do without an ensemble.
        beta: weight, > 0, in nats of loss per nat of divergence; the loss is the NLL of the labels plus this
            term, so that the teacher has the share beta / (1 + beta).
        lr: the teacher's learning rate; None = the member's own or, in a sweep that tunes learning rates, the
            one that is chosen for the teacher.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1; of an LLM's
        uncertainty, arXiv:2505.11731.
    """

    members: int = 4
    beta: float = 1.0
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(
                f"members={self.members}: a teacher without members has no predictions; write "
                "Distill(members=4)"
            )
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: must be > 0; write Distill(beta=1.0), or leave Distill out")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be > 0, or None for the member's own")

    @property
    def label(self) -> str:
        return f"distill-{self.members}x{self.beta:g}" + ("" if self.lr is None else f"x{self.lr:g}")

    def check(self, trial: Trial) -> None:
        if (answer := trial.task.scoring.answer) != "class":
            raise ValueError(
                f"Distill with {trial.task.scoring}: the teacher's stored predictions of a {answer} are no "
                "distribution over classes; leave it out"
            )
        if other := next((r for r in trial.regularizers if r.needs_reference), None):
            raise ValueError(f"{other} with {self}: a member has one reference; write one of them")
        self.teacher(trial)  # is checked as any trial

    def teacher(self, trial: Trial) -> Trial:
        kept = tuple(r for r in trial.regularizers if r is not self)
        optimizer = trial.optimizer if self.lr is None else replace(trial.optimizer, lr=self.lr)
        return replace(
            trial,
            regularizers=kept,
            optimizer=optimizer,
            members=self.members,
            combine="probs",
            draws=None,
        )

    def taught(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        if self.lr is not None:
            return {}
        if others := [axis for axis in chosen if axis != "optimizer.lr"]:
            raise ValueError(
                f"tune[{others[0]!r}] with {self}: of a teacher's values only 'optimizer.lr' is tuned; leave "
                "the axis out, or write Distill(lr=...)"
            )
        return {"regularizers.Distill.lr": chosen["optimizer.lr"]} if chosen else {}

    def penalty(self, logits: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        assert reference is not None
        return self.beta * kl_divergence(logits, reference, "forward")
