"""In-context learning: the prompt is what it says, its logits are the backbone's on it, and a storage with
such members is as whole as any other."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from toys import Colours, Greys
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.audit import audit, text
from analysis.data import load_trials
from analysis.differences import against_rivals
from analysis.figures_sweep import quality_against_cost
from analysis.render import markdown
from analysis.table import comparison
from analysis.weights import with_updates
from jobs.export import export_member
from jobs.plan_text import plan_text
from jobs.tracking import record_sweep
from lorae import seeds
from lorae.backbone.loading import load_backbone
from lorae.draws import MCDropout
from lorae.engine.in_context import contextually_calibrated, draw_context, predict_in_context
from lorae.engine.predict_task import predict_task
from lorae.engine.prediction import predict
from lorae.engine.run import run_stack
from lorae.methods import InContext, Lora
from lorae.planning.estimate import Devices, estimate, memory
from lorae.planning.placement import place
from lorae.planning.plan import make_plan
from lorae.planning.stack import Progress, Stack, Stopped
from lorae.regularizers import KL, AdapterDropout
from lorae.results import trials_table
from lorae.search import ASHA
from lorae.store.names import RECORD, WEIGHTS, member_folder
from lorae.store.peft_format import read_tensors
from lorae.store.store import Store
from lorae.tasks.base import Head, LabelWords, Letters, OptionLikelihood
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Diversity, Sweep, companions

ONE_CPU = Devices("cpu", 1, 2)
BUDGET = Budget(batch_size=4, epochs=1, max_tokens=32)


@pytest.fixture
def trial(tiny_trial):
    """Factory of in-context trials; keywords replace fields."""

    def make(method=InContext(shots=3, calibrated=False), budget=BUDGET, **changes):
        return tiny_trial(method=method, budget=budget, **changes)

    return make


# What is read ----------------------------------------------------------------------------------------------


def test_the_prompt_is_the_demonstrations_and_the_question(trial):
    ours = trial(seed=3)
    backbone, train = load_backbone(ours.backbone, "fp32", "cpu"), ours.task.examples("train")
    context = draw_context(backbone.tokenizer, ours, 1)
    order = seeds.stream(3, 1, "demonstrations").permutation(len(train))[:3]
    assert context.demonstrations == tuple(train[n].id for n in order)
    parts = [f"words : {train[n].question} colour : {train[n].options[train[n].label]}\n\n" for n in order]
    assert context.text == "".join(parts)
    question = ours.task.examples("test")[0]
    (row,) = encode(backbone.tokenizer, ours.task, [question], 32, context=context.text)
    whole = f"{context.text}words : {question.question} colour :"
    assert list(row.tokens) == backbone.tokenizer(whole)["input_ids"] and row.truncated == 0
    assert draw_context(backbone.tokenizer, trial(InContext(5), seed=3), 1).demonstrations[:3] == (
        context.demonstrations
    )


@pytest.mark.parametrize("scoring", [LabelWords(), OptionLikelihood()], ids=lambda s: s.label)
def test_only_the_question_is_cut_and_only_what_fits_is_demonstrated(trial, scoring):
    """Of a question its beginning and its end are left, after the whole of the demonstrations."""
    ours = trial(InContext(4, calibrated=False))
    ours = replace(ours, task=replace(ours.task, scoring=scoring), budget=replace(BUDGET, max_tokens=9))
    tokenizer = load_backbone(ours.backbone, "fp32", "cpu").tokenizer
    context = draw_context(tokenizer, ours, 0)
    parts = context.text.split("\n\n")[:-1]
    lengths = [len(tokenizer(part)["input_ids"]) for part in parts]
    assert len(parts) == 4 and max(lengths) <= 9
    assert max(len(tokenizer(ours.task.prompt(e).text)["input_ids"]) for e in ours.task.examples("train")) > 9
    rows = encode(tokenizer, ours.task, ours.task.examples("test"), 9, context=context.text)
    cut = [row for row in rows if row.truncated]
    assert cut
    plain = {row.id: row for row in encode(tokenizer, ours.task, ours.task.examples("test"), 9)}
    for row in cut:
        assert list(row.tokens[: sum(lengths)]) == tokenizer(context.text)["input_ids"]
        assert row.tokens[sum(lengths) :] == plain[row.id].tokens and row.truncated == plain[row.id].truncated
    with pytest.raises(ValueError, match=r"shots=4: 0 training examples of colours fit max_tokens=2"):
        draw_context(tokenizer, replace(ours, budget=replace(BUDGET, max_tokens=2)), 0)


def test_a_byte_level_tokenizer_keeps_the_blank_line_before_a_question_that_is_cut(trial):
    """It makes one token of two newlines where nothing follows, and two where a word does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: n for n, c in enumerate([*alphabet, "ĊĊ"])}
    raw = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor, raw.decoder = processors.ByteLevel(trim_offsets=True), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    context = "one two\n\n"
    assert len(tokenizer(context)["input_ids"]) == 8 and len(tokenizer(context + "w")["input_ids"]) == 10
    task = replace(trial().task, scoring=OptionLikelihood())
    most = len("words : " + "12345" + " colour :" + " green")
    (row,) = encode(tokenizer, task, task.examples("test")[:1], most, context=context)
    prompt = [token for token, segment in zip(row.tokens, row.segments) if segment == -1]
    question = task.examples("test")[0].question
    assert tokenizer.decode(prompt) == f"{context}words : {question[:3]}{question[-2:]} colour :"


