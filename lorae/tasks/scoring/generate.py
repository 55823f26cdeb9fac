"""Scoring by the text that a member writes: trained on an answer's tokens, judged by them, and decoded.

A row is the prompt, the tokens of one reference and the end token, from which a member learns to stop. What
is predicted, stored and tuned by is each of these tokens: its probability against that of all other tokens.
So an ensemble's NLL is that of its mean probability per token, and its exponential the perplexity.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lorae.identity import digest
from lorae.tasks.encoding import Asked, Row, ask
from lorae.tasks.example import Example, Prompt
from lorae.tasks.scoring.base import Scoring, penalties

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lorae.backbone.loading import Backbone
    from lorae.engine.batches import Batch
    from lorae.regularizers import Regularizer
    from lorae.tasks.base import Task
    from lorae.trial import Trial

LOCKSTEP = ("mean", "logits")
# What a member is asked about its own answer, and how it may reply. Kadavath et al. 2022, arXiv:2207.05221
IS_TRUE, VERDICTS = "\nIs the answer above:\n (A) true\n (B) false\nThe answer above is:", (" (A)", " (B)")
LOGITS_AT_ONCE = 1024  # tokens of which a training step has the whole vocabulary's logits
FLOOR = -100.0  # log-probability of all other tokens where a token has the probability 1
_LATER = {"identity": False}  # of what stored members are asked to write, which their training does not see


@dataclass(frozen=True)
class Generate(Scoring):
    """Members write the answer: they are trained on the tokens of a reference, and decoded greedily.

    An example's options are its references, the text that is trained on at `label`; the others serve the
    comparison of texts. The prompt leaves `max_new_tokens` of `Budget(max_tokens=...)` free, so that it is
    the same in training and decoding. How stored members are decoded is no part of their identity.

    Args:
        max_new_tokens: of a written answer, its end token included; no reference is longer.
        stop: texts before which an answer ends, beside the tokenizer's end token.
        samples: answers that each member also samples; 0 = the greedy one alone.
        temperature, top_p: of the samples; of the tokens in order of probability those are kept that begin
            before a mass of `top_p`.
        lockstep: answers that all members of an ensemble write together, the next token by their "mean"
            probability, or by their mean "logits" (a product of experts).
        p_true: ask members whether each greedy answer is true, in one more pass over prompts and answers.
    """

    max_new_tokens: int = 64
    stop: tuple[str, ...] = field(default=(), metadata=_LATER)
    samples: int = field(default=0, metadata=_LATER)
    temperature: float = field(default=1.0, metadata=_LATER)
    top_p: float = field(default=1.0, metadata=_LATER)
    lockstep: tuple[str, ...] = field(default=("mean",), metadata=_LATER)
    p_true: bool = field(default=False, metadata=_LATER)

    num_options: ClassVar[tuple[int, int]] = (0, 1000)
    scores_texts: ClassVar[bool] = True
    answer = "text"

    def __post_init__(self) -> None:
        for name in ("stop", "lockstep"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) and v for v in value):
                raise ValueError(f'{name}={value!r}: must be a tuple of texts; write {name}=("...",)')
            object.__setattr__(self, name, tuple(value))
        if self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens}: must be >= 1; write Generate(max_new_tokens=64)"
            )
        if self.samples < 0:
            raise ValueError(f"samples={self.samples}: must be >= 0; 0 is the greedy answer alone")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature}: samples need one > 0, and the greedy answer is always "
                "written; write Generate(samples=5, temperature=1.0), or leave samples out"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]; 1 keeps every token")
        if unknown := set(self.lockstep) - set(LOCKSTEP):
            raise ValueError(f"lockstep={sorted(unknown)}: must be of {LOCKSTEP}; write lockstep=('mean',)")

    @property
    def label(self) -> str:
        return f"generate-{self.max_new_tokens}"

    @property
    def decoding(self) -> str:
        """Identity of how stored members are decoded: a name of the answers that they write."""
        asked = {"p_true": True} if self.p_true else {}  # absent from the names of answers without it
        return digest({name: getattr(self, name) for name in self._decoding_fields} | asked)[:8]

    _decoding_fields: ClassVar[tuple[str, ...]] = ("stop", "samples", "temperature", "top_p", "lockstep")

    # What it refuses

    def check_task(self, task: Task) -> None:
        if task.option_seed is not None:
            raise ValueError(
                f"option_seed={task.option_seed}: references are not shown in an order; leave it out"
            )

    def check_trial(self, trial: Trial) -> None:
        one_text = "an answer is written with one set of weights"
        if trial.draws:
            raise ValueError(f"{trial.draws} with {self}: {one_text}; leave the draws out")
        if trial.num_draws > 1:
            raise ValueError(
                f"{trial.draws_label} with {self}: {one_text}, a member has several; leave it out"
            )
        if not trial.method.trains or trial.method.regime == "features":
            raise ValueError(
                f"{trial.method} with {self}: it cannot write texts; write Lora(), Vera() or Full()"
            )
        if trial.method.regime == "alone" and any(r.needs_reference for r in trial.regularizers):
            raise ValueError(
                f"KL of {trial.method} with {self}: while such a member is computed the backbone is not "
                "there; write Lora() or Vera(), or leave KL out"
            )
        if trial.combine == "logits":
            raise ValueError(
                f'combine="logits" with {self}: predictions hold the tokens of references, not the '
                'vocabulary\'s logits; write combine="probs", and lockstep=("mean", "logits") for texts'
            )
        if self.max_new_tokens >= trial.budget.max_tokens:
            raise ValueError(
                f"{self} with max_tokens={trial.budget.max_tokens}: nothing is left for the prompt; raise "
                "Budget(max_tokens=...)"
            )

    # Rows

    def encode(
        self,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        max_tokens: int,
        classes: tuple[str, ...] | None,
        context: str,
    ) -> list[Row]:
        self.check_tokenizer(tokenizer)
        trained_on = [self._with_one_reference(example) for example in examples]
        return [self.row(asked) for asked in ask(tokenizer, task, trained_on, max_tokens, context)]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer without an end token, or that cannot make a stop.

        Raises:
            ValueError: what is missing.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"{self}: this tokenizer has no end token, so that no member could learn to stop"
            )
        if self.stop:
            from lorae.engine.decoding.ending import stop_strings

            stop_strings(tokenizer, self.stop, len(tokenizer))

    @staticmethod
    def _with_one_reference(example: Example) -> Example:
        if example.label is None:
            return replace(example, options=())
        return replace(example, options=(example.options[example.label],), label=0)

    def prompt(self, template: str, example: Example) -> Prompt:
        text = template.format(question=example.question, pair=example.pair)
        space = "" if text.endswith("\n") else " "  # of the answer's first token
        return Prompt(text, tuple(f"{space}{o.strip()}" for o in example.options))

    def row(self, asked: Asked) -> Row:
        end = asked.tokenizer.eos_token_id
        answer = (*asked.answers[0], end) if asked.answers else ()
        if len(answer) > self.max_new_tokens:
            raise ValueError(
                f"{asked.where}: its reference has {len(answer)} tokens with the end, more than a member may "
                f"write; write Generate(max_new_tokens={len(answer)}) or more, or leave the example out"
            )
        row = asked.shortened(self.max_new_tokens)
        segments = (-1,) * len(row.tokens) + (0,) * len(answer)
        return replace(row, tokens=(*row.tokens, *answer), segments=segments, num_classes=len(answer))

    def references(
        self, tokenizer: Any, task: Task, examples: Sequence[Example]
    ) -> list[list[tuple[tuple[int, ...], str, bool]]]:
        """Tokens of each example's references with the end token, their text, and whether they are whole:
        one that is not trained on may be longer than a member may write, and is cut."""
        found, end = [], (tokenizer.eos_token_id,)
        for example, asked in zip(examples, ask(tokenizer, task, examples, sys.maxsize, "")):
            whole = [(*answer, *end) for answer in asked.answers]
            cut = [tokens[: self.max_new_tokens] for tokens in whole]
            found.append([(c, o.strip(), c == w) for c, w, o in zip(cut, whole, example.options)])
        return found

    def collate(
        self, rows: Sequence[Row], num_classes: int, backbone: Backbone, num_members: int, share: bool
    ) -> Batch:
        import numpy as np

        from lorae.backbone.devices import to_device
        from lorae.engine.batches import packed

        batch = packed(rows, num_classes, backbone, num_members, share)
        lengths, answers = (np.array(c) for c in zip(*((len(r.tokens), r.num_classes) for r in rows)))
        row = np.repeat(np.arange(len(rows)), answers)
        token = np.arange(len(row)) - np.repeat(np.cumsum(answers) - answers, answers)
        behind = (np.cumsum(lengths) - answers)[row] + token  # of packing.order; predicted one before
        written = [t for r in rows for t in r.tokens[len(r.tokens) - r.num_classes :]]
        scored = (batch.packing.order[behind - 1], np.array(written, np.int64), row, token)
        return replace(batch, scored=tuple(to_device(column, backbone.device) for column in scored))

    # Training

    def losses(
        self,
        backbone: Backbone,
        batch: Batch,
        labels: torch.Tensor,
        regularizers: Sequence[Regularizer],
        reference: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `Scoring.losses`: of each row the mean over the tokens of its answer. The last column is NaN.

        For `KL` the backbone reads the rows in the same step, without a gradient: half more time, and
        nothing that is stored. (Its distributions over a vocabulary of 49,152 take 200 KB for each token.)
        """
        import torch

        from lorae.engine.batches import hidden

        place, token, row, _ = batch.scored
        read_KD, of_backbone = hidden(backbone, batch)[place], None
        if any(r.needs_reference for r in regularizers):
            assert backbone.inserted is not None
            with torch.no_grad(), backbone.inserted.removed():
                of_backbone = hidden(backbone, batch)[place]

        def of_tokens(tokens_K: torch.Tensor, *hidden_KD: torch.Tensor) -> torch.Tensor:
            logits_KV, *reference_KV = (backbone.capped(backbone.vocabulary(h).float()) for h in hidden_KD)
            nll_K = torch.nn.functional.cross_entropy(logits_KV, tokens_K, reduction="none")
            of_reference = reference_KV[0].detach() if reference_KV else None
            return torch.stack((nll_K, penalties(logits_KV, regularizers, of_reference)), 1)

        read = (read_KD,) if of_backbone is None else (read_KD, of_backbone)
        whole = backbone.inserted is not None and backbone.inserted.only is not None
        found_K2 = _in_blocks(of_tokens, (token, *read), whole)
        num_tokens = batch.class_mask.sum(1, keepdim=True)
        sums = found_K2.new_zeros(len(num_tokens), 2).index_add(0, row, found_K2)
        return torch.cat((sums / num_tokens, torch.full_like(sums[:, :1], torch.nan)), 1)

    def class_logits(self, backbone: Backbone, batch: Batch) -> torch.Tensor:
        """Log-probability (rows, T) of each token of a row's answer, -inf where it has ended."""
        import torch

        from lorae.engine.batches import hidden

        place, token, row, number = batch.scored
        read_KD = hidden(backbone, batch)[place]
        log_probs_K = _in_blocks(lambda t, h: backbone.token_log_probs(h, t), (token, read_KD), whole=True)
        none = torch.full(batch.class_mask.shape, -torch.inf, device=log_probs_K.device)
        return none.index_put((row, number), log_probs_K)

    # Predictions

    def predicted_rows(self, rows: Sequence[Row]) -> list[Row]:
        return [
            Row(f"{r.id}#{t}", 0, 2, (token,), scoring=self)
            for r in rows
            for t, token in enumerate(r.tokens[len(r.tokens) - r.num_classes :])
        ]

    def predictions(self, logits_MNC: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
        """Logits of two classes, each token of the references and all other tokens together."""
        import numpy as np

        has_NC = np.arange(logits_MNC.shape[2]) < np.array([[r.num_classes] for r in rows])
        token = logits_MNC[:, has_NC].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            others = np.log(-np.expm1(token))
        return np.stack((token, np.maximum(others, FLOOR)), 2).astype(np.float32)


def _in_blocks(
    function: Callable[..., torch.Tensor], columns: Sequence[torch.Tensor], whole: bool = False
) -> torch.Tensor:
    """`function` of the columns (K, ...), `LOGITS_AT_ONCE` of the K at once. In the backward pass a block's
    logits are computed again.

    Args:
        whole: keep them; where members have all weights of their own, they are gone in the backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    blocks = list(zip(*(column.split(LOGITS_AT_ONCE) for column in columns)))
    if len(blocks) == 1 or whole or not torch.is_grad_enabled():
        return torch.cat([function(*block) for block in blocks])
    return torch.cat([checkpoint(function, *block, use_reentrant=False) for block in blocks])  # type: ignore[misc]
