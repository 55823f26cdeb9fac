"""Encoders of images, audio and text: exact stacks with a head per member, the model's own preprocessing and
classifier, one code path with the language models, and what bad input gets."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from encoders import MORE
from laplace_definition import assert_is_the_definition, trained_on
from media import AST, SHADES, Stripes, wav
from peft import LoraConfig, PeftModel, get_peft_model
from stacks import Recorder, featured, largest_difference
from torch.utils.flop_counter import FlopCounterMode
from toys import OPTIONS, WORDS, Greys
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from lorae import metrics
from lorae.backbone.loading import Backbone, load_backbone, read_backbone
from lorae.engine.adapters import HEAD, Adapters, Soup, initial_head
from lorae.engine.batches import class_logits, collate
from lorae.engine.ensembles import Ensemble
from lorae.engine.order import DataOrder
from lorae.engine.prediction import predict, with_features
from lorae.engine.run import run_stack
from lorae.engine.training import TrainingData, learning_rate, train_stack
from lorae.media import Audio, Image
from lorae.methods import BatchEnsemble, Blob, Full, LastLayer, Lora, PVera, Rank1BNN, Vera, Xavier
from lorae.planning import faults
from lorae.planning.estimate import Devices
from lorae.planning.faults import input_faults
from lorae.planning.plan import check_trial, make_plan
from lorae.planning.stack import Stack
from lorae.regularizers import KL, AdapterDropout, EarlyStopping
from lorae.results import trials_table
from lorae.shapes import kind_of, linear_shapes, linears_of, num_backbone_parameters, num_tokens
from lorae.sources import Files, backbone_config
from lorae.store import peft_format
from lorae.store.names import member_folder
from lorae.store.store import Store
from lorae.tasks.base import Example, Head, LabelWords
from lorae.tasks.encoding import encode
from lorae.trial import AdamW, Budget, Diversity, Sweep, Trial

ONE_CPU = Devices("cpu", 1, 1)
ROUGH = AdamW(lr=1e-2, eps=1e-4)  # else rounding decides where a gradient is zero, as of a key's bias


def prepared(trial: Trial) -> tuple[Backbone, TrainingData]:
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    splits = (trial.task.examples("train"), trial.task.examples("validation"))
    most = trial.budget.max_tokens
    data = TrainingData(*(encode(backbone.tokenizer, trial.task, s, most) for s in splits))
    return backbone, featured(trial, backbone, data)


# Exact stacks


@pytest.mark.parametrize("model", MORE)
def test_member_of_a_stack_equals_the_member_trained_alone(encoder_trial, model):
    """Heads included; different orders, dropout, early stopping."""
    rules = (AdapterDropout(0.1), EarlyStopping(patience=1, every=3))
    trial = encoder_trial(model, regularizers=rules, optimizer=ROUGH)
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, range(3), data)
    for m, run in enumerate(together):
        alone = train_stack(backbone, trial, [m], data)[0]
        assert run.error is None and run.best_step == alone.best_step
        assert largest_difference(run, alone) < 1e-5
        moved = {name for name, value in run.state.items() if name.endswith(".B") and value.any()}
        assert len(moved) == 2 * 4, "query, key, value and output of every layer learn"
    assert largest_difference(together[0], together[1]) > 1e-3


@pytest.mark.parametrize(
    "method",
    [
        *(kind(targets=("q", "v")) for kind in (Vera, PVera, Blob, BatchEnsemble, Rank1BNN)),
        LastLayer(),
        Full(),
    ],
    ids=lambda method: method.label,
)
def test_every_method_is_exact_on_an_encoder_and_trains_its_head(encoder_trial, method):
    noise = () if method.is_bayesian else (AdapterDropout(0.1),)
    trial = encoder_trial("bert", method=method, regularizers=noise, optimizer=ROUGH)
    backbone, data = prepared(trial)
    together = train_stack(backbone, trial, [1, 0], data)
    assert largest_difference(together[0], train_stack(backbone, trial, [1], data)[0]) < 1e-5
    begun = initial_head(3, 32, trial.member_key(1)["init"])
    assert all((together[0].state[name] - value).abs().max() > 1e-3 for name, value in begun.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", [Lora(rank=4, alpha=4, targets=("q", "v")), Full(), LastLayer()])
@pytest.mark.parametrize("model", MORE)
def test_a_training_costs_what_torch_counts(encoder_trial, model, method):
    """Patches included. Members read the same row in each step, so that there is no padding; a key's gradient
    in the first layer counts though it has none, and pooling does not count."""
    budget, diversity = Budget(batch_size=1, steps=4), Diversity(order="shared")
    trial = encoder_trial(model, method=method, budget=budget, diversity=diversity)
    backbone, data = prepared(trial)
    with FlopCounterMode(display=False) as counter:
        runs = train_stack(backbone, trial, [0, 1], data)
    ours = sum(run.train_flops - run.shared_flops for run in runs)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_full_fine_tuning_of_an_encoder_resumes_to_the_same_bytes(encoder_trial):
    trial = encoder_trial("bert", method=Full(), budget=Budget(batch_size=4, steps=4))
    backbone, data = prepared(trial)
    recorder = Recorder()
    run = train_stack(backbone, trial, [0], data, checkpoints=recorder)[0]
    again = train_stack(backbone, trial, [0], data, checkpoints=Recorder(recorder.all[2]))[0]
    assert largest_difference(run, again) == 0


@pytest.mark.parametrize("model", ["vit", AST])
def test_lora_member_equals_a_plain_peft_loop_with_the_models_own_classifier(encoder_trial, model):
    """The head begins as ours; PEFT trains its copy of the classifier beside the adapter."""
    trial = encoder_trial(model)
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1], data)[1]
    key = trial.member_key(1)
    auto: Any = AutoModelForImageClassification if model == "vit" else AutoModelForAudioClassification
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=targets, modules_to_save=["classifier"])
    peft = get_peft_model(auto.from_pretrained(trial.backbone.path), config)
    names = {"lora_A.default.weight": "A", "lora_B.default.weight": "B"}
    theirs: dict[str, torch.nn.Parameter] = {}
    for name, p in peft.named_parameters():
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if factor:
            theirs[f"{layer}.{names[f'lora_{factor}']}"] = p
        elif "modules_to_save" in name and "layernorm" not in name:
            theirs[f"head.{name.rsplit('.', 1)[1]}"] = p
        elif p.requires_grad:
            p.requires_grad_(False)  # the norm of AST's classifier
    with torch.no_grad(), Adapters(backbone, trial.method, [key["init"]], answer_ids=range(3)) as adapters:
        for name, value in adapters.state(0).items():
            theirs[name].copy_(value)
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.0)
    order = DataOrder(key["order"], 0, np.array([len(r.tokens) for r in data.train]), 4)
    inputs = backbone.tokenizer.processor.model_input_names[0]
    for step in range(6):
        rows = [data.train[n] for n in order.batch(step)]
        media = torch.from_numpy(np.stack([backbone.tokenizer.processed(r.media) for r in rows]))
        optimizer.zero_grad()
        logits = peft.eval()(**{inputs: media}).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([r.label for r in rows])).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trial.optimizer, step, 6)
        optimizer.step()
    assert theirs.keys() == ours.state.keys()
    for name, value in ours.state.items():
        assert torch.allclose(value, theirs[name].detach(), atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit", AST, "bert", "distilbert"])
def test_laplace_has_the_logits_of_its_definition(encoder_trial, model):
    """The head stays as it is."""
    trial = encoder_trial(model, method=Lora(rank=2, targets=("q", "v"), init=Xavier(2)))
    trained = trained_on(trial, *prepared(trial))
    assert_is_the_definition(trained, trained.data.validation[:4])


@pytest.mark.parametrize("model", ["vit", AST, "bert"])
def test_a_soup_has_its_members_mean_weights_and_head(encoder_trial, model):
    trial = encoder_trial(model)
    backbone, data = prepared(trial)
    states = [run.state for run in train_stack(backbone, trial, range(3), data)]
    keys = [trial.member_key(m)["init"] for m in range(3)]
    with Soup(backbone, trial.method, keys, states, data.train[0].answer_ids) as soup:
        found_NC = predict(backbone, data.validation)[0]

    merged = read_backbone(trial.backbone, "fp32", "cpu", False)
    for layer in soup.layers:
        updates = [trial.method.scale * s[f"{layer}.B"] @ s[f"{layer}.A"] for s in states]
        merged.lm.get_submodule(layer).weight.data += torch.stack(updates).mean(0)
    W_CD, bias_C = (torch.stack([s[name] for s in states]).mean(0).numpy() for name in HEAD)
    expected_NC = np.stack([row.features @ W_CD.T + bias_C for row in with_features(merged, data.validation)])
    np.testing.assert_allclose(found_NC, expected_NC, atol=1e-4)


def test_step_zero_differs_from_the_backbone_by_nothing_but_the_head(encoder_trial):
    trial = encoder_trial("vit")
    backbone, data = prepared(trial)
    classifier = AutoModelForImageClassification.from_pretrained(trial.backbone.path).eval()
    before = {name: p.clone() for name, p in backbone.lm.named_parameters()}
    keys = [trial.member_key(m)["init"] for m in range(2)]
    with Adapters(backbone, trial.method, keys, answer_ids=range(3)) as adapters:
        heads = [adapters.state(m) for m in range(2)]
        ours_MNC = predict(backbone, data.validation)
    pixels = np.stack([backbone.tokenizer.processed(r.media) for r in data.validation])
    for head, ours_NC in zip(heads, ours_MNC):
        classifier.classifier.load_state_dict({n: head[f"head.{n}"] for n in ("weight", "bias")})
        theirs = classifier(torch.from_numpy(pixels)).logits.detach().numpy()
        assert np.allclose(ours_NC, theirs, atol=1e-5)
    assert np.abs(ours_MNC[0] - ours_MNC[1]).max() > 1e-2, "every member has its own head"
    train_stack(backbone, trial, [0], data)
    assert all(torch.equal(p, before[name]) for name, p in backbone.lm.named_parameters())


@pytest.mark.parametrize("model,pool", [("bert", "cls"), ("bert", "mean"), ("roberta", "mean")])
def test_a_texts_prediction_does_not_depend_on_the_others_of_its_batch(encoder_trial, model, pool):
    trial = encoder_trial(model)
    task = replace(trial.task, scoring=Head(pool=pool))
    backbone, _ = prepared(trial)
    rows = encode(backbone.tokenizer, task, task.examples("test"), 64)
    rows.sort(key=lambda r: len(r.tokens))
    assert len(rows[-1].tokens) > len(rows[0].tokens) + 3
    with torch.no_grad(), Adapters(backbone, trial.method, [(0, 0, "init")], answer_ids=range(3)):
        alone = class_logits(backbone, collate(rows[:1], 3, backbone))
        padded = class_logits(backbone, collate([rows[0], rows[-1]], 3, backbone))[:1]
        assert torch.allclose(alone, padded, atol=1e-5)
        other = class_logits(backbone, collate(rows[-1:], 3, backbone))
        assert not torch.allclose(alone, other, atol=1e-3)


def test_mean_pooling_is_that_of_sentence_embeddings(encoder_trial):
    trial = encoder_trial("bert")
    task = replace(trial.task, scoring=Head(pool="mean"))
    backbone, _ = prepared(trial)
    rows = encode(backbone.tokenizer, task, task.examples("test")[:3], 64)
    with torch.no_grad(), Adapters(backbone, trial.method, [(0, 0, "init")], answer_ids=range(3)) as adapters:
        ours = class_logits(backbone, collate(rows, 3, backbone))
        head = adapters.state(0)
    bert = AutoModelForSequenceClassification.from_pretrained(trial.backbone.path).base_model.eval()
    for row, logits in zip(rows, ours):
        assert row.tokens[0] == 2 and row.tokens[-1] == 3, "with [CLS] and [SEP]"
        mean = bert(torch.tensor([row.tokens])).last_hidden_state[0].mean(0)
        assert torch.allclose(logits, head["head.weight"] @ mean + head["head.bias"], atol=1e-5)


def test_a_long_text_loses_its_end(encoder_trial):
    trial = encoder_trial("bert")
    backbone, _ = prepared(trial)
    example = Example("long", " ".join(WORDS), OPTIONS, 0)
    (row,) = encode(backbone.tokenizer, trial.task, [example], 10)
    assert row.tokens == (2, *range(4, 12), 3) and row.truncated == len(WORDS) - 8


# Preprocessing


def test_images_are_what_the_models_own_processor_makes_bit_for_bit(encoder_trial):
    trial = encoder_trial("vit")
    backbone, data = prepared(trial)
    rows = [data.train[n] for n in (0, 1, 2, 1)]
    own = AutoImageProcessor.from_pretrained(trial.backbone.path)
    pictures = [PIL.Image.open(io.BytesIO(r.media.data)) for r in rows]
    expected = own(images=pictures, return_tensors="pt")["pixel_values"]
    for _ in range(2):  # the second time from the cache
        assert torch.equal(collate(rows, 3, backbone).inputs["pixel_values"], expected)


def test_audio_is_what_the_models_own_extractor_makes_bit_for_bit(encoder_trial):
    trial = encoder_trial(AST)
    backbone, data = prepared(trial)
    rows = data.train[:3]
    own = AutoFeatureExtractor.from_pretrained(trial.backbone.path)
    waves = [soundfile.read(io.BytesIO(r.media.data), dtype="float32")[0] for r in rows]
    expected = own(waves, sampling_rate=16000, return_tensors="pt")["input_values"]
    assert torch.equal(collate(rows, 3, backbone).inputs["input_values"], expected)


# PEFT


@pytest.mark.parametrize("model", ["vit", AST])
def test_exported_member_has_the_same_logits_in_peft(encoder_trial, tmp_path, model):
    trial = encoder_trial(model)
    backbone, data = prepared(trial)
    run, key = train_stack(backbone, trial, [2], data)[0], trial.member_key(2)["init"]
    files = peft_format.adapter_files(trial.method, trial.backbone, run.state, scoring=trial.task.scoring)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with Adapters(backbone, trial.method, [key], answer_ids=range(3)) as adapters:
        adapters.load([run.state])
        ours = predict(backbone, data.validation)[0]
    auto: Any = AutoModelForImageClassification if model == "vit" else AutoModelForAudioClassification
    peft = PeftModel.from_pretrained(auto.from_pretrained(trial.backbone.path), tmp_path)
    media = torch.from_numpy(np.stack([backbone.tokenizer.processed(r.media) for r in data.validation]))
    theirs = peft.eval()(media).logits.detach().numpy()
    assert np.allclose(ours, theirs, atol=1e-4)
    restored = peft_format.read_state(files[peft_format.WEIGHTS])
    assert restored.keys() == run.state.keys()
    assert all(torch.equal(restored[name], value) for name, value in run.state.items())


def test_a_texts_adapter_loads_in_peft_and_its_head_is_beside_it(encoder_trial, tmp_path):
    trial = encoder_trial("bert", method=Lora(rank=2, targets=("q", "o")))
    backbone, data = prepared(trial)
    run = train_stack(backbone, trial, [0], data)[0]
    files = peft_format.adapter_files(trial.method, trial.backbone, run.state, scoring=trial.task.scoring)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    restored = peft_format.read_state(files[peft_format.WEIGHTS])
    assert all(torch.equal(restored[name], value) for name, value in run.state.items())
    with Adapters(backbone, trial.method, [(0, 0, "init")], answer_ids=range(3)) as adapters:
        adapters.load([run.state])
        ours = predict(backbone, data.validation)[0]
    whole = AutoModelForSequenceClassification.from_pretrained(trial.backbone.path)
    bert: Any = PeftModel.from_pretrained(whole, tmp_path).eval().base_model.model.base_model
    for row, logits in zip(data.validation, ours):
        first = bert(torch.tensor([row.tokens])).last_hidden_state[0, 0]
        theirs = restored["head.weight"] @ first + restored["head.bias"]
        assert np.allclose(logits, theirs.detach().numpy(), atol=1e-4)


# From the plan to the table


@pytest.mark.slow
def test_a_sweep_of_images_from_parquet_to_metrics(encoder_trial, media_root, tmp_path):
    """Its rows are computed from the store; OOD images have other classes and so no labels."""
    trial = encoder_trial("vit", budget=Budget(batch_size=4, epochs=12), members=3)
    ood = Stripes().located(media_root)
    sweep = Sweep(base=trial, axes={"members": [1, 3]}, ood=[ood])
    assert [t.members for t in sweep.trials()] == [1, 3], "no zero-shot row: a backbone has no head"
    store = Store(str(tmp_path))
    plan = make_plan(sweep, store, ONE_CPU)
    (stack,) = plan.stacks
    assert plan.estimates[0].train_tokens == 3 * 12 * len(trial.task.examples("train")) * 17
    assert run_stack(stack, str(tmp_path)).failed == {}
    again = make_plan(sweep, store, ONE_CPU)
    assert again.num_to_train == 0 and again.stacks == (), "no reference is waited for"
    assert not (tmp_path / "reference").exists()
    rows = trials_table(store, "shades", plan.trials, {}).to_pylist()
    assert [row["status"] for row in rows] == ["done", "done"]
    folders = [member_folder(m) for m in trial.member_ids()]
    test = store.predictions(folders, trial.task.eval_set("test"))
    assert test.logits_MNC.shape == (3, 12, 3)
    pooled = metrics.combine(test.logits_MNC, "probs")
    assert rows[1]["ensemble_nll"] == pytest.approx(metrics.ensemble_nll(pooled, test.labels_N))
    assert rows[1]["acc"] > 0.8, "the toy task is easy"
    far = store.predictions(folders, replace(ood, scoring=Head()).eval_set("test"))
    assert far.logits_MNC.shape == (3, 7, 3) and set(far.labels_N) == {-1}
    record = json.loads(store.read(folders[0], "member.json"))
    factors, head = 2 * 4 * 4 * (32 + 32), 3 * (32 + 1)
    assert record["cost"]["trainable_parameters"] == factors + head
    assert rows[1]["trainable_parameters"] == 3 * (factors + head)


# What a plan knows from a config alone


@pytest.mark.parametrize("model", MORE)
def test_shapes_and_tokens_from_the_config_are_the_models(backbones, model):
    backbone = load_backbone(backbones[model], "fp32", "cpu")
    config = backbone_config(backbones[model])
    assert linear_shapes(config) == linears_of(backbone.lm)
    body = backbone.lm.base_model
    weights = [p for n, p in body.named_parameters() if p.dim() > 1 and "pooler" not in n]
    assert num_backbone_parameters(config) == pytest.approx(sum(p.numel() for p in weights), rel=0.02)
    if positions := num_tokens(config):
        assert positions == body.embeddings.position_embeddings.shape[1]


def test_base_models_of_the_field_have_their_known_sizes():
    base = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12
    }  # fmt: skip
    vit = base | {"model_type": "vit", "image_size": 224, "patch_size": 32}
    ast = base | {"model_type": AST, "patch_size": 16, "frequency_stride": 10, "time_stride": 10}
    ast |= {"max_length": 1024, "num_mel_bins": 128}
    assert num_tokens(vit) == 50 and num_tokens(ast) == 1214
    assert num_backbone_parameters(vit) == pytest.approx(87.5e6, rel=0.01)
    assert num_backbone_parameters(ast) == pytest.approx(86.6e6, rel=0.01)


def test_a_config_with_names_of_its_own_is_planned(encoder_trial, tmp_path):
    trial = encoder_trial("distilbert", members=2)
    devices = Devices("cuda", 1, 1, memory_bytes=2**33)
    plan = make_plan(Sweep(base=trial), Store(str(tmp_path)), devices)
    assert plan.num_to_train == 2 and plan.estimates[0].train_seconds > 0


# What bad input gets


@pytest.mark.parametrize("model", ["DistilBertModel", "Dinov2Model", None])
def test_an_architecture_that_may_be_anything_is_refused_by_name(model):
    config = {"model_type": "dinov2", "architectures": [model] if model else None}
    with pytest.raises(ValueError, match=rf"'dinov2' .*'{model or ''}' may be anything.*ForCausalLM"):
        kind_of(config)
    assert kind_of({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}) == "causal"


def test_a_backbone_that_cannot_read_the_task_is_refused_by_the_plan(encoder_trial, tiny_trial):
    vit, bert, llama = encoder_trial("vit"), encoder_trial("bert"), tiny_trial()
    cases = {
        "tiny.* is a causal LM, shades has image examples; take a backbone for image": replace(
            vit, backbone=llama.backbone
        ),
        "vit.* is a image encoder, colours has text examples": replace(bert, backbone=vit.backbone),
        r"bert.* is a text encoder; write scoring=Head\(\)": replace(
            bert, task=replace(bert.task, scoring=LabelWords())
        ),
        r"is a causal LM; write scoring=Letters\(\)": replace(
            llama, task=replace(llama.task, scoring=Head())
        ),
        "'query' matches no Linear of .*; it has q_proj, k_proj, v_proj, o_proj, fc1, fc2": replace(
            vit, method=Lora(targets=("query",))
        ),
        "'gate_proj' matches no Linear of .*; it has query, key, value, dense": replace(
            bert, method=Lora(targets=("q", "gate_proj"))
        ),
        "max_tokens=512: roberta.* reads at most 38": encoder_trial("roberta"),
    }
    for message, trial in cases.items():
        with pytest.raises(ValueError, match=message):
            check_trial(trial, ())


def test_a_backbone_without_classes_is_no_row_and_no_reference(encoder_trial):
    with pytest.raises(ValueError, match=r"KL with Head.*head of its own; leave KL out"):
        encoder_trial("vit", regularizers=(KL(0.1),))
    with pytest.raises(ValueError, match=r"members=0 with Head.*no head for shades; write members=1"):
        encoder_trial("vit", members=0)


def test_images_and_audio_that_cannot_be_read_are_named_before_training(encoder_trial):
    vit, ast = encoder_trial("vit"), encoder_trial(AST)
    whole = vit.task.examples("test")[0].media.data
    cases: list[tuple[str, Trial, Image | Audio]] = [
        ("shades bad: .*no intact", vit, Image(whole[:500])),
        ("tones bad: .*no intact", ast, Audio(b"no sound")),
        ("tones bad: the audio has 8000 samples per second", ast, Audio(wav(np.zeros(4000), 8000))),
        (
            "tones bad: the audio has 1500 samples, a patch of the backbone 1520",
            ast,
            Audio(wav(np.zeros(1500))),
        ),
    ]
    for message, trial, media in cases:
        tokenizer = load_backbone(trial.backbone, "fp32", "cpu").tokenizer
        example = Example("bad", "", SHADES, 0, media=media)
        with pytest.raises(ValueError, match=message):
            encode(tokenizer, trial.task, [*trial.task.examples("test"), example], 64)


def test_media_are_decoded_before_training_as_long_as_time_allows(encoder_trial, monkeypatch):
    """All of them by `lorae check`; a run begins with what it can look at in a few seconds."""
    vit = encoder_trial("vit")
    monkeypatch.setattr(faults, "MEDIA_CHUNK", 4)
    assert input_faults([(vit, ())]) == []
    bad = [e.id for split in ("train", "test") for e in vit.task.examples(split)[-2:]]
    pixels = Image.pixels

    def broken(image):
        found = next(e.id for s in vit.task.splits().values() for e in s if e.media == image)
        if found in bad:
            raise ValueError("no intact PNG")
        return pixels(image)

    monkeypatch.setattr(Image, "pixels", broken)
    assert input_faults([(vit, ())]) == [f"shades {name}: no intact PNG" for name in bad]
    assert input_faults([(vit, ())], seconds=0) == []


def test_a_text_encoders_prompts_are_read_before_training(encoder_trial):
    bert = encoder_trial("bert")
    assert input_faults([(bert, ())]) == []
    folder = Files("/nowhere")
    (fault,) = input_faults([(replace(bert, backbone=folder), ())])
    assert "/nowhere/config.json is missing" in fault


def test_a_processor_that_is_not_the_models_is_refused(backbones, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(backbones["vit"].path, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 32, "width": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\), its model reads \(3, 16, 16\)"):
        load_backbone(Files(str(folder)), "fp32", "cpu")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config.json that can be read"):
        load_backbone(Files(str(folder)), "fp32", "cpu")


def test_ood_texts_of_an_encoder_have_the_heads_classes(encoder_trial, data_root):
    trial = encoder_trial("bert")
    greys = replace(Greys().located(data_root), scoring=Head())
    stack = Stack(trial, (0,), (greys,))
    assert stack.reference_sets() == {} and trial.reference_id() == "none"
    backbone, _ = prepared(trial)
    rows = encode(backbone.tokenizer, greys, greys.examples("test"), 64, ("a", "b", "c", "d"))
    assert {(r.num_classes, r.label) for r in rows} == {(4, -1)}


# Inputs that nobody stored


@pytest.mark.parametrize("model", ["vit", AST, "bert"])
def test_an_ensemble_reads_media_as_its_sweep_did(encoder_trial, tmp_path, model):
    """Files, their content, arrays and pictures alike."""
    trial = encoder_trial(model, members=2)
    run_stack(Stack(trial, (0, 1)), str(tmp_path))
    store = Store(str(tmp_path))
    store.write_table("toy", trials_table(store, "toy", [(trial, [])], {}))
    ensemble, examples = Ensemble.load(str(tmp_path)), trial.task.examples("test")
    media = [e.media.data if e.media else e.question for e in examples]
    found = ensemble.predict(media)
    stored = store.predictions(
        [member_folder(m) for m in trial.member_ids()], trial.eval_set(trial.task, "test")
    )
    expected = np.exp(metrics.log_softmax(stored.logits_MNC))
    np.testing.assert_allclose(found.member_probabilities, expected, atol=1e-5)
    assert set(found.labels) <= set(examples[0].options)
    if model == "vit":
        picture = PIL.Image.open(io.BytesIO(media[0]))
        (tmp_path / "image.png").write_bytes(media[0])
        for same in (picture, np.asarray(picture), tmp_path / "image.png", {"image": {"bytes": media[0]}}):
            again = ensemble.predict(same)
            np.testing.assert_allclose(again.probabilities[0], found.probabilities[0], atol=1e-6)
    if model == AST:
        samples, rate = soundfile.read(io.BytesIO(media[0]))
        again = ensemble.predict((samples, rate))
        np.testing.assert_allclose(again.probabilities[0], found.probabilities[0], atol=1e-3)
    if model != "bert":
        with pytest.raises(ValueError, match=r"input 0: nowhere\.png cannot be read"):
            ensemble.predict("nowhere.png")
        with pytest.raises(ValueError, match="input 0: float is no "):
            ensemble.predict([1.5])
