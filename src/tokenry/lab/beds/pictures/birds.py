"""CUB-200-2011 for the claims at scale ``paper``: bird photographs with labels and boxes, from a folder that the user has.

The data set may not be redistributed, so it is read from ``$TOKENRY_CUB``: the unpacked ``CUB_200_2011`` folder with
``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``bounding_boxes.txt``. Models come from the hub.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from tokenry.core.progress import Progress, within
from tokenry.core.seeding import seeded
from tokenry.core.selection import top_k
from tokenry.errors import AssetMissingError, optional
from tokenry.hosts.trainer import TellProgress
from tokenry.hosts.vision import describe
from tokenry.lab.evidence.claim import Measurement
from tokenry.pruning.eet import EET, EETHashModel, EETTrainer, EETTrainingConfig, evaluate_retrieval, solve_hash_codes
from tokenry.pruning.glsim import GLSim
from tokenry.pruning.vit_baselines import ClsRow, RandomPatches

CLASSES, SIZE = 200, 224
_MEAN, _STD = np.array([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], dtype=np.float32)


@dataclass(frozen=True)
class Birds(Dataset[Any]):
    """Photographs read when asked for: (image [3,224,224] normalised, label); `boxes` [n,4] are left, top, width, height."""

    paths: tuple[Path, ...]
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index)[0], self.labels[index]

    def image(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """The photograph stretched to 224 x 224, and its original (width, height)."""
        with optional("PIL.Image", "lab").open(self.paths[index]) as picture:
            size = picture.size
            pixels = np.asarray(picture.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32) / 255.0
        return torch.from_numpy((pixels - _MEAN) / _STD).permute(2, 0, 1), size

    def inside(self, index: int, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Which cells of `grid` have their centre in the bird's box, [rows*columns] bool."""
        left, top, width, height = (self.boxes[index] / torch.tensor([*size, *size])).tolist()
        y = (torch.arange(grid[0]) + 0.5) / grid[0]
        x = (torch.arange(grid[1]) + 0.5) / grid[1]
        return (((y >= top) & (y < top + height))[:, None] & ((x >= left) & (x < left + width))[None]).flatten()


def birds() -> tuple[Birds, Birds]:
    """The official training and test sets.

    Raises:
        AssetMissingError: ``TOKENRY_CUB`` does not name the data set's folder; the message says how to get it.
    """
    root = Path(os.environ.get("TOKENRY_CUB", "CUB_200_2011"))
    if not (root / "images.txt").is_file():
        raise AssetMissingError(
            f"CUB-200-2011 is not at {root}; download it from https://www.vision.caltech.edu/datasets/cub_200_2011/, unpack it "
            "and run: export TOKENRY_CUB=/path/to/CUB_200_2011"
        )

    def column(name: str) -> list[list[str]]:
        return [line.split()[1:] for line in (root / name).read_text(encoding="utf-8").splitlines()]

    paths = [root / "images" / row[0] for row in column("images.txt")]
    labels = torch.tensor([int(row[0]) - 1 for row in column("image_class_labels.txt")])
    boxes = torch.tensor([[float(value) for value in row] for row in column("bounding_boxes.txt")])
    training = torch.tensor([row[0] == "1" for row in column("train_test_split.txt")])
    parts = []
    for part in (training, ~training):
        index = part.nonzero().squeeze(1)
        parts.append(Birds(tuple(paths[i] for i in index.tolist()), labels[index], boxes[index]))
    return parts[0], parts[1]


@torch.no_grad()
def hit_rates(model_id: str, count: int, seed: int, device: str) -> dict[str, float | str]:
    """Share of the top 8 patches inside the bird's box, for GLS, the CLS row and chance, over `count` test photographs."""
    model = _load(model_id, device)
    host, data = describe(model), birds()[1]
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    hits: dict[str, list[float]] = {"gls": [], "cls_attention": [], "chance": []}
    for index in chosen:
        pixels, size = data.image(index)
        inside = data.inside(index, host.grid(SIZE), size)
        hits["chance"].append(float(inside.float().mean()))
        for score in ("gls", "cls_attention"):
            best = top_k(GLSim(keep=8, score=score).importance(model, pixels[None].to(device), resize=True), 8)[0].cpu()
            hits[score].append(float(inside[best].float().mean()))
    return {f"birds_hit_rate_{name}": sum(values) / len(values) for name, values in hits.items()} | {"birds_model": model_id}


def eet_measurement(model_id: str, settings: dict[str, Any], seed: int, device: str, progress: Progress) -> Measurement:
    """The released recipe on CUB: dense, random, CLS-row and full method, each trained on the official training set.

    Accuracies are those of the same models' logits; the arms without ``trained_`` prune the dense model as it is. Training
    transform: horizontal flip of the 224 x 224 stretch (the released recipe crops at random as well).
    """
    train, test = birds()
    codes = solve_hash_codes(F.one_hot(train.labels, CLASSES), settings["bits"], seed=seed)
    queries = torch.stack([test[i][0] for i in range(len(test))])
    arms: dict[str, list[float]] = {}
    methods = {"dense": None, "random": RandomPatches(seed=seed), "cls_row": ClsRow(), "ctp": EET(), "eet": EET()}
    for done, (name, pruner) in enumerate(methods.items()):
        with seeded(seed):
            dense = EETHashModel(_load(model_id, device), CLASSES, settings["bits"]).to(device)
        student, taught = dense.twin(pruner=pruner), name == "eet"
        config = EETTrainingConfig(
            learning_rate=settings["learning_rate"],
            batch_size=settings["batch"],
            epochs=settings["epochs"],
            transfer_weight=1.0 if taught else 0.0,
            hidden_patches=4 if taught else 0,
            seed=seed,
        )
        told = TellProgress(within(progress, done / len(methods), (done + 1) / len(methods), name))
        teacher = dense.twin() if taught else None
        EETTrainer(student, teacher, codes, config, train_dataset=train, augment=_flip, callbacks=[told]).train()
        student.eval()
        arms[f"trained_{name}"] = _hits(student, queries, test.labels)
        if name == "dense":
            for other, untrained in methods.items():
                arms[other] = _hits(student.twin(pruner=untrained), queries, test.labels)
        result = evaluate_retrieval(
            student, queries, test.labels, train.labels, protocol="target_codes", target_codes=codes, ties="expected"
        )
        arms[f"map_{name}"] = list(result.per_query)
    return Measurement(arms, {"model": model_id, "patches": 196, "patches_kept": 12})


@torch.no_grad()
def _hits(model: EETHashModel, images: Tensor, labels: Tensor) -> list[float]:
    device = next(model.parameters()).device
    guesses = torch.cat([model.eval()(batch.to(device)).logits.argmax(dim=1).cpu() for batch in images.split(64)])
    return (guesses == labels).float().tolist()


def _flip(images: Tensor) -> Tensor:
    flipped = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _load(model_id: str, device: str) -> Any:
    from transformers import AutoModel

    try:
        return AutoModel.from_pretrained(model_id).eval().to(device)
    except OSError as error:
        raise AssetMissingError(
            f"{model_id} is not in the local hub cache and could not be downloaded; run: hf download {model_id}"
        ) from error
