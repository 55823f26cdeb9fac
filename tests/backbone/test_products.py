"""oneDNN multiplies fp32 matrices only where it stays in fp32; members are the same but for rounding."""

from __future__ import annotations

import json

import pytest
import torch

from lorae.backbone import products
from lorae.backbone.loading import set_matmul_precision
from lorae.engine.run import run_stack
from lorae.planning.stack import Stack
from lorae.store.names import member_folder
from lorae.store.store import Store


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    products.use_onednn(False)
    products.onednn_is_better.cache_clear()


@pytest.mark.parametrize("shape", products.SHAPES)
def test_products_in_bf16_are_noticed(shape, monkeypatch):
    assert products.is_exact(shape)
    plain = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: plain(a.bfloat16(), b.bfloat16()).float())
    assert not products.is_exact(shape)


@pytest.mark.parametrize(
    ("capability", "amx", "exact", "better"),
    [
        ("AVX512", False, True, True),
        ("AVX512", False, False, False),
        ("AVX512", True, True, False),
        ("AVX2", False, True, False),
    ],
)
def test_it_is_taken_where_it_is_faster_and_exact(capability, amx, exact, better, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(products, "is_exact", lambda shape: exact or not products.onednn_is_used())
    if products.SETTING is None:
        pytest.skip("this torch has no setting for it")
    assert products.onednn_is_better() == better
    assert not products.onednn_is_used()


def test_it_is_taken_for_fp32_backbones_alone(monkeypatch):
    monkeypatch.setattr("lorae.backbone.loading.onednn_is_better", lambda: True)
    for precision, used in ("fp32", True), ("bf16", False), ("fp32", True):
        set_matmul_precision(precision, "cpu")
        assert products.onednn_is_used() == used


@pytest.mark.slow
def test_members_are_the_same_by_either_and_say_by_which(tiny_trial, tmp_path, monkeypatch):
    if not all(map(products.is_exact, products.SHAPES)):
        pytest.skip("this CPU multiplies in bf16")
    trial, curves, says = tiny_trial(members=2), {}, {}
    for used in (False, True):
        monkeypatch.setattr("lorae.backbone.loading.onednn_is_better", lambda used=used: used)
        store = Store(str(tmp_path / str(used)))
        run_stack(Stack(trial, (0, 1)), store.storage.root)
        folders = [member_folder(m) for m in trial.member_ids()]
        curves[used] = [store.curve(f).to_pandas()[["loss", "nll", "grad_norm"]].to_numpy() for f in folders]
        record = json.loads(store.read(folders[0], "member.json"))
        says[used] = record["provenance"]["fp32_products"]
    for plain, onednn in zip(curves[False], curves[True], strict=True):
        first, rest = {"rtol": 1e-6, "atol": 0}, {"rtol": 1e-4, "atol": 1e-5}  # rounding grows with the steps
        torch.testing.assert_close(torch.tensor(onednn[0]), torch.tensor(plain[0]), **first)
        torch.testing.assert_close(torch.tensor(onednn), torch.tensor(plain), **rest)
    assert says == {False: "torch's default", True: "oneDNN"}