# Against transformers alone --------------------------------------------------------------------------------


def class_logits(lm, tokenizer, prompt, answers):
    """The next token's logits of each answer's first token, from the whole language model on one text."""
    ids = tokenizer(prompt)["input_ids"]
    first = [tokenizer(prompt + answer)["input_ids"][len(ids)] for answer in answers]
    with torch.no_grad():
        return lm(torch.tensor([ids])).logits[0, -1, first].double()


def option_log_probs(lm, tokenizer, prompt, answers):
    """Log-probability of each answer's tokens after the prompt."""
    start = len(tokenizer(prompt)["input_ids"])
    found = []
    for answer in answers:
        ids = torch.tensor(tokenizer(prompt + answer)["input_ids"])
        with torch.no_grad():
            log_probs = lm(ids[None]).logits[0].double().log_softmax(-1)
        found.append(sum(log_probs[place - 1, ids[place]] for place in range(start, len(ids))))
    return torch.stack(found)


LETTERS_FREE = (
    "Return the label of the correct answer for the question below.\n\n"
    "Question: N/A\nChoices:\nA) N/A\nB) N/A\nC) N/A\nAnswer:"
)


@pytest.mark.parametrize(
    "scoring,calibrated",
    [
        (LabelWords(), False),
        (LabelWords(), True),
        (Letters(), False),
        (Letters(), True),
        (OptionLikelihood(), False),
    ],
    ids=str,
)
def test_logits_are_those_of_the_model_on_the_written_out_prompt(trial, scoring, calibrated):
    ours = trial(InContext(shots=2, calibrated=calibrated))
    ours = replace(ours, task=replace(ours.task, scoring=scoring), budget=replace(BUDGET, max_tokens=64))
    backbone = load_backbone(ours.backbone, "fp32", "cpu")
    context = draw_context(backbone.tokenizer, ours, 1).text
    found = predict_in_context(backbone, ours.method, context, 64, ours.task, "test")

    lm = AutoModelForCausalLM.from_pretrained(ours.backbone.path)
    tokenizer = AutoTokenizer.from_pretrained(ours.backbone.path)
    score = option_log_probs if isinstance(scoring, OptionLikelihood) else class_logits
    examples = ours.task.examples("test")
    prompts = [ours.task.prompt(example) for example in examples]
    expected = torch.stack([score(lm, tokenizer, context + p.text, p.answers) for p in prompts])
    if calibrated:
        free = LETTERS_FREE if isinstance(scoring, Letters) else "words : N/A colour :"
        log_p = class_logits(lm, tokenizer, context + free, prompts[0].answers).log_softmax(-1)
        assert log_p.exp().max() - log_p.exp().min() > 0.01, "it changes something"
        expected = expected - log_p
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_calibrated_probabilities_are_divided_by_those_without_content():
    p, free = np.array([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]]), np.array([[0.75, 0.25, 0.0], [0.2, 0.2, 0.6]])
    with np.errstate(divide="ignore"):
        logits, free_logits = np.log(p) + 3, np.log(free) - 2
    found = contextually_calibrated(logits, free_logits)
    ratio = np.array([[0.8, 1.6, 0.0], [2.5, 1.5, 1 / 3]])
    np.testing.assert_allclose(np.exp(found - 3), ratio)
    assert found[0, 2] == -math.inf


