"""Texts of stored members: what a sweep of them stores, resuming after a kill, damage, and what rows say."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM
from victims import exit_code, lines, stack_process, wait_until
from writers import FarEcho, echo_trial

import lorae.engine.answers as engine
from analysis.archive import pack, unpack
from analysis.audit import audit
from analysis.data import load_trials
from analysis.generation import stored_answers
from analysis.texts import Texts
from lorae.backbone.loading import load_backbone
from lorae.engine.run import run_stack
from lorae.planning.estimate import Devices
from lorae.planning.plan import make_plan, soups_of
from lorae.planning.stack import Stack, Stopped
from lorae.results import row_answers, text_metrics, trials_table
from lorae.sources import Files
from lorae.store.answers import ANSWERS, Answer, answer_set, answers_bytes, answers_file, fault, read_answers
from lorae.store.names import WEIGHTS, member_folder, reference_folder, soup_folder, texts_folder
from lorae.store.predictions import parquet_bytes
from lorae.store.store import Store
from lorae.tasks.base import Generate
from lorae.tasks.rotten_tomatoes import RottenTomatoes
from lorae.tasks.scoring.generate import IS_TRUE
from lorae.trial import Sweep, Trial

ONE_CPU = Devices("cpu", 1, 1)
WRITING = Generate(6, samples=2, temperature=0.7, lockstep=("mean", "logits"))


@pytest.fixture(scope="module", name="make_trial")
def make_echo_trial(tiny_llama, tmp_path_factory):
    return echo_trial(tiny_llama, tmp_path_factory.mktemp("echo"))


def run(sweep: Sweep, storage: str) -> Store:
    """Everything that a sweep lacks, as the driver runs it."""
    store = Store(storage)
    plan = make_plan(sweep, store, ONE_CPU)
    for stack in plan.stacks:
        assert not run_stack(stack, storage).failed
    for stack in soups_of(plan, store).pending:
        run_stack(stack, storage)
    return store


def sweep_of(trial: Trial, **axes) -> Sweep:
    ood = [FarEcho(source=Files(str(Path(trial.task.source.path).parent / "far_echo")))]
    return Sweep(base=replace(trial, task=replace(trial.task, scoring=WRITING)), axes=axes, ood=ood)


@pytest.fixture(scope="module")
def swept(make_trial, tmp_path_factory):
    """A small sweep and its store: the backbone, one member, two members, and their soup."""
    storage = tmp_path_factory.mktemp("store")
    trial = make_trial()
    sweep = sweep_of(trial, members=[1, 2], combine=["probs", "weights"])
    return sweep, run(sweep, str(storage))


@pytest.mark.slow
def test_a_sweep_stores_what_members_write_alone_and_together(swept):
    sweep, store = swept
    two = next(t for t in sweep.trials() if t.members == 2 and t.combine == "probs")
    ids, num_test = two.member_ids(), 14
    name = answer_set(two.task.eval_set("test"), WRITING.decoding)
    own = store.answers(member_folder(ids[1]), name)
    assert list(own.members) == [ids[1]] and len(own.by_example()) == num_test
    kinds = [(a.kind, a.source, a.draw) for a in own.answers if a.example_id == "test-0"]
    assert kinds == [
        ("reference", -1, 0), ("reference", -1, 1), ("greedy", 0, 0), ("sample", 0, 0), ("sample", 0, 1)
    ]  # fmt: skip
    together = store.answers(texts_folder(ids), name)
    assert list(together.members) == ids
    kinds = [(a.kind, a.source, a.draw) for a in together.answers if a.example_id == "test-1"]
    of_members = [(kind, m, k) for m in (0, 1) for kind, k in (("greedy", 0), ("sample", 0), ("sample", 1))]
    assert kinds == [("reference", -1, 0), *of_members, ("lockstep", -1, 0), ("lockstep", -1, 1)]
    assert {a.kind for a in store.answers(soup_folder(ids), name).answers} == {"reference", "soup"}
    assert {a.kind for a in store.answers(reference_folder(two.reference_id()), name).answers} == {
        "reference", "greedy"
    }  # fmt: skip


def test_a_member_says_of_its_own_text_in_an_ensemble_what_it_says_alone(swept):
    sweep, store = swept
    two = next(t for t in sweep.trials() if t.members == 2)
    name = answer_set(two.task.eval_set("test"), WRITING.decoding)
    together = store.answers(texts_folder(two.member_ids()), name).answers
    for m, member in enumerate(two.member_ids()):
        alone = {
            (a.example_id, a.kind, a.draw): a for a in store.answers(member_folder(member), name).answers
        }
        shared = [a for a in together if a.source in (-1, m) and (a.example_id, a.kind, a.draw) in alone]
        assert len(shared) == len(alone)
        for a in shared:
            one = alone[a.example_id, a.kind, a.draw]
            assert (one.text, one.token_ids, one.finished) == (a.text, a.token_ids, a.finished)
            np.testing.assert_allclose(one.log_probs_MT[0], a.log_probs_MT[m], atol=2e-5)
            np.testing.assert_allclose(one.entropies_MT[0], a.entropies_MT[m], atol=2e-5)


def test_what_members_say_of_the_references_is_what_they_predict(swept):
    """Answers and predictions are computed apart: packed rows of one reference, and rows of all."""
    sweep, store = swept
    two = next(t for t in sweep.trials() if t.members == 2)
    eval_set = two.task.eval_set("test")
    answers = store.answers(texts_folder(two.member_ids()), answer_set(eval_set, WRITING.decoding)).answers
    first = [a for a in answers if a.kind == "reference" and a.draw == 0]
    predicted = store.predictions([member_folder(m) for m in two.member_ids()], eval_set)
    log_probs = predicted.logits_MNC[:, :, 0] - np.logaddexp(*np.moveaxis(predicted.logits_MNC, 2, 0))
    np.testing.assert_allclose(log_probs, np.concatenate([a.log_probs_MT for a in first], 1), atol=2e-5)


def test_a_greedy_text_is_the_most_probable_and_ends(swept):
    sweep, store = swept
    two = next(t for t in sweep.trials() if t.members == 2)
    name = answer_set(two.task.eval_set("test"), WRITING.decoding)
    for a in store.answers(texts_folder(two.member_ids()), name).answers:
        assert 1 <= len(a.token_ids) <= 6
        assert a.finished or len(a.token_ids) == 6, "cut at the maximum, and marked"
        if a.kind == "greedy":  # no token has a larger probability than 1 - the others'
            entropy, log_p = a.entropies_MT[a.source], a.log_probs_MT[a.source]
            assert (log_p >= -entropy - 1e-5).all(), "the largest probability is at least exp(-entropy)"


def test_rows_have_the_perplexity_and_quality_of_their_texts_and_no_made_up_number(swept):
    sweep, store = swept
    trials = [(t, sweep.eval_tasks(t)) for t in sweep.trials()]
    rows = trials_table(store, "echo", trials, {"command": "x", "commit": "y"}).to_pylist()
    assert [(r["members"], r["combine"], r["status"]) for r in rows] == [
        (0, "probs", "done"), (1, "probs", "done"), (2, "probs", "done"), (2, "weights", "done")
    ]  # fmt: skip
    two = rows[2]
    answers = row_answers(store, two, json.loads(two["eval_sets"])["test"])
    references = [a for a in answers if a.kind == "reference" and a.draw == 0]
    log_mean = np.concatenate([np.log(np.exp(a.log_probs_MT.astype(float)).mean(0)) for a in references])
    assert two["ensemble_nll"] == pytest.approx(-log_mean.mean(), abs=2e-5)
    assert two["num_examples"] == 14 and two["mean_member_nll"] > two["ensemble_nll"]
    assert two["validation_nll"] != two["ensemble_nll"] and 0 <= two["token_f1"] <= 1
    for row in rows:
        made_up = (
            "acc",
            "f1",
            "brier",
            "ece15",
            "aurc",
            "mutual_information",
            "temperature",
            "auroc_msp__far_echo",
        )
        assert {row[name] for name in made_up} == {None} and row["number_match"] is None
    assert rows[3]["mean_member_nll"] is None, "a soup does not tell its members' NLLs"


def test_a_repeated_sweep_has_nothing_to_do(swept):
    sweep, store = swept
    assert make_plan(sweep, store, ONE_CPU).is_done
    other = replace(WRITING, samples=3)
    again = replace(sweep, base=replace(sweep.base, task=replace(sweep.base.task, scoring=other)))
    plan = make_plan(again, store, ONE_CPU)
    assert not plan.num_to_train and not plan.is_done, "members are stored, what they write is not"


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_example(make_trial, tmp_path, monkeypatch):
    """The third part is interrupted; the other run decodes no example a second time, to the same bytes."""
    monkeypatch.setattr(engine, "AT_ONCE", 5)
    trial = sweep_of(make_trial()).base
    stack, decoded = Stack(trial, (0, 1)), []
    whole = engine.own_texts

    def counted(backbone, scoring, examples, kind, streams=None):
        if streams:
            decoded.extend(e.id for e in examples)
        return whole(backbone, scoring, examples, kind, streams)

    monkeypatch.setattr(engine, "own_texts", counted)
    run_stack(stack, str(tmp_path / "whole"))
    expected, decoded[:] = list(decoded), []

    def killed() -> bool:
        return len(decoded) >= 15

    with pytest.raises(Stopped):
        run_stack(stack, str(tmp_path / "killed"), should_stop=killed)
    before = list(decoded)
    assert before and len(before) < len(expected)
    run_stack(stack, str(tmp_path / "killed"))
    assert decoded == expected, "each example once"
    stores = [Store(str(tmp_path / name)) for name in ("whole", "killed")]
    assert not stores[1].storage.names("unfinished")
    for member in stack.member_ids():
        for name in map(answers_file, stack.answer_sets()):
            contents = [store.read(member_folder(member), name) for store in stores]
            assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.process
def test_a_process_that_is_killed_while_it_writes_goes_on_at_the_example(make_trial, tmp_path):
    """SIGKILL between two examples: what was kept is not written again, and the bytes are those of a run that
    was left alone."""
    stack = Stack(sweep_of(make_trial()).base, (0, 1))
    whole, log = tmp_path / "whole", tmp_path / "killed.log"
    assert exit_code(stack_process(stack, whole, tmp_path / "whole.log", texts_at_once=1)) == 0
    killed = tmp_path / "killed"

    def wrote() -> list[str]:
        return [line.split()[1] for line in lines(log) if line.startswith("wrote ")]

    victim = stack_process(stack, killed, log, texts_at_once=1)
    wait_until(lambda: len(wrote()) >= 8, victim)
    victim.kill()
    assert exit_code(victim) == -signal.SIGKILL
    before, store = wrote(), Store(str(killed))
    assert store.storage.names("unfinished") and not store.has_answers(
        member_folder(stack.member_ids()[1]), [*stack.answer_sets()]
    )
    assert exit_code(stack_process(stack, killed, log, texts_at_once=1)) == 0
    again = wrote()[len(before) :]
    expected = [line.split()[1] for line in lines(tmp_path / "whole.log") if line.startswith("wrote ")]
    assert len(set(again) & set(before)) <= 1, "at most the example that was being written"
    assert sorted({*before, *again}) == sorted(expected) and not store.storage.names("unfinished")
    for member in stack.member_ids():
        for name in map(answers_file, stack.answer_sets()):
            contents = [Store(str(s)).read(member_folder(member), name) for s in (whole, killed)]
            assert contents[0] == contents[1]


@pytest.mark.slow
def test_unfinished_answers_of_other_members_are_not_taken_up(make_trial, tmp_path, monkeypatch):
    stack, storage = Stack(sweep_of(make_trial()).base, (0,)), str(tmp_path)
    store = run_and_store(stack, storage)
    (member,) = stack.member_ids()
    folder, name = member_folder(member), next(iter(stack.answer_sets()))
    found = store.answers(folder, name)
    stale = [replace(a, text="stale") for a in found.answers]
    files = {n: store.read(folder, n) for n in store.files(folder) if n != answers_file(name)}
    store.discard(folder)
    store.write_entry(folder, files)
    part = list(dict.fromkeys(a.example_id for a in stale))
    content = answers_bytes(member, name, {member: "0" * 64}, stale)
    store.storage.write(engine.unfinished_file(folder, name, 0), content)
    run_stack(stack, storage)
    again = store.answers(folder, name)
    assert [a.text for a in again.answers] == [a.text for a in found.answers] and part


def run_and_store(stack: Stack, storage: str) -> Store:
    run_stack(stack, storage)
    return Store(storage)


@pytest.mark.slow
def test_texts_of_members_that_were_trained_again_are_written_again(make_trial, tmp_path):
    trial = sweep_of(make_trial(members=2)).base
    store = run(Sweep(base=trial), str(tmp_path))
    ids = trial.member_ids()
    folder, name = texts_folder(ids), answer_set(trial.task.eval_set("test"), WRITING.decoding)
    assert not store.texts_are_of_others(ids)
    found = store.answers(folder, name)
    others = answers_bytes(folder.rpartition("/")[2], name, dict.fromkeys(ids, "0" * 64), found.answers)
    store.write_entry(folder, {answers_file(name): others})
    assert store.texts_are_of_others(ids)
    with pytest.raises(ValueError, match="trained again; repeat the sweep"):
        row = {"decoding": WRITING.decoding, "member_ids": ids, "combine": "probs"}
        row_answers(store, row, trial.task.eval_set("test"))
    run(Sweep(base=trial), str(tmp_path))
    assert store.answers(folder, name).members == store.weight_checksums(ids)


def test_p_true_is_what_the_model_says_of_its_own_answer(make_trial, tmp_path):
    """By transformers, of the backbone; and both members are asked about each member's answer."""
    trial = sweep_of(make_trial(members=2)).base
    scoring = replace(WRITING, samples=0, p_true=True)
    trial = replace(trial, task=replace(trial.task, scoring=scoring))
    sweep = Sweep(base=trial, axes={"members": [2]})
    store, name = run(sweep, str(tmp_path)), answer_set(trial.task.eval_set("test"), scoring.decoding)
    of_backbone = store.answers(reference_folder(trial.reference_id()), name).by_example()
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    tokenizer = load_backbone(trial.backbone, "fp32", "cpu").tokenizer
    examples = trial.task.examples("test")[:4]
    for example in examples:
        prompt = tokenizer(trial.task.prompt(example).text)["input_ids"]
        (greedy,) = [a for a in of_backbone[example.id] if a.kind == "greedy"]
        answer = [t for t in greedy.token_ids if t != tokenizer.eos_token_id]
        asked = [*prompt, *answer, *tokenizer(IS_TRUE)["input_ids"]]
        verdicts = [a for a in of_backbone[example.id] if a.kind == "verdict"]
        assert [(a.source, a.draw, a.text) for a in verdicts] == [(0, 0, "(A)"), (0, 1, "(B)")]
        for verdict in verdicts:
            ids = tokenizer(verdict.text)["input_ids"]
            with torch.no_grad():
                log_p = lm(torch.tensor([asked + ids])).logits[0].log_softmax(-1)
            expected = [log_p[len(asked) + k - 1, token].item() for k, token in enumerate(ids)]
            np.testing.assert_allclose(verdict.log_probs_MT[0], expected, atol=1e-4)
    together = store.answers(texts_folder(trial.member_ids()), name).by_example()[examples[0].id]
    assert [(a.source, a.draw) for a in together if a.kind == "verdict"] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    row = trials_table(store, "echo", [(trial, [])], {"command": "x", "commit": "y"})
    store.write_table("echo", row)
    texts = Texts(trials := load_trials(str(tmp_path), "echo"), functools.partial(stored_answers, trials))
    assert {line.source for line in texts.lines(texts.cells[0].recipe) if line.score == "p_false"} == {
        "one", "members"
    }  # fmt: skip
    assert Generate().decoding != Generate(p_true=True).decoding


