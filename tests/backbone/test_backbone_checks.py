"""A plan finds what is wrong with a backbone without its weights: every kind of fault, all of them at once,
and by a dry run before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configs import config_of
from safetensors.torch import load_file, save_file

from jobs.cli import main
from lorae.backbone.checks import check_backbones, inspect_backbone
from lorae.methods import Lora
from lorae.planning.faults import backbone_faults
from lorae.sources import Files, Hub

SWEEP = """
from dataclasses import replace
from toys import Colours
from lorae.methods import Lora
from lorae.sources import Files
from lorae.tasks.base import Head
from lorae.trial import Budget, Sweep, Trial

BASE = Trial(backbone=Files({backbone!r}), task=Colours({task}), precision="fp32",
             budget=Budget(epochs=1, max_tokens={max_tokens}), method=Lora(targets={targets}))
SWEEP = Sweep(base=BASE)
"""


@pytest.fixture
def folder(tiny_llama: Files, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama.path, tmp_path / "model"))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def without_norm(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, folder / "model.safetensors")


def test_a_sound_backbone_says_what_it_is(tiny_llama: Files) -> None:
    found = inspect_backbone(tiny_llama, [Lora()])
    assert not found.faults and str(found).startswith(f"backbone {tiny_llama.label}: packed rows and")
    assert "; LlamaForCausalLM of 30 tensors, " in str(found) and "model.safetensors holds" in str(found)
    sizes = [int(word) for word in found.facts[-1].split() if word.isdigit()]
    assert sizes == [json.loads((Path(tiny_llama.path) / "config.json").read_text())["vocab_size"]] * 2


def test_all_that_is_wrong_is_found_at_once(folder: Path) -> None:
    without_norm(folder)
    (folder / "tokenizer.json").write_text("")
    faults = backbone_faults(Files(str(folder)), [Lora()])
    assert len(faults) == 2 and "model.norm.weight" in faults[0] and "tokenizer.json is empty" in faults[1]


def test_the_first_fault_of_several_is_raised(folder: Path, tiny_trial: Callable[..., Any]) -> None:
    check_backbones([tiny_trial()])
    without_norm(folder)
    (folder / "tokenizer.json").write_text("")
    with pytest.raises(ValueError, match=r"model\.norm\.weight.* \(and 1 more\)$"):
        check_backbones([tiny_trial(), tiny_trial(backbone=Files(str(folder)))])


@pytest.mark.slow
def test_a_backbone_of_the_hub_that_is_not_fetched_is_known_by_its_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    monkeypatch.setattr("lorae.sources._config_file", lambda source: path)
    for model_type, architecture, fault in (("gptj", "GPTJForCausalLM", "GPTJ"), ("llama", "", "")):
        path.write_text(json.dumps(config_of(model_type, architecture)))
        found = inspect_backbone(Hub("owner/not-fetched", "0" * 40))
        assert found.facts[0] == "its files are not here yet"
        assert [fault in words for words in found.faults] == ([True] if fault else [])


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 1e4} | {
    name: [1.0] * 4 for name in ("short_factor", "long_factor")
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
NESTED = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "weights": (without_norm, {}, r"lack 1 tensors \(model\.norm\.weight\)"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), {}, "an adapter beside the weights"),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), {}, "has no tokenizer"),
    "longrope": (lambda f: edit(f, rope_parameters=LONGROPE), {"max_tokens": 33}, "beyond 32 tokens"),
    "su": (
        lambda f: edit(
            f,
            rope_parameters=None,
            rope_scaling=LONGROPE
            | {"rope_type": None, "type": "su", "original_max_position_embeddings": None},
            original_max_position_embeddings=40,
        ),
        {"max_tokens": 41},
        "beyond 40 tokens",
    ),
    "nested": (lambda f: edit(f, rope_parameters=NESTED), {"max_tokens": 64}, "beyond 32 tokens"),
    "dynamic": (
        lambda f: edit(f, rope_parameters=DYNAMIC, max_position_embeddings=48),
        {"max_tokens": 49},
        r"beyond 48 tokens, .* members would depend on each other; write Budget\(max_tokens=48\)",
    ),
    "head": (
        lambda f: edit(f, model_type="opt", architectures=["OPTForSequenceClassification"]),
        {"task": "scoring=Head('cls')"},
        "is a causal LM",
    ),
    "decoder": (
        lambda f: edit(f, model_type="bert", architectures=["BertForMaskedLM"], is_decoder=True),
        {"task": "scoring=Head('cls')"},
        r"is_decoder=true: its first token",
    ),
    "sizes": (lambda f: edit(f, hidden_size=64), {}, r"\.weight of shape .*, where config\.json says"),
    "no-size": (lambda f: edit(f, num_hidden_layers=None), {}, "config.json"),
    "no-rope": (
        lambda f: edit(f, rope_parameters={"rope_type": "none"}),
        {},
        "from its config.json .KeyError",
    ),
    "architecture": (
        lambda f: edit(
            f, **config_of("gptj", "GPTJForCausalLM", n_layer=1, n_embd=32, n_head=4, rotary_dim=4)
        ),
        {},
        "is a GPTJForCausalLM: .* this architecture is not supported",
    ),
}


@pytest.mark.parametrize("change,sweep,message", REFUSED.values(), ids=REFUSED)
def test_a_dry_run_refuses_it(
    folder: Path,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    sweep: dict[str, Any],
    message: str,
) -> None:
    change(folder)
    settings = {"task": "", "max_tokens": 16, "targets": ("q_proj",)} | sweep
    (tmp_path / "sweep.py").write_text(SWEEP.format(backbone=str(folder), **settings))
    words = ["sweep", str(tmp_path / "sweep.py"), "--dry-run", "--local", "--data-root", str(data_root)]
    assert main([*words, "--storage", str(tmp_path / "results")]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


def test_rows_below_the_threshold_are_read_alike(
    folder: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder, rope_parameters=LONGROPE)
    (tmp_path / "sweep.py").write_text(
        SWEEP.format(backbone=str(folder), task="", max_tokens=32, targets=("q_proj",))
    )
    words = ["sweep", str(tmp_path / "sweep.py"), "--dry-run", "--local", "--data-root", str(data_root)]
    assert main([*words, "--storage", str(tmp_path / "results")]) == 0
    assert "LlamaForCausalLM of 30 tensors" in capsys.readouterr().out
