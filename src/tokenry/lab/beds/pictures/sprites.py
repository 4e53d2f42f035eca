"""What canvases are made of: handwritten digits, pictures of things, and photographs behind them.

Digits are those of MNIST and of scikit-learn (UCI), pictures are emoji of two families (Noto and Twemoji), backgrounds are
crops of photographs. A sheet is one split of all three; the test sheet lies beside the weights, so that no download is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenry.errors import optional

DIGIT_SIDE, PICTURE_SIDE, CROP_SIDE = 24, 40, 128
SPLIT_SEED = 20240
THINGS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cat2", "smiley_cat", "smirk_cat"),
    "dog": ("dog", "dog2", "poodle", "guide_dog"),
    "fish": ("fish", "tropical_fish", "blowfish", "shark"),
    "car": ("car", "blue_car", "taxi", "oncoming_automobile"),
    "tree": ("evergreen_tree", "deciduous_tree", "palm_tree", "christmas_tree"),
    "flower": ("tulip", "hibiscus", "sunflower", "cherry_blossom"),
    "fruit": ("apple", "tangerine", "banana", "strawberry"),
    "house": ("house", "house_with_garden"),
    "clock": ("clock3", "clock6", "clock9", "alarm_clock"),
    "ball": ("soccer", "basketball", "volleyball", "football"),
}
TEST_PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


@dataclass(frozen=True)
class Sheet:
    """One split of everything that is drawn.

    digits uint8 [D, 24, 24] with digit_labels [D]; pictures uint8 [P, 4, 40, 40] (colour times opacity, opacity) with
    picture_labels [P], places in `THINGS`; backgrounds uint8 [G, 128, 128, 3].
    """

    digits: Tensor
    digit_labels: Tensor
    pictures: Tensor
    picture_labels: Tensor
    backgrounds: Tensor

    def __post_init__(self) -> None:
        if self.digits.shape[1:] != (DIGIT_SIDE, DIGIT_SIDE) or self.digit_labels.shape != self.digits.shape[:1]:
            raise ValueError(
                f"digits {tuple(self.digits.shape)} and digit_labels {tuple(self.digit_labels.shape)}: "
                f"expected [D, {DIGIT_SIDE}, {DIGIT_SIDE}] and [D]"
            )
        missing = set(range(10)) - set(self.digit_labels.tolist())
        if missing or set(range(len(THINGS))) - set(self.picture_labels.tolist()):
            raise ValueError("digit_labels and picture_labels: every digit and every thing must be there at least once")

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name, as `save_sheet` writes them."""
        return {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}


def save_sheet(sheet: Sheet, path: Path) -> None:
    """Write a sheet as safetensors (labels as uint8)."""
    from safetensors.torch import save_file

    save_file({name: tensor.to(torch.uint8) for name, tensor in sheet.tensors().items()}, path)


def load_sheet(path: Path) -> Sheet:
    """A sheet that `save_sheet` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    return Sheet(**{name: value.long() if name.endswith("labels") else value for name, value in tensors.items()})


def split_indices(total: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the test split, ascending and disjoint."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[held_out:].sort().values, order[:held_out].sort().values


def build_sheet(*, train: bool, held_out: tuple[int, int] = (900, 300)) -> Sheet:
    """One split from the assets: the test split has other digits and photographs; its emoji are Noto's, which training has too.

    `held_out` digits of MNIST and of scikit-learn form the test split.
    """
    from tokenry.lab.sources.models import mnist_digits, sklearn_digits

    digits, labels = [], []
    for (images, classes), count in zip((mnist_digits(), sklearn_digits()), held_out, strict=True):
        chosen = split_indices(len(images), count)[0 if train else 1]
        ink = images[chosen, None]
        # the margin of MNIST is cut off; a scikit-learn digit fills its 8 x 8 pixels
        ink = ink[..., 2:26, 2:26] if ink.shape[-1] == 28 else F.interpolate(ink, size=(22, 22), mode="bicubic")
        ink = F.pad(ink, [(DIGIT_SIDE - ink.shape[-1]) // 2] * 4).clamp(0, 1)
        digits.append((ink[:, 0] * 255).round().to(torch.uint8))
        labels.append(classes[chosen])
    families = ("google", "twitter") if train else ("google",)
    pictures, things = zip(*(emoji_pictures(family) for family in families), strict=True)
    return Sheet(torch.cat(digits), torch.cat(labels), torch.cat(pictures), torch.cat(things), _backgrounds(train=train))


def emoji_pictures(family: str) -> tuple[Tensor, Tensor]:
    """The emoji of `THINGS` in one family's drawing: uint8 [P, 4, 40, 40] (premultiplied) and their places in `THINGS` [P]."""
    from tokenry.lab.assets.folders import fetch

    image: Any = optional("PIL.Image", "lab")
    folder = fetch(f"emoji-{'noto' if family == 'google' else 'twemoji'}")
    table = next(folder.glob("**/emoji.json"))
    files = {row["short_name"]: row["image"] for row in json.loads(table.read_text(encoding="utf-8"))}
    pictures, things = [], []
    for number, names in enumerate(THINGS.values()):
        for name in names:
            with image.open(table.parent / "img" / family / "64" / files[name]) as opened:
                rgba = opened.convert("RGBA")
                pixels = torch.frombuffer(bytearray(rgba.tobytes()), dtype=torch.uint8).view(rgba.height, rgba.width, 4)
            x = pixels.permute(2, 0, 1).float() / 255
            x = torch.cat([x[:3] * x[3:], x[3:]])[None]
            x = F.interpolate(x, size=(PICTURE_SIDE, PICTURE_SIDE), mode="bilinear", antialias=True)[0]
            pictures.append((x * 255).round().to(torch.uint8))
            things.append(number)
    return torch.stack(pictures), torch.tensor(things)


def _backgrounds(*, train: bool, crops: int = 6) -> Tensor:
    """Crops uint8 [G, 128, 128, 3] of the photographs of one split, at two sizes."""
    from tokenry.lab.sources.cnn import PHOTOGRAPHS, photographs

    names = ["china", "flower", *PHOTOGRAPHS]
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    found = []
    for name, picture in zip(names, photographs(), strict=True):
        if (name in TEST_PHOTOGRAPHS) == train:
            continue
        x = picture.permute(2, 0, 1)[None].float() / 255
        for number in range(crops):
            short = (160, 256)[number % 2]
            scale = short / min(x.shape[-2:])
            small = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)[0]
            top, left = (int(torch.randint(side - CROP_SIDE + 1, (1,), generator=generator)) for side in small.shape[1:])
            crop = small[:, top : top + CROP_SIDE, left : left + CROP_SIDE]
            found.append((crop * 255).round().to(torch.uint8).permute(1, 2, 0))
    return torch.stack(found)
