"""Sets of small images for autoencoders: real digits, patches of real photographs, patches of a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import check_int
from tokenry.errors import optional

PATCH = 32
SIDE = 256  # shorter side to which photographs are scaled
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageSet(NamedTuple):
    """Images float32 [n,C,H,W] in 0..1: `train` to learn from, `test` to judge on."""

    train: Tensor
    test: Tensor


def image_set(data: str, *, seed: int = 0) -> ImageSet:
    """Images by name, split by `seed`.

    "digits": 1,797 of 8 x 8 (1,400 for training); "mnist": 10,000 of 28 x 28 (8,000); "photos": 32 x 32 patches of ten
    photographs (four fifths); else a folder of images, cut into such patches.

    Raises:
        ValueError: neither a name nor a folder with at least one image, or images smaller than a patch.
        AssetMissingError: the images are not here.
    """
    check_int("seed", seed, 0)
    if data == "digits":
        from tokenry.lab.sources.models import sklearn_digits

        return _split(sklearn_digits().images[:, None], 1400, seed)
    if data == "mnist":
        from tokenry.lab.sources.models import mnist_digits

        return _split(mnist_digits().images[:, None], 8000, seed)
    if data == "photos":
        from tokenry.lab.sources.cnn import photographs

        patches = patches_of(photographs())
    else:
        patches = patches_of(_read(Path(data).expanduser()))
    return _split(patches, len(patches) * 4 // 5, seed)


def patches_of(pictures: Sequence[Tensor]) -> Tensor:
    """Patches [n,3,32,32] in 0..1 of uint8 pictures [H,W,3], which are first made smaller to a shorter side of 256."""
    found = []
    for picture in pictures:
        x = picture.movedim(-1, 0)[None].float() / 255
        shorter = min(x.shape[2:])
        if shorter < PATCH:
            raise ValueError(f"images must be at least {PATCH} pixels wide and high, got {list(picture.shape[:2])}")
        if shorter > SIDE:
            size = [round(side * SIDE / shorter) for side in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        rows = x[0].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        found.append(rows.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH))
    return torch.cat(found)


def _read(folder: Path) -> list[Tensor]:
    if not folder.is_dir():
        raise ValueError(f"data must be 'digits', 'mnist', 'photos' or a folder, got {str(folder)!r}")
    image: Any = optional("PIL.Image", "lab")
    pictures = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES):
        with image.open(path) as opened:
            rgb = opened.convert("RGB")
            pictures.append(torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3))
    if not pictures:
        raise ValueError(f"data={str(folder)!r} holds no image ({', '.join(IMAGES)})")
    return pictures


def _split(images: Tensor, train: int, seed: int) -> ImageSet:
    if not 0 < train < len(images):
        raise ValueError(f"data must hold at least 2 images or patches, got {len(images)}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return ImageSet(images[order[:train]].contiguous(), images[order[train:]].contiguous())