def test_a_member_that_breaks_is_cut_marked_and_counted(make_trial, tmp_path):
    """Its weights become NaN after it was trained, and other samples are asked for: they are stored, of the
    other member as ever, and the table counts what is not finite."""
    trial = sweep_of(make_trial(members=2)).base
    silent = replace(trial, task=replace(trial.task, scoring=replace(WRITING, samples=0)))
    store = run(Sweep(base=silent), str(tmp_path))
    sound, broken = map(member_folder, trial.member_ids())
    tensors = load(store.read(broken, WEIGHTS))
    store.write_entry(broken, {WEIGHTS: save({name: t * float("nan") for name, t in tensors.items()})})
    run(Sweep(base=trial), str(tmp_path))
    name = answer_set(trial.task.eval_set("test"), WRITING.decoding)
    of_broken = [a for a in store.answers(broken, name).answers if a.kind != "reference"]
    assert {(a.text, a.token_ids, a.finished) for a in of_broken} == {("", (), False)}
    assert all(len(a.token_ids) for a in store.answers(sound, name).answers)
    together = store.answers(texts_folder(trial.member_ids()), name).answers
    for a in together:
        assert np.isnan(a.log_probs_MT[1]).all() and np.isfinite(a.log_probs_MT[0]).all()
        assert (a.kind == "lockstep") <= (not a.token_ids and not a.finished)
    rows = trials_table(store, "echo", [(trial, [])], {"command": "x", "commit": "y"})
    store.write_table("echo", rows)
    texts = Texts(trials := load_trials(str(tmp_path), "echo"), functools.partial(stored_answers, trials))
    (cell,) = [cell for cell in texts.cells if cell.members]
    found = texts.quality(cell, "member", 1)
    assert found["unfinished"].value >= 0.5 and found["not_finite"].value == 0.5
    assert texts.quality(cell, "mean", 2)["unfinished"].value == 1
    faults = [f for f in audit(str(tmp_path)) if f.status == "failed" and f.check == "answers are whole"]
    others = silent.task.scoring.decoding  # what the member wrote with the weights that it had before
    assert faults and all(others in f"{f.where} {f.what}" for f in faults)


