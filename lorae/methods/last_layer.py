"""Last-layer training: a head on the frozen backbone's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorae import seeds
from lorae.methods.base import Linears, Method, Regime, check_not_negative

if TYPE_CHECKING:
    from lorae.backbone.loading import Backbone
    from lorae.engine.adapters import State
    from lorae.tasks.base import Split, Task
    from lorae.trial import Trial


@dataclass(frozen=True)
class LastLayer(Method):
    """Trains only the layer from the frozen backbone's features to class logits: the answer tokens' rows of
    the language model's head, or the task's classification head.

    The features are computed once for all members, so all examples must have the same answer tokens.

    Args:
        std: standard deviation of the Gaussian noise that a member adds to the language model's rows; 0
            starts every member as the backbone.
    """

    label = "last-layer"
    names = ("single last layer", "last-layer ensemble")
    regime: ClassVar[Regime] = "features"

    std: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(self, "std")

    @property
    def starts_apart(self) -> bool:
        return self.std > 0

    @property
    def init_label(self) -> str:
        return f"noise-{self.std:g}" if self.std else "head"

    def check(self, trial: Trial) -> None:
        if trial.task.augment:
            raise ValueError(
                f"augment={trial.task.augment} with {self}: features are computed once, of unchanged images; "
                "write augment=None"
            )

    def draw_rows(self, rows_CD: np.ndarray, key: seeds.Key) -> np.ndarray:
        """One member's rows before the first step."""
        noise_CD = seeds.stream(*key, "head").normal(0.0, self.std, rows_CD.shape) if self.std else 0.0
        return rows_CD + noise_CD

    def initial_state(
        self, backbone: Backbone, layers: Linears, answer_ids: Sequence[int], key: seeds.Key
    ) -> State:
        """Rows of the language model's head for the answers, with the member's noise, and their bias, if any.
        Empty for an encoder, where every method trains a head anyway."""
        import torch

        if backbone.is_encoder:
            return {}
        weight_CD, bias_C = backbone.answer_rows(torch.tensor(answer_ids, device=backbone.device))
        drawn = self.draw_rows(weight_CD.cpu().numpy(), key).astype(np.float32)
        state = {"head.weight": torch.from_numpy(drawn)}
        return state if bias_C is None else state | {"head.bias": bias_C.cpu()}

    def check_backbone(self, trial: Trial, ood: Sequence[Task], config: Mapping[str, Any]) -> None:
        """Refuse examples whose answers do not fit one head."""
        task = trial.task
        if task.scoring.trains_head:
            return
        if task.scoring.scores_texts:
            raise ValueError(
                f"LastLayer() with {task.scoring}: the options of {task.name} are texts, not classes of one "
                "head; score by Letters() or LabelWords()"
            )
        splits: list[tuple[Task, Split]] = [(task, "train"), (task, "validation"), (task, "test")]
        splits.extend((t, "test") for t in ood)
        first = None
        for where, split in splits:
            for example in where.examples(split):
                answers = where.prompt(example).answers
                first = first or (answers, example.id)
                if answers != first[0]:
                    raise ValueError(
                        f"LastLayer() on {task.name}: {example.id} of {where.name} has the answers "
                        f"{answers}, {first[1]} has {first[0]}; one head has the same classes for all "
                        "examples, so take a task whose examples share them, or write Lora()"
                    )
