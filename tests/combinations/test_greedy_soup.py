"""Greedy soups: recipe 1, its record and folder, later predictions, and what the audit finds."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from stacks import prepared
from toys import Greys

from analysis.audit import audit
from analysis.data import load_trials
from analysis.differences import souping
from lorae.combinations import Greedy
from lorae.engine.adapters import Soup
from lorae.engine.predict_task import predict_soup
from lorae.engine.prediction import draws_nll, predict
from lorae.engine.run import run_stack
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan, soups_of
from lorae.results import trials_table
from lorae.store.names import SOUP_RECORD, WEIGHTS, member_folder, soup_folder
from lorae.store.peft_format import read_stages, read_state, state_bytes
from lorae.store.store import Store
from lorae.trial import Budget, Sweep

ONE_CPU = Devices("cpu", 1, 1)


def test_members_join_by_rising_nll_while_the_soups_does_not_rise():
    """Of models with one weight, whose NLL is its square: 0.9 and 1.0 are worse than 0.9 alone."""
    weights = {"a": 1.0, "b": -1.2, "c": 3.0, "d": 0.9}

    def nll(chosen):
        return float(np.mean([weights[m] for m in chosen]) ** 2)

    for ids in itertools.permutations(weights):
        found = Greedy().choose(ids, nll)
        assert found["ingredients"] == ["d", "b"]
        assert found["validation_nlls"] == pytest.approx([0.81, 0.0225])
    weights = dict.fromkeys("abc", 2.0)
    assert Greedy().choose(["c", "a", "b"], nll)["ingredients"] == ["a", "b", "c"], (
        "what changes nothing joins"
    )
    weights = {"a": 1.0, "b": 1.1, "c": 1.2}
    assert Greedy().choose("abc", nll) == {"ingredients": ["a"], "validation_nlls": [1.0]}


@pytest.fixture
def stored(tiny_trial, tmp_path):
    """Three members, one of which spoils every soup, and both soups of them."""
    base = tiny_trial(budget=Budget(batch_size=4, steps=8), members=3)
    sweep, store = Sweep(base=base, axes={"combine": ["probs", "weights", "greedy"]}), Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    assert len(plan.soups) == 2 and len(plan.stacks) == 1
    run_stack(plan.stacks[0], store.storage.uri)
    spoilt = member_folder(base.member_id(1))
    state = read_state(store.read(spoilt, WEIGHTS))
    store.write_entry(spoilt, {WEIGHTS: state_bytes({name: -4 * value for name, value in state.items()})})
    for soup in soups_of(plan, store).pending:
        run_stack(soup, store.storage.uri)
    store.write_table("soups", trials_table(store, "soups", plan.trials, {}))
    return base, store, sweep


@pytest.mark.slow
def test_a_stored_greedy_soup_is_the_uniform_one_of_its_ingredients(stored, data_root):
    trial, store, sweep = stored
    ids, backbone_data = trial.member_ids(), prepared(trial)
    folder, record = soup_folder(ids, "greedy"), store.soup_record(ids, "greedy")
    assert folder != soup_folder(ids) and folder == soup_folder(ids[::-1], "greedy")
    assert record["members"] == store.soup_record(ids)["members"], "all that it was chosen from"
    backbone, data = backbone_data
    labels_N = np.array([row.label for row in data.validation])
    states = dict(zip(ids, read_stages(store, ids)[-1]))
    inits = {m: trial.member_key(k)["init"] for k, m in enumerate(ids)}
    split = trial.eval_set(trial.task, "validation")

    def logits(chosen, rows):
        answers = rows[0].answer_ids
        with Soup(backbone, trial.method, [inits[m] for m in chosen], [states[m] for m in chosen], answers):
            return predict(backbone, rows)

    def nll(chosen):
        stored = store.predictions([member_folder(chosen[0])], split).logits_MNC
        return draws_nll(logits(chosen, data.validation) if chosen[1:] else stored, labels_N)

    best, *others = sorted(ids, key=lambda m: nll([m]))
    expected = [best]
    for member in others:
        if nll([*expected, member]) <= nll(expected):
            expected.append(member)
    assert record["ingredients"] == expected and 0 < len(expected) < 3
    found = store.predictions([folder], split).logits_MNC
    np.testing.assert_allclose(found, logits(expected, data.validation), atol=1e-5)
    assert np.abs(found - store.predictions([soup_folder(ids)], split).logits_MNC).max() > 1e-3

    greys = Greys().located(data_root)
    assert predict_soup(store, ids, greys, soup="greedy") and not predict_soup(
        store, ids, greys, soup="greedy"
    )
    later = store.predictions([folder], replace(trial, combine="greedy").eval_set(greys, "test"))
    assert len(later.logits_MNC) == 1 and later.logits_MNC.shape[1] == 12
    assert not make_plan(sweep, store, ONE_CPU).soups


@pytest.mark.slow
def test_tables_name_it_and_the_audit_finds_other_ingredients(stored):
    trial, store, _ = stored
    trials = load_trials(store.storage.uri, "soups")
    ensemble, *soups = [cell for cell in trials.cells if cell.members]
    assert [cell.name for cell in soups] == ["LoRA soup of 3", "LoRA greedy soup of 3"]
    assert [cell.rows[0]["forwards_per_prediction"] for cell in (ensemble, *soups)] == [3, 1, 1]
    assert len(souping(trials).blocks[0]) == 2
    assert [f for f in audit(store.storage.uri) if f.status == "failed"] == []
    folder = soup_folder(trial.member_ids(), "greedy")
    record = json.loads(store.read(folder, SOUP_RECORD))
    for changes, fault in [
        ({"ingredients": trial.member_ids()[1:2], "validation_nlls": [1.0]}, "by rising validation NLL"),
        ({"validation_nlls": [0.1, 0.2]}, "raised the soup's validation NLL"),
        ({"validation_nlls": [9.0] * len(record["ingredients"])}, "its validation NLL is"),
        ({"ingredients": ["other"]}, "must be some of its members"),
    ]:
        store.write_entry(folder, {SOUP_RECORD: json.dumps(record | changes).encode()})
        whats = [f.what for f in audit(store.storage.uri) if f.status == "failed"]
        assert any(fault in what for what in whats), (fault, whats)
