"""The audit passes a sound storage, and each check fails on one that is broken in exactly its way."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sound import TEST_ROWS, Sound
from toys import Greys

from analysis.audit import audit, text
from analysis.audit_predictions import below_chance
from analysis.findings import Finding
from lorae.draws import TFB
from lorae.engine.run import run_stack
from lorae.methods import Lora, Vera
from lorae.planning.stack import Stack
from lorae.results import COST, COUNTED, FLAGS, OLDER, SCALED, read_trials, trials_table
from lorae.sources import Files
from lorae.store.names import WEIGHTS, member_folder, reference_folder
from lorae.store.predictions import SCHEMA, parquet_bytes, prediction_file


def path_of(stored: Sound, folder: str, name: str = "") -> Path:
    return Path(stored.store.storage.path(folder)) / name


@pytest.mark.slow
def test_a_sound_storage_passes_every_check(original):
    findings = audit(original.store.storage.uri)
    assert [f.status for f in findings].count("passed") == 14, text(findings)
    assert audit(original.store.storage.uri, "toy") == findings
    assert text(findings).endswith("18 checks: 14 passed, 0 failed, 4 not applicable")


@pytest.mark.slow
def test_a_check_without_anything_to_look_at_says_so(sound):
    others = [pair for pair in sound.trials if not isinstance(pair[0].method, Vera)]
    sound.store.write_table("lora", trials_table(sound.store, "lora", others, {}))
    findings = audit(sound.store.storage.uri, "lora")
    found = {f.check: f.status for f in findings if f.status != "passed"}
    untuned = ("recipes are tuned alike", "choices come from validation", "students have their teachers")
    assert found == dict.fromkeys(("VeRA members differ", "answers are whole", *untuned), "not applicable")
    assert "not applicable  VeRA members differ: no VeRA" in text(findings)


def test_what_is_not_there_is_refused(sound, tmp_path):
    with pytest.raises(ValueError, match="no sweep tyo; did you mean toy"):
        audit(sound.store.storage.uri, "tyo")
    with pytest.raises(ValueError, match="holds no member and no sweep"):
        audit(str(tmp_path / "elsewhere"))


# Entries ---------------------------------------------------------------------------------------------------


def test_flipped_byte(sound):
    folder, name = member_folder(sound.lora.member_id(1)), prediction_file(sound.lora.task.eval_set("test"))
    content = bytearray(path_of(sound, folder, name).read_bytes())
    content[100] ^= 4
    path_of(sound, folder, name).write_bytes(content)
    fault = sound.only_fault("entries are whole")
    assert fault.where == folder and name in fault.what and "checksum" in fault.what


@pytest.mark.parametrize("kind", ["member", "reference"])
def test_deleted_entry(sound, kind):
    trial = sound.kl
    folder = member_folder(trial.member_id(0)) if kind == "member" else reference_folder(trial.reference_id())
    shutil.rmtree(path_of(sound, folder))
    fault = sound.only_fault("entries are whole")
    assert fault.where == folder
    assert f"named by {1 if kind == 'member' else 4} trials, but not stored" in fault.what


def test_entry_without_done(sound):
    folder = member_folder(sound.lora.member_id(0))
    sound.store.discard(folder)
    fault = sound.only_fault("entries are whole")
    assert fault.where == folder and "no DONE.json" in fault.what


def test_entry_of_another_schema_or_without_an_adapter(sound):
    first, second = (member_folder(m) for m in sound.lora.member_ids())
    done = json.loads(path_of(sound, first, "DONE.json").read_text())
    path_of(sound, first, "DONE.json").write_text(json.dumps(done | {"schema": 99}))
    done = json.loads(path_of(sound, second, "DONE.json").read_text())
    del done["files"][WEIGHTS]
    path_of(sound, second, "DONE.json").write_text(json.dumps(done))
    faults = {f.where: f for f in sound.faults()}
    assert {f.check for f in faults.values()} == {"entries are whole"} and set(faults) == {first, second}
    assert "schema 99" in faults[first].what and f"lacks {WEIGHTS}" in faults[second].what


def test_failed_member_is_named_once_with_its_reason(sound):
    member = sound.vera.member_id(2)
    shutil.rmtree(path_of(sound, member_folder(member)))
    sound.store.write_failure(member, "loss nan\nat step 3")
    fault = sound.only_fault("entries are whole")
    assert fault.where == member_folder(member)
    assert "not stored" in fault.what and "loss nan at step 3" in fault.what


@pytest.mark.slow
def test_a_sweep_is_not_blamed_for_the_entries_of_others(sound):
    others = [pair for pair in sound.trials if not isinstance(pair[0].method, Vera)]
    sound.store.write_table("lora", trials_table(sound.store, "lora", others, {}))
    sound.store.discard(member_folder(sound.vera.member_id(0)))
    sound.store.write_failure("0123456789abcdef", "loss nan")
    assert sound.faults("lora") == []
    assert len(sound.faults("toy")) == 1 and len(sound.faults()) == 2


def test_member_with_the_record_of_another(sound):
    first, second = (member_folder(m) for m in sound.lora.member_ids())
    sound.store.write_entry(second, {"member.json": sound.store.read(first, "member.json")})
    fault = sound.faults()[0]
    assert fault.check == "entries are whole" and fault.where == second
    assert f"{second}/member.json is of {first.rpartition('/')[2]}" in fault.what


def test_trial_that_names_members_of_another_recipe(sound):
    ids = sound.kl.member_ids()

    def edit(rows):
        row = next(r for r in rows if r["member_ids"] == sound.lora.member_ids())
        copy = next(r for r in rows if r["member_ids"] == ids)
        row.update({k: v for k, v in copy.items() if k not in ("recipe", "trial_id", "regularizers")})

    sound.edit_rows(edit)
    faults = sound.faults()
    assert {f.check for f in faults} == {"members are who they say"} and len(faults) == 2
    assert ids[0] in faults[0].what


def test_trial_with_fewer_members_than_it_says(sound):
    sound.edit_rows(lambda rows: rows[1].update(members=3))
    assert "has 2 distinct members, not 3" in sound.only_fault("members are who they say").what


def test_trial_that_names_a_member_twice(sound):
    def edit(rows):
        rows[1]["member_ids"] = rows[1]["member_ids"][:1] * 2

    sound.edit_rows(edit)
    fault = sound.faults()[0]
    assert fault.check == "members are who they say" and "has 1 distinct members, not 2" in fault.what


def test_seeds_that_name_the_members_of_one(sound):
    def edit(rows):
        rows += [row | {"seed": 1, "trial_id": row["trial_id"][::-1]} for row in rows if row["members"]]

    sound.edit_rows(edit)
    faults = sound.faults()
    assert {f.check for f in faults} == {"members are who they say"} and len(faults) == 2 + 2 + 3
    what = "has the streams 0/0/init, 0/0/order, not this trial's 1/0/init, 1/0/order"
    assert faults[0].what == f"member {sound.lora.member_id(0)} {what}"
    assert all("seed=1" in f.where for f in faults)


def test_members_of_another_diversity(sound):
    sound.edit_rows(lambda rows: rows[-1].update(diversity="init+order"))
    faults = sound.faults()
    assert {f.check for f in faults} == {"members are who they say"} and len(faults) == 3
    assert "0/shared/order, not this trial's 0/2/init, 0/2/order" in faults[2].what


# Predictions -----------------------------------------------------------------------------------------------


def repeat_first_id(values):
    values[1] = values[0]


def other_ids(values):
    values[0] = "never-seen"


def label_outside(values):
    values[0] = 3


def label_missing(values):
    values[0] = -1


def swapped_labels(values):
    values[:] = [{0: 1, 1: 0, 2: 2}[v] for v in values]


@pytest.mark.parametrize(
    "column, edit, said",
    [
        ("example_id", repeat_first_id, "60 predictions of 59 examples; 'test-0' repeats"),
        ("example_id", other_ids, "other examples or labels than in reference/"),
        ("label", label_outside, "1 labels are no class; 'test-0': 3 of 3"),
        ("label", label_missing, "1 labels are no class; 'test-0': -1 of 3"),
        ("label", swapped_labels, "other examples or labels than in reference/"),
    ],
)
def test_predictions_that_are_not_of_the_examples(sound, column, edit, said):
    folder, name = member_folder(sound.lora.member_id(0)), prediction_file(sound.lora.task.eval_set("test"))
    sound.edit_file(folder, name, column, edit)
    fault = sound.only_fault("predictions are whole")
    assert fault.where.startswith(f"{folder}/{name} ") and column in fault.where and said in fault.what


@pytest.mark.parametrize("statistics", [True, False])
def test_predictions_of_another_member(sound, statistics):
    """Whether the file's footer tells, or its rows alone."""
    folder, name = member_folder(sound.lora.member_id(0)), prediction_file(sound.lora.task.eval_set("test"))
    table, sink = pq.read_table(io.BytesIO(sound.store.read(folder, name))), io.BytesIO()
    names = ["0123456789abcdef", *table["member_id"].to_pylist()[1:]]
    pq.write_table(
        table.set_column(0, table.schema.field(0), pa.array(names)), sink, write_statistics=statistics
    )
    sound.store.write_entry(folder, {name: sink.getvalue()})
    sound.say_what_is_stored()
    fault = sound.only_fault("entries are whole" if statistics else "predictions are whole")
    assert fault.where.startswith(folder) and "of 0123456789abcdef" in fault.what


