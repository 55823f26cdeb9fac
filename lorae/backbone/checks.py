"""Checks of a backbone before its weights are loaded: files and headers, tensor names against the config,
tokenizer, architecture.

`inspect_backbone` finds all faults, for a report; `check_backbones` raises the first. Both take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorae.backbone.weights import INDEX, SINGLE, WEIGHT_MAP, weight_files
from lorae.files import read_json
from lorae.methods import Method
from lorae.shapes import kind_of
from lorae.sources import Hub, Source, backbone_config, backbone_folder
from lorae.trial import Trial


@dataclass(frozen=True)
class Inspection:
    """Findings about a backbone.

    Attributes:
        facts: what was checked and is sound, in words.
        faults: what is wrong, each with what to do.
    """

    name: str
    facts: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"backbone {self.name}: {'; '.join(self.facts)}"


def inspect_backbone(source: Source, methods: Sequence[Method] = ()) -> Inspection:
    """Check a backbone's folder, its config and the headers of its files.

    Args:
        methods: methods that will adapt it; a causal LM is tested with them in a stack.
    """
    try:
        config = backbone_config(source)
        is_causal = kind_of(config) == "causal"
    except ValueError as error:
        return Inspection(source.label, (), (str(error),))
    looks: list[Callable[[], str]] = []
    if is_causal:
        looks.append(lambda: _architecture(config, source.label, methods))
    if folder := _folder_at_hand(source):
        looks += [lambda: _weights(folder, config), lambda: _tokenizer(folder, config)]
    facts: list[str] = [] if folder else ["its files are not here yet"]
    faults: list[str] = []
    for look in looks:
        try:
            facts.append(look())
        except Exception as error:  # from a config that transformers does not understand
            faults.append(_words(source, error))
    return Inspection(source.label, tuple(facts), tuple(faults))


def check_backbones(trials: Iterable[Trial]) -> tuple[Inspection, ...]:
    """Check every backbone of these trials, and refuse any fault.

    Raises:
        ValueError: the first fault, and the number of further faults.
    """
    methods: dict[Source, dict[Method, None]] = {}
    for trial in trials:
        methods.setdefault(trial.backbone, {})[trial.method] = None
    found = tuple(inspect_backbone(source, tuple(adapt)) for source, adapt in methods.items())
    if faults := [fault for inspection in found for fault in inspection.faults]:
        raise ValueError(faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))
    return found


def _words(source: Source, error: Exception) -> str:
    """A fault in one line."""
    words = " ".join(str(error).split())
    if type(error) is ValueError:
        return words
    return (
        f"{source.label} cannot be built from its config.json ({type(error).__name__}: {words[:200]}); take "
        "the checkpoint's own"
    )


def _folder_at_hand(source: Source) -> Path | None:
    """A backbone's folder, None if a hub repository is not, or only partly, fetched."""
    if not isinstance(source, Hub):
        return backbone_folder(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source.id, revision=source.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    names = {SINGLE}
    if (folder / INDEX).is_file():
        names = set(read_json(folder / INDEX, WEIGHT_MAP)["weight_map"].values())
    return folder if all((folder / name).is_file() for name in names) else None


def _weights(folder: Path, config: dict[str, Any]) -> str:
    from lorae.backbone.weights import check_weights

    lm, files = check_weights(folder, config), weight_files(folder)
    numbers = sum(p.numel() for p in lm.parameters())
    where = files[0].name if len(files) == 1 else f"{len(files)} files"
    return (
        f"{type(lm).__name__} of {len(lm.state_dict())} tensors, {numbers:,} numbers, which {where} holds as "
        "its config says"
    )


def _tokenizer(folder: Path, config: dict[str, Any]) -> str:
    """Check the tokenizer or, for media, the processor, whose inputs must fit the model."""
    from lorae.backbone.encoders import read_inputs
    from lorae.backbone.tokens import check_embedded, read_tokenizer

    if kind_of(config) not in ("causal", "text"):
        return f"{type(read_inputs(folder, config).processor).__name__} beside it"
    tokenizer = read_tokenizer(folder)
    check_embedded(tokenizer, config["vocab_size"], folder)
    return f"{type(tokenizer).__name__} of {len(tokenizer)} ids beside it, {config['vocab_size']} embedded"


def _architecture(config: dict[str, Any], name: str, methods: Sequence[Method]) -> str:
    from lorae.backbone.self_check import check_architecture

    check_architecture(config, name, methods)
    return "packed rows and stacks leave a small random model of its kind as it is"
