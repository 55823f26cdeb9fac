"""`lorae.Ensemble`: what it says of given inputs is what the sweep stored of the same examples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toys import OPTIONS, Colours
from trained import files, swept

import lorae
from lorae import metrics
from lorae.draws import MCDropout
from lorae.engine.ensembles import Ensemble
from lorae.lookup import find_trial
from lorae.methods import Full, InContext, LastLayer, Lora, Vera
from lorae.metrics.conformal import conformal_sets, conformal_threshold
from lorae.regularizers import AdapterDropout, Masksembles
from lorae.results import read_trials, trial_id
from lorae.store.names import RECORD, member_folder
from lorae.store.store import Store
from lorae.tasks.base import Prompt
from lorae.trial import AdamW, Budget

SHORT = Budget(batch_size=4, steps=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": Lora(rank=2)},
        {"method": Vera(rank=4)},
        {"method": Lora(rank=2), "combine": "logits"},
        {"method": Lora(rank=2), "combine": "weights"},
        {"method": Full()},
        {"method": LastLayer(std=0.1)},
        {"method": InContext(2), "optimizer": AdamW(), "budget": Budget(steps=1, max_tokens=60)},
        {"regularizers": (AdapterDropout(0.2),), "draws": MCDropout(3)},
        {"regularizers": (Masksembles(2, 2.0),)},
        {"optimizer": AdamW(lr=1e-2, schedule="cyclic", cycles=2)},
    ],
    ids=lambda changes: "-".join(f"{v.label}" if hasattr(v, "label") else str(v) for v in changes.values())[
        :60
    ],
)
def test_the_texts_of_the_test_set_get_what_the_sweep_stored(tiny_trial, tmp_path, changes):
    trial = tiny_trial(**{"budget": SHORT, "members": 2} | changes)
    storage = swept(tmp_path, trial)
    store, before = Store(storage), files(storage)
    (row,) = read_trials(store, "toy").to_pylist()
    stack, folders = replace(trial), [member_folder(m) for m in trial.member_ids()]
    ensemble = Ensemble.load(storage)
    examples = stack.task.examples("test")
    found = ensemble.predict([{"id": e.id, "text": e.question} for e in examples])
    labels_N = np.array([e.label for e in examples])

    logp_NC = np.log(found.probabilities)
    unscaled = metrics.log_softmax(logp_NC * ensemble.temperature)
    assert metrics.ensemble_nll(unscaled, labels_N) == pytest.approx(row["ensemble_nll"], abs=1e-5)
    assert metrics.acc(unscaled, labels_N) == row["acc"]
    assert found.ids == tuple(e.id for e in examples) and len(found) == len(examples)
    assert set(found.labels) <= set(OPTIONS)
    assert found.labels == tuple(OPTIONS[c] for c in logp_NC.argmax(axis=1))
    if trial.combine != "weights":
        stored = store.predictions(folders, trial.eval_set(trial.task, "test")).logits_MNC
        draws = stored.reshape(2, -1, *stored.shape[1:])
        expected = np.exp(metrics.log_softmax(draws)).mean(axis=1)
        np.testing.assert_allclose(found.member_probabilities, expected, atol=1e-5)
        assert found.mutual_information.mean() == pytest.approx(row["mutual_information"], abs=1e-5)
    assert files(storage) == before, "a prediction is no member's, and in no table"
    again = ensemble.predict([e.question for e in examples])
    if trial.draws is None:  # noise is of the example's id, which is that of its text here
        np.testing.assert_allclose(again.probabilities, found.probabilities, atol=1e-6)


@pytest.mark.slow
def test_one_text_many_texts_rows_and_frames_are_the_same(stored):
    ensemble = lorae.Ensemble.load(stored.storage, trial_id(stored.trials[1])[:8])
    assert ensemble.num_members == 3
    texts = ["w3 w17 w5", "w1 w2", "w8 w0 w30 w4"]
    many = ensemble.predict(texts)
    for inputs in (
        tuple(texts),
        np.array(texts),
        pd.Series(texts),
        pd.DataFrame({"sentence": texts}),
        [{"question": text, "options": list(OPTIONS)} for text in texts],
    ):
        np.testing.assert_array_equal(ensemble.predict(inputs).probabilities, many.probabilities)
    one = ensemble.predict(texts[1])
    np.testing.assert_allclose(one.probabilities[0], many.probabilities[1], atol=1e-6)
    two = ensemble.predict({"text": texts[0], "options": OPTIONS[:2]})
    assert two.options == (OPTIONS[:2],) and two.probabilities.shape == (1, 2)
    expected = many.member_probabilities[:, 0, :2]
    np.testing.assert_allclose(
        two.member_probabilities[:, 0], expected / expected.sum(axis=1, keepdims=True), atol=1e-6
    )
    mixed = ensemble.predict([{"text": texts[0], "options": OPTIONS[:2]}, texts[0]])
    assert mixed.probabilities[0, 2] == 0 and mixed.columns()["probabilities"][0] == pytest.approx(
        two.probabilities[0], abs=1e-6
    )


def test_the_numbers_of_a_prediction_belong_together(stored):
    found = lorae.Ensemble.load(stored.storage, trial_id(stored.trials[1])).predict(["w3 w17", "w9 w9 w9"])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    p = found.probabilities
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(axis=1))
    mean = found.member_probabilities.mean(axis=0)

    def entropy(q):
        return -(q * np.log(q)).sum(axis=-1)

    disagreement = entropy(mean) - entropy(found.member_probabilities).mean(axis=0)
    np.testing.assert_allclose(found.mutual_information, disagreement, atol=1e-9)
    scaled = mean ** (1 / found.temperature)
    np.testing.assert_allclose(p, scaled / scaled.sum(axis=1, keepdims=True), atol=1e-9)
    frame = found.frame()
    assert list(frame["label"]) == list(found.labels)
    assert [c for c in frame if c.startswith("p_")] == [f"p_{name}" for name in OPTIONS]
    assert frame.attrs["temperature"] == found.temperature
    assert found.labels[0] in found._repr_html_() and "member_probabilities" not in frame
    single = lorae.Ensemble.load(stored.storage, trial_id(stored.trials[0])).predict("w3")
    assert np.isnan(single.mutual_information).all()


def test_without_a_name_the_best_ensemble_is_loaded(stored):
    """By validation; a single member only where there is no other."""
    store = Store(stored.storage)
    assert Ensemble.load(stored.storage).row["trial_id"] == trial_id(stored.trials[1])
    rows = [row | {"members": 2} for row in read_trials(store, "toy").to_pylist() if row["members"]]
    for best in (0, 1):
        judged = [row | {"validation_nll": float(n != best)} for n, row in enumerate(rows)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lorae.lookup.trials_of", lambda *where, j=judged: {r["trial_id"]: r for r in j})
            assert find_trial(store)["trial_id"] == rows[best]["trial_id"]


def test_members_that_write_do_not_choose_among_classes(tiny_llama, tmp_path):
    from writers import echo_trial

    trial = echo_trial(tiny_llama, tmp_path)(budget=Budget(batch_size=4, steps=1, max_tokens=64))
    storage = swept(tmp_path / "store", trial)
    with pytest.raises(ValueError, match="write texts; call generate"):
        Ensemble.load(storage).predict("a text")


def test_names_of_trials_that_do_not_exist_are_refused(stored, tmp_path):
    store = Store(stored.storage)
    with pytest.raises(ValueError, match=r"no trial 'nonsense'; it has\n.*members=1"):
        find_trial(store, "nonsense")
    with pytest.raises(ValueError, match="is the beginning of 2 ids"):
        find_trial(store, "")
    with pytest.raises(ValueError, match="has no sweeps; run one first"):
        Ensemble.load(str(tmp_path))


def test_inputs_that_cannot_be_read_are_refused_with_their_place(stored):
    ensemble = Ensemble.load(stored.storage)
    for inputs, message in [
        ([], "nothing to predict"),
        (["w1", ""], "input 1: ''; must be a text that is not empty"),
        (["w1", 3.5], "input 1: 3.5; must be a text"),
        ([{"tweet": "w1"}], "input 0: the columns tweet; must be a text"),
        ([{"text": "w1", "options": ["red"]}], r"input 0: options \['red'\]: must be 2"),
        ([{"text": "w1", "options": "red"}], "input 0: options 'red': must be 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            ensemble.predict(inputs)
    with pytest.raises(ValueError, match="coverage=90: must be in"):
        ensemble.predict("w1", coverage=90)


def test_members_of_an_older_lorae_need_the_names_of_their_classes(stored, tmp_path):
    import shutil

    storage = str(shutil.copytree(stored.storage, tmp_path / "older"))
    store = Store(storage)
    for member in stored.trials[1].member_ids():
        record = json.loads(store.read(member_folder(member), RECORD))
        del record["options"], record["own_prompt"]
        store.write_entry(member_folder(member), {RECORD: json.dumps(record).encode()})
    trial = trial_id(stored.trials[1])
    with pytest.raises(ValueError, match=r"its options are not known.*Ensemble.load\(\.\.\., classes="):
        Ensemble.load(storage, trial).predict("w1 w2")
    found = Ensemble.load(storage, trial, classes=OPTIONS).predict("w1 w2")
    expected = Ensemble.load(stored.storage, trial).predict("w1 w2")
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


class Shouted(Colours):
    """A task whose own code makes prompts."""

    name = "shouted"

    def prompt(self, example):
        return Prompt(
            f"words : {example.question} {example.question} colour :", tuple(f" {o}" for o in OPTIONS)
        )


def test_prompts_that_code_makes_need_the_task(tiny_trial, data_root, tmp_path):
    import shutil

    shutil.copytree(data_root / "colours", tmp_path / "data/shouted")
    trial = tiny_trial(task=Shouted().located(tmp_path / "data"), budget=SHORT, members=2)
    storage = swept(tmp_path / "store", trial)
    text = "w3 w17 w5"
    with pytest.raises(ValueError, match=r"made by its own code; give the task"):
        Ensemble.load(storage).predict(text)
    found = Ensemble.load(storage, task=Shouted()).predict(text)
    members = Ensemble.load(storage, task=Colours()).predict(f"{text} {text}")
    np.testing.assert_allclose(found.probabilities, members.probabilities, atol=1e-6)


def test_long_texts_are_said_to_be_cut(tiny_trial, tmp_path):
    trial = tiny_trial(budget=Budget(batch_size=4, steps=1, max_tokens=20))
    found = Ensemble.load(swept(tmp_path, trial)).predict(["w1 " * 40, "w2"])
    assert any("1 of 2 inputs are longer than max_tokens=20" in note for note in found.notes)


# Conformal sets


def test_conformal_sets_hold_the_truth_as_often_as_promised():
    """Of exchangeable examples: on average over many calibrations, between 1 - alpha and that + 1/(N + 1)."""
    rng, coverage, size = np.random.default_rng(0), 0.8, 49
    held = []
    for _ in range(400):
        logits = rng.normal(size=(2 * size, 4))
        labels = (2 * logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # not calibrated
        logp = metrics.log_softmax(logits)
        threshold = conformal_threshold(logp[:size], labels[:size], coverage)
        kept = conformal_sets(logp[size:], threshold)
        held.append(kept[np.arange(size), labels[size:]].mean())
    assert coverage - 0.01 < np.mean(held) < coverage + 1 / (size + 1) + 0.01


def test_conformal_closed_form():
    p = np.array([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    labels = np.array([0, 1, 0, 1])  # gold probabilities 0.7, 0.4, 0.9, 0.8
    assert conformal_threshold(np.log(p), labels, 0.8) == pytest.approx(-np.log(0.4))  # 4th of ceil(5 * 0.8)
    assert conformal_threshold(np.log(p), labels, 0.6) == pytest.approx(-np.log(0.7))
    assert conformal_threshold(np.log(p), labels, 0.9) == np.inf
    with np.errstate(divide="ignore"):
        new = np.log([[0.5, 0.5, 0.0], [0.3, 0.1, 0.6], [0.99, 0.01, 0.0]])
    kept = conformal_sets(new, -np.log(0.4))
    assert kept.tolist() == [[True, True, False], [False, False, True], [True, False, False]]
    assert conformal_sets(new, np.inf).tolist() == [[True, True, False], [True] * 3, [True, True, False]]
    assert conformal_sets(new, 0.1).sum(axis=1).tolist() == [1, 1, 1], "no set is empty"
