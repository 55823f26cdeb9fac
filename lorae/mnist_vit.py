"""A small ViT pre-trained on MNIST: a vision backbone that needs nothing but the package index.

It is trained on first use, in about a minute on one core: 4 layers of width 96 on patches of 7 x 7 pixels, on
the MNIST images of `Mnist` that are not its test set, shifted at random by up to 2 pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lorae.media import Image
from lorae.tasks.base import Example
from lorae.tasks.mnist import DIGITS, Mnist

LOG = logging.getLogger("lorae")
EPOCHS, BATCH, LR, WEIGHT_DECAY, WARMUP_FRAC, SHIFT = 30, 100, 2e-3, 0.05, 0.1, 2


def pretrain(folder: Path) -> float:
    """Write config.json, safetensors and the image processor's settings to `folder`.

    Returns:
        Accuracy on the test images of `Mnist`, which were not trained on.
    """
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    splits = Mnist().located().splits()
    size = {"height": 28, "width": 28}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    config = ViTConfig(
        image_size=28,
        patch_size=7,
        hidden_size=96,
        intermediate_size=192,
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
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(images) // BATCH)
    warmup = int(WARMUP_FRAC * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, 0.5 * (1 + np.cos(np.pi * t / steps)))
    )
    paper = images.min()
    padded = F.pad(images, (SHIFT,) * 4, value=paper.item())
    model.train()
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            top, left = rng.integers(0, 2 * SHIFT + 1, 2)
            batch = padded[chosen, :, top : top + 28, left : left + 28]
            loss = F.cross_entropy(model(batch).logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
