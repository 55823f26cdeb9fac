"""GLUE's smaller tasks, on sentences and sentence pairs. Source: nyu-mll/glue on the hub, from Wang et al.
2019, arXiv:1804.07461.

The labels of the hub's test rows are hidden as -1 (except MRPC's), so the hub's validation split is our test
for all tasks, as in papers that report "dev", and validation is carved from train. `SST2` has its own file
and follows the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lorae.sources import Hub
from lorae.tasks.base import Example, LabelWords, Scoring, Task, Value, content_id
from lorae.tasks.data import parquet


@dataclass(frozen=True, kw_only=True)
class Glue(Task):
    """Base of GLUE's tasks: the repository, and columns sentence1, sentence2 (for pairs), label, idx.

    The ids are hashes of the text, as idx starts anew in each file.
    """

    scoring: Scoring = LabelWords()

    home = Hub("nyu-mll/glue")
    columns: ClassVar[tuple[str, str]] = ("sentence1", "sentence2")
    options: ClassVar[tuple[str, ...]] = ("no", "yes")

    def example(self, row: dict[str, Any]) -> Example:
        one, two = (row[column] for column in self.columns)
        return Example(content_id(one, two), one, self.options, row["label"], pair=two)


@dataclass(frozen=True, kw_only=True)
class CoLA(Glue):
    """Is an English sentence acceptable (Warstadt et al. 2018, arXiv:1805.12471)? 8,551 train, 1,043 test.

    Judged by Matthews correlation. 70 % of the sentences are acceptable.
    Columns: sentence, label (0 unacceptable, 1 acceptable), idx.
    Example: "Bill whistled past the house." | 1
    """

    name = "cola"
    train = parquet("cola/train-*", num_rows=8551)
    test = parquet("cola/validation-*", num_rows=1043)
    template = "Sentence: {question}\nIs this sentence grammatical? Answer:"

    def example(self, row: dict[str, Any]) -> Example:
        return Example(content_id(row["sentence"]), row["sentence"], self.options, row["label"])


@dataclass(frozen=True, kw_only=True)
class MRPC(Glue):
    """Do two news sentences mean the same (Dolan and Brockett 2005)? 3,668 train, 408 test.

    Judged by accuracy and F1. Two thirds of the pairs do. The hub's 1,725 test rows have labels, but are not
    used.
    Example: "He said the foodservice pie business doesn 't fit ..." | "\" The foodservice pie ..." | 1
    """

    name = "mrpc"
    train = parquet("mrpc/train-*", num_rows=3668)
    test = parquet("mrpc/validation-*", num_rows=408)
    template = "Sentence 1: {question}\nSentence 2: {pair}\nDo they mean the same? Answer:"


@dataclass(frozen=True, kw_only=True)
class QNLI(Glue):
    """Does a Wikipedia sentence answer a question (from SQuAD, Rajpurkar et al. 2016)? 104,743 train, 5,463
    test.

    Judged by accuracy. Columns: question, sentence, label (0 yes, 1 no), idx.
    Example: "Who wrote it?" | "The book has twelve chapters." | 1
    """

    columns = ("question", "sentence")
    options = ("yes", "no")

    name = "qnli"
    train = parquet("qnli/train-*", num_rows=104_743)
    test = parquet("qnli/validation-*", num_rows=5463)
    template = "Question: {question}\nSentence: {pair}\nDoes it answer the question? Answer:"


@dataclass(frozen=True, kw_only=True)
class RTE(Glue):
    """Does a sentence follow from a text (the PASCAL challenges, Dagan et al. 2005 and later)? 2,490 train,
    277 test.

    Judged by accuracy. Label 0 is entailment, 1 is no entailment.
    Example: "Dana Reeve, the widow of ..." | "Christopher Reeve had an accident." | 1
    """

    options = ("yes", "no")

    name = "rte"
    train = parquet("rte/train-*", num_rows=2490)
    test = parquet("rte/validation-*", num_rows=277)
    template = "Text: {question}\nClaim: {pair}\nDoes the claim follow from the text? Answer:"


@dataclass(frozen=True, kw_only=True)
class STSB(Glue):
    """How similar are two sentences, 0 to 5 (Cer et al. 2017, arXiv:1708.00055)? 5,749 train, 1,500 test.

    The label is a number, so the task is scored by `Value()`. Judged by Pearson and Spearman correlation. In
    the labels' unit, predicting their mean has a mean square error of 2.3.
    Example: "A man with a hard hat is dancing." | "A man wearing a hard hat is dancing." | 5.0
    """

    scoring: Scoring = Value()

    name = "stsb"
    train = parquet("stsb/train-*", num_rows=5749)
    test = parquet("stsb/validation-*", num_rows=1500)
    template = "Sentence 1: {question}\nSentence 2: {pair}\nSimilarity from 0 to 5:"

    def example(self, row: dict[str, Any]) -> Example:
        one, two = (row[column] for column in self.columns)
        if row["label"] == -1:  # hidden
            return Example(content_id(one, two), one, ("similarity",), None, pair=two)
        return Example(content_id(one, two), one, ("similarity",), 0, pair=two, value=row["label"])
