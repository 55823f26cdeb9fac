"""Checks of the weights in a backbone's folder: one complete set of sound files that match its config.

Only headers are read here; torch is loaded only to build a model without weights and ask for its names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from lorae.files import check_whole, read_json
from lorae.shapes import auto_class, kind_of
from lorae.shards import PART, check_one_set, listed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # as in transformers
WEIGHT_MAP = {"weight_map": {str: str}}  # of INDEX: tensor -> file
_NUMBERED = re.compile(r"(layers?|h|blocks?)\.\d+\.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a folder's weights.

    Raises:
        ValueError: there are no weights, or several sets; a part is missing, damaged or not a weights file;
            an adapter lies beside them.
    """
    if adapters := sorted(p.name for p in folder.glob("adapter_*") if p.suffix in (".json", ".safetensors")):
        raise ValueError(
            f"{folder} has an adapter beside the weights: {listed(adapters)}, which would be part of the "
            "untouched backbone; merge it into them (PEFT's merge_and_unload), or remove it from a copy"
        )
    single, index = folder / SINGLE, folder / INDEX
    parts = sorted(p for p in folder.glob("model*.safetensors") if PART.fullmatch(p.name))
    if single.is_file() and (parts or index.is_file()):
        others = listed([*(part.name for part in parts), *([INDEX] if index.is_file() else [])])
        raise ValueError(
            f"{folder} has {SINGLE} and {others}, which are two sets of weights; remove all but those that "
            "are meant"
        )
    check_one_set(parts)
    files = [single] if single.is_file() else parts
    if index.is_file():
        mapped = {folder / name for name in read_json(index, WEIGHT_MAP)["weight_map"].values()}
        if differing := sorted(path.name for path in mapped ^ set(parts)):
            raise ValueError(
                f"{index} and the files beside it differ by {listed(differing)}; copy what is missing, and "
                "remove what belongs to other weights"
            )
    elif parts:
        raise ValueError(f"{folder} has {listed(p.name for p in parts)}, but no {INDEX}; copy it there")
    if not files:
        raise ValueError(
            f"{folder} has no {SINGLE}, nor parts model-00001-of-0000N.safetensors with {INDEX}; copy the "
            "repository's weights there"
        )
    _check_tensors(files)
    return files


def _check_tensors(files: list[Path]) -> None:
    """Refuse files that are cut off or hold a tensor twice."""
    where: dict[str, Path] = {}
    for path in files:
        for name in stored_names(path):
            if name in where:
                raise ValueError(f"{name} is in {where[name]} and in {path.name}; take one set of weights")
            where[name] = path


def stored_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header.

    Raises:
        ValueError: the file is not a complete safetensors file.
    """
    check_whole(path)
    try:
        with safetensors.safe_open(path, framework="np") as stream:
            return list(stream.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); copy the file again") from error


# Arguments of `from_pretrained` that `check_loaded` needs, which refuses every mismatched shape
LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}


def check_weights(folder: Path, config: dict[str, Any]) -> Any:
    """The backbone on torch's meta device, without values, if its files hold all its tensors.

    Raises:
        ValueError: as `weight_files` and `check_loaded`.
    """
    from lorae.backbone.encoders import body_only

    files, is_encoder = weight_files(folder), kind_of(config) != "causal"
    with quiet_transformers():
        lm, info = auto_class(config).from_pretrained(
            folder, device_map="meta", trust_remote_code=False, **LOADING
        )
    if is_encoder:
        body_only(lm)
    check_loaded(lm, info, files, is_encoder=is_encoder)
    return lm


def check_loaded(lm: Any, info: dict[str, Any], files: list[Path], *, is_encoder: bool) -> None:
    """Refuse a backbone with randomly initialised tensors, or with tensors in its files that were not loaded.

    A causal LM needs exactly its own tensors. For an encoder this applies to the body: its classifier, pooler
    or language model's head may be missing or present.

    Args:
        lm: the loaded model; for an encoder, only its body.
        info: loading info from transformers, see `LOADING`.
        files: the weights.
    Raises:
        ValueError: names the tensors.
    """
    folder, prefix = files[0].parent, f"{lm.base_model_prefix}."
    names = {name for path in files for name in stored_names(path)}
    if twice := names & {prefix + name for name in names}:
        raise ValueError(
            f"{folder}: the weights have {_names(twice)} without {prefix!r}, too; take one set of weights"
        )
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if is_encoder:
        missing &= lm.state_dict().keys()
        unexpected = {name for name in unexpected if _is_body(lm, name)}
    shapes = {name: (tuple(found), tuple(own)) for name, found, own in info["mismatched_keys"]}
    faults = []
    if missing:
        faults.append(f"lack {_names(missing)}")
    if unexpected:
        faults.append(f"have {_names(unexpected)}, which this model has not")
    for name, (found, own) in sorted(shapes.items())[:2]:
        faults.append(f"have {name} of shape {found}, where config.json says {own}")
    faults += info["error_msgs"]
    if faults:
        raise ValueError(
            f"{folder} is no {type(lm).__name__} as its config.json describes it: the weights "
            f"{'; they '.join(faults)}; take config and weights of one checkpoint, as transformers saves it"
        )


def _is_body(lm: Any, name: str) -> bool:
    """Whether a tensor's name belongs to an encoder's body, in this or another layout."""
    inner = name.removeprefix(f"{lm.base_model_prefix}.")
    if inner.startswith("pooler."):
        return False
    known = {child for child, _ in lm.base_model.named_children()}
    return inner.partition(".")[0] in known or _NUMBERED.search(name) is not None


def _names(names: set[str]) -> str:
    return f"{len(names)} tensors ({listed(sorted(names))})"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' messages about a checkpoint: its faults are errors here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