def test_an_ood_task_of_another_scoring_is_refused(make_trial):
    sweep = Sweep(base=make_trial(), ood=[RottenTomatoes()])
    with pytest.raises(ValueError, match=r"rotten_tomatoes is scored by LabelWords.*write answers, choose"):
        sweep.eval_tasks(sweep.base)


def audited(store: Store, sweep: Sweep) -> list[str]:
    """Faults that the audit finds in answers."""
    trials = [(t, sweep.eval_tasks(t)) for t in sweep.trials()]
    store.write_table("echo", trials_table(store, "echo", trials, {"command": "x", "commit": "y"}))
    found = audit(store.storage.uri)
    faults = [f for f in found if f.status == "failed"]
    assert {f.check for f in faults} <= {"answers are whole"}
    return [f"{f.where}: {f.what}" for f in faults]


@pytest.mark.slow
def test_the_audit_reads_answers_and_names_what_contradicts_them(swept, tmp_path):
    sweep, store = swept
    assert audited(store, sweep) == []
    copy = Store(str(shutil.copytree(store.storage.uri, tmp_path / "copy")))
    two = next(t for t in sweep.trials() if t.members == 2)
    ids, name = two.member_ids(), answer_set(two.task.eval_set("validation"), WRITING.decoding)

    def stored_as(folder: str, members: dict[str, str], answers) -> None:
        content = answers_bytes(folder.rpartition("/")[2], name, members, answers)
        copy.write_entry(folder, {answers_file(name): content})

    folder = texts_folder(ids)
    sound = copy.answers(folder, name)
    stored_as(folder, dict(reversed(sound.members.items())), sound.answers)
    assert any("which are not the members of" in fault for fault in audited(copy, sweep))
    stored_as(folder, dict.fromkeys(ids, "0" * 64), sound.answers)
    assert any("with other weights than are stored" in fault for fault in audited(copy, sweep))
    changed = [replace(a, text="w0") if a.kind == "reference" else a for a in sound.answers]
    stored_as(folder, sound.members, changed)
    assert any("other references than in" in fault for fault in audited(copy, sweep))


