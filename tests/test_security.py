"""What must never happen: code from data or models is run, a name leads out of the storage, a secret is
written."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo_file import DEMO_ON_A_TINY_MODEL
from hypothesis import given
from hypothesis import strategies as st
from toys import Colours, colour_rows, write_split
from victims import PYTHON_PATH

from jobs.request import provenance, read_request, sweep_name
from lorae.backbone.loading import load_backbone
from lorae.sources import Files, Hub, backbone_folder
from lorae.store.names import member_folder
from lorae.store.storage import Storage
from lorae.store.store import Store
from lorae.tasks.data import parquet, read_rows
from lorae.uris import remember, shown

pytestmark = pytest.mark.ray


HOSTILE_NAMES = [
    "../x",
    "a/../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "a\0b",
    "x" * 256,
    "a/" + "é" * 128,
]


# Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("uri", ["", "mock:///root"], ids=["local", "object store"])
def test_no_name_leaves_the_storage(tmp_path, name, uri):
    """Whatever is done with it."""
    (tmp_path / "x").write_text("outside")
    root = tmp_path / "storage"
    storage = Storage(uri or str(root))

    def lock() -> None:
        with storage.lock("a/" + name, wait=True):
            storage.write("locks/a/" + name, b"")

    for use in (
        lambda: storage.read(name),
        lambda: storage.write(name, b"inside"),
        lambda: storage.exists(name),
        lambda: storage.names(name),
        lambda: storage.delete(name),
        lock,
    ):
        with pytest.raises(ValueError, match="no name of a file"):
            use()
    assert (tmp_path / "x").read_text() == "outside" and sorted(p.name for p in tmp_path.iterdir()) in (
        ["x"],
        ["storage", "x"],
    )


@given(st.text(max_size=300))
def test_any_name_that_is_allowed_stays_below_the_root(name):
    storage = Storage("/storage")
    try:
        path = storage.path(name)
    except ValueError:
        return
    assert Path("/storage") in Path(re.sub(r"/+", "/", path)).parents
    assert ".." not in path.split("/") and "\0" not in path


@given(st.text(min_size=1, max_size=300), st.lists(st.text(max_size=200), max_size=3))
def test_any_file_and_any_axes_make_one_folder_of_sweeps(stem, overrides):
    name = sweep_name(stem, overrides)
    assert re.fullmatch(r"[A-Za-z0-9+_-][A-Za-z0-9.+_-]*", name) and len(name) <= 120
    assert (
        Storage("/storage").path(f"sweeps/{name}/trials.parquet") == f"/storage/sweeps/{name}/trials.parquet"
    )


def test_long_sweep_names_stay_apart():
    one, other = (sweep_name("demo", [f"lr={'1' * 200}{end}"]) for end in "ab")
    assert one != other and one.startswith("demo-lr-111")
    assert sweep_name("demo", ["members=1,2"]) == "demo-members-1-2"


@pytest.mark.parametrize(
    "given_name", ["../up", "/etc", "a/b/c", "..", "", ".hidden", "a\0", "n" * 300, "a b", "a/.."]
)
def test_a_task_of_the_users_own_has_a_name_for_files(given_name):
    @dataclass(frozen=True, kw_only=True)
    class Hostile(Colours):
        name = given_name

    with pytest.raises(ValueError, match=r"task name .*write name"):
        Hostile()


def test_names_of_the_kind_that_tasks_have(data_root):
    for good in ("colours", "mmlu/college_chemistry", "a.b-c+d", "two__parts"):

        @dataclass(frozen=True, kw_only=True)
        class Named(Colours):
            name = good

        assert Named(source=Colours().located(data_root).source).eval_set("test").count("/") == 0


@pytest.mark.parametrize("member", ["../../x", "/etc", "a\0", ".."])
def test_members_and_evaluation_sets_by_hostile_names(tmp_path, member):
    store = Store(str(tmp_path / "storage"))
    for use in (
        lambda: store.write_entry(member_folder(member), {"a": b""}),
        lambda: store.write_entry("members/m", {f"predictions/{member}/../../../x": b""}),
        lambda: store.write_failure(f"{member}/..", "lost"),
        lambda: store.read_table(f"{member}/.."),
    ):
        with pytest.raises(ValueError, match="no name of a file"):
            use()
    assert not store.is_member(member) and not (tmp_path / "x").exists()


# Code ------------------------------------------------------------------------------------------------------

PLANT = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n"


def copy_of(source: Files, folder: Path) -> Path:
    return Path(shutil.copytree(source.path, folder))


def test_a_pickle_is_refused(tiny_llama, tmp_path):
    """By name before anything is loaded, and not taken where a safetensors file is beside it."""
    folder, marker = copy_of(tiny_llama, tmp_path / "model"), tmp_path / "marker"
    pickle = b"cbuiltins\nexec\n(V" + repr(PLANT.format(marker=str(marker)))[1:-1].encode() + b"\ntR."
    (folder / "pytorch_model.bin").write_bytes(pickle)
    assert load_backbone(Files(str(folder)), "fp32", "cpu") and not marker.exists()
    (folder / "model.safetensors").unlink()
    load_backbone.cache_clear()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin but no safetensors"):
        backbone_folder(Files(str(folder)))
    with pytest.raises(ValueError, match="reads none"):
        load_backbone(Files(str(folder)), "fp32", "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["llama", "planted"])
def test_code_beside_a_model_is_not_run(tiny_llama, tmp_path, model_type):
    """A config that points to its own modelling file: a known architecture is transformers' own, an unknown
    one an error."""
    folder, marker = copy_of(tiny_llama, tmp_path / "model"), tmp_path / "marker"
    for name in ("modeling_planted", "configuration_planted", "tokenization_planted"):
        (folder / f"{name}.py").write_text(PLANT.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    config["auto_map"] = {
        "AutoConfig": "configuration_planted.Planted",
        "AutoModelForCausalLM": "modeling_planted.Planted",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_planted.Planted", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if model_type == "llama":
        load_backbone(Files(str(folder)), "fp32", "cpu")
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            load_backbone(Files(str(folder)), "fp32", "cpu")
    assert not marker.exists()


def test_a_dataset_script_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder, marker = tmp_path / "planted", tmp_path / "marker"
    write_split(folder / "data", "test", colour_rows("test", 3, 0))
    (folder / "planted.py").write_text(PLANT.format(marker=str(marker)))
    files = parquet("data/test*")
    assert len(read_rows(Files(str(folder)), files)) == 3
    monkeypatch.chdir(tmp_path)  # `datasets` takes a folder of that name for the repository
    with pytest.raises(ValueError, match="planted"):
        read_rows(Hub("planted", "main"), files)
    assert not marker.exists()


# Secrets ---------------------------------------------------------------------------------------------------

word = st.text("abcXYZ019%+=_-./:@", min_size=1, max_size=12)


@given(st.sampled_from(["s3", "gs", "http", "https", "postgresql"]), word, word)
def test_no_password_is_shown(scheme, before, after):
    """Whatever characters it has; host and path stay."""
    secret = before + "HUNTER2" + after
    text = f"cannot reach '{scheme}://me:{secret}@host.example/folder' (refused)"
    assert shown(text) == f"cannot reach '{scheme}://***@host.example/folder' (refused)"


def test_parameters_are_hidden_but_those_that_say_where():
    uri = "s3://bucket/a@b?region=eu-west-1&endpoint_override=localhost:9000&scheme=http&token=HUNTER2#x"
    assert shown(uri) == uri.replace("HUNTER2#x", "***")
    for plain in (
        "nothing to hide: a@b?c=d",
        "sqlite:////data/a@b/mlflow.db",
        "s3://bucket/a@b",
        "/data/?a=b",
    ):
        assert shown(plain) == plain


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="@?"), min_size=1, max_size=12),
    st.text(st.characters(codec="utf-8", exclude_characters="&"), min_size=1, max_size=12),
)
def test_a_uri_in_use_is_hidden_whatever_its_secrets_hold(password, token):
    """Spaces, quotes and ends of lines included, also as JSON and repr write them."""
    secret, key = f"HUN{password}TER2", f"TOK{token}EN3"
    uri = f"s3://me:{secret}@bucket/folder?region=eu&token={key}"
    remember(uri)
    for text in (uri, f"{uri} cannot be opened: 'me:{secret}@bucket'", json.dumps({"uri": uri}), repr([uri])):
        hidden = shown(text)
        assert "HUN" not in hidden and "TER2" not in hidden and "TOK" not in hidden and "EN3" not in hidden
        assert "@bucket" in hidden and "region=eu" in hidden


@pytest.mark.process
def test_storage_with_credentials_is_opened_with_them_and_shown_without(data_root, tmp_path):
    uri = "s3://KEY:HUNTER2@bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:9"
    storage = Storage(uri)
    assert storage.uri == uri.replace("KEY:HUNTER2", "***") and storage.root == "bucket/folder"
    for bad in (
        "s3://KEY:HUN/TER2@bucket/x",
        "nope://KEY:HUNTER2@bucket",
        "s3://KEY:HUNTER2@bucket?token=HUNTER2",
    ):
        with pytest.raises(ValueError, match="cannot be opened") as caught:
            Storage(bad)
        assert "TER2" not in str(caught.value) and caught.value.__cause__ is None
    file = tmp_path / "sweep.py"
    file.write_text("from pipelines.demo import SWEEP\n")
    request = read_request(str(file), [], uri, None)
    assert request.storage == uri and "HUNTER2" not in request.command + json.dumps(provenance(request))


def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


SECRETS = {
    "HF_TOKEN": "hf_PLANTEDhub",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    "AWS_SECRET_ACCESS_KEY": "PLANTEDaws",
    "AWS_SESSION_TOKEN": "PLANTEDsession",
    "MLFLOW_TRACKING_PASSWORD": "PLANTEDmlflow",
    "WANDB_API_KEY": "PLANTEDother",
}


@pytest.mark.process
@pytest.mark.parametrize("host", ["--local", "ray"])
def test_no_secret_is_written_or_printed(tiny_llama, data_root, tmp_path, host):
    """Of the environment, and of a tracking URI; in the storage with its database, the output, Ray's logs and
    whatever else a sweep leaves."""
    demo = tmp_path / "demo.py"
    demo.write_text(DEMO_ON_A_TINY_MODEL.format(backbone=tiny_llama.path))
    words = [
        "sweep",
        demo,
        "--storage",
        tmp_path / "results",
        "--set",
        "members=1",
        "--set",
        "regularizers=none",
    ]
    words += ["--local"] if host == "--local" else []
    words += ["--tracking-uri", f"http://me:PLANTEDuri@127.0.0.1:{unused_port()}"] if host == "ray" else []
    with tempfile.TemporaryDirectory(prefix="lr", dir="/tmp") as ray:  # a socket's path is short
        places = {"HOME": str(tmp_path / "home"), "RAY_TMPDIR": ray, "TMPDIR": ray}
        environment = (
            os.environ | SECRETS | places | {"PYTHONPATH": PYTHON_PATH, "LORAE_DATA_ROOT": str(data_root)}
        )
        command = [sys.executable, "-m", "jobs.cli", *map(str, words), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        outcome, err = json.loads(done.stdout), done.stderr
        seen = {"stdout": done.stdout.encode(), "stderr": err.encode()}
        for root in (tmp_path, Path(ray)):
            seen |= {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p != demo}
    assert outcome["trained"] == 1 and any(name.endswith("DONE.json") for name in seen)
    assert any(name.endswith("mlflow.db") for name in seen) == (host == "--local")
    assert any("gcs_server" in name for name in seen) == (host == "ray")
    planted = [*SECRETS.values(), "PLANTEDuri"]
    assert not [(name, s) for name, content in seen.items() for s in planted if s.encode() in content]
    if host == "ray":
        assert "http://***@127.0.0.1" in err and "lorae mlflow-rebuild" in err
