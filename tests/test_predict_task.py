"""Adding a prediction set to stored members gives what the sweep would have stored."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from toys import Colours, Greys

from jobs.predict import read_task, run_predict
from lorae.methods import Lora, Vera
from lorae.predict_task import predict_task
from lorae.run import run_stack
from lorae.sources import Files
from lorae.stack import Stack
from lorae.store import Store, member_folder, reference_folder
from lorae.tasks import MMLU, TREC


@pytest.mark.parametrize("method", [Lora(rank=2), Vera(rank=4)], ids=["lora", "vera"])
def test_a_later_prediction_equals_the_sweeps(tiny_trial, data_root, tmp_path, method):
    trial, greys = tiny_trial(method=method), Greys().located(data_root)
    run_stack(Stack(trial, (0, 1, 2), (greys,)), str(tmp_path / "at-once"))
    run_stack(Stack(trial, (0, 1, 2)), str(tmp_path / "later"))
    at_once, later = Store(str(tmp_path / "at-once")), Store(str(tmp_path / "later"))
    members = [trial.member_id(m) for m in range(3)]
    folders = [*map(member_folder, members), reference_folder(trial.reference_id())]

    assert predict_task(later, members, greys) == 3
    expected = at_once.predictions(folders, greys.eval_set("test"))
    found = later.predictions(folders, greys.eval_set("test"))
    np.testing.assert_array_equal(found.logits_MNC, expected.logits_MNC)
    assert found.example_ids == expected.example_ids
    assert predict_task(later, members, greys) == 0, "nothing is predicted twice"
    assert not any(map(later.damage, folders))


def test_members_of_different_recipes_are_grouped(tiny_trial, data_root, tmp_path):
    trials = [tiny_trial(), tiny_trial(method=Lora(rank=3)), tiny_trial(seed=5)]
    for trial in trials:
        run_stack(Stack(trial, (0,)), str(tmp_path))
    greys = Greys().located(data_root)
    assert predict_task(Store(str(tmp_path)), [t.member_id(0) for t in trials], greys) == 3
    for trial in trials:
        Store(str(tmp_path)).predictions([member_folder(trial.member_id(0))], greys.eval_set("test"))


def test_bad_input_is_refused_before_anything_is_predicted(tiny_trial, tiny_llama, data_root, tmp_path):
    class Other(Greys):
        template = "different : {question}"

    trial, store = tiny_trial(), Store(str(tmp_path / "store"))
    run_stack(Stack(trial, (0,)), store.storage.uri)
    members = [trial.member_id(0)]
    with pytest.raises(ValueError, match="prompt template"):
        predict_task(store, members, Other().located(data_root))
    other = tmp_path / "other"
    shutil.copytree(tiny_llama.path, other)
    config = json.loads((other / "config.json").read_text()) | {"rope_theta": 5.0}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not the backbone that the members were trained on"):
        predict_task(store, members, Greys().located(data_root), backbone=Files(str(other)))
    with pytest.raises(ValueError, match="no stored members"):
        run_predict(str(tmp_path / "empty"), "TREC", None, _trec(tmp_path), None)


def _trec(folder):
    (folder / "trec").mkdir()
    return str(folder)


def test_the_task_is_read_from_words_not_executed(tmp_path):
    assert read_task("TREC") == TREC()
    assert read_task("MMLU('college_physics', num_test=7)") == MMLU("college_physics", num_test=7)
    file = tmp_path / "mine.py"
    file.write_text("from toys import Colours\n")
    assert read_task(f"{file}:Colours(num_test=3)") == Colours(num_test=3)
    for text, message in [
        ("Trecc", "no such task; lorae has ArcChallenge"),
        ("MMLU", "missing 1 required positional"),
        ("TREC(__import__('os'))", "malformed"),
        ("__import__('os').system('true')", "no such task"),
        ("Task", "no such task"),
        ("TREC(", "was never closed"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_task(text)
