"""Likenesses by models that are given: tiny random ones, against transformers on each text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from lorae.texts.models import embedding, entailment

WORDS = ["[PAD]", "[UNK]", "paris", "in", "london", "it", "is", "not"]
TEXTS = ["paris", "in paris", "london", "it is not in london", "paris"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}


def config() -> BertConfig:
    return BertConfig(**SIZES, num_attention_heads=2, num_labels=3, initializer_range=0.5)


def saved(lm, folder, **changes):
    for name, value in changes.items():
        setattr(lm.config, name, value)
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    lm.eval().save_pretrained(folder)
    return tokenizer


def test_entailment_is_the_smaller_probability_of_both_directions(tmp_path):
    torch.manual_seed(0)
    lm = BertForSequenceClassification(config())
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    tokenizer = saved(lm, tmp_path, id2label=labels, label2id={n: k for k, n in labels.items()})
    alike = entailment(str(tmp_path))(TEXTS)

    def entails(a: str, b: str) -> float:
        with torch.no_grad():
            return lm(**tokenizer(a, b, return_tensors="pt")).logits[0].softmax(-1)[2].item()

    for i, a in enumerate(TEXTS):
        for j, b in enumerate(TEXTS):
            expected = 1.0 if a == b else min(entails(a, b), entails(b, a))
            assert alike[i, j] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(alike[alike < 1]) > 0.01, "the pairs must differ"


def test_embeddings_are_means_over_the_words_without_padding(tmp_path):
    torch.manual_seed(0)
    lm = BertModel(config())
    tokenizer = saved(lm, tmp_path)
    alike = embedding(str(tmp_path))(TEXTS)
    with torch.no_grad():
        each = [lm(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in TEXTS]
    cosine = torch.nn.functional.cosine_similarity(each[0], each[3], dim=0).item()
    assert alike[0, 3] == pytest.approx(max(0, cosine), abs=1e-5) and alike[0, 4] == 1


def test_a_model_that_is_none_is_refused(tmp_path):
    saved(BertForSequenceClassification(config()), tmp_path)
    with pytest.raises(ValueError, match=r"has the labels label_0, .* none of which is entailment"):
        entailment(str(tmp_path))
    with pytest.raises(ValueError, match=r"config.json is missing"):
        (tmp_path / "empty").mkdir()
        embedding(str(tmp_path / "empty"))