def test_draw_with_other_examples(sound):
    folder, name = member_folder(sound.lora.member_id(0)), prediction_file(sound.lora.task.eval_set("test"))
    table = pq.read_table(io.BytesIO(sound.store.read(folder, name)))
    draw = table.set_column(1, table.schema.field(1), pa.array([1] * TEST_ROWS, pa.int32())).slice(1)
    sound.store.write_entry(folder, {name: parquet_bytes(pa.concat_tables([table, draw]))})
    assert "the draws saw different" in sound.only_fault("predictions are whole").what


@pytest.mark.slow
def test_draws_by_dropout_of_other_examples(sound):
    folder, plain = member_folder(sound.kl.member_id(0)), sound.kl.task.eval_set("test")
    name = prediction_file(f"{plain}-mc-1")
    table = pq.read_table(io.BytesIO(sound.store.read(folder, prediction_file(plain))))
    sound.store.write_entry(folder, {name: parquet_bytes(table.replace_schema_metadata(SCHEMA))})
    assert sound.faults() == [], "a set that a member got later, of the same examples"
    sound.edit_file(folder, name, "label", swapped_labels)
    fault = sound.only_fault("predictions are whole")
    assert fault.where.startswith(f"{folder}/{name} ")
    assert fault.what.endswith(
        f"labels than in {reference_folder(sound.kl.reference_id())}/{prediction_file(plain)}"
    )