@dataclass(frozen=True, kw_only=True)
class Uneven(Colours):
    """Every second question has two options."""

    def example(self, row):
        example = super().example(row)
        number = int(row["id"].split("-")[1])
        return replace(example, options=example.options[: 2 + (number % 2 or example.label == 2)])


def test_a_question_is_calibrated_by_one_with_as_many_options(trial, data_root):
    ours = trial(InContext(2, calibrated=True), task=Uneven(scoring=Letters()).located(data_root))
    backbone = load_backbone(ours.backbone, "fp32", "cpu")
    context = draw_context(backbone.tokenizer, ours, 0).text
    plain, found = (
        predict_in_context(backbone, InContext(2, calibrated=c), context, 64, ours.task, "test")
        for c in (0, 1)
    )
    lm = AutoModelForCausalLM.from_pretrained(ours.backbone.path)
    counts = [len(example.options) for example in ours.task.examples("test")]
    assert set(counts) == {2, 3}
    for count, before, after in zip(counts, plain, found):
        free = LETTERS_FREE if count == 3 else LETTERS_FREE.replace("\nC) N/A", "")
        log_p = class_logits(lm, backbone.tokenizer, context + free, (" A", " B", " C")[:count]).log_softmax(
            -1
        )
        np.testing.assert_allclose(after[:count], before[:count] - log_p.numpy(), atol=1e-4)
        assert (after[count:] == -math.inf).all()


# Members ---------------------------------------------------------------------------------------------------


def stored_logits(store, trial, member, task, split="test"):
    folder = member_folder(trial.member_id(member))
    return store.predictions([folder], task.eval_set(split)).logits_MNC[0]


def test_members_are_predicted_alone_and_differ(trial, tmp_path):
    ours = trial(members=3)
    assert run_stack(Stack(ours, (0, 1, 2)), str(tmp_path / "all")).trained == tuple(ours.member_ids())
    run_stack(Stack(ours, (1,)), str(tmp_path / "one"))
    every, one = Store(str(tmp_path / "all")), Store(str(tmp_path / "one"))
    logits = [stored_logits(every, ours, m, ours.task) for m in range(3)]
    np.testing.assert_array_equal(stored_logits(one, ours, 1, ours.task), logits[1])
    assert all(np.abs(logits[a] - logits[b]).max() > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))
    record = json.loads(every.read(member_folder(ours.member_id(1)), RECORD))
    backbone = load_backbone(ours.backbone, "fp32", "cpu")
    assert record["streams"] == {"demonstrations": [0, 1, "demonstrations"]}
    assert (
        tuple(record["context"]["demonstrations"]) == draw_context(backbone.tokenizer, ours, 1).demonstrations
    )
    again = predict_in_context(
        backbone, ours.method, record["context"]["text"], BUDGET.max_tokens, ours.task, "test"
    )
    np.testing.assert_allclose(again, logits[1], atol=1e-5)
    cost = record["cost"]
    assert cost.pop("predict_seconds") > 0
    assert cost.pop("stacked_with") == 1 and set(cost.values()) == {0}
    assert len(every.curve(member_folder(ours.member_id(1)))) == 0


def test_a_member_is_named_by_what_it_reads(trial):
    ours = trial(members=2)
    same = replace(ours, optimizer=AdamW(lr=0.3), budget=Budget(steps=7, max_tokens=32), members=3)
    assert same.member_ids()[:2] == ours.member_ids() and len(set(same.member_ids())) == 3
    others = [
        replace(ours, seed=1),
        replace(ours, method=InContext(4, False)),
        replace(ours, method=InContext(3, True)),
        replace(ours, budget=replace(BUDGET, max_tokens=33)),
        replace(ours, task=replace(ours.task, num_train=20)),
    ]
    ids = [m for t in (ours, *others) for m in t.member_ids()]
    assert len(set(ids)) == len(ids)


