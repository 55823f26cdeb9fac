"""A backbone that packed rows, or a stack, would change is refused: when it is loaded, and by its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from configs import config_of
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from lorae.backbone import packing
from lorae.backbone.loading import Backbone, load_backbone
from lorae.backbone.self_check import check_architecture, check_pooled, make_twin, probes
from lorae.engine import adapters
from lorae.methods import Lora
from lorae.shapes import linear_shapes
from lorae.sources import Files

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 31, 36, 50_000])
def test_probes_are_within_any_vocabulary(vocabulary: int) -> None:
    rows = probes(vocabulary, 3)
    assert {row[0] for row in rows} == {rows[0][0]} and all(0 <= t < vocabulary for row in rows for t in row)
    assert [len(row) for row in rows] == [12, 6, 18]


@pytest.mark.parametrize("vocabulary", [3, 20])
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_small_vocabulary_is_loaded(tmp_path: Path, tiny_llama: Files, vocabulary: int, kind: str) -> None:
    if kind == "causal":
        config = AutoConfig.for_model("llama", vocab_size=vocabulary, num_key_value_heads=2, **SIZES)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    else:
        BertForMaskedLM(BertConfig(vocab_size=vocabulary, **SIZES)).save_pretrained(tmp_path)
    small_tokenizer(tmp_path, vocabulary)
    assert load_backbone(Files(str(tmp_path)), "fp32", "cpu").lm.config.vocab_size == vocabulary


def small_tokenizer(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1").save_pretrained(folder)


WORKING = {
    "llama": {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 4096},
    "mixtral": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "smollm3": {},
    "gpt2": {"architecture": "GPT2LMHeadModel"},
    "gpt_neox": {},
    "opt": {"architecture": "OPTForCausalLM"},
    "phi3": {"architecture": "Phi3ForCausalLM"},
}
BROKEN = {
    "gptj": "GPTJForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "falcon": "FalconForCausalLM",
    "mpt": "MptForCausalLM",
    "bloom": "BloomForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "cohere": "CohereForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", WORKING)
def test_an_architecture_that_runs_packed_is_known_by_its_config(model_type: str) -> None:
    settings = WORKING[model_type]
    config = config_of(model_type, **({"architecture": f"{model_type}ForCausalLM"} | settings))
    assert make_twin(config) is not None
    check_architecture(config, "it", [Lora(targets=(next(iter(linear_shapes(config))),))])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", BROKEN)
def test_an_architecture_that_does_not_is_refused_by_its_config(model_type: str) -> None:
    config = config_of(model_type, BROKEN[model_type])
    with pytest.raises(ValueError, match=rf"it is a {BROKEN[model_type]}: .* not supported, take a Llama"):
        check_architecture(config, "it")


@pytest.mark.parametrize("model_type", ["gptj", "mpt"])
def test_the_same_is_refused_when_it_is_loaded(model_type: str, tmp_path: Path) -> None:
    """Whatever it raises where it is run packed."""
    config = AutoConfig.for_model(model_type, n_embd=32, d_model=32, n_layer=2, n_layers=2, n_head=4)
    config.vocab_size, config.rotary_dim = 40, 4
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    small_tokenizer(tmp_path, 40)
    with pytest.raises(ValueError, match=rf"is a {BROKEN[model_type]}: it cannot be run on packed rows"):
        load_backbone(Files(str(tmp_path)), "fp32", "cpu")


@pytest.mark.slow
def test_a_window_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is far longer than the rows that are tried."""
    config = config_of("mistral", sliding_window=4096)
    check_architecture(config, "it")
    monkeypatch.setattr(packing, "_near", lambda q, packing, window: torch.ones(()).bool())
    with pytest.raises(ValueError, match="is not what its layers"):
        check_architecture(config, "it")


@pytest.mark.slow
def test_a_member_that_depends_on_the_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(self: Lora, layer: adapters.Stacked, x: torch.Tensor) -> torch.Tensor:
        A_MRD, _ = layer.factors()
        return x.bmm((A_MRD + 0.1 * A_MRD.mean(0)).to(x.dtype).transpose(1, 2))

    config = config_of("llama")
    check_architecture(config, "it", [Lora()])
    monkeypatch.setattr(Lora, "lowered", leaky)
    with pytest.raises(
        ValueError, match=r"a member that adapts \('q_proj', 'v_proj'\) depends on those beside"
    ):
        check_architecture(config, "it", [Lora()])


def test_an_encoder_with_a_decoders_attention_is_refused(tmp_path: Path) -> None:
    """`Head("cls")` would read the same of every text."""
    for is_decoder in (False, True):
        config = BertConfig(vocab_size=40, is_decoder=is_decoder, **SIZES)
        lm = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        backbone = Backbone("it", lm, tokenizer=None)
        if not is_decoder:
            check_pooled(backbone)
    with pytest.raises(ValueError, match="BertForSequenceClassification whose first token"):
        check_pooled(backbone)