@pytest.mark.parametrize("split, other", [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_splits_that_overlap(sound, split, other):
    """One id in two splits, the same in every entry that has the first of them."""
    trial = sound.kl
    sets = {s: trial.task.eval_set(s) for s in ("train", "validation", "test")}
    shared = trial.task.examples(other)[0].id

    def edit(values):
        values[-1] = shared

    for folder in entries(sound):
        if sound.store.has_predictions(folder, [sets[split]]):
            sound.edit_file(folder, prediction_file(sets[split]), "example_id", edit)
    fault = sound.only_fault("splits are disjoint")
    assert sets[split] in fault.where + fault.what and sets[other] in fault.where + fault.what
    assert "1 examples are also in" in fault.what and repr(shared) in fault.what


def test_ood_set_with_another_prompt_template(sound):
    """The backbone and all members read it, as an OOD task with a template of its own would be stored."""
    name = prediction_file(Greys().located(Path(sound.lora.task.source.path).parent).eval_set("test"))
    for folder in entries(sound):
        table = pq.read_table(io.BytesIO(sound.store.read(folder, name)))
        metadata = table.schema.metadata | {b"lorae_template": b"Question: {question}"}
        sound.store.write_entry(folder, {name: parquet_bytes(table.replace_schema_metadata(metadata))})
    sound.say_what_is_stored()
    faults = sound.faults()
    assert {f.check for f in faults} == {"OOD prompts are those of the test set"}
    assert len(faults) == len({t.member_id(0) for t, _ in sound.trials if t.members}) + 1
    assert "words : {question} colour :" in faults[0].what


def entries(sound: Sound) -> list[str]:
    store = sound.store
    return [f"{kind}/{name}" for kind in ("members", "reference") for name in store.storage.names(kind)]


def test_swapped_label_words(sound):
    """The backbone that knows every answer, with the columns of two words exchanged for the third's."""
    trial = sound.lora
    folder, name = reference_folder(trial.reference_id()), prediction_file(trial.task.eval_set("test"))
    labels = [e.label for e in trial.task.examples("test")]

    def edit(values):
        values[:] = [[5.0 * (c == (y + 1) % 3) for c in range(3)] for y in labels]

    sound.edit_file(folder, name, "logits", edit)
    sound.tabulate()
    fault = sound.only_fault("zero-shot is not below chance")
    assert fault.where == f"{folder}/{name}" and "accuracy 0.000, chance 0.3" in fault.what


def test_below_chance_in_closed_form():
    labels = np.array([0] * 80 + [1] * 20)
    sure = np.eye(2)[labels]
    assert below_chance(sure, labels) is None
    assert below_chance(sure[:, ::-1], labels) is not None, "swapped"
    assert below_chance(np.tile([0.0, 1.0], (100, 1)), labels) is None, "says the rare class: 20 %, no swap"
    four, quarter = np.repeat(np.arange(4), 25), np.zeros((100, 4))
    quarter[np.arange(100), (four + 1) % 4] = 1
    for n in range(0, 100, 8):  # chance 0.25, standard error 0.0433: the bound is 0.12
        quarter[n] = np.eye(4)[four[n]]
    assert below_chance(quarter, four) is None, "13 right"
    quarter[0], quarter[48] = np.eye(4)[1], np.eye(4)[2]
    assert "accuracy 0.110, chance 0.25" in str(below_chance(quarter, four)), "11 right"


def test_missing_classes_raise_chance():
    labels = np.zeros(100, int)
    labels[50:] = 1
    wrong = np.full((100, 5), -np.inf)
    wrong[:, :2] = np.eye(2)[1 - labels]
    wrong[:15, :2] = [1, 0]
    wrong[50:65, :2] = [0, 1]  # 30 of 100: far below 1/2, above 1/5
    assert "accuracy 0.300, chance 0.500" in str(below_chance(wrong, labels))


# Members ---------------------------------------------------------------------------------------------------


def test_member_that_does_not_start_as_the_backbone(sound):
    """Member 0 of LoRA and of LoRA with KL see the same first batch; so do all VeRA members."""
    for member in (sound.lora.member_id(1), sound.vera.member_id(2)):

        def edit(values):
            values[0] += 0.01

        sound.edit_file(member_folder(member), "curve.parquet", "nll", edit)
    faults = sound.faults()
    assert [f.check for f in faults] == ["members start as the backbone"] * 2
    assert "on the same batch" in faults[0].what and faults[0].where.endswith("/curve.parquet nll")


def test_kl_member_whose_first_divergence_is_not_zero(sound):
    folder = member_folder(sound.kl.member_id(0))

    def edit(values):
        values[0] += 0.1 * 0.02  # beta times nats

    sound.edit_file(folder, "curve.parquet", "loss", edit)
    fault = sound.only_fault("members start as the backbone")
    assert (
        fault.where == f"{folder}/curve.parquet loss" and "0.02 nats from the stored backbone" in fault.what
    )


def test_members_with_the_same_predictions(sound):
    first, second = sound.lora.member_ids()
    name = prediction_file(sound.lora.task.eval_set("test"))
    table = pq.read_table(io.BytesIO(sound.store.read(member_folder(first), name)))
    sound.edit_file(
        member_folder(second),
        name,
        "logits",
        lambda v: v.__setitem__(slice(None), table["logits"].to_pylist()),
    )
    sound.tabulate()
    fault = sound.only_fault("members differ after training")
    assert {second, first} == {fault.where.split("/")[1], fault.what.rsplit(" ", 1)[-1]}


def test_duplicate_adapter(sound):
    first, second = (member_folder(m) for m in sound.lora.member_ids())
    sound.store.write_entry(second, {WEIGHTS: sound.store.read(first, WEIGHTS)})
    fault = sound.only_fault("adapters are distinct and trained")
    assert fault.where == f"{second}/{WEIGHTS}" and fault.what.startswith("the same adapter as")


@pytest.mark.parametrize("method, factor", [(Lora, "lora_B.weight"), (Vera, "vera_lambda_b")])
def test_factor_that_is_still_zero(sound, method, factor):
    member = sound.one(method, regularised=False).member_id(1)
    names = [name for name in sound.weights(member) if name.endswith(factor)]
    sound.edit_weights(member, lambda weights: weights.update({names[0]: 0 * weights[names[0]]}))
    fault = sound.only_fault("adapters are distinct and trained")
    assert fault.where == f"{member_folder(member)}/{WEIGHTS} {names[0]}"


def test_vera_members_with_the_same_projections(sound):
    first, second, _ = sound.vera.member_ids()
    given = {n: v for n, v in sound.weights(first).items() if n.endswith(("vera_A", "vera_B"))}
    assert len(given) == 2
    sound.edit_weights(second, lambda weights: weights.update(given))
    fault = sound.only_fault("VeRA members differ")
    assert second in fault.where and "vera_A" in fault.what and first in fault.what


def test_vera_members_of_one_data_order_with_the_same_vectors(sound):
    first, second, _ = sound.vera.member_ids()
    given = {n: v for n, v in sound.weights(first).items() if "vera_lambda" in n}
    sound.edit_weights(second, lambda weights: weights.update(given))
    fault = sound.only_fault("VeRA members differ")
    assert f"learned {len(given)} vectors equal to those of {first}" in fault.what


# Trials ----------------------------------------------------------------------------------------------------


def columns(faults: list[Finding], check: str) -> list[str]:
    """What faults of one check are about."""
    assert {f.check for f in faults} == {check} and all("the table says" in f.what for f in faults)
    return [f.where.rsplit(" ", 1)[-1] for f in faults]


def test_rows_that_exchange_factors(sound):
    def edit(rows):
        for column, one, other in (("regularizers", 1, 2), ("rank", 1, 3), ("trial_id", 2, 3)):
            rows[one][column], rows[other][column] = rows[other][column], rows[one][column]

    sound.edit_rows(edit)
    found = columns(sound.faults(), "factors come from the recipe")
    assert found == ["regularizers", "rank", "regularizers", "trial_id", "rank", "trial_id"]


def test_edited_factors(sound):
    edited = {"task": "colours-16", "draws": "mc-10", "alpha": 8.0, "lr": 1e-3}

    def edit(rows):
        rows[0].update(edited, seed=1)
        rows[1].update(edited)

    sound.edit_rows(edit)
    faults = [f for f in sound.faults() if f.check != "trials are complete"]
    assert columns(faults, "factors come from the recipe") == [*edited, "trial_id", *edited]


@pytest.mark.slow
def test_backbones_that_exchange_names(sound, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama.path, tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("other content")
    single = replace(sound.lora, backbone=Files(str(tmp_path / "other")), members=1)
    run_stack(Stack(single, (0,)), sound.store.storage.uri, num_threads=1)
    sound.trials[:] = [(sound.lora, []), (single, [])]
    sound.tabulate()
    assert sound.faults() == []
    sound.edit_rows(lambda rows: rows[0].update(backbone="where-it-is-now"))
    assert sound.faults() == [], "a folder that was moved"
    sound.edit_rows(lambda rows: rows[0].update(backbone="other"))
    fault = sound.only_fault("factors come from the recipe")
    assert fault.where.endswith(" backbone") and "'other', which another backbone is called" in fault.what


def test_recipe_that_is_of_no_trial(sound):
    def edit(rows):
        rows[0]["recipe"] = json.dumps(json.loads(rows[0]["recipe"]) | {"method": {"type": "Kaiming"}})

    sound.edit_rows(edit)
    assert "training knows no Kaiming" in sound.only_fault("members are who they say").what


def test_edited_costs(sound):
    def edit(rows):
        for column in COST:
            rows[1][column] += 1
        rows[2]["stored_bytes"] -= 1

    sound.edit_rows(edit)
    assert sorted(columns(sound.faults(), "costs come from the records")) == sorted([*COST, "stored_bytes"])


@pytest.mark.slow
def test_samples_of_members_that_an_earlier_table_has(sound):
    """Its rows have fewer bytes than their members have now; those of the samples are as they say."""
    sampled = replace(sound.lora, draws=TFB(2))
    tasks = next(ood for trial, ood in sound.trials if trial == sound.lora)
    run_stack(Stack(sampled, (0, 1), tuple(tasks)), sound.store.storage.uri)
    assert sound.faults() == []
    sound.trials.append((sampled, tasks))
    sound.tabulate()
    assert sound.faults() == []


@pytest.mark.parametrize(
    "column", ["acc", "ensemble_nll", "validation_nll", "num_examples", "auroc_msp__greys"]
)
def test_edited_metric(sound, column):
    def edit(rows):
        rows[1][column] += 1 if column == "num_examples" else 1e-7

    sound.edit_rows(edit)
    fault = sound.only_fault("metrics come from the logits")
    assert fault.where.startswith("toy/") and fault.where.endswith(f" {column}")
    assert "the table says" in fault.what


def test_metric_where_the_logits_have_none_and_the_reverse(sound):
    def edit(rows):
        assert rows[0]["members"] == 0 and rows[0]["disagreement"] is None
        rows[0]["disagreement"], rows[1]["acc"] = 0.0, None

    sound.edit_rows(edit)
    assert [f.where.rsplit(" ", 1)[-1] for f in sound.faults()] == ["disagreement", "acc"]


def test_scaled_metrics_without_their_flag(sound):
    """A flag that is taken away, and a value where it hides one."""

    def edit(rows):
        assert rows[1]["ts_brier"] is None and rows[1]["temperature_flag"].startswith("at its bound 20")
        rows[1]["ts_brier"], rows[2]["temperature_flag"] = 0.1, None
        rows[3]["members_temperature_flag"] = "at its bound"

    sound.edit_rows(edit)
    places = ["ts_brier", "temperature_flag", "members_temperature_flag"]
    assert [f.where.rsplit(" ", 1)[-1] for f in sound.faults()] == places


@pytest.fixture
def skilled(sound) -> Sound:
    """Members of `Sound.lora` that know the labels, so that their temperatures are usable."""
    trial, rng = sound.lora, np.random.default_rng(0)
    for member in trial.member_ids():
        folder, name = member_folder(member), prediction_file(trial.task.eval_set("test"))
        labels = pq.read_table(io.BytesIO(sound.store.read(folder, name)))["label"].to_pylist()

        def edit(logits, labels=labels):
            for n, label in enumerate(labels):
                logits[n] = rng.normal(2.0 * np.eye(3)[label]).astype(np.float32).tolist()

        sound.edit_file(folder, name, "logits", edit)
    sound.tabulate()
    return sound


@pytest.mark.slow
def test_edited_scaled_metrics(skilled):
    assert skilled.faults() == []
    columns = [name for name in SCALED if name != "ts_quantile_ece"]  # that is of numbers

    def edit(rows):
        for column in columns:
            rows[1][column] += 1e-7

    skilled.edit_rows(edit)
    assert [f.where.rsplit(" ", 1)[-1] for f in skilled.faults()] == columns


def test_a_table_of_before_cross_fitting_is_read_without_its_temperatures(skilled):
    """Its values come from validation, are no values of today's columns, and are no fault."""
    table = skilled.store.read_table("toy")
    assert table["ts_brier"].null_count < len(table)
    later = ["debiased_ce15", "mcc", *COUNTED]
    old = table.drop_columns([*FLAGS, "members_ts_ensemble_nll", "members_ts_ece15", *later])
    skilled.store.write_table("toy", old)
    rows = read_trials(skilled.store, "toy").to_pylist()
    assert all(row[name] is None for row in rows for name in SCALED)
    assert all(row[flag] == OLDER for row in rows for flag in FLAGS)
    assert [row["ensemble_nll"] for row in rows] == table["ensemble_nll"].to_pylist()
    assert skilled.faults() == []


def test_logits_that_changed_after_the_table_was_made(sound):
    trial = sound.lora
    folder, name = member_folder(trial.member_id(0)), prediction_file(trial.task.eval_set("validation"))
    sound.edit_file(folder, name, "logits", lambda values: values[0].__setitem__(0, values[0][0] + 0.1))
    faults = sound.faults()
    assert {f.check for f in faults} == {"metrics come from the logits"}
    assert "validation_nll" in {f.where.rsplit(" ", 1)[-1] for f in faults}


def test_failed_trial_and_missing_seed(sound):
    def fail(rows):
        rows[-1].update(status="failed", error="loss nan at step 3")
        rows[1]["seed"] = 1

    sound.edit_rows(fail)
    faults = sound.faults()
    assert {f.check for f in faults} == {"members are who they say", "trials are complete"}
    said = " | ".join(f.what for f in faults)
    assert "loss nan at step 3" in said and "seed=1: not in the table" in said


def test_sweep_without_a_table_and_one_of_another_schema(sound):
    path_of(sound, "sweeps/unfinished").mkdir()
    table = sound.store.read_table("toy").replace_schema_metadata({b"lorae_schema": b"99"})
    sound.store.write_table("old", table)
    faults = {f.where: f for f in sound.faults()}
    assert {f.check for f in faults.values()} == {"trials are complete"}
    assert "schema 99" in faults["sweeps/old/trials.parquet"].what
    assert "is not there" in faults["sweeps/unfinished/trials.parquet"].what


def test_text_names_each_fault_below_its_check(sound):
    for member in sound.lora.member_ids():
        sound.store.discard(member_folder(member))
    shown = text(audit(sound.store.storage.uri))
    assert "FAILED          entries are whole: 2 found\n    members/" in shown
    assert "metrics come from the logits: 3 trials (1 with broken entries left out)" in shown
    assert shown.endswith("18 checks: 13 passed, 1 failed, 4 not applicable")