def test_a_run_that_is_stopped_keeps_the_members_that_are_done(trial, tmp_path, monkeypatch):
    ours, made = trial(members=3), []
    monkeypatch.setattr(
        "lorae.engine.predicting.predict_in_context", lambda *a: made.append(a) or predict_in_context(*a)
    )
    store = Store(str(tmp_path))

    def stop():
        return store.is_member(ours.member_id(0)) and not again

    again = False
    with pytest.raises(Stopped):
        run_stack(Stack(ours, (0, 1, 2)), str(tmp_path), should_stop=stop)
    assert store.is_member(ours.member_id(0)) and not store.is_member(ours.member_id(2))
    made.clear()
    again, progress = True, []
    run_stack(Stack(ours, (0, 1, 2)), str(tmp_path), on_progress=progress.append)
    assert len(made) == 4, "validation and test of two members"
    assert progress[-1] == Progress("done") and {p.phase for p in progress} == {"load", "predict", "done"}


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_later_task_is_read_after_the_same_demonstrations(trial, data_root, tmp_path, calibrated):
    """By the sweep, by a later sweep, and by `lorae predict`, beside trained members."""
    ours, greys = trial(InContext(2, calibrated)), Greys().located(data_root)
    lora = replace(ours, method=Lora(rank=2), budget=Budget(steps=1, max_tokens=32))
    stores = [Store(str(tmp_path / name)) for name in ("at-once", "later", "predicted")]
    run_stack(Stack(ours, (0, 1), (greys,)), stores[0].storage.uri)
    for store in stores[1:]:
        run_stack(Stack(ours, (0, 1)), store.storage.uri)
    assert run_stack(Stack(ours, (0, 1), (greys,)), stores[1].storage.uri).trained == ()
    run_stack(Stack(lora, (0,)), stores[2].storage.uri)
    members = [ours.member_id(0), ours.member_id(1), lora.member_id(0)]
    assert predict_task(stores[2], members, greys) == 3
    for member in (0, 1):
        at_once, *others = (stored_logits(store, ours, member, greys) for store in stores)
        for other in others:
            np.testing.assert_array_equal(other, at_once)
    backbone = load_backbone(ours.backbone, "fp32", "cpu")
    plain = encode(backbone.tokenizer, greys, greys.examples("test"), BUDGET.max_tokens)
    found = stores[2].predictions([f"reference/{ours.reference_id()}"], greys.eval_set("test")).logits_MNC
    np.testing.assert_allclose(found, predict(backbone, plain), atol=1e-5)
    record = json.loads(stores[2].read(member_folder(members[0]), RECORD))
    del record["context"]
    stores[2].write_entry(member_folder(members[0]), {RECORD: json.dumps(record).encode()})
    with pytest.raises(ValueError, match="context"):
        predict_task(stores[2], members[:1], Greys(num_test=3).located(data_root))


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"regularizers": (KL(0.1),)}, r"regularizers=\(KL.* with InContext.*: it trains nothing"),
        ({"regularizers": (AdapterDropout(0.1),), "draws": MCDropout(2)}, "trains nothing"),
        ({"draws": MCDropout(2)}, r"draws=MCDropout.*leave draws out"),
        ({"optimizer": AdamW(schedule="cyclic", cycles=2)}, "cycles=2 with InContext"),
        ({"combine": "weights", "members": 2}, "combine='weights' with InContext"),
        ({"diversity": Diversity(order="shared")}, "diversity=Diversity"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_belongs_to_a_training_is_refused(trial, changes, message):
    with pytest.raises(ValueError, match=message):
        trial(**changes)


def test_scorings_that_cannot_work_are_refused(trial, data_root):
    likelihood = Colours(scoring=OptionLikelihood()).located(data_root)
    assert trial(InContext(2, calibrated=False), task=likelihood)
    with pytest.raises(ValueError, match=r"InContext\(shots=2, calibrated=True\) with OptionLikelihood"):
        trial(InContext(2, calibrated=True), task=likelihood)
    with pytest.raises(ValueError, match=r"with Head.*an encoder reads no demonstrations"):
        trial(task=Colours(scoring=Head()).located(data_root))
    with pytest.raises(ValueError, match=r"shots=0: must be >= 1"):
        InContext(shots=0)
    with pytest.raises(ValueError, match="nothing is trained that it could end"):
        Sweep(base=trial(), axes={"members": [1, 2]}, search=ASHA())


def test_a_prompt_that_the_model_cannot_read_is_refused_by_the_plan(trial, tmp_path):
    def plan(**changes):
        return make_plan(Sweep(base=trial(**changes)), Store(str(tmp_path)), ONE_CPU)

    assert plan(method=InContext(shots=3)).stacks
    budget = replace(BUDGET, max_tokens=600)
    with pytest.raises(
        ValueError, match=r"such parts has 2400 tokens.*at most 2048; write Budget\(max_tokens=512\)"
    ):
        make_plan(Sweep(base=replace(trial(), budget=budget)), Store(str(tmp_path)), ONE_CPU)
    with pytest.raises(ValueError, match=r"shots=50: colours has \d+ training examples"):
        plan(method=InContext(shots=50))


# In a sweep ------------------------------------------------------------------------------------------------


def test_the_plan_counts_demonstrations_and_no_training(trial):
    """A row of colours has some ten tokens: with eight demonstrations nine times as many as without."""

    def stack(shots, members=(0, 1), max_tokens=32):
        return Stack(trial(InContext(shots), budget=Budget(steps=1, max_tokens=max_tokens)), members)

    where = place(stack(2), ONE_CPU)
    few, many = (estimate(stack(shots), ONE_CPU, where) for shots in (2, 8))
    assert few.train_tokens == few.train_seconds == many.train_tokens == 0
    parts = many.predict_seconds / few.predict_seconds
    assert 3 < parts < 3**2, "nine parts, and three; attention takes their squares"
    assert 2 * estimate(stack(2, (0,)), ONE_CPU, where).predict_seconds == pytest.approx(few.predict_seconds)
    lora = replace(stack(2), trial=replace(stack(2).trial, method=Lora(rank=2)))
    plain = estimate(lora, ONE_CPU, where).predict_seconds
    assert 3 < 1.1 * few.predict_seconds / plain < 3**2
    one, thousand = (memory(stack(shots, (0,), 500), 1, 0) for shots in (1, 1000))
    assert one.adapters == thousand.adapters == 0 and one.backbone == thousand.backbone
    assert one.activations < thousand.activations, "attention is written out on a CPU"
    assert memory(stack(1, (), 500), 1, 0).activations < one.activations, (
        "the backbone reads no demonstrations"
    )
    assert memory(stack(1, (0, 1, 2), 500), 1, 0) == one, "members are predicted one by one"


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_llama, data_root):
    """A storage with a sweep of in-context learning beside a LoRA ensemble, by the command line."""
    from jobs.cli import main

    folder = tmp_path_factory.mktemp("swept")
    (folder / "rivals.py").write_text(
        f"""
from toys import Colours, Greys
from lorae.methods import InContext, Lora
from lorae.sources import Files
from lorae.trial import AdamW, Budget, Sweep, Trial
from dataclasses import replace

BASE = Trial(backbone=Files({tiny_llama.path!r}), task=Colours(), method=Lora(rank=2), precision="fp32",
             optimizer=AdamW(lr=1e-2), budget=Budget(batch_size=8, epochs=1, max_tokens=32))
SHOTS = [replace(BASE, method=InContext(2, c), members=m) for c in (False, True) for m in (1, 3)]
SWEEP = Sweep(base=BASE, axes={{"members": [1, 2], "budget.epochs": [1, 2]}}, rivals=SHOTS, ood=[Greys()],
              companions=True, paths=True)
"""
    )
    command = ["sweep", str(folder / "rivals.py"), "--local", "--storage", str(folder / "results")]
    assert main([*command, "--data-root", str(data_root)]) == 0
    return folder / "results"


