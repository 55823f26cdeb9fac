"""Every paper file runs end to end: its small variant on a tiny model, then its twin in analysis/."""

from __future__ import annotations

import csv
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from encoders import MORE, SIZES, write_tokenizer
from toys import Colours, Greys
from writers import FarEcho, echo_trial

from analysis.audit import audit
from jobs.driver import run_sweep
from jobs.request import Request
from lorae.methods import Lora
from lorae.results import OOD_SEPARATOR
from lorae.sources import Files
from lorae.store.store import Store
from lorae.tasks.base import Head, LabelWords
from lorae.trial import Budget, Sweep, Trial
from pipelines._common import TUNE, rivals

pytestmark = pytest.mark.process

ENCODERS = ("cifar100", "digits", "encoders", "esc50", "ham10000", "sst2")
ALIKE = ("cifar100", "digits", "esc50", "sst2", "study_science", "study_trec")  # as others, when small
WRITERS = ("e2e", "e2e_small", "generation", "generation_demo", "instruct", "squad")  # of texts
OF_FILES = ("glue_minilm",)  # its tasks, some of numbers, are read from copies: tests/tasks/test_glue.py
NAMES = sorted(
    p.stem
    for p in (Path(__file__).parent.parent / "pipelines").glob("[!_]*.py")
    if p.stem not in (*ALIKE, *WRITERS, *OF_FILES)
)
STUDY = {"answers", "ensembling", "size", "size-curve"}
TABLES = {  # beside the comparison
    "study": STUDY | {"regularising", "correlations"},
    "study_members": STUDY | {"correlations"},
    "study_rivals": STUDY
    | {"sources", "same-parameters", "same-compute", "same-predictions", "souping", "drawing", "rivals"}
    | {"correlations"},
    "study_encoders": STUDY
    | {"same-parameters", "same-compute", "same-predictions", "souping", "drawing", "rivals"}
    | {"regularising", "correlations"},
    "regularization": {"ensembling", "regularising"},
    "efficiency": {"ensembling", "same-parameters", "same-compute", "same-predictions"},
    "bayesian": {"ensembling", "regularising", "rivals", "same-predictions"},
    "ood": {"ood-grid", "ood-scores"},
    "randomness": {"regularising"},
    "strength": {"regularising"},
    "members": {"ensembling", "souping"},
    "extrapolation": {"size", "size-curve"},
    "rank": {"ensembling"},
    "initialization": {"ensembling"},
    "search": {"best"},
    "distill": {"ensembling", "distilled"},
    "vera_glue": {"glue", "ensembling"},
    "vera_parameters": {"layers", "layer-cosines"},
    "vera_images": {"images", "ensembling"},
    **{
        name: {"ensembling", "rivals", "same-parameters", "same-compute", "same-predictions", "weights"}
        for name in ENCODERS
    },
}
FIGURES = {
    "demo": {"ensemble_nll-members", "debiased_ce15-members"},
    "members": {"ensemble_nll-members", "debiased_ce15-members", "diversity-gain"},
    "rank": {"ensemble_nll-rank", "debiased_ce15-rank", "cost"},
    "strength": {"ensemble_nll-DecayB-strength", "debiased_ce15-DecayB-strength"},
    "efficiency": {"cost"},
    "bayesian": {"cost"},
    "distill": {"cost"},
    "search": {"validation_nll-lr"},
    "ood": {"ood-roc-greys", "risk-coverage"},
    "vera_parameters": {"acc-parameters", "ensemble_nll-parameters", "layers", "cost"},
    **{name: {"cost", "paths"} for name in ENCODERS},
}


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory) -> Files:
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-bert")
    BertForSequenceClassification(BertConfig(**SIZES, **MORE["bert"])).save_pretrained(folder)
    write_tokenizer(folder)
    return Files(str(folder))


