"""Answers to examples: what inserted members write, alone and together, and what they say of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorae.backbone.loading import Backbone
from lorae.backbone.tokens import end_tokens
from lorae.engine.decoding import (
    Greedy,
    LockStep,
    Sampling,
    Text,
    decode,
    prompt_batches,
    read_prompts,
    score,
)
from lorae.seeds import Key
from lorae.store.answers import Answer
from lorae.tasks.base import Example, Task
from lorae.tasks.encoding import Row
from lorae.tasks.scoring import Generate
from lorae.tasks.scoring.generate import IS_TRUE, LOCKSTEP, VERDICTS


@dataclass(frozen=True)
class Prompted:
    """An example to be answered.

    Attributes:
        tokens: of the prompt.
        references: tokens of each reference, its text, and whether it is whole.
    """

    id: str
    tokens: tuple[int, ...]
    references: tuple[Text, ...]


@dataclass(frozen=True)
class Wrote:
    """A text and who wrote it: see `Answer`."""

    kind: str
    source: int
    draw: int
    text: Text


def prompted(
    tokenizer: Any, scoring: Generate, task: Task, examples: Sequence[Example], rows: Sequence[Row]
) -> list[Prompted]:
    """Examples whose prompts are those of their rows."""
    references = scoring.references(tokenizer, task, examples)
    return [
        Prompted(row.id, row.tokens[: row.segments.count(-1)], tuple(Text(*r) for r in of_example))
        for row, of_example in zip(rows, references, strict=True)
    ]


def own_texts(
    backbone: Backbone,
    scoring: Generate,
    examples: Sequence[Prompted],
    kind: str,
    streams: Sequence[Key] | None = None,
) -> list[list[list[Wrote]]]:
    """Texts [m][n] of each inserted member alone: greedy, and samples where there are any.

    Args:
        kind: of the greedy ones.
        streams: of the members' samples; None = no samples.
    """
    prompts, room = [e.tokens for e in examples], scoring.max_new_tokens
    num = backbone.num_members
    found: list[list[list[Wrote]]] = [[[] for _ in examples] for _ in range(num)]
    for chosen in prompt_batches(backbone, prompts, room, max(1, scoring.samples)):
        read = read_prompts(backbone, [prompts[n] for n in chosen])
        greedy = decode(read, Greedy(), room, scoring.stop)
        sampled: list[list[list[Text]]] = [[[] for _ in chosen] for _ in range(num)]
        if streams and scoring.samples:
            ids, how = [examples[n].id for n in chosen], (scoring.temperature, scoring.top_p)
            sampled = decode(read, Sampling(streams, ids, scoring.samples, *how), room, scoring.stop)
        for m in range(num):
            for place, n in enumerate(chosen):
                found[m][n] = [Wrote(kind, m, 0, greedy[m][place][0])]
                found[m][n] += [Wrote("sample", m, k, text) for k, text in enumerate(sampled[m][place])]
    return found


def lockstep_texts(backbone: Backbone, scoring: Generate, examples: Sequence[Prompted]) -> list[list[Wrote]]:
    """Texts [n] that all inserted members write together, by each rule."""
    prompts, room = [e.tokens for e in examples], scoring.max_new_tokens
    found: list[list[Wrote]] = [[] for _ in examples]
    for chosen in prompt_batches(backbone, prompts, room):
        read = read_prompts(backbone, [prompts[n] for n in chosen])
        for rule in scoring.lockstep:
            (texts,) = decode(read, LockStep(rule), room, scoring.stop)
            for place, n in enumerate(chosen):
                found[n].append(Wrote("lockstep", -1, LOCKSTEP.index(rule), texts[place][0]))
    return found


def scored(
    backbone: Backbone, examples: Sequence[Prompted], texts: Sequence[Sequence[Wrote]]
) -> list[Answer]:
    """References and texts of each example with what the inserted members say of them."""
    whole = [
        [*(Wrote("reference", -1, k, text) for k, text in enumerate(e.references)), *of_example]
        for e, of_example in zip(examples, texts, strict=True)
    ]
    return _answers(backbone, [e.id for e in examples], [e.tokens for e in examples], whole)


def verdicts(
    backbone: Backbone, examples: Sequence[Prompted], texts: Sequence[Sequence[Wrote]]
) -> list[Answer]:
    """Whether each greedy text is true, as the inserted members say of both replies, `VERDICTS`."""
    tokenizer = backbone.tokenizer
    question, *replies = (
        tuple(ids) for ids in tokenizer([IS_TRUE, *VERDICTS], add_special_tokens=False)["input_ids"]
    )
    ends = set(end_tokens(backbone.lm, tokenizer))
    asked = [(e, w) for e, of_example in zip(examples, texts) for w in of_example if w.kind == "greedy"]
    prompts = [(*e.tokens, *(t for t in w.text.token_ids if t not in ends), *question) for e, w in asked]
    wrote = [
        [Wrote("verdict", w.source, k, Text(ids, VERDICTS[k].strip(), True)) for k, ids in enumerate(replies)]
        for _, w in asked
    ]
    return _answers(backbone, [e.id for e, _ in asked], prompts, wrote)


def _answers(
    backbone: Backbone, ids: Sequence[str], prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[Wrote]]
) -> list[Answer]:
    """Texts after prompts, with what the inserted members say of them."""
    says = score(backbone, prompts, [[w.text.token_ids for w in ws] for ws in texts])
    return [
        Answer(
            example_id=name,
            kind=w.kind,
            source=w.source,
            draw=w.draw,
            text=w.text.text,
            token_ids=w.text.token_ids,
            finished=w.text.finished,
            log_probs_MT=s.log_probs_MT,
            entropies_MT=s.entropies_MT.clip(min=0),  # of a sure token rounding leaves a little less
            mean_entropy_T=s.mean_entropy_T.clip(min=0),
        )
        for name, ws, of_example in zip(ids, texts, says, strict=True)
        for w, s in zip(ws, of_example, strict=True)
    ]
