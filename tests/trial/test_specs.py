"""Specs that training would not know, and tasks whose settings would be ignored, are refused where they are
written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from toys import Colours

from lorae.methods import Gaussian, Lora, Vera
from lorae.regularizers import KL, AdapterDropout
from lorae.sources import Files, Hub
from lorae.tasks import Head, LabelWords, Letters, OptionLikelihood, Scoring, Task, WinoGrande
from lorae.tasks.base import Example, Prompt
from lorae.trial import AdamW, Trial

BACKBONE = Hub("toy/model")


@dataclass(frozen=True)
class Stronger(AdapterDropout):
    """A regulariser of the user's own, as hashed as ours, and never applied."""


@dataclass(frozen=True)
class Wider(Vera): ...


@dataclass(frozen=True)
class Narrow(Gaussian): ...


class Sgd(AdamW): ...


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"regularizers": (Stronger(0.1),)},
            r"training knows no Stronger; write one of KL, DecayB, .*",
        ),
        ({"regularizers": KL()}, r"must be a tuple; write regularizers=\(KL\(\),\)"),
        ({"regularizers": (KL,)}, "training knows no type"),
        ({"method": Wider()}, "training knows no Wider; write one of Lora, Vera, Blob, .*InContext"),
        (
            {"method": Lora(init=Narrow())},
            r"method\.init=.*no Narrow; write one of Kaiming, Gaussian",
        ),
        ({"optimizer": Sgd()}, "optimizer=.*no Sgd; write one of AdamW"),
        ({"budget": 3}, "budget=3: training knows no int; write one of Budget"),
        ({"draws": "tfb"}, "draws='tfb': .*write one of MCDropout"),
        ({"task": "trec"}, "task='trec': must be a task"),
        ({"backbone": "toy/model"}, r"backbone='toy/model': must be Hub\('owner/name'\)"),
    ],
)
def test_a_spec_that_training_does_not_know_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trial(**{"backbone": BACKBONE, "task": Colours()} | settings)


def test_an_axis_is_checked_as_the_field_is() -> None:
    trial = Trial(backbone=BACKBONE, task=Colours())
    with pytest.raises(ValueError, match="no Wider"):
        replace(trial, method=Wider())
    assert replace(trial, regularizers=[KL()]).regularizers == (KL(),)  # type: ignore[arg-type]


# Tasks


class Undecorated(Colours):
    scoring: Scoring = OptionLikelihood()


class WithField(Colours):
    shots: int = 4


@dataclass(frozen=True, kw_only=True)
class Untyped(Colours):
    num_test = 7


class Renamed(Colours):
    """What is no field needs no decorator, typed or not."""

    name = "hues"
    template: str = "{question} :"
    prompt_version: ClassVar[int] = 2


class BelowUndecorated(Undecorated): ...


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Undecorated, r"class Undecorated sets scoring, but is no dataclass.*write @dataclass\(frozen=True"),
        (BelowUndecorated, "class Undecorated sets scoring"),
        (WithField, "class WithField sets shots, but is no dataclass"),
        (Untyped, "class Untyped sets num_test without its type"),
    ],
)
def test_a_task_whose_settings_would_be_ignored_is_refused(kind: type[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind()


def test_a_task_may_change_what_is_no_field() -> None:
    assert (Renamed().name, Renamed().scoring, Renamed(num_test=3).num_test) == ("hues", LabelWords(), 3)


def test_a_task_is_looked_up_by_its_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Some(Colours):
        words: Any = ()

    with pytest.raises(ValueError, match=r"words=\['a'\]: a task's fields must be hashable; write a tuple"):
        Some(words=["a"])
    with pytest.raises(ValueError, match=r"num_test=2\.5: must be >= 1"):
        Colours(num_test=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("scoring", [Head, "letters", None])
def test_a_scoring_is_one_of_ours(scoring: Any) -> None:
    with pytest.raises(
        ValueError, match="must be one of Letters, LabelWords, OptionLikelihood, Generate, Head, Value"
    ):
        Colours(scoring=scoring)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"train": "train.csv"}, r"class Own: train is 'train\.csv'; write train = parquet\(\"train-\*\"\)"),
        ({"test": None}, "class Own: test is None"),
        ({"home": "my/colours"}, r"class Own: home is 'my/colours'; write home = Files\(\"folder\"\) or Hub"),
    ],
)
def test_a_task_says_where_its_rows_are(attributes: dict[str, Any], message: str) -> None:
    own = dataclass(frozen=True, kw_only=True)(type("Own", (Colours,), attributes))
    with pytest.raises(ValueError, match=message):
        own(source=Files("/nowhere")).located()


# Templates


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Which colour?", r"has no \{question\}, so all prompts would be equal"),
        ("", r"has no \{question\}"),
        ("{question} {choices}:", r"nothing fills \{choices\} of"),
        ("{row['text']}: {question}", r"nothing fills \{row\['text'\]\} of"),
        ("{question!r} ->", r"nothing fills \{question!r\} of"),
        ("{question:>9} ->", r"nothing fills \{question:>9\} of"),
        ("{question.text}", r"nothing fills \{question\.text\} of"),
        ("{} {question}", r"nothing fills \{\} of"),
        ("if (x) { {question} }", r"double braces for braces of the text: \{\{ and \}\}"),
        ("[{question}] }", "Single '}' encountered"),
        (b"{question}", r"template=b'\{question\}' must be text"),
        (None, "template=None must be text"),
    ],
)
@pytest.mark.parametrize("scoring", [LabelWords(), OptionLikelihood()])
def test_a_template_is_filled_by_the_question_alone(template: Any, message: str, scoring: Scoring) -> None:
    own = dataclass(frozen=True, kw_only=True)(type("Own", (Colours,), {"template": template}))
    with pytest.raises(ValueError, match=message):
        own(scoring=scoring)
    assert own(scoring=Letters()).scoring == Letters(), "letters have a template of their own"


def test_doubled_braces_are_braces_of_the_text() -> None:
    class Json(Colours):
        template = '{{"text": "{question}", "colour":'

    example = Example("1", "a {red} rose", ("red", "blue"), 0)
    assert Json().prompt(example).text == '{"text": "a {red} rose", "colour":'


def test_a_task_with_a_prompt_of_its_own_fills_its_template_itself() -> None:
    class Pairs(Colours):
        template = "{premise} so {question}"

        def prompt(self, example: Example) -> Prompt:
            premise, _, question = example.question.partition("|")
            return Prompt(self.template.format(premise=premise, question=question), (" a", " b"))

    assert Pairs().prompt(Example("1", "x|y", ("a", "b"), 0)).text == "x so y"
    assert WinoGrande("s", scoring=LabelWords()).template == "Sentence: {question}"
