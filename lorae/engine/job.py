"""The state that the phases of one running stack share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorae.backbone.loading import Backbone
from lorae.backbone.processes import Ranks
from lorae.engine.clock import Stopwatch
from lorae.engine.in_context import Context, draw_context
from lorae.engine.prediction import OnRows, with_features
from lorae.planning.stack import Progress, Stack, Stopped
from lorae.search import EarlyEnd
from lorae.store.store import Store
from lorae.tasks.base import Split, Task
from lorae.tasks.encoding import Row, encode, head_classes


@dataclass(frozen=True)
class Job:
    """The state that the phases of one running stack share."""

    stack: Stack
    store: Store
    backbone: Backbone
    ranks: Ranks
    provenance: dict[str, Any]
    checkpoint_seconds: float
    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    early_end: EarlyEnd | None
    rows: dict[str, list[Row]] = field(default_factory=dict)
    feature_watches: list[Stopwatch] = field(default_factory=list)
    contexts: dict[int, Context] = field(default_factory=dict)

    def stop_if_asked(self) -> None:
        if self.should_stop():
            raise Stopped

    def counted(self, tokens: int) -> OnRows:
        """Callback for predicted rows: reports their share of `tokens`, and stops if asked."""
        done = 0

        def on_rows(rows: Sequence[Row]) -> None:
            nonlocal done
            done += num_tokens(rows) * self.ranks.size
            self.stop_if_asked()
            self.on_progress(Progress("predict", min(100, 100 * done // tokens), 100))

        return on_rows

    def encoded(self, task: Task, split: Split) -> list[Row]:
        """Token rows of a split, encoded once per stack."""
        name = task.eval_set(split)
        if name not in self.rows:
            max_tokens = self.stack.trial.budget.max_tokens
            classes = head_classes(self.stack.trial.task)
            tokenizer, examples = self.backbone.tokenizer, task.examples(split)
            self.rows[name] = encode(tokenizer, task, examples, max_tokens, classes)
        return self.rows[name]

    def context(self, member: int) -> Context:
        """Context of a member of in-context learning, drawn once per stack."""
        if member not in self.contexts:
            self.contexts[member] = draw_context(self.backbone.tokenizer, self.stack.trial, member)
        return self.contexts[member]

    def trained_rows(self, task: Task, split: Split) -> list[Row]:
        """`encoded` rows, with the backbone's features if members are trained on features."""
        name, rows = task.eval_set(split), self.encoded(task, split)
        if self.stack.trial.method.regime == "features" and rows[0].features is None:
            watch = Stopwatch(self.backbone.device, self.ranks.size)
            self.rows[name] = with_features(self.backbone, rows)
            self.feature_watches.append(watch.stop())
        return self.rows[name]


def num_tokens(rows: Sequence[Row]) -> int:
    """Number of tokens of rows, at least one per row."""
    return sum(max(1, len(row.tokens)) for row in rows)


def num_classes(rows: Sequence[Row]) -> int:
    """The largest number of classes of a row."""
    return max(row.num_classes for row in rows)
