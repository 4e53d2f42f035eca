"""Codebook collapse and its remedies, and gradient estimators, in an autoencoder of 8 x 8 digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenry.core.progress import Progress
from tokenry.lab.beds.pictures.image_autoencoder import AutoencoderRecipe, Evaluation, evaluate, train_autoencoder
from tokenry.lab.beds.pictures.image_sets import ImageSet

_EMA = {"decay": 0.99, "commitment": 0.25}
_RESET = {"reset_threshold": 0.2}  # a tenth of the uniform share: 128 images x 4 tokens / 256 codes

REMEDIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "learnable": ("vq", {"ema": False, "commitment": 0.25, "start": "uniform"}),
    "ema": ("vq", _EMA),
    "kmeans": ("vq", {**_EMA, "kmeans_init": True}),
    "rotation": ("vq", {**_EMA, "estimator": "rotation"}),
    "reset": ("vq", {**_EMA, **_RESET}),
    "cosine4": ("vq", {**_EMA, **_RESET, "distance": "cosine", "code_dim": 4}),
    "simvq": ("simvq", {}),
    "fsq": ("fsq", {}),
    "lfq": ("lfq", {}),
    "bsq": ("bsq", {}),
    "rvq": ("rvq", {**_EMA, **_RESET, "levels": 2}),
}
ESTIMATORS = ("straight_through", "rotation", "gumbel", "index_backprop")


def measure_remedies(
    images: ImageSet, steps: int, items: int, seed: int, device: str, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, float | str]]:
    """For every remedy: PSNR of `items` test images, and whether each of `items` codes is in use on the test images."""
    arms: dict[str, list[float]] = {}
    facts: dict[str, float | str] = {}
    for done, (name, (quantizer, options)) in enumerate(REMEDIES.items()):
        progress(f"autoencoder: {name}", done / len(REMEDIES))
        found, codes, log = _train(images, quantizer, options, steps, seed, device)
        arms[f"psnr_{name}"] = (-10.0 * found.errors[:items].log10()).tolist()
        indices = found.indices if found.indices.dim() == 2 else found.indices[..., 0]
        used = torch.bincount(indices.flatten(), minlength=codes) > 0
        drawn = torch.randperm(codes, generator=torch.Generator().manual_seed(seed))[:items]
        arms[f"used_{name}"] = used[drawn].float().tolist()
        for line in log:
            for figure in ("test_mse", "usage", "perplexity"):
                value = line[figure][0] if isinstance(line[figure], list) else line[figure]
                facts[f"digits_{name}_{figure}_at_{line['step']}"] = float(value)
    return arms, facts


def measure_estimators(images: ImageSet, steps: int, seed: int, device: str) -> dict[str, float | str]:
    """For every gradient estimator, with a book that learns by gradient: test error, usage, distance of tokens to codes."""
    facts: dict[str, float | str] = {}
    for estimator in ESTIMATORS:
        options = {"ema": False, "commitment": 0.25, "start": "uniform", "estimator": estimator}
        found, codes, _ = _train(images, "vq", options, steps, seed, device)
        facts[f"estimator_{estimator}_mse"] = float(found.errors.mean())
        facts[f"estimator_{estimator}_code_distance"] = found.distance
        facts[f"estimator_{estimator}_usage"] = float(
            (torch.bincount(found.indices.flatten(), minlength=codes) > 0).float().mean()
        )
    return facts


def _train(
    images: ImageSet, quantizer: str, options: Mapping[str, Any], steps: int, seed: int, device: str
) -> tuple[Evaluation, int, list[dict[str, Any]]]:
    recipe = AutoencoderRecipe(quantizer=quantizer, options=options, steps=steps, seed=seed)
    trained = train_autoencoder(recipe, images, device=device, log_every=max(1, min(400, steps)))
    test: Tensor = images.test.to(device)
    found = evaluate(trained.model, test)
    whole: Any = trained.model.quantizer
    return Evaluation(found.errors.cpu(), found.indices.cpu(), found.distance), whole.codebook_size, trained.log
