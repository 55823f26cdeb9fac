"""Metrics: closed forms, equality with torchmetrics, scikit-learn and scipy, properties on any logits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from lorae import metrics
from lorae.metrics import Undefined, combine
from lorae.metrics.summary import METRICS

LN2 = np.log(2)


def logp(*rows: list[float]) -> np.ndarray:
    """Log-probabilities of the given rows of probabilities."""
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float64))


def random_case(seed: int, members: int, examples: int, classes: int, scale: float = 2.0):
    rng = np.random.default_rng(seed)
    logits_MNC = rng.normal(size=(members, examples, classes)) * scale
    return logits_MNC, rng.integers(0, classes, examples)


def masked_case(seed: int, members: int = 4, examples: int = 60):
    """Examples with 2 to 5 options; labels among the options that exist."""
    logits_MNC, _ = random_case(seed, members, examples, 5)
    rng = np.random.default_rng(seed + 1)
    options_N = rng.integers(2, 6, examples)
    logits_MNC[:, np.arange(5) >= options_N[:, None]] = -np.inf
    return logits_MNC, rng.integers(0, options_N), options_N


def all_wrong():
    logits_MNC, _ = random_case(5, 3, 40, 4)
    return logits_MNC, (combine(logits_MNC).argmax(axis=1) + 1) % 4


CASES = {
    "random": random_case(0, 5, 200, 4),
    "two classes": random_case(1, 3, 101, 2, scale=0.3),
    "many classes": random_case(2, 2, 200, 30),
    "one class": (np.zeros((3, 7, 1)), np.zeros(7, dtype=int)),
    "one example": random_case(3, 3, 1, 4),
    "one gold class": (random_case(4, 3, 30, 4)[0], np.full(30, 2)),
    "all wrong": all_wrong(),
    "all right": (np.eye(4)[None].repeat(2, axis=0) * 3, np.arange(4)),
    "constant": (np.tile([0.3, 0.1, 0.0], (2, 20, 1)), np.arange(20) % 3),
    "saturated": (random_case(6, 3, 80, 3)[0] * 1e4, random_case(6, 3, 80, 3)[1]),
    "masked": masked_case(7)[:2],
}
every_case = pytest.mark.parametrize("logits_MNC, labels_N", CASES.values(), ids=CASES.keys())
OOD = ("auroc", "aupr", "fpr95")  # prefixes of names
every_rule = pytest.mark.parametrize("rule", ["probs", "logits"])


@st.composite
def predictions(draw: st.DrawFn, min_members: int = 1):
    """Arbitrary logits, some classes masked, and labels among the classes that the example has."""
    members, examples, classes = draw(
        st.tuples(st.integers(min_members, 4), st.integers(1, 8), st.integers(1, 4))
    )
    values = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0])
    logits_MNC = draw(arrays(np.float64, (members, examples, classes), elements=values))
    options_N = np.array(draw(st.lists(st.integers(1, classes), min_size=examples, max_size=examples)))
    logits_MNC[:, np.arange(classes) >= options_N[:, None]] = -np.inf
    fractions_N = draw(arrays(np.float64, examples, elements=st.floats(0, 0.99)))
    return logits_MNC, np.floor(fractions_N * options_N).astype(int)


# Against references ---------------------------------------------------------------------------------------


@every_case
@every_rule
def test_pooled_metrics_equal_torchmetrics_and_sklearn(logits_MNC, labels_N, rule):
    logp_NC = combine(logits_MNC, rule)
    probs, labels = torch.tensor(np.exp(logp_NC)), torch.tensor(labels_N)
    classes = max(2, logp_NC.shape[1])  # torchmetrics knows no task with one class
    probs = torch.nn.functional.pad(probs, (0, classes - probs.shape[1]))
    predicted_N = probs.argmax(dim=1).numpy()
    expected = {
        "acc": multiclass_accuracy(probs, labels, classes, average="micro"),
        "f1": multiclass_f1_score(probs, labels, classes, average="macro"),
        "brier": np.sum((probs.numpy() - np.eye(classes)[labels_N]) ** 2) / len(labels_N),
        "signed_gap": probs.max(dim=1).values.mean() - np.mean(predicted_N == labels_N),
    }
    for name, value in expected.items():
        assert getattr(metrics, name)(logp_NC, labels_N) == pytest.approx(float(value), abs=1e-6), name
    assert metrics.f1(logp_NC, labels_N) == pytest.approx(
        sklearn.metrics.f1_score(labels_N, predicted_N, average="macro"), abs=1e-9
    )


@pytest.mark.parametrize("name", ["random", "two classes", "many classes", "one example", "masked"])
def test_nll_equals_cross_entropy(name):
    logits_MNC, labels_N = CASES[name]
    probs_MNC = scipy.special.softmax(logits_MNC, axis=2)
    of_mixture = sklearn.metrics.log_loss(
        labels_N, probs_MNC.mean(axis=0), labels=np.arange(logits_MNC.shape[2])
    )
    of_members = [
        float(torch.nn.functional.cross_entropy(torch.tensor(z_NC), torch.tensor(labels_N)))
        for z_NC in logits_MNC
    ]
    of_mean_logits = torch.nn.functional.cross_entropy(
        torch.tensor(logits_MNC.mean(axis=0)), torch.tensor(labels_N)
    )
    assert metrics.ensemble_nll(combine(logits_MNC), labels_N) == pytest.approx(of_mixture, abs=1e-6)
    assert metrics.ensemble_nll(combine(logits_MNC, "logits"), labels_N) == pytest.approx(
        float(of_mean_logits)
    )
    assert metrics.mean_member_nll(logits_MNC, labels_N) == pytest.approx(np.mean(of_members), abs=1e-6)


# torchmetrics closes bins on the other side, so confidences on an edge are tested in closed form.
@pytest.mark.parametrize(
    "name",
    [
        "random",
        "two classes",
        "many classes",
        "one example",
        "one gold class",
        "all wrong",
        "constant",
        "masked",
    ],
)
def test_equal_width_calibration_equals_torchmetrics(name):
    logits_MNC, labels_N = CASES[name]
    logp_NC = combine(logits_MNC)
    probs, labels = torch.tensor(np.exp(logp_NC)), torch.tensor(labels_N)
    for metric, bins, norm in [
        (metrics.ece15, 15, "l1"),
        (metrics.ece10, 10, "l1"),
        (metrics.mce15, 15, "max"),
    ]:
        reference = multiclass_calibration_error(probs, labels, probs.shape[1], n_bins=bins, norm=norm)
        assert metric(logp_NC, labels_N) == pytest.approx(float(reference), abs=1e-6)


def test_classwise_ece_of_each_class_equals_scipys_binned_statistic():
    logits_MNC, labels_N = CASES["random"]
    probs_NC = np.exp(combine(logits_MNC))
    per_class = []
    for c, p_N in enumerate(probs_NC.T):
        gap = scipy.stats.binned_statistic(p_N, (labels_N == c) - p_N, "sum", bins=15, range=(0, 1)).statistic
        per_class.append(np.abs(gap).sum() / len(p_N))
    assert metrics.classwise_ece15(np.log(probs_NC), labels_N) == pytest.approx(np.mean(per_class))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(300, 200), (1, 1), (40, 1), (1, 40), (20, 20)])
def test_separation_equals_sklearn(sizes, ties):
    rng = np.random.default_rng(sum(sizes))
    in_N, ood_N = rng.normal(size=sizes[0]), rng.normal(0.7, 1.5, size=sizes[1])
    if ties:
        in_N, ood_N = in_N.round(), ood_N.round()
    is_ood = np.repeat([0, 1], sizes)
    score = np.concatenate([in_N, ood_N])
    fpr, tpr, _ = sklearn.metrics.roc_curve(is_ood, score, drop_intermediate=False)
    assert metrics.auroc(in_N, ood_N) == pytest.approx(sklearn.metrics.roc_auc_score(is_ood, score))
    assert metrics.aupr(in_N, ood_N) == pytest.approx(sklearn.metrics.average_precision_score(is_ood, score))
    assert metrics.fpr95(in_N, ood_N) == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)])


@pytest.mark.parametrize("name", ["random", "two classes", "many classes", "masked", "saturated"])
def test_diversity_equals_scipy_pair_by_pair(name):
    logits_MNC, labels_N = CASES[name]
    p_MNC = scipy.special.softmax(logits_MNC, axis=2)
    wrong_MN = (p_MNC.argmax(axis=2) != labels_N).astype(float)
    pairs = [(a, b) for a in range(len(p_MNC)) for b in range(a)]
    disagreement = np.mean([(p_MNC[a].argmax(1) != p_MNC[b].argmax(1)).mean() for a, b in pairs])
    jsd = np.mean([scipy.spatial.distance.jensenshannon(p_MNC[a], p_MNC[b], axis=1) ** 2 for a, b in pairs])
    mean_kl = scipy.special.rel_entr(p_MNC, p_MNC.mean(axis=0)).sum(axis=2).mean()
    correlation = np.mean([scipy.stats.pearsonr(wrong_MN[a], wrong_MN[b]).statistic for a, b in pairs])
    assert metrics.disagreement(logits_MNC) == pytest.approx(disagreement)
    assert metrics.disagreement_per_error(logits_MNC, labels_N) == pytest.approx(
        disagreement / wrong_MN.mean()
    )
    assert metrics.jsd(logits_MNC) == pytest.approx(jsd, abs=1e-9)
    assert metrics.mutual_information(logits_MNC) == pytest.approx(mean_kl, abs=1e-9)
    assert metrics.error_correlation(logits_MNC, labels_N) == pytest.approx(correlation)


def test_scores_of_ragged_examples_equal_scores_of_each_without_its_padding():
    logits_MNC, _, options_N = masked_case(11)
    scores = metrics.scores(logits_MNC)
    assert set(scores) == set(metrics.SCORES)
    for n, options in enumerate(options_N):
        z_MC = logits_MNC[:, n, :options]
        p_MC = scipy.special.softmax(z_MC, axis=1)
        mean_p = p_MC.mean(axis=0)
        assert scores["msp"][n] == pytest.approx(1 - mean_p.max())
        assert scores["entropy"][n] == pytest.approx(scipy.stats.entropy(mean_p))
        assert scores["energy"][n] == pytest.approx(-np.mean(scipy.special.logsumexp(z_MC, axis=1)))
        assert scores["mutual_information"][n] == pytest.approx(
            scipy.stats.entropy(mean_p) - scipy.stats.entropy(p_MC, axis=1).mean(), abs=1e-12
        )
        assert scores["top_prob_variance"][n] == pytest.approx(np.var(p_MC[:, mean_p.argmax()]))


# Closed forms ---------------------------------------------------------------------------------------------


def test_full_disagreement_of_two_sure_members():
    logits_MNC = np.array([[[500.0, 0.0]], [[0.0, 500.0]]])
    assert metrics.mutual_information(logits_MNC) == pytest.approx(LN2)
    assert metrics.jsd(logits_MNC) == pytest.approx(LN2)
    assert metrics.disagreement(logits_MNC) == 1
    assert metrics.disagreement_per_error(logits_MNC, np.array([0])) == pytest.approx(2)
    assert metrics.score_top_prob_variance(logits_MNC) == pytest.approx([0.25])
    assert metrics.ensemble_nll(combine(logits_MNC), np.array([0])) == pytest.approx(LN2)
    assert metrics.mean_member_nll(logits_MNC, np.array([0])) == pytest.approx(250)


def test_identical_members_have_no_diversity():
    member_NC, labels_N = random_case(8, 1, 50, 4)[0][0], random_case(8, 1, 50, 4)[1]
    logits_MNC = np.stack([member_NC] * 3)
    assert metrics.disagreement(logits_MNC) == 0
    assert metrics.jsd(logits_MNC) == pytest.approx(0, abs=1e-12)
    assert metrics.mutual_information(logits_MNC) == pytest.approx(0, abs=1e-12)
    assert metrics.error_correlation(logits_MNC, labels_N) == pytest.approx(1)


def test_brier_and_nll_of_certain_predictions():
    right, wrong = np.array([0, 0]), np.array([1, 1])
    certain = logp([1, 0], [1, 0])
    assert (metrics.brier(certain, right), metrics.brier(certain, wrong)) == (0, 2)
    assert (metrics.ensemble_nll(certain, right), metrics.ensemble_nll(certain, wrong)) == (0, np.inf)
    assert metrics.ece15(certain, wrong) == metrics.ace15(certain, wrong) == metrics.aurc(certain, wrong) == 1
    assert metrics.classwise_ece15(logp([1, 0, 0], [1, 0, 0]), np.array([0, 1])) == 0.75  # of two classes


def test_nll_survives_where_probabilities_underflow():
    logits_MNC = np.array([[[2000.0, 0.0]], [[1500.0, 0.0]]])
    assert metrics.ensemble_nll(combine(logits_MNC), np.array([1])) == pytest.approx(1500 + LN2)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("k", range(4, 16))
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(k, members):
    """k/15, the right edge of bin k, comes back from log and exp as a neighbouring number for some k."""
    probs = [k / 15, *[(1 - k / 15) / 4] * 4]
    bins = metrics.reliability_bins(combine(np.stack([logp(probs)] * members)), np.array([0]))
    assert bins.lo == pytest.approx([(k - 1) / 15])
    assert bins.hi == pytest.approx([k / 15])


def test_classwise_ece_averages_each_class_over_the_examples_that_have_it():
    logp_NC = logp([0.5, 0.5, 0.0], [0.2, 0.2, 0.6])
    expected = ((0.5 + 0.2) / 2 + (0.5 + 0.2) / 2 + 0.4) / 3
    assert metrics.classwise_ece15(logp_NC, np.array([0, 2])) == pytest.approx(expected)


def test_reliability_bins_by_hand():
    top = [0.55, 0.58, 0.6, 0.61, 0.95]
    logp_NC = logp(*[[p, 1 - p] for p in top])
    bins = metrics.reliability_bins(logp_NC, np.array([0, 1, 0, 0, 1]), bins=10)
    assert bins.lo == pytest.approx([0.5, 0.6, 0.9])
    assert bins.hi == pytest.approx([0.6, 0.7, 1.0])
    assert bins.count.tolist() == [3, 1, 1]
    assert bins.confidence == pytest.approx([(0.55 + 0.58 + 0.6) / 3, 0.61, 0.95])
    assert bins.accuracy == pytest.approx([2 / 3, 1, 0])
    assert metrics.ece10(logp_NC, np.array([0, 1, 0, 0, 1])) == pytest.approx((0.27 + 0.39 + 0.95) / 5)


def test_equal_mass_bins_split_where_equal_width_ones_cancel():
    """30 examples in 15 runs of two, but in one equal-width bin: the surer half wrong."""
    top = np.linspace(0.94, 0.99, 30)
    logp_NC, labels_N = logp(*[[p, 1 - p] for p in top]), np.repeat([0, 1], 15)
    upper_wrong = top[16:].sum()  # seven runs of two wrong ones; the eighth run has one of each
    expected = (upper_wrong + abs(1 - top[14] - top[15]) + (1 - top[:14]).sum()) / 30
    assert metrics.ace15(logp_NC, labels_N) == pytest.approx(expected)
    assert metrics.ece15(logp_NC, labels_N) == pytest.approx(top.mean() - 0.5)


def test_risk_coverage_by_hand():
    logp_NC = logp(*[[p, 1 - p] for p in [0.9, 0.8, 0.7, 0.6, 0.55]])
    labels_N = np.array([0, 1, 0, 0, 1])
    coverage_N, risk_N = metrics.risk_coverage(logp_NC, labels_N)
    assert coverage_N == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert risk_N == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    assert metrics.aurc(logp_NC, labels_N) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert metrics.acc_at_80_coverage(logp_NC, labels_N) == pytest.approx(3 / 4)
    assert metrics.acc_at_80_coverage(logp_NC[:4], labels_N[:4]) == pytest.approx(3 / 4)  # ceil(3.2) = 4


def test_constant_confidence_says_nothing_about_which_examples_err():
    logits_MNC, labels_N = CASES["constant"]  # a third of the labels is class 0, the prediction
    logp_NC = combine(logits_MNC)
    error = 1 - 7 / 20
    assert metrics.risk_coverage(logp_NC, labels_N)[1] == pytest.approx([error] * 20)
    assert metrics.ace15(logp_NC, labels_N) == pytest.approx(abs(np.exp(logp_NC[0, 0]) - 7 / 20))


def test_complementary_errors_are_anticorrelated():
    logits_MNC = np.array([[[1.0, 0], [1, 0]], [[0, 1.0], [0, 1]]])
    assert metrics.error_correlation(logits_MNC, np.array([0, 1])) == pytest.approx(-1)


# Properties -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(predictions(), st.sampled_from(["probs", "logits"]), st.randoms(use_true_random=False))
def test_every_value_is_a_number_in_range_whatever_the_order(case, rule, random):
    logits_MNC, labels_N = case
    summary = metrics.summary(logits_MNC, labels_N, rule)
    of_numbers = metrics.VALUE_METRICS.keys() - METRICS.keys()
    assert set(summary) == {n for n in metrics.DIRECTION if n.split("_")[0] not in OOD} - of_numbers
    for name, value in summary.items():
        if value is not None:
            highest = {
                "brier": 2,
                "disagreement_per_error": 2,
                "ensemble_nll": np.inf,
                "mean_member_nll": np.inf,
            }
            lowest = -1 if name in ("signed_gap", "error_correlation", "debiased_ce15", "mcc") else 0
            assert lowest - 1e-9 <= value <= highest.get(name, np.log(4)) + 1e-9, name
    members = random.sample(range(len(logits_MNC)), len(logits_MNC))
    examples = random.sample(range(len(labels_N)), len(labels_N))
    shuffled = metrics.summary(logits_MNC[members][:, examples], labels_N[examples], rule)
    assert shuffled.keys() == summary.keys()
    for name, value in summary.items():
        assert shuffled[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


@settings(max_examples=60, deadline=None)
@given(predictions(), st.sampled_from(["probs", "logits"]))
def test_a_class_that_no_example_has_changes_nothing(case, rule):
    logits_MNC, labels_N = case
    padded_MNC = np.concatenate([logits_MNC, np.full_like(logits_MNC[..., :2], -np.inf)], axis=2)
    expected = metrics.summary(logits_MNC, labels_N, rule)
    for name, value in metrics.summary(padded_MNC, labels_N, rule).items():
        assert value == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-12)), name


@settings(max_examples=80, deadline=None)
@given(predictions(), st.sampled_from(["probs", "logits"]))
def test_pooling_never_has_a_higher_nll_than_the_mean_member(case, rule):
    logits_MNC, labels_N = case
    pooled = metrics.ensemble_nll(combine(logits_MNC, rule), labels_N)
    assert pooled <= metrics.mean_member_nll(logits_MNC, labels_N) + 1e-9


@settings(max_examples=60, deadline=None)
@given(predictions(min_members=2))
def test_information_is_bounded_and_none_between_copies(case):
    logits_MNC, _ = case
    assert metrics.mutual_information(logits_MNC) <= np.log(len(logits_MNC)) + 1e-9
    assert metrics.jsd(logits_MNC) <= LN2 + 1e-9
    copies_MNC = np.stack([logits_MNC[0]] * 3)
    assert metrics.mutual_information(copies_MNC) == pytest.approx(0, abs=1e-9)
    assert metrics.jsd(copies_MNC) == pytest.approx(0, abs=1e-9)


scores_N = arrays(np.float64, st.integers(1, 20), elements=st.floats(-5, 5).map(lambda x: round(x, 1)))


@settings(max_examples=60, deadline=None)
@given(scores_N, scores_N)
def test_auroc_is_antisymmetric_and_counts_pairs(in_N, ood_N):
    pairs = np.sign(ood_N[:, None] - in_N)
    assert metrics.auroc(in_N, ood_N) == pytest.approx((pairs.mean() + 1) / 2)
    assert metrics.auroc(in_N, ood_N) + metrics.auroc(ood_N, in_N) == pytest.approx(1)


# Undefined and wrong input --------------------------------------------------------------------------------


def test_one_member_has_no_diversity_and_says_so():
    logits_MNC, labels_N = random_case(9, 1, 20, 3)
    for metric in (
        metrics.disagreement,
        metrics.jsd,
        metrics.mutual_information,
        metrics.score_top_prob_variance,
    ):
        with pytest.raises(Undefined, match="compares members, and there is 1"):
            metric(logits_MNC)
    summary = metrics.summary(logits_MNC, labels_N)
    undefined = {"disagreement", "disagreement_per_error", "jsd", "mutual_information", "error_correlation"}
    undefined |= {"credal_width"}
    assert {name for name, value in summary.items() if value is None} == undefined
    of_ood = metrics.ood_summary(logits_MNC, logits_MNC)
    assert of_ood["auroc_mutual_information"] is None and of_ood["fpr95_top_prob_variance"] is None
    assert of_ood["auroc_msp"] == of_ood["auroc_energy"] == 0.5


def test_members_without_errors_have_no_error_correlation():
    logits_MNC, labels_N = CASES["all right"]
    with pytest.raises(Undefined, match="error_correlation is undefined: member 0"):
        metrics.error_correlation(logits_MNC, labels_N)
    with pytest.raises(Undefined, match="disagreement_per_error is undefined: no member errs"):
        metrics.disagreement_per_error(logits_MNC, labels_N)


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        (np.zeros((2, 3, 2)), [0, 1, 2], r"labels span 0..2; must lie in \[0, 2\)"),
        (np.zeros((2, 3, 2)), [0, -1, 1], "labels span -1..1"),
        (np.zeros((2, 3, 2)), [0, 1], "one for each example"),
        (np.zeros((2, 3, 2)), [0.0, 1.0, 1.0], "integers"),
        (np.zeros((3, 2)), [0, 1, 1], r"write logits\[None\]"),
        (np.zeros((2, 0, 2)), [], "none of them 0"),
        (np.full((2, 3, 2), np.nan), [0, 1, 1], "finite"),
        (np.full((2, 3, 2), np.inf), [0, 1, 1], "finite"),
        (np.full((2, 3, 2), -np.inf), [0, 1, 1], "finite"),
    ],
)
@every_rule
def test_wrong_predictions_are_refused(logits, labels, message, rule):
    with pytest.raises(ValueError, match=message):
        metrics.summary(logits, np.array(labels), rule)


@pytest.mark.parametrize("not_logp", [[[0.3, 0.7]], [[2.0, -1.0]], [[np.nan, 0.0]], [[0.0, 0.0]]])
def test_probabilities_and_logits_are_not_taken_for_log_probabilities(not_logp):
    with pytest.raises(ValueError, match=r"write combine\(logits_MNC\)"):
        metrics.ece15(np.array(not_logp), np.array([0]))


def test_ood_needs_the_same_members_and_numbers():
    with pytest.raises(ValueError, match="same members"):
        metrics.ood_summary(np.zeros((2, 3, 2)), np.zeros((3, 3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(np.array([0.0, np.nan]), np.array([1.0]))
    with pytest.raises(ValueError, match="at least one"):
        metrics.aupr(np.array([0.0]), np.array([]))


def test_ood_summary_puts_unsure_examples_on_the_ood_side():
    sure_MNC = random_case(12, 3, 100, 4, scale=0.5)[0] + 8 * np.eye(4)[np.arange(100) % 4]
    unsure_MNC = random_case(13, 3, 80, 5)[0]
    of_ood = metrics.ood_summary(sure_MNC, unsure_MNC)
    assert of_ood.keys() == {f"{metric}_{score}" for metric in OOD for score in metrics.SCORES}
    for name, value in of_ood.items():
        assert value is not None and (value < 0.3 if name.startswith("fpr95") else value > 0.9), name


def test_identical_members_rank_nothing_by_how_much_they_differ():
    logits_MNC = np.stack([random_case(14, 1, 200, 4)[0][0]] * 3)
    of_ood = metrics.ood_summary(logits_MNC[:, :100], logits_MNC[:, 100:])
    assert of_ood["auroc_mutual_information"] == of_ood["auroc_top_prob_variance"] == 0.5


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_equal_examples_tie_in_every_score(scale):
    """One example many times, its members and classes in other orders: sums round otherwise, and must rank
    nothing."""
    rng, logits_MC = np.random.default_rng(15), scale * random_case(15, 5, 1, 7)[0][:, 0]
    orders = [(rng.permutation(5), rng.permutation(7)) for _ in range(120)]
    logits_MNC = np.stack([logits_MC[members][:, classes] for members, classes in orders], axis=1)
    energies = -scipy.special.logsumexp(logits_MNC, axis=2).mean(axis=0)
    assert len(set(energies)) > 1, "unrounded they differ"
    of_ood = metrics.ood_summary(logits_MNC[:, :60], logits_MNC[:, 60:])
    for score in metrics.SCORES:
        assert of_ood[f"auroc_{score}"] == 0.5 and of_ood[f"fpr95_{score}"] == 1.0, score


def test_scores_that_differ_are_told_apart():
    """By 1e-9 of their size, far above rounding errors."""
    logits_MNC = random_case(16, 3, 50, 4)[0]
    surer_MNC = logits_MNC + 1e-9 * np.eye(4)[metrics.combine(logits_MNC).argmax(axis=1)]
    before, after = metrics.scores(logits_MNC), metrics.scores(surer_MNC)
    for score in ("msp", "entropy", "energy"):
        assert (after[score] < before[score]).all(), score


@pytest.mark.process
def test_import_is_light_and_fast():
    code = (
        "import sys, time, numpy; start = time.perf_counter()\n"
        "import lorae.metrics, lorae.ensemble\n"
        "seconds = time.perf_counter() - start\n"
        "print(seconds, sorted({'torch', 'ray', 'scipy', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, heavy = output.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 1