@pytest.mark.process
def test_a_storage_with_such_members_is_sound_and_has_its_table(swept):
    findings = audit(str(swept))
    assert not [f for f in findings if f.status == "failed"], text(findings)
    trials = load_trials(str(swept), "rivals")
    prompted = {(r["init"], r["members"]): r for r in trials.rows if r["method"] == "in-context"}
    assert len(prompted) == len([r for r in trials.rows if r["method"] == "in-context"]) == 4
    row = prompted["2-shot+calibrated", 3]
    assert (row["train_tokens"], row["train_seconds"], row["trainable_parameters"]) == (0, 0, 0)
    assert row["forwards_per_prediction"] == 3 and row["predict_seconds"] > 0
    assert (row["lr"], row["budget"], row["schedule"]) == (0, "none", "none")
    names = {cell.name for cell in trials.cells}
    assert {"in-context learning, 2-shot", "in-context ensemble of 3, 2-shot, calibrated"} <= names
    rivals = [line["rival"].value for block in against_rivals(trials).blocks for line in block]
    assert "in-context ensemble of 3, 2-shot" in rivals
    table = markdown(comparison(trials))
    head = next(line for line in table.splitlines() if "| model " in line)
    assert re.search(r"\| in-context ensemble of 3, 2-shot +\|", table)
    assert "init" not in head and " lr" not in head, (
        "the name tells the shots; what is not trained has no rate"
    )


