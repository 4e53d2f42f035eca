"""A small vision transformer on real handwritten digits: the testbed of EET and GLSim.

The 1,797 digits that come with scikit-learn (8 x 8 pixels, real handwriting) are enlarged to 12 x 12 and placed on a 24 x 24
canvas at a multiple of the patch size, with three 4 x 4 fragments of other digits and noise around them. So 9 of the 36 patches
hold the digit, the others hold clutter, and where the digit is is known. Everything is made from a seed; trained models are
kept in memory for the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from tokenry.core.checks import check_int
from tokenry.core.descent import Plan, descend
from tokenry.core.probe import fit_probe
from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded
from tokenry.errors import optional
from tokenry.pruning.eet import EETHashModel

CANVAS, DIGIT, PATCH = 24, 12, 4
GRID = CANVAS // PATCH
EPOCHS = 16
CLASSES = 10
TRAIN_DIGITS, TEST_DIGITS = 1300, 497
_FRAGMENTS, _NOISE = 3, 0.1
_MEAN, _STD = 0.15, 0.3
_PLACES = 10_000


@dataclass(frozen=True)
class DigitCanvases(Dataset[Any]):
    """Images [n,1,24,24] (normalised), labels [n], and the digit's box [n,4] in pixels (top, left, bottom, right)."""

    images: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def first(self, count: int) -> DigitCanvases:
        """The first `count` canvases."""
        return DigitCanvases(self.images[:count], self.labels[:count], self.boxes[:count])

    def to(self, device: str) -> DigitCanvases:
        """The same canvases on `device`."""
        return DigitCanvases(self.images.to(device), self.labels.to(device), self.boxes.to(device))

    def patches_inside(self) -> Tensor:
        """Which patches hold the digit, [n,36] bool."""
        rows = torch.arange(GRID, device=self.boxes.device) * PATCH
        inside_row = (rows >= self.boxes[:, 0:1]) & (rows < self.boxes[:, 2:3])
        inside_column = (rows >= self.boxes[:, 1:2]) & (rows < self.boxes[:, 3:4])
        return (inside_row[:, :, None] & inside_column[:, None, :]).flatten(1)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    datasets = optional("sklearn.datasets", "lab")
    data = datasets.load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32)) / 16.0
    images = F.interpolate(images[:, None], size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)[:, 0]
    return images, torch.from_numpy(np.asarray(data.target, dtype=np.int64))


@lru_cache(maxsize=8)
def digit_canvases(seed: int = 0, *, copies: int = 2) -> tuple[DigitCanvases, DigitCanvases]:
    """Training canvases (1,300 digits, `copies` canvases each) and test canvases (the other 497 digits, one each).

    Which digits are for training depends on `seed`, as do places, clutter and noise.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    check_int("seed", seed, 0)
    check_int("copies", copies, 1)
    digits, labels = _digits()
    train, test = _split(seed)
    return (
        _compose(digits, labels, train.repeat(copies), torch.Generator().manual_seed(_PLACES + seed)),
        _compose(digits, labels, test, torch.Generator().manual_seed(2 * _PLACES + seed)),
    )


def _split(seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(TRAIN_DIGITS + TEST_DIGITS, generator=torch.Generator().manual_seed(seed))
    return order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]


def _compose(digits: Tensor, labels: Tensor, chosen: Tensor, generator: torch.Generator) -> DigitCanvases:
    n, span = len(chosen), DIGIT // PATCH
    places = torch.randint(0, GRID - span + 1, (n, 2), generator=generator) * PATCH
    canvas = torch.zeros(n, CANVAS, CANVAS)
    for row, (index, (top, left)) in enumerate(zip(chosen.tolist(), places.tolist(), strict=True)):
        free = [
            (r, c)
            for r in range(0, CANVAS, PATCH)
            for c in range(0, CANVAS, PATCH)
            if not (top <= r < top + DIGIT and left <= c < left + DIGIT)
        ]
        for cell in torch.randperm(len(free), generator=generator)[:_FRAGMENTS].tolist():
            other = int(torch.randint(0, len(digits), (1,), generator=generator))
            y, x = torch.randint(0, DIGIT - PATCH + 1, (2,), generator=generator).tolist()
            r, c = free[cell]
            canvas[row, r : r + PATCH, c : c + PATCH] = digits[other, y : y + PATCH, x : x + PATCH]
        canvas[row, top : top + DIGIT, left : left + DIGIT] = digits[index]
    canvas += _NOISE * torch.randn(canvas.shape, generator=generator)
    return DigitCanvases(((canvas - _MEAN) / _STD)[:, None], labels[chosen], torch.cat([places, places + DIGIT], dim=1))


def digit_vit_config() -> Any:
    """The configuration of the testbed's ``ViTModel``: width 48, 4 blocks, 4 heads, patch 4 (36 patches)."""
    from transformers import ViTConfig

    config: Any = ViTConfig  # its signature is assembled at run time
    return config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=CANVAS,
        patch_size=PATCH,
        num_channels=1,
        num_labels=CLASSES,
        # The usual 0.02 is made for widths of several hundred; at 48 it costs 6 points of accuracy.
        initializer_range=0.1,
    )


