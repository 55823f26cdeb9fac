"""An archive holds all that tables are computed from, byte for byte, and says what it lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from sound import Sound

from analysis import archive
from analysis.archive import opened, pack, placeless, unpack
from analysis.audit import audit, text
from analysis.data import load_trials
from analysis.render import markdown
from analysis.table import comparison
from lorae.planning.plan import make_plan
from lorae.store.names import WEIGHTS, member_folder
from lorae.store.store import Store
from lorae.trial import Sweep


@pytest.fixture
def packed(sound: Sound, tmp_path: Path) -> Path:
    pack(sound.store.storage.uri, ["toy"], tmp_path / "archive")
    return tmp_path / "archive"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_what_is_unpacked_is_what_was_packed_but_weights(sound, packed, tmp_path):
    unpack(packed, str(tmp_path / "copy"))
    theirs, ours = files_of(Path(sound.store.storage.root)), files_of(tmp_path / "copy")
    kept = {name for name in ours if not name.endswith("DONE.json")}
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}
    lacking = {name for name in theirs if name.startswith(("members/", "reference/", "sweeps/"))} - set(ours)
    assert lacking and all(name.endswith(".safetensors") for name in lacking)
    assert not any(name.endswith(".safetensors") for name in ours)


@pytest.mark.slow
def test_an_archive_passes_the_audit_and_gives_the_same_table(sound, packed):
    with opened(str(packed)) as storage:
        findings = audit(storage)
        table = comparison(load_trials(storage, "toy"))
    said = text(findings)
    assert not [finding for finding in findings if finding.status == "failed"], said
    assert "not applicable  adapters are distinct and trained" in said
    assert "not applicable  VeRA members differ" in said
    assert markdown(table) == markdown(comparison(load_trials(sound.store.storage.uri, "toy")))
    assert not Path(storage).exists()


def test_a_storage_is_opened_as_it_is(sound):
    with opened(sound.store.storage.uri) as storage:
        assert storage == sound.store.storage.uri


def test_what_needs_weights_is_said_not_to_apply(packed):
    with opened(str(packed)) as storage:
        said = {finding.check: finding.status for finding in audit(storage)}
    assert said["adapters are distinct and trained"] == "not applicable"
    assert "failed" not in said.values()


def test_a_sweep_goes_on_from_a_copy(sound, packed, tmp_path):
    """What is stored is not trained again; what needs weights says that they are not there."""
    unpack(packed, str(tmp_path / "copy"))
    copy, trials = Store(str(tmp_path / "copy")), [trial for trial, _ in sound.trials]
    plan = make_plan(Sweep(base=sound.lora), copy, None, rows=trials)
    assert plan.is_done and len(plan.stored) == len(plan.needed) == 7
    folder = member_folder(sound.lora.member_id(0))
    with pytest.raises(ValueError, match=f"is a copy without {WEIGHTS}; use the storage"):
        copy.read(folder, WEIGHTS)


def test_an_entry_is_in_the_first_sweep_that_has_it(sound, tmp_path):
    table = sound.store.read_table("toy")
    renamed = pa.array(["other"] * len(table))
    sound.store.write_table(
        "other", table.set_column(table.schema.get_field_index("sweep"), "sweep", renamed)
    )
    pack(sound.store.storage.uri, ["toy", "other"], tmp_path / "archive")
    sizes = {
        sweep: (tmp_path / "archive" / sweep / "predictions.parquet").stat().st_size
        for sweep in ("toy", "other")
    }
    assert sizes["other"] < sizes["toy"] / 2
    with opened(str(tmp_path / "archive")) as storage:
        assert Store(storage).storage.names("sweeps") == ["other", "toy"]
        assert len(load_trials(storage, "other").rows) == len(table)


def test_a_changed_or_missing_file_is_refused(packed, tmp_path):
    for number, change in enumerate(
        (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"))
    ):
        broken = tmp_path / f"broken-{number}"
        shutil.copytree(packed, broken)
        change(broken / "toy" / "curves.parquet")
        with pytest.raises(
            ValueError, match=r"curves.parquet differs from its checksum in SHA256SUMS, or is missing"
        ):
            unpack(broken, str(tmp_path / "copy"))


def test_the_command_packs_and_unpacks(sound, packed, tmp_path, capsys):
    again = tmp_path / "again"
    assert archive.main(["pack", sound.store.storage.uri, str(again), "toy"]) == 0
    assert files_of(again) == files_of(packed), "the same storage makes the same archive"
    assert archive.main(["unpack", str(again), str(tmp_path / "copy")]) == 0
    assert archive.main(["pack", str(tmp_path / "copy"), str(tmp_path / "twice"), "toy"]) == 0
    assert files_of(tmp_path / "twice") == files_of(packed), "a copy's archive is the storage's"
    assert archive.main(["pack", sound.store.storage.uri, str(again), "tyo"]) == 2
    assert "tyo" in capsys.readouterr().err


def test_a_published_record_names_no_folder_of_its_machine() -> None:
    command = "lorae sweep /home/me/study.py --storage=/data/x/store --set a=1/3 --tracking-uri http://host/x"
    told = placeless(json.dumps({"command": command}))
    assert json.loads(told)["command"] == command.replace("/home/me/", "").replace("/data/x/", "")
