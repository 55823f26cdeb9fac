"""Augmentation: the images that it makes, and members that see the same ones alone, stacked and resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from stacks import Recorder, largest_difference
from toys import Colours

from lorae import seeds
from lorae.augmentation import Augment
from lorae.backbone.encoders import Inputs
from lorae.backbone.loading import Backbone, load_backbone, read_backbone
from lorae.engine.order import DataOrder
from lorae.engine.training import TrainingData, train_stack
from lorae.media import Image
from lorae.methods import LastLayer
from lorae.tasks import CIFAR10, SVHN, Digits, LfwPatches
from lorae.tasks.encoding import encode
from lorae.trial import Budget, Diversity, Trial

AUTHORS = Augment(("horizontal", "vertical"), degrees=(0, 180))
PLACES = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(40, 30, 3)  # every value names its place


def drawn(augment: Augment, pixels: np.ndarray, num: int = 400) -> list[np.ndarray]:
    return [augment(pixels, seeds.stream("test", n)) for n in range(num)]


# Images


def test_half_of_the_images_are_mirrored_in_each_direction_on_its_own() -> None:
    forms = [PLACES, PLACES[:, ::-1], PLACES[::-1], PLACES[::-1, ::-1]]
    for flips, shares in [(("horizontal",), [0.5, 0.5, 0, 0]), (("vertical", "horizontal"), [0.25] * 4)]:
        images = drawn(Augment(flips), PLACES)
        found = [np.mean([np.array_equal(image, form) for image in images]) for form in forms]
        assert sum(found) == 1
        np.testing.assert_allclose(found, shares, atol=0.08)


def test_a_rotation_is_counter_clockwise_by_a_uniform_angle_and_leaves_black_corners() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (21, 21, 3), np.uint8)
    (turned,) = drawn(Augment((), degrees=(90, 90)), pixels, 1)
    np.testing.assert_array_equal(turned, np.rot90(pixels))
    (turned,) = drawn(Augment((), degrees=(45, 45)), pixels, 1)
    assert not turned[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    np.testing.assert_array_equal(turned[10, 10], pixels[10, 10])
    half = np.zeros((61, 61, 3), np.uint8)
    half[:30] = 255  # the angle is that of the lighter half's mean place
    y, x = np.mgrid[30:-31:-1, -30:31]
    middle = np.hypot(y, x) < 28
    lights = [(image[..., 0] > 0) & middle for image in drawn(Augment((), degrees=(0, 80)), half, 200)]
    angles = [np.degrees(np.arctan2(y[light].mean(), x[light].mean())) - 90 for light in lights]
    assert min(angles) > -2 and max(angles) < 82
    np.testing.assert_allclose(np.quantile(angles, (0.1, 0.5, 0.9)), (8, 40, 72), atol=8)


def test_a_crop_is_a_window_of_the_image_with_uniform_area_anywhere_in_it() -> None:
    crops = drawn(Augment((), crop=0.25), PLACES, 1000)
    areas = np.array([crop.size / PLACES.size for crop in crops])
    stretched = np.array([crop.shape[0] / 40 / (crop.shape[1] / 30) for crop in crops])
    assert areas.min() > 0.22 and stretched.min() > 0.7 and stretched.max() < 1.43
    np.testing.assert_allclose(np.quantile(areas, (0.2, 0.5, 0.8)), (0.4, 0.625, 0.85), atol=0.05)
    assert stretched.min() < 0.8 and stretched.max() > 1.25
    tops, lefts = zip(*(np.argwhere(crop[0, 0, 0] == PLACES)[0, :2] for crop in crops))
    for crop, top, left in zip(crops, tops, lefts):
        np.testing.assert_array_equal(crop, PLACES[top : top + crop.shape[0], left : left + crop.shape[1]])
    ends = [(top + crop.shape[0], left + crop.shape[1]) for crop, top, left in zip(crops, tops, lefts)]
    assert min(tops) == min(lefts) == 0 and max(ends, key=lambda e: e[0])[0] == 40
    assert max(ends, key=lambda e: e[1])[1] == 30 and np.mean(tops) > 2 and np.mean(lefts) > 1.5


def test_an_image_of_one_pixel_stays_whole() -> None:
    one = np.full((1, 1, 3), 7, np.uint8)
    for image in drawn(Augment(("horizontal", "vertical"), (-180, 180), crop=0.01), one, 20):
        np.testing.assert_array_equal(image, one)


# Members


def prepared(trial: Trial, dtype: torch.dtype = torch.float32) -> tuple[Backbone, TrainingData]:
    backbone = load_backbone(trial.backbone, "fp32", "cpu")
    if dtype is not torch.float32:
        backbone = read_backbone(trial.backbone, "fp32", "cpu", recompute=False)
        backbone.lm.to(dtype)
    splits = (trial.task.examples("train"), trial.task.examples("validation"))
    return backbone, TrainingData(*(encode(backbone.tokenizer, trial.task, s, 512) for s in splits))


def augmented(encoder_trial, augment: Augment | None = AUTHORS, **changes) -> Trial:
    trial = encoder_trial("vit", **{"budget": Budget(batch_size=4, epochs=2)} | changes)
    return replace(trial, task=replace(trial.task, augment=augment))


def test_member_of_a_stack_equals_the_member_trained_alone(encoder_trial) -> None:
    trial = augmented(encoder_trial, replace(AUTHORS, crop=0.3))
    backbone, data = prepared(trial, torch.float64)  # fp32 rounding moves a member by 1e-5
    together = train_stack(backbone, trial, range(3), data, micro_batch=3)
    for member, run in enumerate(together):
        assert largest_difference(run, train_stack(backbone, trial, [member], data)[0]) < 1e-5
    plain = train_stack(backbone, replace(trial, task=replace(trial.task, augment=None)), [0], data)[0]
    assert largest_difference(together[0], plain) > 1e-3, "it must matter"


def test_member_equals_the_one_that_is_trained_on_images_changed_by_hand(encoder_trial) -> None:
    """In one epoch, so that each example has one image: mirrored and turned by Pillow, with numbers from the
    member's order stream."""
    trial = augmented(encoder_trial, budget=Budget(batch_size=4, epochs=1))
    backbone, data = prepared(trial)
    ours = train_stack(backbone, trial, [0, 1], data)[1]
    key, by_hand = trial.member_key(1)["order"], list(data.train)
    order = DataOrder(key, trial.seed, np.array([len(r.tokens) for r in data.train]), 4)
    for step in range(order.steps_per_epoch):
        for n in order.batch(step):
            row = data.train[n]
            *_, angle, across, down = seeds.stream(*key, "augment", step, row.id).random(7)
            image = Pillow.fromarray(row.media.pixels())
            image = ImageOps.mirror(image) if across < 0.5 else image
            image = ImageOps.flip(image) if down < 0.5 else image
            by_hand[n] = replace(row, media=Image.raw(np.array(image.rotate(180 * angle))))
    plain = replace(trial, task=replace(trial.task, augment=None))
    theirs = train_stack(backbone, plain, [1], replace(data, train=by_hand))[0]
    assert largest_difference(ours, theirs) == 0


