"""What tests of `train_stack` share: encoded data, the difference of two runs, checkpoints in memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from lorae.backbone.loading import Backbone, load_backbone, read_backbone
from lorae.engine.prediction import predict, with_features
from lorae.engine.training import MemberRun, TrainingData
from lorae.methods import LastLayer
from lorae.tasks.encoding import encode
from lorae.trial import Trial


def prepared(
    trial: Trial, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Backbone, TrainingData]:
    """The backbone, computing in `dtype` (None = the trial's precision), and the trial's encoded data."""
    backbone = load_backbone(trial.backbone, trial.precision, device)
    if dtype:
        backbone = read_backbone(trial.backbone, trial.precision, device, recompute=False)
        backbone.lm.to(dtype)
    splits = {
        split: encode(backbone.tokenizer, trial.task, trial.task.examples(split), trial.budget.max_tokens)
        for split in ("train", "validation")
    }
    reference = predict(backbone, splits["train"])[0]
    return backbone, featured(trial, backbone, TrainingData(splits["train"], splits["validation"], reference))


def featured(trial: Trial, backbone: Backbone, data: TrainingData) -> TrainingData:
    """The data with features where members are trained on those alone, as `run_stack` gives them."""
    if not isinstance(trial.method, LastLayer):
        return data
    rows, num_train = with_features(backbone, [*data.train, *data.validation]), len(data.train)
    return replace(data, train=rows[:num_train], validation=rows[num_train:])


def largest_difference(a: MemberRun, b: MemberRun) -> float:
    return max((a.state[name] - b.state[name]).abs().max().item() for name in a.state)


class Recorder:
    """Checkpoints that save at every step, and continue from one of them."""

    def __init__(self, saved=None) -> None:
        self.saved, self.all = saved, {}

    def load(self):
        return self.saved

    def save(self, tensors, header) -> None:
        self.all[header["step"]] = ({k: v.clone() for k, v in tensors.items()}, header)

    def set_aside(self, why) -> None:
        raise AssertionError(why)

    def due(self) -> bool:
        return True
