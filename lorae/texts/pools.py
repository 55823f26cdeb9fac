"""The stored texts of a pool of members by example, and what a score sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lorae.store.answers import Answer
from lorae.tasks.scoring.generate import LOCKSTEP
from lorae.texts.likeness import Key
from lorae.texts.quality import normalised
from lorae.texts.uncertainty import Source, View


@dataclass(frozen=True, eq=False)
class Example:
    """What is stored of one example.

    Attributes:
        references: right answers, with what the members say of them.
        greedy: of each member that wrote one.
        samples: of each member, by rising number.
        verdicts: of each member's greedy text, both replies to whether it is true.
        pooled: texts of no single member by what wrote them: "soup", or lock-step by "mean" or "logits".
    """

    example_id: str
    references: list[Answer] = field(default_factory=list)
    greedy: dict[int, Answer] = field(default_factory=dict)
    samples: dict[int, list[Answer]] = field(default_factory=dict)
    pooled: dict[str, Answer] = field(default_factory=dict)
    verdicts: dict[int, tuple[Answer, ...]] = field(default_factory=dict)

    @property
    def gold(self) -> tuple[str, ...]:
        """Texts of the references."""
        return tuple(reference.text for reference in self.references)

    def view(self, source: Source, judged: int, members: Sequence[int], key: Key = normalised) -> View:
        """What a score sees of a member's greedy text from a source of variation.

        Args:
            judged: the member whose greedy text is right or wrong.
            members: of the ensemble, the judged one among them; one member's samples are the judged one's.
        """
        whose = tuple(members) if source.startswith("members") else (judged,)
        texts = tuple(text for m in whose for text in self._texts(source, m))
        true, false = self.verdicts.get(judged, (None, None))
        asked = (true, false) if true and false else None
        return View(self.greedy[judged], texts, whose, key, asked)

    def _texts(self, source: Source, member: int) -> Sequence[Answer]:
        return self.samples[member] if source.endswith("samples") else (self.greedy[member],)


def by_example(answers: Iterable[Answer]) -> list[Example]:
    """The answers of one pool by example, in the order in which examples appear.

    Raises:
        ValueError: an example without a reference, or whose members are not those of the first.
    """
    found: dict[str, Example] = {}
    for answer in sorted(answers, key=lambda answer: answer.draw):  # stable: examples keep their order
        found.setdefault(answer.example_id, Example(answer.example_id))
        _add(found[answer.example_id], answer)
    examples = list(found.values())
    for example in examples:
        if not example.references:
            raise ValueError(
                f"example {example.example_id} has no reference: nothing says which of its texts are right; "
                "store the references beside the answers"
            )
        for kind in ("greedy", "samples", "pooled"):
            ours, theirs = set(getattr(example, kind)), set(getattr(examples[0], kind))
            if ours != theirs:
                raise ValueError(
                    f"example {example.example_id} has {kind} texts of {sorted(ours)}, "
                    f"{examples[0].example_id} of {sorted(theirs)}; generate again"
                )
    return examples


def _add(example: Example, answer: Answer) -> None:
    if answer.kind == "reference":
        example.references.append(answer)
    elif answer.kind == "greedy":
        example.greedy[answer.source] = answer
    elif answer.kind == "sample":
        example.samples.setdefault(answer.source, []).append(answer)
    elif answer.kind == "verdict":
        example.verdicts[answer.source] = (*example.verdicts.get(answer.source, ()), answer)
    else:
        example.pooled["soup" if answer.kind == "soup" else LOCKSTEP[answer.draw]] = answer


def vote(view: View) -> Answer:
    """Self-consistency: of the view's texts that most others agree with, the one most probable by token.

    Groups of equal size are decided by their most probable text.
    Source: Wang et al. 2022, arXiv:2203.11171.
    """
    keys = [view.key(text.text) for text in view.texts]
    return max(
        view.texts, key=lambda text: (keys.count(view.key(text.text)), view.per_token(text), text.text)
    )