def test_a_resumed_training_sees_the_same_images(encoder_trial) -> None:
    trial = augmented(encoder_trial)
    backbone, data = prepared(trial)
    recorder = Recorder()
    run = train_stack(backbone, trial, [0], data, checkpoints=recorder)[0]
    again = train_stack(backbone, trial, [0], data, checkpoints=Recorder(recorder.all[5]))[0]
    assert largest_difference(run, again) == 0


def test_members_that_share_their_order_share_images_which_are_read_once_and_not_kept(
    encoder_trial, monkeypatch
) -> None:
    made: list[str] = []
    processed = Inputs.processed
    monkeypatch.setattr(
        Inputs, "processed", lambda self, media: made.append(media.digest) or processed(self, media)
    )
    for order, members in (("shared", 1), ("per_member", 3)):
        trial = augmented(
            encoder_trial, diversity=Diversity(order=order), budget=Budget(batch_size=4, steps=5)
        )
        backbone, data = prepared(trial)
        backbone.tokenizer.cache.clear()
        made.clear()
        train_stack(backbone, trial, range(3), data)
        assert len(made) == len(set(made)) == 5 * 4 * members
        assert not backbone.tokenizer.cache


# Identity and refusals


def test_an_augmentation_names_members_and_rows_but_no_predictions(encoder_trial) -> None:
    trial = augmented(encoder_trial, None)
    others = [augmented(encoder_trial, a) for a in (AUTHORS, replace(AUTHORS, degrees=(0, 90)))]
    assert len({t.member_id(0) for t in (trial, *others)}) == 3
    assert "augment" not in trial.recipe()["task"]
    assert others[0].task.label == "shades+flip-hv+rotate-0:180"
    for split in ("train", "validation", "test"):
        assert len({t.task.eval_set(split) for t in (trial, *others)}) == 1


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Augment(()), "changes no image"),
        (lambda: Augment("horizontal"), "must be a tuple"),
        (lambda: Augment(("horizontal", "horizontal")), "each once"),
        (lambda: Augment(("diagonal",)), "horizontal and vertical"),
        (lambda: Augment(degrees=(30, -30)), "range of angles"),
        (lambda: Augment(degrees=(0, float("nan"))), "range of angles"),
        (lambda: Augment(degrees=15), "range of angles"),
        (lambda: Augment(crop=0), r"must be in \(0, 1\]"),
        (lambda: Colours(augment=Augment()), "has text examples"),
        (lambda: LfwPatches(augment=Augment()), "trains no member"),
        (lambda: SVHN(augment="flip"), "must be an Augment"),
    ],
)
def test_what_cannot_be_augmented_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_last_layer_is_refused_and_a_task_without_augmentation_is_not(encoder_trial) -> None:
    with pytest.raises(ValueError, match="features are computed once"):
        augmented(encoder_trial, method=LastLayer())
    assert Digits().label == "digits"
    assert CIFAR10(augment=Augment(crop=0.5)).label == "cifar10+flip-h+crop-0.5"
