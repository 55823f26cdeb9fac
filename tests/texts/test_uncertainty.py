"""Uncertainty of texts: closed forms, invariances, and lm-polygraph's numbers where it is installed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from answers import VOCABULARY, answer, pool
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lorae.metrics import Undefined
from lorae.metrics.probability import entropy, log_softmax
from lorae.texts import likeness, uncertainty
from lorae.texts.pools import by_example, vote
from lorae.texts.uncertainty import SCORES, SOURCES, View, scores_of

RNG = np.random.default_rng(0)
SAYINGS = ["in Paris", "in Paris", "Paris", "in London", "near London perhaps"]


def logits(members: int, tokens: int = 4) -> np.ndarray:
    return RNG.normal(0, 2, (members, tokens, VOCABULARY))


def saying(*texts: str, members: int = 3) -> View:
    """A view of texts that members 0, 1, 2, 0, ... wrote."""
    written = [answer(text, logits(members), source=k % members) for k, text in enumerate(texts)]
    return View(written[0], tuple(written), tuple(range(members)))


# Closed forms ---------------------------------------------------------------------------------------------


def test_scores_of_tokens_from_the_whole_distributions():
    logits_MTV, ids = logits(3), [1, 0, 5, 2]
    p_MTV = np.exp(log_softmax(logits_MTV))
    view = View(one := answer("x", logits_MTV, ids), (one,), (0, 1, 2))
    chosen_MT = p_MTV[:, range(4), ids]
    assert uncertainty.nll(view) == pytest.approx(-np.log(chosen_MT.mean(0)).sum(), rel=1e-6)
    assert uncertainty.nll_per_token(view) == pytest.approx(uncertainty.nll(view) / 4)
    total = entropy(np.log(p_MTV.mean(0))).mean()
    data = entropy(np.log(p_MTV)).mean()
    assert uncertainty.total_entropy(view) == pytest.approx(total, rel=1e-6)
    assert uncertainty.data_entropy(view) == pytest.approx(data, rel=1e-6)
    assert uncertainty.mutual_information(view) == pytest.approx(total - data, rel=1e-5)
    gap = np.log(chosen_MT.mean(0)) - np.log(chosen_MT).mean(0)
    assert uncertainty.reverse_mutual_information(view) == pytest.approx(gap.mean(), rel=1e-5)


def test_two_members_that_are_sure_of_different_tokens_know_ln_2():
    sure = np.full((2, 1, VOCABULARY), -50.0)
    sure[0, 0, 0] = sure[1, 0, 1] = 50
    view = View(one := answer("x", sure), (one,), (0, 1))
    assert uncertainty.mutual_information(view) == pytest.approx(math.log(2))
    assert uncertainty.data_entropy(view) == pytest.approx(0, abs=1e-6)


def test_a_subset_of_members_has_their_probabilities_and_no_entropy_of_their_mean():
    logits_MTV = logits(3)
    both = View(one := answer("x", logits_MTV), (one,), (0, 2))
    alone = View(two := answer("x", logits_MTV[[0, 2]]), (two,), (0, 1))
    for score in (uncertainty.nll, uncertainty.data_entropy, uncertainty.reverse_mutual_information):
        assert score(both) == pytest.approx(score(alone), rel=1e-6)
    for score in (uncertainty.total_entropy, uncertainty.mutual_information):
        with pytest.raises(Undefined, match="mean of all 3 members"):
            score(both)


@pytest.mark.slow
def test_the_divergence_of_members_is_the_kl_divergence_in_the_mean_over_their_samples():
    logits_MTV = np.repeat(logits(2, 1), 1, axis=1)
    logp_MV = log_softmax(logits_MTV)[:, 0]
    kl = [np.sum(np.exp(logp_MV[i]) * (logp_MV[i] - logp_MV[1 - i])) for i in (0, 1)]
    rng, texts = np.random.default_rng(1), []
    for member in (0, 1):
        drawn = rng.choice(VOCABULARY, 4000, p=np.exp(logp_MV[member]))
        texts += [answer("x", logits_MTV, [token], source=member) for token in drawn]
    found = uncertainty.pairwise_divergence(View(texts[0], tuple(texts), (0, 1)))
    assert found == pytest.approx(np.mean(kl), rel=0.08)


def test_scores_of_texts_by_hand():
    view = saying("Paris.", "the paris", "London", "Rome")
    assert uncertainty.inconsistency(view) == 2 / 4
    assert uncertainty.disagreement(view) == 5 / 6
    p = np.array([1 / 2, 1 / 4, 1 / 4])
    assert uncertainty.discrete_semantic_entropy(view) == pytest.approx(-(p * np.log(p)).sum())
    weight = np.exp([view.per_token(text) for text in view.texts])
    p = np.array([weight[:2].sum(), *weight[2:]]) / weight.sum()
    assert uncertainty.semantic_entropy(view) == pytest.approx(-(p * np.log(p)).sum())
    assert uncertainty.eigenvalues(view, likeness.same(view.key)) == pytest.approx(3)  # meanings
    assert uncertainty.degree(view, likeness.same(view.key)) == pytest.approx(1 - 6 / 16)
    assert uncertainty.sequence_entropy(view) == pytest.approx(-np.log(weight).mean())


def test_a_vote_takes_the_largest_group_then_the_most_probable_text():
    view = saying("Rome", "Paris", "London", "paris.")
    likely = max((view.texts[1], view.texts[3]), key=view.per_token)
    assert vote(view) is likely
    tied = replace(view, texts=view.texts[:3])
    assert vote(tied) is max(tied.texts, key=tied.per_token)
    assert vote(replace(tied, texts=tied.texts[::-1])) is vote(tied)


# Likenesses -----------------------------------------------------------------------------------------------


WORDS = st.lists(st.sampled_from(["red", "dog", "sat", "on", "it"]), max_size=9).map(" ".join)


@given(WORDS, WORDS)
def test_rouge_l_by_bits_is_rouge_scores(a, b):
    oracle = RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure
    expected = oracle if a != b else 1
    assert likeness.rouge_l([a, b])[0, 1] == pytest.approx(expected)


def test_an_embedding_and_an_entailment_make_a_likeness():
    vectors = {"up": [1.0, 0], "above": [0.8, 0.6], "left": [0, 1.0], "right": [0, -1.0]}
    asked: list[int] = []

    def embed(texts):
        asked.append(len(texts))
        return np.array([vectors[text] for text in texts])

    alike = likeness.by_embedding(embed)(["up", "above", "up", "left", "right"])
    assert asked == [4]  # equal texts are embedded once
    assert alike[0].tolist() == pytest.approx([1, 0.8, 1, 0, 0]) and alike[3, 4] == 0
    assert likeness.clusters(alike, 0.7).tolist() == [0, 0, 0, 1, 2]

    def entails(pairs):
        return np.array([1.0 if "London" in b or a == "Paris" else 0.2 for a, b in pairs])

    alike = likeness.by_entailment(entails)(["Paris", "in London", "London"])
    assert alike[1, 2] == 1 and alike[0, 1] == 0.2  # both must entail the other
    view = saying("up", "above", "up", "left", "right")
    own = scores_of(likeness.by_embedding(embed), "minilm", 0.7)
    p = np.array([3, 1, 1]) / 5
    assert own["discrete_semantic_entropy_minilm"].function(view) == pytest.approx(-(p * np.log(p)).sum())
    assert own["degree_minilm"].function(view) == pytest.approx(1 - (5 + 2 * (1 + 0.8 + 0.8 + 0.6)) / 25)


def test_p_false_is_the_share_of_false_by_the_members_mean():
    """Two members that give "true" 0.3 and 0.1, and "false" 0.1 and 0.3; the rest goes to other replies."""
    (view, *_) = [saying("Paris")]
    with pytest.raises(Undefined, match=r"not asked; write Generate\(p_true=True\)"):
        SCORES["p_false"].function(view)

    def reply(*probabilities: float):
        return replace(view.answer, log_probs_MT=np.log(np.array(probabilities))[:, None])

    asked = replace(view, members=(0, 1), verdicts=(reply(0.3, 0.1), reply(0.1, 0.3)))
    assert SCORES["p_false"].function(asked) == pytest.approx(0.5)
    assert SCORES["p_false"].function(replace(asked, members=(1,))) == pytest.approx(0.75)


# Invariances ----------------------------------------------------------------------------------------------


def views(source):
    example = by_example(pool(num=1, members=3))[0]
    return example, example.view(source, 1, (0, 1, 2))


@pytest.mark.parametrize("source", SOURCES)
def test_no_score_depends_on_the_order_of_members_or_texts(source):
    _, view = views(source)
    turned = replace(view, texts=view.texts[::-1], members=view.members[::-1])
    for name, score in SCORES.items():
        if source in score.sources and not score.of_verdicts:
            value = score.function(view)
            assert math.isfinite(value) and value > -1, name
            assert score.function(turned) == pytest.approx(value, abs=1e-9), name


def test_members_that_are_one_know_nothing_and_one_member_has_no_knowledge():
    logits_MTV = np.repeat(logits(1), 3, axis=0)
    view = View(one := answer("x", logits_MTV), (one, replace(one, source=1)), (0, 1, 2))
    for name in ("mutual_information", "reverse_mutual_information", "pairwise_divergence"):
        assert SCORES[name].function(view) == pytest.approx(0, abs=1e-6), name
        with pytest.raises(Undefined, match="compares members"):
            SCORES[name].function(replace(view, members=(0,)))
    single = replace(view, members=(0,))
    assert uncertainty.total_entropy(single) == uncertainty.data_entropy(single)


def test_texts_that_agree_have_the_lowest_score_and_a_stranger_raises_it():
    agreed, split = saying("Paris", "Paris", "Paris"), saying("Paris", "Paris", "Rome")
    least = {"eigenvalues": 1.0, "eccentricity": 0.0} | dict.fromkeys(
        ("semantic_entropy", "discrete_semantic_entropy", "inconsistency", "disagreement"), 0.0
    )
    least |= dict.fromkeys(("lexical_dissimilarity", "degree"), 0.0)
    for name, value in least.items():
        assert SCORES[name].function(agreed) == pytest.approx(value, abs=1e-9), name
        assert SCORES[name].function(split) > value + 0.1, name


# lm-polygraph ---------------------------------------------------------------------------------------------


def test_graph_scores_are_lm_polygraphs():
    degree = pytest.importorskip("lm_polygraph.estimators.deg_mat").DegMat
    laplacian = pytest.importorskip("lm_polygraph.estimators.eig_val_laplacian").EigValLaplacian
    eccentricity = pytest.importorskip("lm_polygraph.estimators.eccentricity").Eccentricity
    lexical = pytest.importorskip("lm_polygraph.estimators.lexical_similarity").LexicalSimilarity
    empirical = pytest.importorskip("lm_polygraph.estimators.semantic_entropy").SemanticEntropy
    view, stats = saying(*SAYINGS), {"sample_texts": [SAYINGS]}
    stats |= {
        "semantic_classes_entail": {
            "class_to_sample": [[[0, 1], [2], [3], [4]]],
            "sample_to_class": [{0: 0, 1: 0, 2: 1, 3: 2, 4: 3}],
        }
    }
    assert uncertainty.degree(view) == pytest.approx(degree("Jaccard_score")(stats)[0])
    assert uncertainty.eigenvalues(view) == pytest.approx(laplacian("Jaccard_score")(stats)[0])
    assert uncertainty.eccentricity(view) == pytest.approx(eccentricity("Jaccard_score")(stats)[0])
    assert uncertainty.lexical_dissimilarity(view) == pytest.approx(1 + lexical("rougeL")(stats)[0])
    entropy_of = empirical(class_probability_estimation="frequency")(stats)[0]
    assert uncertainty.discrete_semantic_entropy(view) == pytest.approx(entropy_of)
