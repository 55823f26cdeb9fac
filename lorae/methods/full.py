"""Full fine-tuning: every weight of the backbone is the member's own."""

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

# Weights, gradients and two moments of the members that a stack fine-tunes in full, where a device's memory
# is not known; a single member that needs more is refused everywhere.
MAX_FULL_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Full(Method):
    """Trains every weight of the backbone: full fine-tuning, and with several members the explicit ensemble.

    Each member has all weights of its own, and a forward pass of its own: nothing is shared in a stack.
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
        """Every weight of the backbone by its name, tied ones once."""
        return {name: p.detach().float() for name, p in backbone.lm.named_parameters()}

    def num_trained(self, config: Mapping[str, Any], layers: Linears) -> int:
        return num_backbone_parameters(dict(config))


def full_member_bytes(config: Mapping[str, Any]) -> int:
    """Weights, gradients and two moments in fp32 of one member that is fine-tuned in full."""
    return 16 * num_backbone_parameters(dict(config))