@pytest.mark.slow
def test_an_archive_holds_the_texts(swept, tmp_path):
    sweep, store = swept
    audited(store, sweep)
    pack(store.storage.uri, ["echo"], tmp_path / "archive")
    unpack(tmp_path / "archive", str(tmp_path / "unpacked"))
    copy = Store(str(tmp_path / "unpacked"))
    rows = copy.read_table("echo").to_pylist()
    for row in rows:
        eval_set = json.loads(row["eval_sets"])["test"]
        found, expected = (row_answers(s, row, eval_set) for s in (copy, store))
        assert [(a.text, a.log_probs_MT.tolist()) for a in found] == [
            (a.text, a.log_probs_MT.tolist()) for a in expected
        ]
    assert not [f for f in audit(copy.storage.uri) if f.status == "failed"]


# The file
# ----------------------------------------------------------------------------------------------------------


def answer(**changes) -> Answer:
    plain = Answer(
        *("e1", "greedy", 0, 0, "w1 w2", (7, 8, 9), True),
        np.log(np.array([[0.5, 0.25, 1.0], [0.5, 0.5, 0.125]], np.float32)),
        np.array([[0.1, 0.2, 0.0], [0.3, 0.2, 0.1]], np.float32),
        np.array([0.1, 0.5, 0.2], np.float32),
    )
    return replace(plain, **changes)


