"""A small ViT pre-trained on MNIST: a vision backbone that needs nothing but the package index.

It is trained on first use, in two to three minutes on one core: 4 layers of width 64 on patches of 7 x 7
pixels, on the images of `Mnist` outside its test set, slightly rotated, scaled and shifted at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lorae.media import Image
from lorae.tasks.base import Example
from lorae.tasks.mnist import DIGITS, Mnist

EPOCHS, BATCH, LR, WEIGHT_DECAY, WARMUP_FRAC = 40, 100, 1.5e-3, 0.05, 0.1
TURN, SCALE, SHIFT = math.radians(15), 0.1, 1 / 7  # maxima; half the image's width is 1


def pretrain(folder: Path) -> float:
    """Write config.json, safetensors and the image processor's settings to `folder`.

    Returns:
        Accuracy on the test images of `Mnist`, which are not trained on.
    """
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    splits = Mnist().located().splits()
    size = {"height": 28, "width": 28}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    config = ViTConfig(
        image_size=28,
        patch_size=7,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        id2label=dict(enumerate(DIGITS)),
        label2id={digit: k for k, digit in enumerate(DIGITS)},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are added in one order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ViTForImageClassification(config)
            _train(model, *_arrays(processor, (*splits["train"], *splits["validation"])))
            images, labels = _arrays(processor, splits["test"])
            with torch.inference_mode():
                accuracy = (model.eval()(images).logits.argmax(-1) == labels).float().mean().item()
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return accuracy


def _arrays(processor: Any, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel values (N, 3, 28, 28) and labels (N,)."""
    images = [e.media.pixels() for e in examples if isinstance(e.media, Image)]
    return processor(images, return_tensors="pt")["pixel_values"], torch.tensor([e.label for e in examples])


def _train(model: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(images) // BATCH)
    warmup = WARMUP_FRAC * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, 0.5 * (1 + math.cos(math.pi * t / steps)))
    )
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = F.cross_entropy(model(_moved(images[chosen])).logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _moved(images_B: torch.Tensor) -> torch.Tensor:
    """Each image rotated, scaled and shifted at random; beyond its edge it is paper, the value -1."""
    turn_B, scale_B, right_B, down_B = (torch.rand(4, len(images_B)) * 2 - 1).unbind()
    cos_B, sin_B = ((1 + SCALE * scale_B) * f(TURN * turn_B) for f in (torch.cos, torch.sin))
    first = torch.stack([cos_B, -sin_B, SHIFT * right_B], dim=1)
    second = torch.stack([sin_B, cos_B, SHIFT * down_B], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images_B.shape), align_corners=False)
    return F.grid_sample(images_B + 1, grid, align_corners=False) - 1
