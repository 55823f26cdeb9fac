"""What each column of trials.parquet means, in words: `lorae.load(...).glossary`."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.columns import SCALINGS, direction, title
from lorae import metrics
from lorae.metrics import regression
from lorae.results import OOD_SEPARATOR

MEANINGS = {
    "trial_id": "identity of the row; `lorae.Ensemble.load(storage, trial_id)` loads it",
    "sweep": "name of the sweep: the file's, and the axes that were replaced",
    "status": "done; failed; pruned, by a search",
    "error": "why a row is failed or pruned",
    "backbone": "the frozen pre-trained model",
    "task": "what the members are trained on, and how many examples of it",
    "scoring": "how class logits are read: letters, words, likelihood of options, a head",
    "precision": "that the backbone computes in",
    "max_tokens": "that an example may have; a longer one loses the middle of its text",
    "method": "what is trained",
    "init": "how trained factors begin",
    "targets": "layers that are adapted",
    "regularizers": "what is added to the training, with its strength",
    "budget": "length of the training",
    "schedule": "of the learning rate",
    "diversity": "what differs between the members of an ensemble",
    "draws": "by what a member predicts several times",
    "rank": "of the low-rank update",
    "alpha": "the update is scaled by alpha / rank",
    "lr": "peak learning rate",
    "warmup_frac": "share of the steps in which the learning rate rises",
    "weight_decay": "AdamW's, per step and learning rate",
    "max_grad_norm": "gradients are clipped to it, for each member",
    "seed": "of the pool of members",
    "members": "size of the ensemble; 0 is the untouched backbone",
    "combine": "what is averaged over members: probabilities, logits, weights (a soup)",
    "num_examples": "test examples",
    "decoding": "how answers are written: greedy or sampled, and their longest length; null where none are",
    "exact_match": "share of written answers that are a reference, after normalisation",
    "token_f1": "overlap of the words of written answers with the best reference, 0 to 1",
    "number_match": "share of written answers whose number is the reference's",
    "temperature": "geometric mean of the folds' temperatures, each fitted on the other folds of test",
    "temperature_flag": "why there is no usable temperature",
    "members_temperature_flag": "the same of the members' own temperatures",
    "lac_coverage90": "share of test sets at 90 % that hold the true class; least ambiguous, from validation",
    "lac_size90": "mean number of classes in them",
    "aps_coverage90": "the same share of adaptive prediction sets",
    "aps_size90": "mean number of classes in them",
    "conformal_picp90": "share of test labels in intervals that hold 90 % of validation's; best is 0.9",
    "conformal_width90": "mean width of these intervals, in the unit of the labels",
    "validation_nll": "NLL on validation, in nats; what tuning and a search choose by",
    "pruned_step": "step after which a search ended the training",
    "train_tokens": "that training has read, of all members",
    "train_flops": "floating-point operations of the training, of all members, by a formula",
    "train_seconds": "wall time of the training, of all members",
    "train_process_seconds": "time of the CPU's or GPU's processes in training",
    "predict_seconds": "wall time of all stored predictions",
    "trainable_parameters": "trained numbers, of all members",
    "forwards_per_prediction": "forward passes for one prediction",
    "stored_bytes": "bytes of the members in the storage",
    "member_ids": "identities of the members",
    "reference_id": "identity of the untouched backbone's predictions",
}
SCALED = {
    "members_ts_": "members scaled by temperatures of their own, then pooled: ",
    "ts_": "scaled by a cross-fitted temperature: ",
}


def meaning(column: str) -> str:
    """One sentence on a column; "" for one that lorae does not know."""
    metric, _, task = column.partition(OOD_SEPARATOR)
    if task:
        return f"{_of_metric(metric)} OOD set: {task}."
    prefix = next((prefix for prefix in SCALINGS if column.startswith(prefix)), "")
    return MEANINGS.get(column) or SCALED.get(prefix, "") + _of_metric(column.removeprefix(prefix))


def _of_metric(name: str) -> str:
    """The first sentence of a metric's docstring; of one that separates OOD examples also the score."""
    separation, _, score = name.partition("_")
    if separation in ("auroc", "aupr", "fpr95"):
        return f"{_first(separation)} Score: {score.replace('_', ' ')}."
    return _first(name)


def _first(function: str) -> str:
    for module in (metrics, regression):
        if hasattr(module, function):
            return (getattr(module, function).__doc__ or "").partition("\n")[0]
    return ""


def glossary(columns: Iterable[str]) -> list[dict[str, str]]:
    """Column, title, the better direction and the meaning of each."""
    return [
        {"column": name, "title": title(name), "better": direction(name), "meaning": meaning(name)}
        for name in columns
    ]
