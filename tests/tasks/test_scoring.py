"""A scoring carries all that is said about it: a new one is one class, and nothing asks which one it has."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stacks import prepared
from toys import Colours, write_split

import lorae.tasks.base
import lorae.tasks.scoring
from lorae.engine.adapters import Adapters
from lorae.engine.prediction import predict
from lorae.engine.training import train_stack
from lorae.identity import canonical
from lorae.tasks.base import Example, Head, LabelWords, Prompt, Scoring
from lorae.tasks.scoring import SCORINGS, scoring_named, scorings_for
from lorae.tasks.scoring.next_token import NextToken
from lorae.trial import Budget, Trial

ROOT = Path(__file__).parents[2]
TEMPLATE = "colour of {question} :"


@dataclass(frozen=True)
class Tempered(NextToken):
    """A researcher's own: label words with a temperature, and a prompt that all tasks share."""

    temperature: float = 1.0

    template = TEMPLATE
    num_options = (3, 3)

    @property
    def label(self) -> str:
        return f"tempered-{self.temperature:g}"

    def prompt(self, template: str, example: Example) -> Prompt:
        return super().prompt(TEMPLATE, example)

    def class_logits(self, backbone, batch):
        return super().class_logits(backbone, batch) / self.temperature


@dataclass(frozen=True, kw_only=True)
class Retold(Colours):
    """The same prompts as a template of the task's own."""

    template = TEMPLATE


@pytest.fixture
def tempered(monkeypatch: pytest.MonkeyPatch) -> type[Scoring]:
    """The researcher's scoring, named in the union."""
    for module in (lorae.tasks.base, lorae.tasks.scoring):
        monkeypatch.setattr(module, "SCORINGS", (*SCORINGS, Tempered))
    return Tempered


def stack_logits(trial: Trial) -> np.ndarray:
    """Logits (M, N, C) on validation of two members as they are drawn."""
    backbone, data = prepared(trial)
    with Adapters(backbone, trial.method, [trial.member_key(m)["init"] for m in (0, 1)]):
        return predict(backbone, data.validation)


def test_a_class_outside_the_union_is_refused():
    with pytest.raises(ValueError, match=r"scoring=Tempered\(temperature=1.0\): must be one of Letters, "):
        Colours(scoring=Tempered())


def test_another_scoring_is_one_class(tempered, tiny_trial, data_root):
    def scored(scoring: Scoring, task: type[Colours] = Colours) -> Trial:
        return tiny_trial(task=task(scoring=scoring).located(data_root), members=2)

    half, whole, words = scored(Tempered(2.0)), scored(Tempered()), scored(LabelWords(), Retold)
    np.testing.assert_array_equal(2 * stack_logits(half), stack_logits(words))
    np.testing.assert_array_equal(stack_logits(whole), stack_logits(words))
    assert half.task.prompt_template() == TEMPLATE
    assert half.factors()["scoring"] == "tempered-2"
    assert len({half.member_id(0), whole.member_id(0), words.member_id(0)}) == 3


def test_another_scoring_has_its_own_number_of_options(tempered, tmp_path):
    write_split(tmp_path / "colours", "test", [{"id": "x", "text": "w1", "label": 0, "options": 2}])
    task = Colours().located(tmp_path)
    assert len(task.examples("test")) == 1
    with pytest.raises(ValueError, match="2 options; must be 3 to 3"):
        replace(task, scoring=Tempered()).examples("test")


def test_members_are_trained_by_another_scoring(tempered, tiny_trial):
    """The first step's NLL is that of the backbone at this temperature, which the others then lower."""
    trial = tiny_trial()
    trial = replace(trial, task=replace(trial.task, scoring=Tempered(2.0)))
    backbone, data = prepared(trial)
    trial = replace(trial, budget=Budget(batch_size=len(data.train), steps=5))
    (run,) = train_stack(backbone, trial, [0], data)
    plain = [replace(row, scoring=LabelWords()) for row in data.train]
    logits = torch.from_numpy(predict(backbone, plain)[0] / 2)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([row.label for row in plain]))
    assert run.curve[0]["nll"] == pytest.approx(expected.item(), rel=1e-5)
    assert run.curve[4]["nll"] < run.curve[0]["nll"]


def test_another_scoring_is_told_to_those_who_ask(tempered):
    assert scorings_for("causal") == "Letters(), LabelWords(), OptionLikelihood() or Tempered()"
    assert scorings_for("image") == "Head()"
    assert scoring_named(canonical(Tempered(2.0))["type"]) is Tempered
    assert scoring_named("Head") is Head
    assert not scoring_named("Telepathy").trains_head, "an audit goes on with what it knows"


def asked_kinds(path: Path) -> list[str]:
    """Where a file names a scoring in an isinstance() or a comparison."""
    kinds, found = {kind.__name__ for kind in SCORINGS}, []
    for node in ast.walk(ast.parse(path.read_text())):
        asks = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        if asks or isinstance(node, ast.Compare):
            inside = list(ast.walk(node))
            names = {n.id for n in inside if isinstance(n, ast.Name)}
            names |= {n.value for n in inside if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            found += [f"{path.name}:{node.lineno} {name}" for name in names & kinds]
    return found


@pytest.mark.slow
def test_nobody_asks_which_scoring_it_is():
    files = [f for part in ("lorae", "jobs", "analysis") for f in (ROOT / part).rglob("*.py")]
    asked = [place for f in files if f.parent.name != "scoring" for place in asked_kinds(f)]
    assert len(files) > 100 and asked == []
