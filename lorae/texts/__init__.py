"""Texts as pure functions of what is stored: how good they are, how unsure, and what the latter is worth."""

from __future__ import annotations

from lorae.metrics.summary import Direction

# Of metrics of texts, and of scores as detectors of wrong answers, by their columns' names
DIRECTION: dict[str, Direction] = {
    **dict.fromkeys(("exact_match", "token_f1", "number_match"), "higher"),
    **dict.fromkeys(("rouge_1", "rouge_2", "rouge_l", "rouge_l_e2e"), "higher"),
    **dict.fromkeys(("bleu", "chrf", "nist", "meteor", "cider"), "higher"),
    **dict.fromkeys(("auroc_wrong", "aupr_wrong", "prr", "quality_at_80"), "higher"),
    **dict.fromkeys(("aurc_wrong", "calibrated_ece15", "reference_nll", "perplexity"), "lower"),
}