@pytest.fixture
def tiny(tiny_llama, tiny_bert, data_root):
    """A sweep on a tiny model and the toy task, a few steps a member; axes stay."""

    def shrink(sweep: Sweep) -> Sweep:
        scoring = sweep.base.task.scoring
        encoder = isinstance(scoring, Head)
        budget = Budget(batch_size=4, steps=4, max_tokens=32)

        def fit(trial: Trial) -> Trial:
            task = Colours(scoring=scoring if encoder else LabelWords()).located(data_root)
            times = (trial.budget.epochs or 1) // (sweep.base.budget.epochs or 1)
            backbone = tiny_bert if encoder else tiny_llama
            return replace(trial, backbone=backbone, task=task, precision="fp32", budget=budget.times(times))

        ood = [Greys().located(data_root)] if sweep.ood else ()
        return replace(sweep, base=fit(sweep.base), rivals=tuple(map(fit, sweep.rivals)), ood=ood)

    return shrink


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """One MLflow database for all; making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.mark.parametrize("name", NAMES)
def test_a_paper_file_and_its_twin_run_end_to_end(name, tiny, tracking_uri, tmp_path, capsys):
    module = importlib.import_module(f"pipelines.{name}")
    sweep, storage, out = tiny(module.SMOKE), str(tmp_path / "store"), tmp_path / "out"
    request = Request(f"{name}-smoke", sweep, storage, f"lorae sweep {name}", module)
    assert run_sweep(request, local=True, tracking_uri=tracking_uri) == 0

    twin = importlib.import_module("analysis.study" if name.startswith("study") else f"analysis.{name}")
    assert twin.main([storage, "--sweep", f"{name}-smoke", "--out", str(out)]) == 0, capsys.readouterr().err
    main_table = "ood-grid" if name == "ood" else "table"
    tables = TABLES.get(name, set()) | {main_table}
    assert {p.stem for p in out.glob("*.csv")} == tables
    assert {p.stem for p in out.glob("*.svg")} >= FIGURES.get(name, set())
    with (out / f"{main_table}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    stored = Store(storage).read_table(f"{name}-smoke").num_rows
    assert len(rows) == stored, "one line for each trial"
    assert stored == len(sweep.trials()) or sweep.search, "a search has more: points that it proposed"
    for row in rows:
        assert float(row["auroc_msp__greys" if name == "ood" else "ensemble_nll"]) >= 0
    for table in tables:
        assert (out / f"{table}.md").read_text().count("\n| ") > 1, f"{table} has lines"
    assert not [finding for finding in audit(storage) if finding.status == "failed"]


@pytest.fixture(scope="module")
def echo(tiny_llama, tmp_path_factory):
    """A sweep of writers on a tiny model and the toy task of texts."""
    base = echo_trial(tiny_llama, tmp_path_factory.mktemp("echo"))()
    far = Files(str(Path(base.task.source.path).parent / "far_echo"))

    def shrink(sweep: Sweep) -> Sweep:
        scoring = replace(sweep.base.task.scoring, max_new_tokens=6)
        small = {
            "backbone": base.backbone,
            "task": replace(base.task, scoring=scoring),
            "budget": Budget(batch_size=4, steps=4, max_tokens=64),
        }
        rivals = [replace(rival, **small) for rival in sweep.rivals]
        ood = [FarEcho(scoring=scoring, source=far)] if sweep.ood else ()
        return replace(sweep, base=replace(sweep.base, **small), rivals=rivals, ood=ood)

    return shrink


@pytest.mark.parametrize("name", ["generation", "e2e_small", "instruct"])  # the others are alike, when small
def test_a_paper_file_of_texts_and_its_tables_run_end_to_end(name, echo, tracking_uri, tmp_path, capsys):
    module = importlib.import_module(f"pipelines.{name}")
    sweep, storage, out = echo(module.SMOKE), str(tmp_path / "store"), tmp_path / "out"
    request = Request(f"{name}-smoke", sweep, storage, f"lorae sweep {name}", module)
    assert run_sweep(request, local=True, tracking_uri=tracking_uri) == 0
    rows = Store(storage).read_table(f"{name}-smoke").to_pylist()
    assert len(rows) == len(sweep.trials()) and {row["status"] for row in rows} == {"done"}
    assert all(row["ensemble_nll"] > 0 and 0 <= row["token_f1"] <= 1 for row in rows)
    twin = importlib.import_module("analysis.generation")
    assert twin.main([storage, "--sweep", f"{name}-smoke", "--out", str(out)]) == 0, capsys.readouterr().err
    assert {"quality", "scores"} <= {p.stem for p in out.glob("*.csv")}
    assert not [finding for finding in audit(storage) if finding.status == "failed"]


def test_rivals_train_by_the_same_recipe():
    """Every rival has LoRA's class weights, and the wide LoRA its scaling."""
    lora = replace(importlib.import_module("pipelines.ham10000").LORA, method=Lora(rank=4, alpha=8.0))
    found = rivals(lora, 16, full_lr=1e-5, scales_lr=1e-3, head_lr=1e-3)
    assert all(set(lora.regularizers) <= set(rival.regularizers) for rival in found)
    assert {r.method.scale for r in found if isinstance(r.method, Lora)} == {2.0}


def test_sets_predicted_later_are_columns_of_the_ood_table(tiny, data_root, tracking_uri, tmp_path):
    from analysis.data import load_trials
    from lorae.engine.predict_task import predict_soup, predict_task

    module = importlib.import_module("pipelines.members")
    sweep, storage = tiny(module.SMOKE), str(tmp_path)
    asked = replace(sweep, ood=[Greys().located(data_root)])
    at_once = Request("at-once", asked, str(tmp_path / "other"), "", module)
    later = Request("later", sweep, storage, "", module)
    for request in (at_once, later):
        assert run_sweep(request, local=True, tracking_uri=tracking_uri) == 0
    store = Store(storage)
    assert not load_trials(storage, "later").with_stored_ood().ood_tasks
    greys = Greys().located(data_root)
    predict_task(store, store.storage.names("members"), greys)
    soups = [trial.member_ids() for trial in sweep.trials() if trial.is_soup]
    assert all(predict_soup(store, members, greys) for members in soups) and len(soups) == 4

    found = load_trials(storage, "later").with_stored_ood()
    expected = load_trials(str(tmp_path / "other"), "at-once")
    assert found.ood_tasks == expected.ood_tasks == ("greys",)
    for row, same in zip(found.rows, expected.rows, strict=True):
        columns = {k for k in same if OOD_SEPARATOR in k}
        assert columns and {k: row[k] for k in columns} == {k: same[k] for k in columns}


def test_every_rival_is_tuned_over_its_own_learning_rates(tiny, tracking_uri, tmp_path):
    module = importlib.import_module("pipelines.encoders")
    sweep = replace(tiny(module.SMOKE), tune=TUNE, companions=True)
    storage = str(tmp_path)
    assert run_sweep(Request("tuned", sweep, storage, "", module), local=True, tracking_uri=tracking_uri) == 0
    rows = Store(storage).read_table("tuned").to_pylist()
    assert len(rows) == len(sweep.trials())
    for row, trial in zip(rows, sweep.trials(), strict=True):
        tuned = json.loads(row["tuning"])["axes"]["optimizer.lr"]
        assert tuned["values"][1] == trial.optimizer.lr and len(tuned["values"]) == 3
        assert tuned["chosen"] == row["lr"] in tuned["values"]
    assert not [finding for finding in audit(storage) if finding.status == "failed"]
