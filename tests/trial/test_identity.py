"""Identity: equal recipes are one member, everything that changes a member changes its id, nothing else
does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorae import seeds
from lorae.identity import canonical, canonical_json, digest
from lorae.methods import Gaussian, Lora, Vera
from lorae.regularizers import KL, AdapterDropout, DecayB, EarlyStopping
from lorae.sources import Hub
from lorae.tasks import OpenBookQA
from lorae.tasks.base import OptionLikelihood
from lorae.trial import AdamW, Budget, Diversity, Trial

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def trial(**changes) -> Trial:
    settings = {
        "backbone": Hub("meta-llama/Llama-2-13b-hf", COMMIT),
        "task": OpenBookQA(source=Hub("allenai/openbookqa", COMMIT)),
        "regularizers": (KL(beta=0.1), EarlyStopping(patience=2)),
        "members": 5,
    }
    return Trial(**(settings | changes))


def test_golden_member_id():
    """A change here means that every stored member is orphaned: raise SCHEMA_VERSION on purpose, never by
    accident."""
    assert trial().member_id(3) == "4e2f242e550e091a"


@pytest.mark.parametrize(
    "change",
    [
        {"members": 20},
        {"combine": "logits"},
        {"regularizers": (EarlyStopping(patience=2), KL(beta=0.1))},
        {"task": OpenBookQA(source=Hub("allenai/openbookqa", COMMIT), num_test=100)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_id_is_unmoved_by_what_does_not_change_the_member(change):
    assert trial(**change).member_ids()[:5] == trial().member_ids()


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": Hub("meta-llama/Llama-2-13b-hf", COMMIT[::-1])},
        {"task": OpenBookQA(source=Hub("allenai/openbookqa", COMMIT[::-1]))},
        {"task": OpenBookQA(source=Hub("allenai/openbookqa", COMMIT), num_train=100)},
        {"task": OpenBookQA(source=Hub("allenai/openbookqa", COMMIT), scoring=OptionLikelihood())},
        {"method": Lora(rank=4)},
        {"method": Lora(init=Gaussian())},
        {"method": Vera()},
        {"regularizers": (KL(beta=0.1),)},
        {"regularizers": (KL(beta=0.1, direction="forward"), EarlyStopping(patience=2))},
        {"optimizer": AdamW(lr=2e-4)},
        {"budget": Budget(epochs=4)},
        {"precision": "fp32"},
        {"seed": 1},
        {"diversity": Diversity(init="shared")},
    ],
    ids=lambda c: next(iter(c)),
)
def test_id_changes_with_everything_that_changes_the_member(change):
    assert not set(trial(**change).member_ids()) & set(trial().member_ids())


def test_ids_of_members_differ_and_five_contain_three():
    assert len(set(trial().member_ids())) == 5
    assert trial(members=3).member_ids() == trial().member_ids()[:3]


def test_dropout_makes_members_differ_even_if_both_sources_are_shared():
    both = Diversity(init="shared", order="shared")
    assert len(set(trial(diversity=both).member_ids())) == 1
    assert len(set(trial(diversity=both, regularizers=(AdapterDropout(),)).member_ids())) == 5


def test_unresolved_branch_has_no_identity():
    with pytest.raises(ValueError, match="resolve"):
        trial(backbone=Hub("meta-llama/Llama-2-13b-hf", "main")).member_id(0)


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2), len, object(), float])
def test_unknown_types_are_refused(value):
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError):
        canonical(value)


@dataclass(frozen=True)
class Spec:
    value: object


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner))


@pytest.mark.slow
@given(VALUES, VALUES)
def test_digest_is_equal_exactly_when_the_canonical_form_is(a, b):
    assert (digest(Spec(a)) == digest(Spec(b))) == (canonical_json(a) == canonical_json(b))


@given(st.integers(-(2**31), 2**31))
def test_integral_floats_are_integers(n):
    assert digest(Spec(float(n))) == digest(Spec(n))


def test_bad_settings_say_what_is_allowed():
    cases = [
        (lambda: Lora(rank=0), "rank=0: must be >= 1"),
        (lambda: Lora(targets="q_proj"), "tuple of layer names"),
        (lambda: Budget(), "exactly one"),
        (lambda: Budget(epochs=1, steps=1), "exactly one"),
        (lambda: AdamW(lr=0), "lr=0"),
        (lambda: trial(members=-1), "members=-1"),
        (lambda: trial(regularizers=(KL(0.1), KL(0.2))), "at most one of a kind"),
        (lambda: trial(optimizer=AdamW(lr=0.1), regularizers=(DecayB(50),)), r"lr \* strength must be < 1"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_streams_are_counter_based():
    """Equal keys give equal numbers, different keys different ones, whatever was drawn before."""
    first = seeds.stream(0, 1, "init").normal(size=5)
    seeds.stream(0, 2, "init").normal(size=100)
    assert np.array_equal(first, seeds.stream(0, 1, "init").normal(size=5))
    assert not np.array_equal(first, seeds.stream(0, 2, "init").normal(size=5))
    assert not np.array_equal(first, seeds.stream(0, "1", "init").normal(size=5))


def test_dropout_mask_depends_on_its_row_only():
    keys = torch.tensor([seeds.key32(0, n) for n in range(6)], dtype=torch.int32)
    places = torch.arange(50).expand(6, -1)
    whole = seeds.keep_mask(keys[:, None], places, 64, 0.25)
    part = seeds.keep_mask(keys[2:4, None], places[2:4, :20], 64, 0.25)
    assert torch.equal(whole[2:4, :20], part)
    assert whole.float().mean().item() == pytest.approx(0.75, abs=0.01)
    per_channel = whole.float().mean((0, 1))
    assert per_channel.std().item() == pytest.approx((0.25 * 0.75 / 300) ** 0.5, rel=0.3), (
        "no channel is special"
    )
    assert (whole[0] == whole[1]).float().mean().item() == pytest.approx(0.625, abs=0.02), (
        "rows are independent"
    )


def test_replace_keeps_validation():
    with pytest.raises(ValueError, match="rank=0"):
        replace(Lora(), rank=0)
