"""The numbers of texts that members wrote: quality and uncertainty of ensembles, as `Estimate`s.

    texts = Texts(trials, read)                   read(row, "test"): the stored answers of a row's members
    texts.quality(cell, writer, members)          how good the texts of such an ensemble are
    texts.judged(recipe, line)                    how well a score tells which of them are wrong

As in `analysis.pooling`, an ensemble of M members is the mean over subsets of all members of its seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from analysis.cells import Cell
from analysis.columns import MARGINS
from analysis.data import Trials
from analysis.estimates import Design, Pool, Subset, estimate
from analysis.influence import Measured, of_mean
from analysis.influence_texts import JUDGES, mean_of, of_ratio, of_sums
from analysis.pooling import INDEPENDENT, NOTHING
from analysis.rows import Row, describe, fill_command
from analysis.significance import Estimate
from lorae.metrics import Undefined
from lorae.store.answers import Answer
from lorae.tasks.scoring.generate import LOCKSTEP
from lorae.texts import judging, quality
from lorae.texts.e2e import example_cider
from lorae.texts.kinds import Kind, kind_of
from lorae.texts.pools import by_example, vote
from lorae.texts.uncertainty import SCORES, Score, Source, View

Read = Callable[[Row, str], Sequence[Answer] | None]  # a row and "test" or "validation"; None = not stored
VOTES: dict[str, Source] = {"member": "one", "vote of samples": "samples", "vote of members": "members"}
OF_ALL = (*LOCKSTEP, "soup")  # texts of all members of a row at once, as `Example.pooled` names them
OTHER_MODELS = ("logits", "soup")  # whose probabilities are not the members' mean
SHARES: dict[str, Callable[[Answer], float]] = {  # means over the examples that nothing is tested of
    "mean_tokens": lambda answer: len(answer.token_ids),
    "unfinished": lambda answer: not answer.finished,
    "not_finite": lambda answer: not np.isfinite(answer.log_probs_MT).all(),
}
OF_QUALITY = ("reference_nll", *SHARES)
UNTESTED = ("quality_at_80", "calibrated_ece15")


@dataclass(frozen=True)
class Line:
    """A score and where it comes from."""

    score: str
    source: Source


class PoolTexts:
    """The texts of one pool of members, and what is computed of them once."""

    def __init__(self, answers: Sequence[Answer], scores: dict[str, Score]) -> None:
        self.examples = by_example(answers)
        self.members = tuple(range(len(self.examples[0].references[0].log_probs_MT)))
        self.num_samples = min((len(x) for e in self.examples for x in e.samples.values()), default=0)
        self.gold = [example.gold for example in self.examples]
        self.kind: Kind = kind_of(self.gold)
        self._scores = scores
        self.right = functools.cache(self._right)
        self.written = functools.cache(self._written)
        self._known = functools.cache(self._score)

    def has(self, writer: str) -> bool:
        """Whether such texts are stored."""
        if writer in OF_ALL:
            return writer in self.examples[0].pooled
        return self.num_samples > 0 if writer == "vote of samples" else bool(self.examples[0].greedy)

    def _written(self, writer: str, subset: Subset) -> list[Answer]:
        """The text of each example that a writer gives for these members; of `OF_ALL` whoever they are."""
        if writer in OF_ALL:
            return [example.pooled[writer] for example in self.examples]
        return [vote(view) for view in self._views(VOTES[writer], subset[0], subset)]

    def score(self, name: str, source: Source, judged: int, subset: Subset) -> np.ndarray:
        """A score of a member's greedy texts (N,).

        Raises:
            Undefined: these members have no such score.
        """
        of_judged = self._scores[name].of_answer or source == "samples"
        return self._known(name, source, judged if of_judged else subset[0], subset)

    def reference_nll(self, subset: Subset) -> Measured:
        """NLL of the references per token under the mean probability of some members."""
        members, rows = tuple(self.members[m] for m in subset), []
        for example in self.examples:
            view = View(example.references[0], (), members)
            nll = -sum(view.log_probs(reference).sum() for reference in example.references)
            rows.append((nll, sum(len(reference.token_ids) for reference in example.references)))
        return of_ratio(*np.array(rows).T)

    def _views(self, source: Source, judged: int, subset: Subset) -> Iterator[View]:
        members = [self.members[m] for m in subset]
        for example in self.examples:
            yield example.view(source, self.members[judged], members, self.kind.key)

    def _right(self, judged: int) -> np.ndarray:
        """How right the greedy text of a member is, (N,)."""
        greedy = [e.greedy[self.members[judged]].text for e in self.examples]
        return np.array([self.kind.quality(text, gold) for text, gold in zip(greedy, self.gold)])

    def _score(self, name: str, source: Source, judged: int, subset: Subset) -> np.ndarray:
        views = self._views(source, judged, subset)
        return np.array([self._scores[name].function(view) for view in views])


class Texts:
    """Estimates of the texts of a sweep's recipes, each computed once.

    Args:
        read: the stored answers of a row's own members, in their order.
        scores: to be judged.
    Raises:
        ValueError: no row has answers.
    """

    def __init__(self, trials: Trials, read: Read, scores: dict[str, Score] = SCORES) -> None:
        self.trials, self.scores, self._read = trials, scores, read
        self._pools: dict[tuple[str, str], PoolTexts | None] = {}
        self.lacking: dict[str, None] = {}  # why a metric is undefined
        self.cells = [cell for cell in trials.cells if self._pool(cell.rows[0], "test")]
        self.recipes: dict[str, list[Cell]] = {}  # of trained members, not their soups
        for cell in self.cells:
            if cell.members and not cell.is_soup:
                self.recipes.setdefault(cell.recipe, []).append(cell)
        if not self.recipes:
            raise ValueError(
                f"no row of sweep {trials.sweep} has stored answers; its task must be scored by Generate(...)"
            )
        self.judged = functools.cache(self._judged)
        self.quality = functools.cache(self._quality)

    def largest(self, recipe: str) -> Cell:
        """The cell with all members of a recipe."""
        return max(self.recipes[recipe], key=lambda cell: cell.members)

    def of(self, row: Row) -> PoolTexts:
        """The texts of a row's members on the test split."""
        found = self._pool(row, "test")
        if found is None:
            raise ValueError(f"the answers of {describe(row)} are not stored; {fill_command(row)}")
        return found

    def lines(self, recipe: str) -> list[Line]:
        """What can be computed of a recipe, score by score."""
        cell = self.largest(recipe)
        num_samples, several = self.of(cell.rows[0]).num_samples, cell.members > 1
        known = {"one": True, "samples": num_samples > 1, "members": several}
        known["members' samples"] = several and num_samples > 0
        found = [Line(n, source) for n, score in self.scores.items() for source in score.sources]
        asked = bool(self.of(cell.rows[0]).examples[0].verdicts)
        return [x for x in found if known[x.source] and (asked or not self.scores[x.score].of_verdicts)]

    # Estimates --------------------------------------------------------------------------------------------

    def _quality(self, cell: Cell, writer: str, members: int) -> dict[str, Estimate]:
        """Metrics of the texts of an ensemble, those that are undefined left out."""
        whole = writer in OF_ALL
        rows = cell.rows if cell.members else cell.rows[:1]
        if not whole and cell.members:
            rows = self.largest(cell.recipe).rows
        kind, measure = self.of(rows[0]).kind, functools.partial(self._of_texts, writer)
        names = [*kind.metrics, *kind.corpus, *OF_QUALITY]
        found = {name: self._estimate(rows, measure, name, members, whole) for name in names}
        return {name: one for name, one in found.items() if one}

    def _judged(self, recipe: str, line: Line) -> dict[str, Estimate]:
        """AUROC and the other judges of a score; those that are undefined left out."""
        cell = self.largest(recipe)
        members = cell.members if line.source.startswith("members") else 1
        measure = functools.partial(self._of_score, line)
        names = [*JUDGES, *UNTESTED]
        found = {name: self._estimate(cell.rows, measure, name, members, False) for name in names}
        return {name: one for name, one in found.items() if one}

    def _estimate(
        self,
        rows: Sequence[Row],
        measure: Callable[[str, Row, Subset], Measured | None],
        name: str,
        members: int,
        whole: bool,
    ) -> Estimate | None:
        """One column; None where an ensemble does not have it.

        Args:
            measure: the column by its name, of some members of a row.
            whole: it is of all members of a row at once.
        """
        pools = []
        for row in rows:
            everyone = tuple(range(len(self.of(row).members)))
            design = Design(1, (everyone,)) if whole else Design.of(len(everyone), members, 2 * len(everyone))
            measured = functools.cache(functools.partial(measure, name, row))
            if any(measured(subset) is None for subset in design.chosen):
                return None
            # What only whole pools have, such as the entropy of their mean, says nothing of single members
            is_tested = name in MARGINS or name in JUDGES
            if not is_tested or len(rows) == 1 or any(measured(subset) is None for subset in design.deleted):
                design = replace(design, deleted=())
            pools.append(Pool(row["seed"], design, cast(Callable[[Subset], Measured], measured)))
        if not rows[0]["members"]:  # the backbone is one model, which no training moves
            found = pools[0].measured((0,))
            return Estimate(found.value, found.examples)
        exchangeable = not whole and all(row["diversity"] == INDEPENDENT for row in rows)
        found = estimate(pools, exchangeable=exchangeable)
        return found if math.isfinite(found.value) else None

    # Measuring --------------------------------------------------------------------------------------------

    def _of_texts(self, writer: str, name: str, row: Row, subset: Subset) -> Measured | None:
        """Of the texts that a writer gives for some members."""
        texts = self.of(row)
        if name == "reference_nll":  # what other models say of references is not stored
            return None if writer in OTHER_MODELS else texts.reference_nll(subset)
        answers = texts.written(writer, subset)
        if name in SHARES:
            return Measured(float(np.mean([SHARES[name](answer) for answer in answers])), NOTHING)
        try:
            return _of_words(name, [answer.text for answer in answers], texts.gold)
        except Undefined as error:
            self.lacking[str(error)] = None
            return None

    def _of_score(self, line: Line, name: str, row: Row, subset: Subset) -> Measured | None:
        """Of a score of each member's greedy texts, whose mean is taken."""
        texts, validation = self.of(row), self._pool(row, "validation")
        try:
            each = [self._judge(name, line, texts, validation, judged, subset) for judged in subset]
        except Undefined:
            return None
        return mean_of(each)

    def _judge(
        self,
        name: str,
        line: Line,
        texts: PoolTexts,
        validation: PoolTexts | None,
        judged: int,
        subset: Subset,
    ) -> Measured:
        both = texts.score(line.score, line.source, judged, subset), texts.right(judged)
        if name in JUDGES:
            return JUDGES[name](*both)
        if name == "quality_at_80":
            return Measured(judging.accuracy_at_80_coverage(*both), NOTHING)
        known = None
        if validation:
            known = validation.score(line.score, line.source, judged, subset), validation.right(judged)
        return Measured(judging.ece15(*both, known), NOTHING)

    def _pool(self, row: Row, split: str) -> PoolTexts | None:
        key = row["trial_id"], split
        if key not in self._pools:
            answers = self._read(row, split)
            self._pools[key] = PoolTexts(answers, self.scores) if answers else None
        return self._pools[key]


def _of_words(name: str, words: Sequence[str], gold: Sequence[quality.References]) -> Measured:
    """A metric of texts; raises `Undefined`."""
    if name in quality.EXAMPLE_METRICS:
        metric = quality.EXAMPLE_METRICS[name]
        return of_mean(np.array([metric(text, given) for text, given in zip(words, gold, strict=True)]))
    if name == "bleu":
        counts_NS = np.array(quality.bleu_counts(words, gold))
        return of_sums(counts_NS, lambda total_S: quality.bleu_of_counts(total_S.tolist()))
    if name == "cider":
        return of_mean(example_cider(words, gold))
    return Measured(quality.CORPUS_METRICS[name](words, gold), NOTHING)
