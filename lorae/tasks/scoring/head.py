"""Scoring by a trained classification head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lorae.shapes import classifier_path
from lorae.tasks.encoding import Row, check_first
from lorae.tasks.example import Example, Prompt
from lorae.tasks.scoring.base import Scoring

if TYPE_CHECKING:
    import torch

    from lorae.backbone.encoders import EncoderBatch
    from lorae.backbone.loading import Backbone
    from lorae.tasks.base import Task


@dataclass(frozen=True)
class Head(Scoring):
    """Score by a trained classification head on the encoder's pooled features; its outputs are class logits.

    Every example has the same options, the names of the classes; a text is read without a template.

    Args:
        pool: "cls", the features of the first token, or "mean", the mean over all tokens except padding.
    """

    pool: Literal["cls", "mean"] = "cls"

    template = ""
    num_options = (2, 30_000)  # ImageNet-21k has 21,841
    backbones = ("text", "image", "audio")
    trains_head = True

    def __post_init__(self) -> None:
        if self.pool not in ("cls", "mean"):
            raise ValueError(f'pool={self.pool!r}: must be "cls" or "mean"; write Head(pool="mean")')

    @property
    def label(self) -> str:
        return "head" if self.pool == "cls" else f"head-{self.pool}"

    def check_task(self, task: Task) -> None:
        if task.option_seed is not None:
            raise ValueError(
                f"option_seed={task.option_seed}: the classes of a head have one order; leave it out"
            )

    def check_alike(self, example: Example, first: Example) -> None:
        if example.options is not first.options and example.options != first.options:  # they may be many
            raise ValueError(
                f"its {len(example.options)} classes {example.options[:3]} ... are not those of the first "
                f"row, {first.options[:3]} ...; a head has the same classes for all examples; score by "
                "Letters() or OptionLikelihood()"
            )

    def prompt(self, template: str, example: Example) -> Prompt:
        """The text itself, or both sentences of a pair, and the names of the classes."""
        return Prompt(example.question, example.options, example.pair)

    def encode(
        self,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        max_tokens: int,
        classes: tuple[str, ...] | None,
        context: str,
    ) -> list[Row]:
        rows, numbers = [], tuple(range(len(classes or examples[0].options)))
        for e, read in zip(examples, tokenizer.tokens(task, examples, max_tokens)):
            if e.media is None:
                check_first(tokenizer.processor, task, e, read.tokens)
            label = -1 if e.label is None or classes not in (None, e.options) else e.label
            row = Row(e.id, label, len(numbers), read.tokens, numbers, media=e.media, scoring=self)
            rows.append(replace(row, types=read.types, truncated=read.cut))
        return rows

    def collate(
        self, rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool
    ) -> EncoderBatch:
        from lorae.backbone.encoders import collate

        return collate(rows, backbone, num_members, self.pool)

    def class_logits(self, backbone: Backbone, batch: EncoderBatch) -> torch.Tensor:
        from lorae.backbone.encoders import features

        assert backbone.inserted is not None, "an encoder has no classes of its own"
        return backbone.inserted.head_logits(features(backbone, batch))

    def peft_classifier(self, config: dict[str, Any]) -> str | None:
        return classifier_path(config, self.pool)
