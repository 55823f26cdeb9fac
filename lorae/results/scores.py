"""The metrics of a row, from stored predictions and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorae import ensemble, metrics
from lorae.combinations import SOUPS
from lorae.metrics import regression
from lorae.recalibration import cross_fitted_variance
from lorae.results.columns import (
    CONFORMAL,
    FLAGS,
    MEMBERS_FLAG,
    NO_VARIANCE,
    OF_TOKENS,
    OOD_SEPARATOR,
    POOLED_FLAG,
    SCALED,
    TEXT_METRICS,
)
from lorae.store.answers import Answer, answer_set
from lorae.store.names import (
    pool_folders,
    soup_folder,
    texts_folder,
)
from lorae.store.predictions import Predictions
from lorae.store.store import Store
from lorae.texts.kinds import NUMBERS, kind_of
from lorae.texts.quality import EXAMPLE_METRICS


def trial_metrics(
    predictions: dict[str, Predictions],
    ood: Sequence[str],
    rule: metrics.Rule,
    num_entries: int,
    of_tokens: bool = False,
) -> dict[str, float | str | None]:
    """All metric columns of a row from its predictions on "test", "validation" and the OOD tasks.

    Args:
        num_entries: members, or soups, or the backbone itself, whose draws the predictions are.
        of_tokens: predictions are of the tokens of texts, which have `token_metrics` alone.
    """
    if of_tokens:
        return token_metrics(predictions, rule)
    test, validation = predictions["test"], predictions["validation"]
    if metrics.is_of_values(test.labels_N):
        return _value_metrics(predictions, ood, rule)
    pooled_validation = metrics.combine(validation.logits_MNC, rule)
    found: dict[str, float | str | None] = {"num_examples": len(test.labels_N)}
    found |= metrics.summary(test.logits_MNC, test.labels_N, rule)
    found |= {"validation_nll": metrics.ensemble_nll(pooled_validation, validation.labels_N)}
    found |= scaled_metrics(test, rule, num_entries)
    pooled_test = metrics.combine(test.logits_MNC, rule)
    found |= metrics.set_summary(pooled_validation, validation.labels_N, pooled_test, test.labels_N)
    for task in ood:
        separated = metrics.ood_summary(test.logits_MNC, predictions[task].logits_MNC, rule)
        found |= {f"{name}{OOD_SEPARATOR}{task}": value for name, value in separated.items()}
    return found


def _value_metrics(
    predictions: dict[str, Predictions], ood: Sequence[str], rule: metrics.Rule
) -> dict[str, float | str | None]:
    """The same of numbers; all else is null. Scaled is the mixture: members before pooling are not."""
    test, validation = predictions["test"], predictions["validation"]
    mixture, gold_N = metrics.Mixture.of(test.logits_MNC, rule), test.labels_N
    found: dict[str, float | str | None] = {"num_examples": len(gold_N)}
    found |= metrics.value_summary(test.logits_MNC, gold_N, rule)
    found["validation_nll"] = metrics.pooled_nll(validation.logits_MNC, validation.labels_N)
    found |= dict.fromkeys(FLAGS, NO_VARIANCE)
    if mixture.has_variance:
        fit = cross_fitted_variance(mixture, gold_N)
        found |= {POOLED_FLAG: fit.flag, MEMBERS_FLAG: "a mixture is scaled, not its members"}
        if not fit.flag:
            found["temperature"] = fit.temperature
            found["ts_ensemble_nll"] = regression.density_nll(fit.mixture, gold_N)
            found["ts_quantile_ece"] = regression.quantile_ece(fit.mixture, gold_N)
    factor = regression.conformal_factor(metrics.Mixture.of(validation.logits_MNC, rule), validation.labels_N)
    if np.isfinite(factor):
        half_N = factor * regression.conformal_scale(mixture)
        inside = regression.absolute_errors(mixture, gold_N) <= half_N
        found |= dict(zip(CONFORMAL, (float(inside.mean()), float(2 * half_N.mean()))))
    for task in ood:
        separated = metrics.value_ood_summary(test.logits_MNC, predictions[task].logits_MNC)
        found |= {f"{name}{OOD_SEPARATOR}{task}": value for name, value in separated.items()}
    return found


def token_metrics(predictions: dict[str, Predictions], rule: metrics.Rule) -> dict[str, float | str | None]:
    """The metric columns of a row whose predictions are of the tokens of references: NLL per token, whose
    exponential is the perplexity. A token among all others is no class, so all else is null."""
    test, validation = predictions["test"], predictions["validation"]
    found = metrics.summary(test.logits_MNC, test.labels_N, rule)
    pooled_validation = metrics.combine(validation.logits_MNC, rule)
    return {
        "num_examples": len({name.rpartition("#")[0] for name in test.example_ids}),
        **{name: found[name] for name in ("ensemble_nll", "mean_member_nll")},
        "validation_nll": metrics.ensemble_nll(pooled_validation, validation.labels_N),
        **dict.fromkeys(FLAGS, OF_TOKENS),
    }


def row_answers(store: Store, row: Mapping[str, Any], eval_set: str) -> tuple[Answer, ...]:
    """The stored answers of a row's model or members to a set, with what each says of all; of a soup those of
    its members, and its own.

    Raises:
        ValueError: they are missing or damaged, or of members that were trained again.
    """
    name, ids = answer_set(eval_set, row["decoding"]), row["member_ids"]
    if len(ids) < 2:
        (folder,) = pool_folders(ids, row["reference_id"], None)
        return store.answers(folder, name).answers
    found = store.answers(texts_folder(ids), name)
    if found.members != store.weight_checksums(ids):
        raise ValueError(f"{texts_folder(ids)} is of members that were trained again; repeat the sweep")
    if row["combine"] not in SOUPS:
        return found.answers
    soup = store.answers(soup_folder(ids, row["combine"]), name).answers
    return (*found.answers, *(answer for answer in soup if answer.kind == "soup"))


def text_metrics(answers: Sequence[Answer]) -> dict[str, float | None]:
    """TEXT_METRICS of a row's answers, means over the examples with references; null where they are not
    defined, as the number of an answer in words."""
    gold: dict[str, list[str]] = {}
    for answer in answers:
        if answer.kind == "reference":
            gold.setdefault(answer.example_id, []).append(answer.text)
    several = max(answer.source for answer in answers) > 0
    kinds = {answer.kind for answer in answers if not (answer.kind == "greedy" and several)}
    kind = next((kind for kind in ("soup", "lockstep", "greedy") if kind in kinds), None)
    texts = {a.example_id: a.text for a in answers if a.kind == kind and not a.draw and a.example_id in gold}
    has_numbers = kind_of([*gold.values()]) is NUMBERS
    defined = [n for n in TEXT_METRICS if texts and (has_numbers or n != NUMBERS.right)]
    means = {n: np.mean([EXAMPLE_METRICS[n](text, gold[e]) for e, text in texts.items()]) for n in defined}
    return dict.fromkeys(TEXT_METRICS) | {name: float(mean) for name, mean in means.items()}


def scaled_metrics(test: Predictions, rule: metrics.Rule, num_entries: int) -> dict[str, float | str | None]:
    """The columns of SCALED and their flags: of predictions that are calibrated after pooling, and before."""
    logits_MNC, labels_N = test.logits_MNC, test.labels_N
    pooled = ensemble.cross_fitted(metrics.combine(logits_MNC, rule), labels_N)
    members = ensemble.cross_fitted_members(logits_MNC, labels_N, len(logits_MNC) // num_entries, rule)
    flag = next((f"member {m}: {fit.flag}" for m, fit in enumerate(members) if fit.flag), None)
    found: dict[str, float | str | None] = dict.fromkeys(SCALED)
    found |= {POOLED_FLAG: pooled.flag, MEMBERS_FLAG: flag}
    if not pooled.flag:
        found |= {
            "temperature": pooled.temperature,
            "ts_ensemble_nll": metrics.ensemble_nll(pooled.logp_NC, labels_N),
            "ts_brier": metrics.brier(pooled.logp_NC, labels_N),
            "ts_ece15": metrics.ece15(pooled.logp_NC, labels_N),
        }
    if not flag:
        logp_NC = metrics.combine(np.stack([fit.logp_NC for fit in members]), rule)
        found |= {
            "members_ts_ensemble_nll": metrics.ensemble_nll(logp_NC, labels_N),
            "members_ts_ece15": metrics.ece15(logp_NC, labels_N),
        }
    return found
