"""The tokenizer is the one of tokenizer.json, or none: its ids, and what its model embeds."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from lorae.backbone.tokens import check_embedded, check_ids, read_tokenizer
from lorae.sources import Files

TEXTS = ["The cat", "THE CAT", " a  cat\n", "caf\u00e9 12345"]


def byte_level(normalizer: normalizers.Normalizer | None = None, pieces: str = "") -> Tokenizer:
    """Byte-level BPE of all bytes, with some merges."""
    vocabulary = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [tuple(pair.split("+")) for pair in pieces.split()]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocabulary, merges))
    raw.normalizer = normalizer  # type: ignore[assignment]
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def save(raw: Tokenizer, folder: Path, model_type: str, **settings: object) -> None:
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


@pytest.mark.parametrize(
    "settings",
    [{}, {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "Qwen2TokenizerFast"}],
    ids=["plain", "gpt2", "qwen2"],
)
def test_ids_are_those_of_the_file_whatever_class_the_config_names(
    tmp_path: Path, settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The classes split texts in their own way: GPT-2's joins digits, Qwen2's does not."""
    raw = byte_level(normalizers.Strip(), "t+h 1+2 12+3 c+a")
    save(raw, tmp_path, "qwen2", **settings)
    with caplog.at_level(logging.INFO, "lorae"):
        tokenizer = read_tokenizer(tmp_path)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == raw.encode(text).ids
    assert "read as tokenizer.json says; Qwen2Tokenizer, which the configs name, reads other" in caplog.text


def test_a_class_that_agrees_with_the_file_is_taken(tmp_path: Path) -> None:
    save(byte_level(pieces="t+h"), tmp_path, "gpt2", tokenizer_class="GPT2Tokenizer")
    assert isinstance(read_tokenizer(tmp_path), GPT2TokenizerFast)


def test_a_first_token_that_the_file_alone_adds_is_there(tmp_path: Path) -> None:
    raw = byte_level()
    raw.post_processor = processors.TemplateProcessing("z $A", special_tokens=[("z", raw.token_to_id("z"))])
    save(raw, tmp_path, "qwen2", tokenizer_class="Qwen2Tokenizer")
    assert read_tokenizer(tmp_path)("a")["input_ids"] == [raw.token_to_id("z"), raw.token_to_id("a")]


def test_a_text_with_other_ids_is_refused(tmp_path: Path) -> None:
    save(byte_level(normalizers.Lowercase()), tmp_path, "gpt2")
    other = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    check_ids(other, tmp_path, ["all lower case"])
    with pytest.raises(
        ValueError, match=r"reads 'Not so' as other ids than tokenizer\.json says; take that file"
    ):
        check_ids(other, tmp_path, ["all lower case", "Not so"])


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, model_type: str, tiny_llama: Files) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=rf"{tmp_path} has no tokenizer"):
        read_tokenizer(tmp_path)
    shutil.copy(Path(tiny_llama.path) / "tokenizer_config.json", tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path} has no tokenizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "version https://git-lfs.github.com/spec/v1\noid", "{}", "{"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    save(byte_level(), tmp_path, "gpt2")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer(\.json)? (is|that can be read)"):
        read_tokenizer(tmp_path)


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    """Those of special tokens only where a text has them: some models have such for images."""
    raw = byte_level()
    size = raw.get_vocab_size()
    raw.add_special_tokens(["<image>"])
    save(raw, tmp_path, "gpt2")
    tokenizer = read_tokenizer(tmp_path)
    check_embedded(tokenizer, size + 1, tmp_path, ["an <image>"])
    check_embedded(tokenizer, size, tmp_path, ["no image"])
    with pytest.raises(ValueError, match=rf"ids up to {size}, such as of <image>, its model embeds {size};"):
        check_embedded(tokenizer, size, tmp_path, ["an <image>"])
    with pytest.raises(ValueError, match=rf"ids up to {size}, such as of .*, its model embeds {size - 1};"):
        check_embedded(tokenizer, size - 1, tmp_path)
