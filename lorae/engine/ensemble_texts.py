"""What an ensemble writes to given inputs, with the scores of its uncertainty."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorae.engine.adapters import Soup
from lorae.engine.stored import Group, StoredStack, soup_of, stages
from lorae.engine.writing import Prompted, lockstep_texts, own_texts, scored
from lorae.metrics.probability import Undefined
from lorae.store.answers import Answer
from lorae.tasks.scoring import Generate
from lorae.texts.likeness import Key
from lorae.texts.uncertainty import SCORES, Source, View

if TYPE_CHECKING:
    import pandas as pd

    from lorae.backbone.loading import Backbone
    from lorae.store.store import Store

__all__ = ["EnsembleTexts", "texts_of", "written"]


@dataclass(frozen=True, eq=False)
class EnsembleTexts:
    """What an ensemble writes to N inputs.

    Attributes:
        ids: of the inputs: as given, else a hash of the content.
        texts: the ensemble's answer to each: its members' in lock-step, a soup's, or a single member's.
        finished: whether each ended by itself, not at the maximum of tokens.
        member_texts: (N, M) greedy answer of each member alone; of a soup only its own.
        scores: (N,) by name, see `lorae.texts.uncertainty`; higher is less certain.
        notes: what must be known beside the texts.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    member_texts: tuple[tuple[str, ...], ...]
    scores: dict[str, list[float]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def columns(self) -> dict[str, list[Any]]:
        """Columns of a table with a row for each input."""
        found: dict[str, list[Any]] = {"id": list(self.ids), "answer": list(self.texts)}
        found |= {"finished": list(self.finished), **self.scores}
        return found | {"member_answers": [list(texts) for texts in self.member_texts]}

    def frame(self) -> pd.DataFrame:
        """`columns` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.columns())


def written(
    store: Store,
    group: Group,
    members: Sequence[str],
    soup: str | None,
    model: Backbone,
    prompts: dict[str, tuple[int, ...]],
    scoring: Generate,
) -> dict[str, list[Answer]]:
    """What members, or their stored soup, write to each prompt alone, then in lock-step, with what all say
    of it.

    Args:
        prompts: id -> tokens.
    """
    examples = [Prompted(name, tokens, ()) for name, tokens in prompts.items()]
    with _inserted(store, group, members, soup, model):
        of_members = own_texts(model, scoring, examples, "soup" if soup else "greedy")
        texts = [[wrote for own in of_members for wrote in own[n]] for n in range(len(examples))]
        if model.num_members > 1:
            together = lockstep_texts(model, scoring, examples)
            texts = [[*own, *pooled] for own, pooled in zip(texts, together)]
        answers = scored(model, examples, texts)
    found: dict[str, list[Answer]] = {name: [] for name in prompts}
    for answer in answers:
        found[answer.example_id].append(answer)
    return found


@contextlib.contextmanager
def _inserted(
    store: Store, group: Group, members: Sequence[str], soup: str | None, model: Backbone
) -> Iterator[None]:
    if soup:
        chosen = soup_of(store, members, soup)
        inits = [group.members[m]["init"] for m in chosen]
        with Soup(model, group.method, inits, stages(store, chosen)[-1], ()):
            yield
        return
    stack = StoredStack(store, group, members, model, ())
    with stack.adapters:
        stack.adapters.load(stack.drawings[-1].states)
        yield


def texts_of(answers: dict[str, list[Answer]], key: Key, notes: Sequence[str]) -> EnsembleTexts:
    """The ensemble's answer to each input is the last of `answers`, beside those of its members."""
    views = [_view(of_input, key) for of_input in answers.values()]
    source: Source = "one" if len(views[0].members) == 1 else "members"
    known = [name for name, score in SCORES.items() if source in score.sources]
    scores = {name: [_value(name, view) for view in views] for name in known}
    return EnsembleTexts(
        ids=tuple(answers),
        texts=tuple(view.answer.text for view in views),
        finished=tuple(view.answer.finished for view in views),
        member_texts=tuple(tuple(view.words()) for view in views),
        scores={name: values for name, values in scores.items() if not all(map(math.isnan, values))},
        notes=tuple(notes),
    )


def _view(of_input: Sequence[Answer], key: Key) -> View:
    own = tuple(answer for answer in of_input if answer.kind != "lockstep")
    return View(of_input[-1], own, tuple(range(len(of_input[-1].log_probs_MT))), key)


def _value(name: str, view: View) -> float:
    try:
        return SCORES[name].function(view)
    except Undefined:
        return math.nan
