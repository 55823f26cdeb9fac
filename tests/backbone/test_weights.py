"""Weights that are not what the config says are refused by name, before anything is made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, DistilBertConfig, DistilBertModel

from lorae.backbone.encoders import body_only
from lorae.backbone.loading import load_backbone
from lorae.backbone.weights import INDEX, SINGLE, check_weights, weight_files
from lorae.shapes import auto_class
from lorae.sources import Files, backbone_config

Tensors = dict[str, torch.Tensor]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 12\n"


@pytest.fixture
def folder(tiny_llama: Files, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama.path, tmp_path / "model"))


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): value for name, value in tensors.items()}


def save(tensors: Tensors, path: Path) -> None:
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


NAMES = {
    "missing": (lambda t: t.pop("model.norm.weight") is None or t, r"lack 1 tensors \(model\.norm\.weight\)"),
    "missing-head": (lambda t: t.pop("lm_head.weight") is None or t, r"lack 1 tensors \(lm_head\.weight\)"),
    "foreign-prefix": (lambda t: {f"module.{n}": v for n, v in t.items()}, r"have \d+ tensors \(module\."),
    "part-of-them": (lambda t: renamed(t, "layers.1.mlp", "layers.1.ffn"), r"layers\.1\.ffn\.down_proj"),
    "unknown": (lambda t: t | {"lm_head.bias": torch.ones(9)}, r"have 1 tensors \(lm_head\.bias\)"),
    "another-layer": (lambda t: t | renamed(t, "layers.2", "layers.3"), r"layers\.3\.input_layernorm"),
    "under-two-names": (lambda t: t | renamed(t, "model.", ""), r"layers\.0.* without 'model\.', too"),
    "empty": (lambda t: t | {"model.norm.weight": torch.empty(0)}, r"norm.weight of shape \(0,\).* \(32,\)"),
    "wider": (lambda t: t | {"lm_head.weight": torch.ones(99, 32)}, r"lm_head\.weight of shape \(99, 32\)"),
}


@pytest.mark.parametrize("change,message", NAMES.values(), ids=NAMES)
def test_tensors_that_are_not_those_of_the_config_are_refused(
    folder: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    """Where the weights are read, and by their names alone."""
    assert check_weights(folder, backbone_config(Files(str(folder)))).device.type == "meta"
    save(change(load_file(folder / SINGLE)), folder / SINGLE)
    with pytest.raises(ValueError, match=message):
        load_backbone(Files(str(folder)), "fp32", "cpu")
    with pytest.raises(ValueError, match=message):
        check_weights(folder, backbone_config(Files(str(folder))))


def test_a_config_of_fewer_layers_than_the_files_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"have 9 tensors \(model\.layers\.2\."):
        load_backbone(Files(str(folder)), "fp32", "cpu")


def test_a_tied_head_may_be_missing_and_is_the_embedding(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["lm_head.weight"]
    save(tensors, folder / SINGLE)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    lm = load_backbone(Files(str(folder)), "fp32", "cpu").lm
    assert torch.equal(lm.lm_head.weight, tensors["model.embed_tokens.weight"])


ENCODERS = {
    "bert": (lambda: BertModel(BertConfig(**SIZES)), "encoder.layer.1.output.dense.bias"),
    "bert-mlm": (lambda: BertForMaskedLM(BertConfig(**SIZES)), "bert.embeddings.LayerNorm.weight"),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=64)
        ),
        "transformer.layer.0.attention.q_lin.weight",
    ),
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("make,body", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_needs_its_body_and_no_head(tmp_path: Path, make: Callable[[], object], body: str) -> None:
    """Its own pooler, classifier or language model's head may be there or not."""
    model = make()
    model.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [type(model).__name__.replace("Model", "ForMaskedLM")]
    (tmp_path / "config.json").write_text(json.dumps(config))
    config = backbone_config(Files(str(tmp_path)))
    whole = load_file(tmp_path / SINGLE)

    loaded = auto_class(config).from_pretrained(tmp_path)
    body_only(loaded)
    assert check_weights(tmp_path, config).state_dict().keys() == loaded.state_dict().keys()
    save({name: value for name, value in whole.items() if name != body}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=rf"lack 1 tensors \(.*{body}\)"):
        check_weights(tmp_path, config)
    layer = next(name for name in whole if "layer.1." in name)
    save(whole | {layer.replace("layer.1.", "layer.2."): whole[layer]}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"have 1 tensors \(.*layer\.2\."):
        check_weights(tmp_path, config)
    save({f"backbone.{name}": value for name, value in whole.items()}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"lack \d+ tensors"):
        check_weights(tmp_path, config)


def test_parts_are_complete_and_of_one_set(folder: Path) -> None:
    lm = load_backbone(Files(str(folder)), "fp32", "cpu").lm
    shutil.rmtree(folder)
    lm.save_pretrained(folder, max_shard_size="30KB")
    parts = sorted(folder.glob("model-*"))
    assert len(parts) > 2 and weight_files(folder) == parts

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            weight_files(folder)

    other = folder / f"model-00001-of-{len(parts) + 1:05}.safetensors"
    shutil.copy(parts[0], other)
    refused("several sets beside each other")
    other.rename(folder / SINGLE)
    refused(r"model\.safetensors and model-00001-of-.*, which are two sets of weights")
    (folder / SINGLE).rename(parts[1])
    refused(r"is in .*model-00001-of-.* and in model-00002-of-")
    parts[1].unlink()
    refused("number 2 is missing")
    shutil.copy(parts[0], parts[1])
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00009.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    refused(r"index\.json and the files beside it differ by model-0000")
    (folder / INDEX).unlink()
    refused(r"but no model\.safetensors\.index\.json")


BROKEN = {
    "lfs": (lambda content: LFS.encode(), "is a pointer of Git LFS"),
    "empty": (lambda content: b"", "is empty"),
    "cut": (lambda content: content[:-1], "is damaged or cut off"),
    "cut-header": (lambda content: content[:50], "is damaged or cut off"),
    "html": (lambda content: b"<html>404 not found</html>", "is damaged or cut off"),
}


@pytest.mark.parametrize("change,message", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_weights_is_named(
    folder: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    (folder / SINGLE).write_bytes(change((folder / SINGLE).read_bytes()))
    with pytest.raises(ValueError, match=rf"model/model\.safetensors {message}"):
        weight_files(folder)


@pytest.mark.parametrize("content", [LFS, "", "{", "[]"], ids=["lfs", "empty", "cut", "list"])
def test_a_config_that_is_none_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"model/config\.json (is|cannot be read: ).*(copy the file again|git lfs pull)"
    ):
        backbone_config(Files(str(folder)))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"{name}.*; merge it into them .*, or remove it from a copy"):
        load_backbone(Files(str(folder)), "fp32", "cpu")
