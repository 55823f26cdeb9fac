"""Members in weight space: cosines, ranks and intruder dimensions against dense matrices and PEFT."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, AutoModelForCausalLM, BertConfig, DeiTConfig, ViTConfig

from analysis.backbone import BackboneWeights, LacksLayer, folder_at_hand, open_backbone
from analysis.data import load_trials
from analysis.weights import WEIGHT_SPACE, main, mean_update, stored_update, update_measures, with_updates
from lorae import metrics
from lorae.backbone.loading import load_backbone
from lorae.engine.adapters import Adapters
from lorae.engine.run import run_stack
from lorae.methods import Full, Lora, Vera
from lorae.metrics import Undefined
from lorae.planning.stack import Stack
from lorae.results import trials_table
from lorae.shapes import auto_class, linear_shapes
from lorae.store.names import ADAPTER_CONFIG, WEIGHTS, member_folder
from lorae.store.peft_format import read_state, read_update
from lorae.store.store import Store
from lorae.trial import AdamW, Sweep


def factors(rank: int, seed: int, d_out: int = 12, d_in: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(d_out, rank)), rng.normal(size=(rank, d_in))


# Closed forms ----------------------------------------------------------------------------------------------


def test_updates_of_one_direction_have_cosine_1_and_orthogonal_ones_0():
    B_ER, A_RD = factors(3, 0)
    same = metrics.update_products([(B_ER, A_RD), (2 * B_ER, 3 * A_RD), (B_ER, 0.1 * A_RD)])
    assert metrics.update_cosine(same) == pytest.approx(1, abs=1e-12)
    E, D = np.eye(12), np.eye(9)
    rows = [(E[:, :2], D[:2]), (E[:, :2], D[2:4]), (E[:, 4:6], D[:2])]
    assert metrics.update_cosine(metrics.update_products(rows)) == 0
    assert metrics.update_cosine(metrics.update_products([(B_ER, A_RD), (-B_ER, A_RD)])) == pytest.approx(-1)


def test_ranks_of_one_direction_are_1_and_of_equal_singular_values_their_number():
    B_ER, A_RD = factors(1, 0)
    one = metrics.singular_values(np.hstack([B_ER, 2 * B_ER]), np.vstack([A_RD, A_RD]))
    assert metrics.stable_rank(one) == pytest.approx(1) == metrics.effective_rank(one)
    equal = metrics.singular_values(np.linalg.qr(factors(5, 1)[0])[0], np.linalg.qr(factors(5, 2)[1].T)[0].T)
    assert metrics.stable_rank(7 * equal) == pytest.approx(5) == metrics.effective_rank(7 * equal)


def test_a_zero_update_has_no_direction_and_no_rank():
    zero = np.zeros((12, 2)), factors(2, 0)[1]
    for rank in (metrics.stable_rank, metrics.effective_rank):
        with pytest.raises(Undefined, match="the update is zero"):
            rank(metrics.singular_values(*zero))
    with pytest.raises(Undefined, match="member 1 does not change"):
        metrics.update_cosine(metrics.update_products([factors(2, 1), zero]))
    with pytest.raises(Undefined, match="there is 1"):
        metrics.update_cosine(metrics.update_products([factors(2, 1)]))


# References ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 99))
def test_everything_is_that_of_the_dense_update(rank, other_rank, seed):
    pair = [factors(rank, seed), factors(other_rank, seed + 1)]  # a rank may exceed the matrix's sides
    dense = [B_ER @ A_RD for B_ER, A_RD in pair]
    products = [[np.sum(one * other) for other in dense] for one in dense]
    assert metrics.update_products(pair) == pytest.approx(np.array(products))
    expected = np.linalg.svd(dense[0], compute_uv=False)
    found = metrics.singular_values(*pair[0])
    assert found[: min(rank, 9)] == pytest.approx(expected[: min(rank, 9)])
    share = expected[expected > 1e-9] / expected.sum()
    assert metrics.effective_rank(found) == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    squared_norm = np.linalg.norm(dense[0], "fro") ** 2
    assert metrics.stable_rank(found) == pytest.approx(squared_norm / np.linalg.norm(dense[0], 2) ** 2)


def test_planted_intruders_are_counted_and_others_are_none():
    rng = np.random.default_rng(0)
    u_EE, v_DD = (np.linalg.qr(rng.normal(size=(40, 40)))[0] for _ in range(2))
    W_ED = (u_EE * np.linspace(20, 1, 40)) @ v_DD.T
    mixed_E2 = u_EE.reshape(40, 20, 2).sum(1) / np.sqrt(20)  # orthonormal, cosine 0.22 with 20 vectors each
    for count in (0, 1, 2):
        B_ER, A_RD = 100 * mixed_E2[:, :count], v_DD[:, 38 : 38 + count].T
        assert metrics.num_intruder_dimensions(W_ED, B_ER, A_RD) == count
    strengthened = metrics.num_intruder_dimensions(W_ED, 100 * u_EE[:, -3:], v_DD[:, -3:].T)
    assert strengthened == 0  # new among the first ten, but directions that the backbone has
    assert metrics.num_intruder_dimensions(W_ED, 1.0 * mixed_E2[:, :1], v_DD[:, 39:].T) == 0  # too weak
    assert metrics.num_intruder_dimensions(W_ED, 100 * mixed_E2, v_DD[:, 38:].T, eps=0.2) == 0


# Stored members --------------------------------------------------------------------------------------------

TINY = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2
}  # fmt: skip
TARGETS = ("q_proj", "v_proj", "down_proj")  # inputs of 32 and 64
DOWN = "model.layers.0.mlp.down_proj"
LORA, VERA = Lora(rank=3, alpha=5, targets=TARGETS), Vera(rank=24, targets=TARGETS)


@pytest.fixture(scope="module")
def make_members(tmp_path_factory, tiny_llama, data_root):
    """Trains two members with strong updates; returns their trial and storage."""
    from toys import Colours

    from lorae.trial import Budget, Trial

    @functools.cache
    def make(method):
        trial = Trial(
            backbone=tiny_llama, task=Colours().located(data_root), method=method, members=2,
            optimizer=AdamW(lr=0.01 if method == Full() else 0.1), budget=Budget(batch_size=4, steps=12),
            precision="fp32",
        )  # fmt: skip
        storage = str(tmp_path_factory.mktemp("results"))
        run_stack(Stack(trial, (0, 1)), storage)
        return trial, storage

    return make


@pytest.mark.parametrize("method", [LORA, VERA], ids=["lora", "vera"])
def test_a_stored_members_update_is_that_of_peft(make_members, tmp_path, method):
    trial, storage = make_members(method)
    store, backbone = Store(storage), open_backbone(Path(trial.backbone.path))
    member = trial.member_id(1)
    for name in (ADAPTER_CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes(store.read(member_folder(member), name))
    lm = AutoModelForCausalLM.from_pretrained(trial.backbone.path)
    model = PeftModel.from_pretrained(lm, tmp_path)
    update = stored_update(store, member, backbone)
    assert len(update.layers) == 9
    for layer in update.layers:
        theirs = lm.get_submodule(layer)
        B_ER, A_RD = update.factors(layer)
        delta = theirs.get_delta_weight("default").detach().numpy()
        assert np.abs(delta).max() > 1e-3 and np.allclose(B_ER @ A_RD, delta, atol=1e-5)
        assert backbone.read(layer) == pytest.approx(theirs.get_base_layer().weight.numpy())
    if isinstance(method, Lora):
        logged: list[str] = []
        reduce_intruder_dimension(model, logging_sink=logged.append)
        counts = [int(line.rsplit(" ", 1)[1]) for line in logged if "Intruders: " in line]
        found = update_measures(update, backbone)["num_intruder_dimensions"]
        assert sum(counts) > 0 and found == pytest.approx(sum(counts) / 9)


@pytest.mark.slow
def test_what_full_fine_tuning_changed_is_looked_at_where_lora_changes_something(make_members, tmp_path):
    lora, storage = make_members(LORA)
    full, elsewhere = make_members(Full())
    shutil.copytree(storage, tmp_path / "both")
    shutil.copytree(f"{elsewhere}/members", tmp_path / "both" / "members", dirs_exist_ok=True)
    store, backbone = Store(str(tmp_path / "both")), Path(lora.backbone.path)
    table = trials_table(store, "both", [(lora, []), (full, [])], {})
    store.write_table("both", table)
    trials = load_trials(str(tmp_path / "both"), "both")
    measured, notes = with_updates(trials, backbone)
    (row,) = [row for row in measured.rows if row["method"] == "full"]
    assert notes == ()
    before = AutoModelForCausalLM.from_pretrained(backbone).state_dict()
    dense = []
    for member in full.member_ids():
        after = read_state(store.read(member_folder(member), WEIGHTS))
        assert stored_update(store, member, open_backbone(backbone)).layers == tuple(
            name.removesuffix(".weight") for name in sorted(before) if "self_attn" in name
        )
        names = [name for name in before if name.split(".")[-2] in TARGETS]
        dense.append([(after[name] - before[name]).numpy() for name in names])
    flat_MN = np.array([np.concatenate([dW.ravel() for dW in member]) for member in dense], np.float64)
    norm_M = np.linalg.norm(flat_MN, axis=1)
    assert len(dense[0]) == 9 and norm_M.min() > 1e-3
    assert row["update_cosine"] == pytest.approx(flat_MN[0] @ flat_MN[1] / norm_M.prod(), abs=1e-5)
    assert row["update_norm"] == pytest.approx(norm_M.mean(), rel=1e-5)
    assert row["mean_update_norm"] == pytest.approx(np.linalg.norm(flat_MN.mean(0)), rel=1e-5)
    stable = [np.sum(dW**2) / np.linalg.norm(dW, 2) ** 2 for member in dense for dW in member]
    assert row["stable_rank"] == pytest.approx(np.mean(stable), rel=1e-4)
    assert None not in [row[name] for name in WEIGHT_SPACE]
    notes = with_updates(trials)[1]
    assert any("its update needs the backbone's weights" in note for note in notes)


def test_the_mean_update_is_the_mean_of_the_dense_ones(make_members):
    trial, storage = make_members(LORA)
    updates = [stored_update(Store(storage), member) for member in trial.member_ids()]
    mean = mean_update(updates)
    for layer in mean.layers:
        B_ER, A_RD = mean.factors(layer)
        dense = [B @ A for B, A in (update.factors(layer) for update in updates)]
        assert np.allclose(B_ER @ A_RD, (dense[0] + dense[1]) / 2, atol=1e-5)


def test_matrices_of_each_layer_are_drawn_again_for_the_update(make_members):
    """The stored files have the two vectors alone; the update is what the inserted member adds to its layers'
    outputs."""
    method = Vera(rank=24, targets=TARGETS, projection="per_layer")
    trial, storage = make_members(method)
    store, backbone = Store(storage), open_backbone(Path(trial.backbone.path))
    weights = store.read(member_folder(trial.member_id(1)), WEIGHTS)
    assert {name.rpartition(".")[2] for name in safetensors.numpy.load(weights)} == {"d", "b"}
    update = stored_update(store, trial.member_id(1), backbone)
    loaded = load_backbone(trial.backbone, "fp32", "cpu")
    with Adapters(loaded, method, [trial.member_key(1)["init"]]) as adapters:
        adapters.load([read_state(weights)])
        for layer in update.layers:
            stacked = loaded.lm.get_submodule(layer)
            eye_DD = torch.eye(backbone.d_in(layer))
            added_ED = (stacked(eye_DD[None])[0] - stacked.base(eye_DD)).T.detach().numpy()
            assert np.abs(added_ED).max() > 1e-3
            assert np.allclose(np.matmul(*update.factors(layer)), added_ED, atol=1e-5)
    assert len(update.layers) == 9 == len({update.factors(layer)[1].tobytes() for layer in update.layers})
    with pytest.raises(ValueError, match="its update needs the backbone's weights"):
        stored_update(store, trial.member_id(1))


def test_vera_of_unknown_widths_and_other_adapters_are_refused(make_members):
    trial, storage = make_members(VERA)
    with pytest.raises(ValueError, match="down_proj, q_proj, v_proj stores no layer's width"):
        stored_update(Store(storage), trial.member_id(0))
    unknown = BackboneWeights(Path("elsewhere"), {})
    with pytest.raises(LacksLayer, match="elsewhere has no weight of"):
        mean_update([stored_update(Store(storage), trial.member_id(0), unknown)]).factors(DOWN)
    with pytest.raises(ValueError, match="IA3 has no low-rank update"):
        read_update(json.dumps({"peft_type": "IA3"}).encode(), safetensors.numpy.save({}))


def test_a_backbone_in_bfloat16_is_read_as_torch_reads_it(tmp_path):
    weight = torch.randn(5, 7).bfloat16()
    save_file({"other": torch.ones(3), "layer.weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    backbone = open_backbone(tmp_path)
    assert np.array_equal(backbone.read("layer"), weight.float().numpy()) and backbone.d_in("layer") == 7
    unrounded = torch.cat([torch.randn(999), 1 + torch.arange(9) / 512, -torch.rand(9)]).reshape(-1, 1)
    save_file({"layer.weight": unrounded}, tmp_path / "model.safetensors")
    in_bf16 = open_backbone(tmp_path, "bf16").read("layer")
    assert np.array_equal(in_bf16, unrounded.bfloat16().float().numpy())
    with pytest.raises(ValueError, match=r"no weight of model\.q_proj; give the members' backbone"):
        backbone.read("model.q_proj")
    with pytest.raises(ValueError, match=r"has no \*\.safetensors"):
        open_backbone(tmp_path.parent)


@pytest.mark.parametrize("bare", [False, True], ids=["whole", "bare"])
@pytest.mark.parametrize(
    "config, body",
    [
        (ViTConfig(**TINY, image_size=8, patch_size=4), "vit"),
        (
            DeiTConfig(**TINY, image_size=8, patch_size=4, architectures=["DeiTForImageClassification"]),
            "deit",
        ),
        (ASTConfig(**TINY, max_length=32, num_mel_bins=16), "audio_spectrogram_transformer"),
        (BertConfig(**TINY, vocab_size=9), "bert"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_encoders_weights_are_found_by_their_names_in_the_model(tmp_path, config, body, bare):
    model = auto_class(config.to_dict()).from_config(config)
    (getattr(model, body) if bare else model).save_pretrained(tmp_path)  # under the names of the hub's files
    layers = linear_shapes(json.loads((tmp_path / "config.json").read_text()))
    assert len(layers) == 12

    def check():
        backbone = open_backbone(tmp_path)
        for layer, (d_in, _) in layers.items():
            weight = model.get_submodule(layer).weight.detach().numpy()
            assert np.array_equal(backbone.read(layer), weight) and backbone.d_in(layer) == d_in

    check()
    save_file(model.state_dict(), tmp_path / "model.safetensors")  # under those in the model
    check()


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(make_members):
    """A sweep of one and two members on the tiny Llama."""
    trial, storage = make_members(LORA)
    sweep, store = Sweep(base=trial, axes={"members": [1, 2]}), Store(storage)
    store.write_table("toy", trials_table(store, "toy", [(t, []) for t in sweep.trials()], {}))
    return trial, storage


def test_a_row_has_its_members_means_and_their_cosine(swept):
    trial, storage = swept
    (row,) = [r for r in with_updates(load_trials(storage, "toy"))[0].rows if r["members"] == 2]
    updates = [stored_update(Store(storage), member) for member in trial.member_ids()]
    dense_MN = np.array(
        [np.concatenate([np.ravel(np.matmul(*u.factors(layer))) for layer in u.layers]) for u in updates],
        np.float64,
    )
    norm_M = np.linalg.norm(dense_MN, axis=1)
    assert row["update_cosine"] == pytest.approx(dense_MN[0] @ dense_MN[1] / norm_M.prod())
    assert row["update_norm"] == pytest.approx(norm_M.mean())
    assert row["mean_update_norm"] == pytest.approx(np.linalg.norm(dense_MN.mean(0)))
    assert row["num_intruder_dimensions"] is None


def test_the_command_says_what_it_needs_and_finds_it_in_a_given_folder(swept, tmp_path, capsys):
    trial, storage = swept
    assert main([storage, "--sweep", "toy"]) == 0
    assert "no intruder dimensions: the backbone from Files is not in" in capsys.readouterr().out
    assert main([storage, "--sweep", "toy", "--backbone", trial.backbone.path, "--out", str(tmp_path)]) == 0
    assert "no intruder dimensions" not in capsys.readouterr().out
    assert {"weights.csv", "weights.tex"} <= {path.name for path in tmp_path.iterdir()} | {"correlations.tex"}
    (tmp_path / "config.json").write_text("{}")
    assert main([storage, "--sweep", "toy", "--backbone", str(tmp_path)]) == 2
    assert "is not the backbone that the members were trained on" in capsys.readouterr().err


def test_a_layer_that_the_files_lack_costs_the_intruder_dimensions_alone(swept, tmp_path):
    trial, storage = swept
    shutil.copytree(trial.backbone.path, tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob("*.safetensors")
    save_file({k: v for k, v in load_file(file).items() if k != f"{DOWN}.weight"}, file)
    trials = load_trials(storage, "toy")
    rows = [row | {"recipe": row["recipe"].replace('"Files"', '"Hub"')} for row in trials.rows]
    measured, (note,) = with_updates(replace(trials, rows=tuple(rows)), tmp_path / "copy")
    assert f"no intruder dimensions of 2 trials: {tmp_path / 'copy'} has no weight of {DOWN}" in note
    (row,) = [row for row in measured.rows if row["members"] == 2]
    assert {name for name in WEIGHT_SPACE if row[name] is None} == {
        "num_intruder_dimensions", "mean_update_num_intruder_dimensions"
    }  # fmt: skip


def test_a_backbone_that_lorae_made_is_found_in_its_cache_by_its_content(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAE_CACHE", str(tmp_path))
    for name in ("another", "made"):
        shutil.copytree(tiny_llama.path, tmp_path / "backbones" / name)
    (tmp_path / "backbones" / "another" / "config.json").write_text("{}")
    assert folder_at_hand(tiny_llama.fingerprint(), None) == tmp_path / "backbones" / "made"


def test_intruders_beyond_the_limit_and_members_that_are_not_stored_are_named(swept, tmp_path):
    trial, storage = swept
    trials = load_trials(storage, "toy")
    backbone = Path(trial.backbone.path)
    entries = 3 * 3 * (32 * 32 + 16 * 32 + 32 * 64)  # updates x blocks
    assert with_updates(trials, backbone, max_entries=entries)[1] == ()
    limited, (note,) = with_updates(trials, backbone, max_entries=entries - 1)
    assert "python -m analysis.weights" in note and limited.rows[-1]["num_intruder_dimensions"] is None
    roles = [row | {"recipe": row["recipe"].replace('"q_proj","v_proj"', '"q","v"')} for row in trials.rows]
    (note,) = with_updates(replace(trials, rows=tuple(roles)), backbone, max_entries=entries - 1)[1]
    assert "python -m analysis.weights" in note
    shutil.copytree(storage, tmp_path / "copy")
    Store(str(tmp_path / "copy")).discard(member_folder(trial.member_id(1)))
    rows, notes = with_updates(load_trials(str(tmp_path / "copy"), "toy"), backbone)
    assert [row["update_norm"] is None for row in rows.rows] == [
        not r["members"] or r["members"] == 2 for r in rows.rows
    ]
    assert "no updates of 1 trials" in notes[0] and trial.member_id(1) in notes[0]
    assert set(WEIGHT_SPACE) <= rows.rows[0].keys()
