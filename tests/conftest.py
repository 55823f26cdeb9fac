"""A tiny random Llama in hub layout and trials on the toy task, so that every path runs on a CPU in
seconds."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import OPTIONS, WORDS, Colours, colour_rows, write_split

from lorae.sources import Files
from lorae.trial import AdamW, Budget, Trial

pytest_plugins = ["sound", "mlflow_server", "media", "trained"]  # their fixtures

# Two test processes with two threads each wait for one another: three times the time
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # else the other test process starves Ray's workers


# A module runs in one process, which makes its fixtures once. These take minutes and come first, or the other
# process would have nothing left to do during the last one.
LONGEST = ("test_cluster", "test_zero", "test_faults_ray", "test_sweep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is not marked starts no Python of its own: `make check` runs those alone."""
    if any(request.node.get_closest_marker(name) for name in ("process", "ray", "gpu")):
        return
    start = subprocess.Popen.__init__

    def refuse_python(self: Any, args: Any, *rest: Any, **settings: Any) -> None:
        assert sys.executable not in args, "it starts a process; mark it pytest.mark.process"
        start(self, args, *rest, **settings)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse_python)


@pytest.fixture(autouse=True)
def _rays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that looks for any Ray of the machine waits until no other test process has one."""
    marker = request.node.get_closest_marker("ray")
    if marker is None:
        yield
        return
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if marker.kwargs.get("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture
def no_floor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps of a tiny model take what they compute, so that its stacks are divided."""
    from lorae.planning import estimate

    monkeypatch.setitem(estimate.FLOOR_SECONDS, "cuda", 0.0)
    estimate._estimate.cache_clear()
    yield
    estimate._estimate.cache_clear()


@pytest.fixture
def lorae_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, empty."""
    monkeypatch.setenv("LORAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root / "colours", "train", colour_rows("train", 53, 0))
    write_split(root / "colours", "test", colour_rows("test", 20, 1))
    write_split(root / "greys", "test", colour_rows("grey", 12, 2))
    return root


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A random Llama of 3 layers with grouped key-value heads and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    letters = ["A", "B", "C", "D", "E", ")", "Question", "Answer", "Choices", ".", "The", "is"]
    vocabulary = ["[UNK]", "[PAD]", "words", "colour", ":", *OPTIONS, *WORDS, *letters]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Files(str(folder))


@pytest.fixture
def tiny_trial(tiny_llama: Files, data_root: Path) -> Callable[..., Trial]:
    """Factory of trials on the tiny Llama and the toy task; keywords replace fields."""

    def make(**changes: Any) -> Trial:
        settings: dict[str, Any] = {
            "backbone": tiny_llama,
            "task": Colours().located(data_root),
            "optimizer": AdamW(lr=1e-2),
            "budget": Budget(batch_size=4, epochs=3),
            "precision": "fp32",
        }
        return Trial(**(settings | changes))

    return make
