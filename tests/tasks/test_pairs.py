"""Sentence pairs: the model's own encoding of both in packed and padded rows, exact stacks, prompts with both
sentences, and what a pair with one sentence gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import write_encoder
from pairs import OPTIONS, Same, pair_rows
from stacks import largest_difference
from toys import write_split
from transformers import AutoModel, AutoTokenizer

from lorae.backbone.encoders import Inputs, features
from lorae.backbone.loading import Backbone, load_backbone
from lorae.backbone.packing import ATTENTION
from lorae.engine.batches import collate
from lorae.engine.given import Given
from lorae.engine.training import TrainingData, train_stack
from lorae.methods import Lora, Vera, Xavier
from lorae.regularizers import AdapterDropout
from lorae.sources import Files
from lorae.tasks.base import Example, LabelWords, Letters
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Trial

MODELS = ("bert", "roberta", "distilbert")


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Same:
    root = tmp_path_factory.mktemp("pairs")
    write_split(root / "same", "train", pair_rows("train", 40, 0))
    write_split(root / "same", "test", pair_rows("test", 12, 1))
    return Same().located(root)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    return {model: Files(str(write_encoder(tmp_path_factory.mktemp(model), model))) for model in MODELS}


def data_of(trial: Trial) -> tuple[Backbone, TrainingData]:
    backbone, task = load_backbone(trial.backbone, "fp32", "cpu"), trial.task
    splits = (task.examples("train"), task.examples("validation"))
    return backbone, TrainingData(*(encode(backbone.tokenizer, task, s, 32) for s in splits))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_pair_is_read_as_the_model_reads_it(encoders, same, model, packed):
    """Two rows at once, beside a single sentence; by the model's own tokenizer, with its token types."""
    backbone = load_backbone(encoders[model], "fp32", "cpu")
    backbone.lm.config._attn_implementation = ATTENTION if packed else "eager"
    lone = replace(same.examples("test")[0], pair=None, id="lone")
    examples = [*same.examples("test")[1:3], lone]
    batch = collate(encode(backbone.tokenizer, same, examples, 32), 2, backbone)
    assert (batch.packing is not None) == packed
    with torch.no_grad():
        ours = features(backbone, batch)
        tokenizer = AutoTokenizer.from_pretrained(encoders[model].path)
        plain = AutoModel.from_pretrained(encoders[model].path, attn_implementation="eager").eval()
        inputs = [tokenizer(e.question, e.pair, return_tensors="pt") for e in examples]
        states = [plain(**each).last_hidden_state[0, 0] for each in inputs]
    assert torch.allclose(ours, torch.stack(states), atol=1e-5)


def test_the_second_sentence_has_its_own_type_where_the_model_knows_types(encoders, same):
    for model, count in zip(MODELS, (2, 0, 0)):
        tokenizer = load_backbone(encoders[model], "fp32", "cpu").tokenizer
        row = encode(tokenizer, same, same.examples("test")[:1], 32)[0]
        assert len(set(row.types)) == count and len(row.types) in (0, len(row.tokens))


def test_a_long_pair_loses_tokens_of_its_longer_sentence(encoders, same):
    tokenizer: Inputs = load_backbone(encoders["bert"], "fp32", "cpu").tokenizer
    example = Example("long", "w1 w2 w3", OPTIONS, 0, pair="w4 w5 w6 w7 w8 w9 w10 w11")
    whole, cut = (encode(tokenizer, same, [example], most)[0] for most in (32, 10))
    assert (whole.truncated, cut.truncated) == (0, 4)
    assert cut.tokens == (*whole.tokens[:9], whole.tokens[-1]) and cut.types == (0,) * 5 + (1,) * 5


@pytest.mark.parametrize(
    "method", [Lora(rank=4, alpha=4, targets=("q", "v"), init=Xavier(2)), Vera(rank=8, targets=("q", "v"))]
)
@pytest.mark.parametrize("model", MODELS)
def test_a_stack_of_members_equals_members_alone(encoders, same, model, method):
    trial = Trial(
        backbone=encoders[model],
        task=same,
        method=method,
        regularizers=(AdapterDropout(0.1),),
        optimizer=AdamW(lr=1e-2, eps=1e-4),
        budget=Budget(batch_size=4, steps=5, max_tokens=32),
        precision="fp32",
    )
    backbone, data = data_of(trial)
    together = train_stack(backbone, trial, [0, 1], data)
    for m, run in enumerate(together):
        assert largest_difference(run, train_stack(backbone, trial, [m], data)[0]) < 1e-5
    assert largest_difference(*together) > 1e-3


# Language models


def test_a_prompt_shows_both_sentences_and_shortens_the_longer_one(tiny_llama, same):
    worded = replace(same, scoring=LabelWords())
    backbone = load_backbone(tiny_llama, "fp32", "cpu")
    words = backbone.tokenizer.get_vocab()
    example = Example("long", "w1 w2", ("w30", "w31"), 0, pair=" ".join(f"w{n}" for n in range(3, 15)))
    whole, cut = (encode(backbone.tokenizer, worded, [example], most)[0] for most in (64, 14))
    shown = [words[f"w{n}"] for n in (1, 2, 3, 14)]
    assert [token for token in whole.tokens if token in shown] == shown
    assert cut.truncated == len(whole.tokens) - 14
    assert [token for token in cut.tokens if token in shown] == shown, "the middle of the longer one is cut"


# Bad input


@pytest.mark.parametrize(
    ("pair", "fault"), [(None, "one sentence"), ("  ", "second sentence .* empty"), (7.5, "second text")]
)
def test_a_pair_with_one_sentence_is_refused(tmp_path: Path, pair, fault):
    rows = pair_rows("test", 3, 0)
    write_split(tmp_path / "same", "test", [*rows[:2], {**rows[2], "two": None}])

    class Broken(Same):
        def example(self, row: dict[str, Any]) -> Example:
            found = super().example(row)
            return replace(found, pair=pair) if row["two"] is None else found

    with pytest.raises(ValueError, match=f"row 2 .*{fault}"):
        Broken().located(tmp_path).examples("test")


def test_a_pair_without_a_place_in_the_template_is_refused(same):
    with pytest.raises(ValueError, match="no place for a pair's second sentence"):
        replace(same, scoring=Letters())

    class Half(Same):
        template = "first : {question} same :"

    with pytest.raises(ValueError, match="a pair of sentences"):
        Half(source=same.source).examples("test")


def test_pairs_that_differ_in_one_sentence_are_two_examples(tmp_path: Path):
    rows = [{"id": f"{n}", "one": "w1 w2", "two": f"w{n}", "label": 0} for n in (1, 2, 2)]
    for split in ("train", "test"):
        write_split(tmp_path / "same", split, [row | {"id": f"{split}{n}"} for n, row in enumerate(rows)])
    assert len(Same(val_frac=0.5).located(tmp_path).examples("test")) == 3


def test_a_given_pair_is_asked_as_the_members_template_asks():
    example = Example("a", "one", OPTIONS, None, pair="two")
    asked = Given(given=(example,), written=Same.template, scoring=LabelWords())
    assert asked.prompt(example).text == "first : one second : two same :"
    with pytest.raises(ValueError, match="one sentence"):
        Given(given=(replace(example, pair=None),), written=Same.template, scoring=LabelWords())