def test_what_needs_weights_says_that_there_are_none(swept, tmp_path):
    trials = load_trials(str(swept), "rivals")
    ids = next(r["member_ids"] for r in trials.rows if r["method"] == "in-context" and r["members"] == 3)
    with pytest.raises(
        ValueError, match=r"is no adapter: it is the untouched backbone with the demonstrations"
    ):
        export_member(str(swept), ids[0], str(tmp_path / "out"))
    updated, notes = with_updates(trials)
    assert any("a member of InContext has no low-rank update" in note for note in notes)
    by_method = {r["method"]: r["update_norm"] for r in updated.rows if r["members"]}
    assert by_method["in-context"] is None and by_method["lora"] > 0
    assert Store(str(swept)).read(member_folder(ids[0]), WEIGHTS)


def test_what_cost_no_training_is_in_the_figure_of_costs(swept):
    (plot,) = quality_against_cost(load_trials(str(swept), "rivals"))
    tokens, _ = plot.figure.axes
    low, high = tokens.get_xlim()
    shown = [x for line in tokens.lines for x in line.get_xdata() if line.get_linestyle() == "None"]
    assert shown.count(0) == 4 and low < 0 and max(shown) < high


@pytest.mark.slow
def test_mlflow_shows_them(swept, tmp_path):
    recorded = record_sweep(Store(str(swept)), "rivals", f"sqlite:///{tmp_path}/mlflow.db")
    assert recorded.written == len(load_trials(str(swept), "rivals").rows)


@pytest.mark.slow
def test_the_audit_sees_demonstrations_that_are_test_examples_or_too_few(swept, tmp_path):
    shutil.copytree(swept, tmp_path / "results")
    store = Store(str(tmp_path / "results"))
    rows = load_trials(store.storage.uri, "rivals").rows
    one, three = (next(r for r in rows if r["method"] == "in-context" and r["members"] == m) for m in (1, 3))
    test = store.predictions([member_folder(one["member_ids"][0])], json.loads(one["eval_sets"])["test"])

    def edit(member, demonstrations):
        record = json.loads(store.read(member_folder(member), RECORD))
        record["context"]["demonstrations"] = demonstrations
        store.write_entry(member_folder(member), {RECORD: json.dumps(record).encode()})

    edit(three["member_ids"][1], ["train-1", test.example_ids[0]])
    (fault, *_) = [f for f in audit(store.storage.uri) if f.status == "failed"]
    assert fault.check == "splits are disjoint" and test.example_ids[0] in fault.what
    edit(three["member_ids"][1], ["train-1", "train-1"])
    found = [f for f in audit(store.storage.uri) if f.status == "failed"]
    assert any("1 distinct, of 2 shots" in f.what for f in found)


def test_the_same_demonstrations_by_chance_are_no_fault(trial, data_root, tmp_path):
    ours = trial(InContext(1, False), task=Colours(num_train=2).located(data_root), members=4)
    store = Store(str(tmp_path))
    run_stack(Stack(ours, (0, 1, 2, 3)), store.storage.uri)
    store.write_table("toy", trials_table(store, "toy", [(ours, ())], {}))
    assert not [f for f in audit(str(tmp_path)) if f.status == "failed"]
    shown = [read_tensors(store.read(member_folder(m), WEIGHTS)) for m in ours.member_ids()]
    assert not any(shown), "nothing is in their adapters"


def test_the_dry_run_names_the_shots(trial, tmp_path):
    sweep = Sweep(base=trial(), axes={"method": [InContext(2, True), InContext(3, False)], "members": [1, 2]})
    shown = plan_text(make_plan(sweep, Store(str(tmp_path)), ONE_CPU, "local"))
    assert "4 needed, 0 stored, 0 to train, 4 to prompt" in shown
    assert "in-context 2-shot+calibrated none seed 0 members 0,1" in shown


def test_an_ensemble_of_prompts_has_one_companion(trial):
    ensemble = trial(members=3)
    assert companions(ensemble) == [replace(ensemble, members=1)]
