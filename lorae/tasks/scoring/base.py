"""What every scoring declares: code that depends on how class logits are read asks the scoring, and never
checks its type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorae.shapes import Kind
from lorae.tasks.encoding import Asked, Row, ask
from lorae.tasks.example import Example, Prompt

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lorae.backbone.loading import Backbone
    from lorae.regularizers import Regularizer
    from lorae.tasks.base import Task
    from lorae.trial import Trial


Answer = Literal["class", "text", "value"]


class Scoring:
    """How the class logits of an example are read from a backbone.

    A new scoring is one file in this folder, named in `AnyScoring`: a frozen dataclass whose fields are part
    of a member's identity. The defaults fit a causal LM that reads prompts; such a scoring defines `label`,
    `row`, `collate` and `class_logits`. A sweep file imports nothing heavy, so hooks import numpy and torch
    themselves.

    Attributes:
        template: template of every task's prompts; None = the task's own.
        num_options: the fewest and the most options of an example.
        backbones: kinds of backbone that it supports, as named by `lorae.shapes.kind_of`.
        lists_options: the prompt lists the options and an answer names one; an option's text is not scored,
            so it may be blank.
        scores_texts: every token of an answer is scored over the full vocabulary; answers are then texts, not
            classes that all examples share.
        trains_head: every member trains its own head, whose outputs are the class logits.
        answer: what members predict: a "class" among an example's options; a "text", written token by token
            (an example then has references instead of options, and a prediction is for one token of the
            reference, see `predicted_rows`); or a "value", a number. It determines a row's metrics.
    """

    template: ClassVar[str | None] = None
    num_options: ClassVar[tuple[int, int]] = (2, 8)
    backbones: ClassVar[tuple[Kind, ...]] = ("causal",)
    lists_options: ClassVar[bool] = False
    scores_texts: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False
    answer: ClassVar[Answer] = "class"

    @property
    def label(self) -> str:
        """Name in tables."""
        raise NotImplementedError  # abstract: every scoring defines it

    @property
    def writes_text(self) -> bool:
        """Whether members write texts."""
        return self.answer == "text"

    @property
    def decoding(self) -> str:
        """Identity of how stored members are decoded, if they write texts."""
        raise NotImplementedError  # abstract: every scoring that `writes_text` defines it

    @property
    def backbone_has_classes(self) -> bool:
        """Whether the untouched backbone has class logits: for zero-shot, as a reference, and for `KL`."""
        return not self.trains_head

    # Tasks and examples

    def check_task(self, task: Task) -> None:
        """Refuse settings of a task that the scoring does not support.

        Raises:
            ValueError: names the setting, and says what to write.
        """

    def check_trial(self, trial: Trial) -> None:
        """Refuse a trial whose members could not be scored this way.

        Raises:
            ValueError: names the setting, and says what to write.
        """

    def check_alike(self, example: Example, first: Example) -> None:
        """Refuse an example that cannot be scored together with the first example of its files.

        Raises:
            ValueError: says how they differ.
        """

    def prompt(self, template: str, example: Example) -> Prompt:
        """The prompt of an example, and its answers.

        Args:
            template: the task's own, with a place for the question and, for a pair, the second sentence.
        """
        text = template.format(question=example.question, pair=example.pair)
        return Prompt(text, tuple(f" {o}" for o in example.options))

    # Rows, batches and logits

    def encode(
        self,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        max_tokens: int,
        classes: tuple[str, ...] | None,
        context: str,
    ) -> list[Row]:
        """Rows of the examples; arguments and errors as for `lorae.tasks.encoding.encode`."""
        return [self.row(asked) for asked in ask(tokenizer, task, examples, max_tokens, context)]

    def row(self, asked: Asked) -> Row:
        """The row of a prompt and its answers."""
        raise NotImplementedError  # abstract: every scoring of prompts defines it

    def collate(
        self, rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool
    ) -> Any:
        """One batch of the rows; arguments as for `lorae.engine.batches.collate`."""
        raise NotImplementedError  # abstract: every scoring defines it

    def class_logits(self, backbone: Backbone, batch: Any) -> torch.Tensor:
        """Class logits (rows, C) of a batch from `collate`, in fp32; -inf for classes that a row lacks."""
        raise NotImplementedError  # abstract: every scoring defines it

    # Training and predictions

    def losses(
        self,
        backbone: Backbone,
        batch: Any,
        labels: torch.Tensor,
        regularizers: Sequence[Regularizer],
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """NLL and penalties of each row in nats, and whether its prediction is right, (rows, 3) in fp32.

        Args:
            labels: (rows,) labels of the rows, see `gold`.
            reference: (rows, C) class logits of the backbone, if a regulariser needs them.
        """
        return self.output_losses(self.class_logits(backbone, batch), labels, regularizers, reference)

    def output_losses(
        self,
        outputs: torch.Tensor,
        labels: torch.Tensor,
        regularizers: Sequence[Regularizer],
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """`losses` from the output of `class_logits`."""
        return class_losses(outputs, labels, regularizers, reference)

    def gold(self, rows: Sequence[Row]) -> np.ndarray:
        """Gold labels of the rows' predictions (rows,): classes, as integers, or numbers, as float64."""
        import numpy as np

        return np.array([row.label for row in rows])

    def predicted_rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The N' rows (id, label and number of classes) that the predictions for N rows belong to."""
        return rows

    def predictions(self, logits_MNC: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        """Class logits (M, N', C') of `predicted_rows`, from the `class_logits` of the rows."""
        return logits_MNC

    # Stored members

    def peft_classifier(self, config: dict[str, Any]) -> str | None:
        """Path of the classifier in transformers' model class that computes the same as a member's head; None
        if there is none.

        Args:
            config: the backbone's config.json.
        """
        return None


def class_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    regularizers: Sequence[Regularizer],
    reference: torch.Tensor | None,
) -> torch.Tensor:
    """`Scoring.losses` from class logits (rows, C)."""
    import torch

    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    correct = (logits.detach().argmax(1) == labels).to(nll.dtype)
    return torch.stack((nll, penalties(logits, regularizers, reference), correct), 1)


def penalties(
    logits: torch.Tensor, regularizers: Sequence[Regularizer], reference: torch.Tensor | None
) -> torch.Tensor:
    """Sum of all regularisers' penalties for each row (rows,)."""
    total = logits.new_zeros(len(logits))
    for regularizer in regularizers:
        if (penalty := regularizer.penalty(logits, reference)) is not None:
            total = total + penalty
    return total