def train_digit_vit(
    seed: int = 0,
    *,
    epochs: int = EPOCHS,
    limit: int = TRAIN_DIGITS,
    device: str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """Train a ``ViTForImageClassification`` from scratch: AdamW 3e-3, one cycle, batch 64; returned in evaluation mode.

    Every epoch places the training digits of `seed` anew, two canvases each: on fixed canvases this model learns them by heart.
    `limit` uses only so many of the digits. `progress` is called after every step.
    """
    from transformers import ViTForImageClassification

    check_int("epochs", epochs, 1)
    check_int("limit", limit, 1, TRAIN_DIGITS)
    digits, labels = _digits()
    chosen = _split(seed)[0][:limit].repeat(2)
    generator = torch.Generator().manual_seed(3 * _PLACES + seed)
    with seeded(seed):
        model: Any = ViTForImageClassification(digit_vit_config())
    model.to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            data = _compose(digits, labels, chosen, generator).to(device)
            for batch in torch.randperm(len(data), generator=generator).split(64):
                yield data.images[batch], data.labels[batch]

    drawn = batches()

    def loss_of(step: int) -> Tensor:
        images, wanted = next(drawn)
        return F.cross_entropy(model(images).logits, wanted)

    plan = Plan(steps=epochs * -(-len(chosen) // 64), learning_rate=3e-3, weight_decay=0.05, warmup=0.3, decay="one_cycle")
    descend(model, loss_of, plan, progress=progress)
    return model.eval()


@lru_cache(maxsize=8)
def digit_vit(seed: int = 0, *, epochs: int = EPOCHS) -> nn.Module:
    """The trained classifier of `seed`, trained when first asked for (about half a minute) and kept for the process."""
    return train_digit_vit(seed, epochs=epochs)


def hash_model_on(classifier: Any, *, bits: int, seed: int) -> EETHashModel:
    """A dense `EETHashModel` around the tower of `classifier`, with its head; the hash head is new.

    This is where the paper starts, too: a classifier pre-trained without hashing. Train it with
    `EETTrainer`.
    """
    with seeded(seed):
        model = EETHashModel(classifier, CLASSES, bits)
    model.classifier.load_state_dict(classifier.classifier.state_dict())
    return model.to(classifier.device)


@torch.no_grad()
def fit_hash_head(model: EETHashModel, train: DigitCanvases, codes: Tensor) -> None:
    """Set the hash head to the least-squares map from the model's logits on `train` to `codes` [n,bits].

    The released recipe finds it within 90 epochs; a bench of a few epochs starts from there instead.
    """
    logits = torch.cat([model(batch).logits for batch in train.images.split(128)]).cpu()
    model.hash.load_state_dict(fit_probe(logits, codes.float(), kind="least_squares").net.state_dict())


@torch.no_grad()
def class_hits(model: nn.Module, data: DigitCanvases) -> Tensor:
    """Whether the classifier is right about each canvas, [n] float on the CPU; a pruner may be attached to it."""
    whole: Any = model
    guesses = torch.cat([whole(batch).logits.argmax(dim=1) for batch in data.images.split(128)])
    return (guesses == data.labels).float().cpu()
