"""Full fine-tuning: every member has its own copy of all backbone weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorae import seeds
from lorae.methods.base import Linears, Method, Regime
from lorae.shapes import num_backbone_parameters

if TYPE_CHECKING:
    from lorae.backbone.loading import Backbone
    from lorae.engine.adapters import State
    from lorae.tasks.base import Task
    from lorae.trial import Trial

# Limit on weights, gradients and two moments of the members that a stack fine-tunes in full, where the
# device's memory is not known; a single member that needs more is always refused.
MAX_FULL_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Full(Method):
    """Trains every weight of the backbone: full fine-tuning, or an explicit ensemble with several members.

    Each member has its own weights and its own forward pass: nothing is shared in a stack.
    """

    label, init_label = "full", "backbone"  # type: ignore[assignment]
    names = ("single full fine-tuning", "explicit ensemble")
    regime: ClassVar[Regime] = "alone"
    starts_apart: ClassVar[bool] = False  # type: ignore[assignment]

    def check_backbone(self, trial: Trial, ood: Sequence[Task], config: Mapping[str, Any]) -> None:
        if (needed := full_member_bytes(config)) > MAX_FULL_BYTES:
            raise ValueError(
                f"Full() of {trial.backbone.label} needs {needed / 2**30:.1f} GiB for each member's weights, "
                f"gradients and moments, at most {MAX_FULL_BYTES / 2**30:.0f} GiB are allowed; write Lora(), "
                "or take a smaller backbone"
            )

    def initial_state(
        self, backbone: Backbone, layers: Linears, answer_ids: Sequence[int], key: seeds.Key
    ) -> State:
        """Every weight of the backbone by its name, tied weights once."""
        return {name: p.detach().float() for name, p in backbone.lm.named_parameters()}

    def num_trained(self, config: Mapping[str, Any], layers: Linears) -> int:
        return num_backbone_parameters(dict(config))


def full_member_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of one fully fine-tuned member: weights, gradients and two moments in fp32."""
    return 16 * num_backbone_parameters(dict(config))