MEMBERS = {"a" * 16: "1" * 64, "b" * 16: "2" * 64}


def test_answers_are_read_as_they_were_written():
    other = answer(example_id="e2", kind="lockstep", source=-1, token_ids=(1,), finished=False, text="")
    other = replace(
        other, log_probs_MT=-np.ones((2, 1), np.float32), entropies_MT=np.ones((2, 1), np.float32),
        mean_entropy_T=np.ones(1, np.float32),
    )  # fmt: skip
    found = read_answers(answers_bytes("pool", "echo__test__x-y", MEMBERS, [answer(), other]), "here")
    assert found.members == MEMBERS and list(found.by_example()) == ["e1", "e2"]
    for one, expected in zip(found.answers, (answer(), other), strict=True):
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(one, name), value)


@pytest.mark.parametrize(
    "column,value,why",
    [
        ("log_probs", [0.5, -1, -1, -1, -1, -1], "a log-probability is above 0"),
        ("log_probs", [-1.0], "row 0 has 1 log_probs of 3 tokens by 2 members"),
        ("entropies", [-0.5, 1, 1, 1, 1, 1], "an entropy is below 0"),
        ("mean_entropy", [float("inf"), 1, 1], "a number is infinite"),
        ("entropies", [float("nan"), 1, 1, 1, 1, 1], "has an entropy and no log-probability by a member"),
        ("kind", "opinion", "kind 'opinion', must be one of"),
        ("source", 2, "of no member of the pool of 2"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(column, value, why):
    row = read_table(answers_bytes("pool", "echo__test__x-y", MEMBERS, [answer()])).to_pylist()[0]
    table = pa.Table.from_pylist([row | {column: value}], schema=ANSWERS)
    assert why in (fault(table, 2) or "")


def read_table(content: bytes) -> pa.Table:
    return pa.parquet.read_table(pa.BufferReader(content))


def test_a_text_that_repeats_and_one_without_members_are_refused():
    content = answers_bytes("pool", "echo__test__x-y", MEMBERS, [answer(), answer()])
    with pytest.raises(ValueError, match="here cannot be used: a text repeats"):
        read_answers(content, "here")
    table = read_table(answers_bytes("pool", "x", MEMBERS, [answer()])).replace_schema_metadata({})
    with pytest.raises(ValueError, match="does not say whose members"):
        read_answers(parquet_bytes(table), "here")


def test_numbers_of_a_member_that_broke_are_stored_as_nan():
    broken = np.array([[-1.0, -1.0, -1.0], [-1.0, np.nan, np.nan]], np.float32)
    wrote = answer(log_probs_MT=broken, entropies_MT=-broken, mean_entropy_T=-broken[1])
    (found,) = read_answers(answers_bytes("pool", "x", MEMBERS, [wrote]), "here").answers
    np.testing.assert_array_equal(found.log_probs_MT, broken)
    np.testing.assert_array_equal(found.mean_entropy_T, -broken[1])


def test_answers_of_another_entry_or_set_are_refused(tmp_path):
    store = Store(str(tmp_path))
    content = answers_bytes("one", "echo__test__x-y", MEMBERS, [answer()])
    for folder, name, why in [
        ("pools/two", "echo__test__x-y", "is of one"),
        ("pools/one", "echo__test__z-y", "has the answers of echo__test__x-y"),
    ]:
        store.write_entry(folder, {answers_file(name): content})
        with pytest.raises(ValueError, match=why):
            store.answers(folder, name)


def test_quality_is_of_the_text_that_the_pool_gives():
    gold = answer(kind="reference", source=-1, text="w1")
    right, wrong = answer(text="W1."), answer(text="w2", source=1)
    assert text_metrics([gold, right])["exact_match"] == 1.0
    assert text_metrics([gold, right, wrong])["exact_match"] is None, "several, and none of them together"
    together = answer(kind="lockstep", source=-1, text="w2 w1")
    assert text_metrics([gold, right, wrong, together]) == {
        "exact_match": 0.0, "token_f1": pytest.approx(2 / 3), "number_match": None
    }  # fmt: skip
