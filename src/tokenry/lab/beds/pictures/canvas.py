"""Canvases: handwritten digits, two-digit numbers and pictures of things, anywhere on a photograph.

Objects lie at any pixel (not on the grid of patches), at many sizes, slightly turned, and do not overlap; each covers several
patches of 8 px, and most patches are background, as in photographs. Every patch knows the object that covers it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenry.lab.beds.pictures.sprites import CROP_SIDE, DIGIT_SIDE, PICTURE_SIDE, THINGS, Sheet

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.12, 0.12),
    "green": (0.15, 0.9, 0.2),
    "blue": (0.25, 0.4, 1.0),
    "yellow": (1.0, 0.95, 0.1),
    "purple": (0.85, 0.2, 1.0),
    "cyan": (0.1, 0.95, 0.95),
    "white": (1.0, 1.0, 1.0),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
ZONES: tuple[str, ...] = (
    "top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
THING_NAMES: tuple[str, ...] = tuple(THINGS)
NUMBER = 10 + len(THINGS)  # classes: the ten digits, the things, a number
CLASSES = NUMBER + 1
COVERED = 0.3  # a patch belongs to an object when its box covers this share of the patch
_LARGEST = 46
_WINDOW = 52  # pixels in which an object is drawn: the largest size, turned
_TRIES = 24
_BAND = 0.72  # height of a number over its width


@dataclass(frozen=True, kw_only=True)
class CanvasSpec:
    """Geometry (pixels) and content of a canvas; ranges are inclusive, shares are probabilities.

    size, patch: side of the picture and of a patch. objects: how many. side: of a digit or thing; number: how much wider one of
    these is. turn: largest angle (radians). plain: share of backgrounds without a photograph. light, noise: brightness of the
    background and standard deviation of the noise. gap: least distance between objects. snap: boxes start at multiples of it.
    kinds: shares of digits, numbers, things.
    """

    size: int = 112
    patch: int = 8
    objects: tuple[int, int] = (3, 6)
    side: tuple[int, int] = (17, 28)
    number: float = 1.6
    turn: float = 0.25
    plain: float = 0.5
    light: tuple[float, float] = (0.15, 0.5)
    noise: tuple[float, float] = (0.0, 0.05)
    gap: int = 2
    snap: int = 1
    kinds: tuple[float, float, float] = (0.45, 0.2, 0.35)

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"size={self.size}, patch={self.patch}: patch must divide size")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects={self.objects}: expected 1 <= fewest <= most")
        if not 8 <= self.side[0] <= self.side[1] <= _LARGEST / self.number:
            raise ValueError(
                f"side={self.side}, number={self.number}: expected 8 <= smallest <= largest, a number at most {_LARGEST} wide"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch


# Held-out digits are asked about on held-out photographs, lighter and noisier than those of training, none of them plain.
TEST_SPEC = CanvasSpec(side=(20, 26), plain=0.0, light=(0.3, 0.55), noise=(0.04, 0.06), turn=0.2, gap=3)
# Four times the objects: a vision tower learns from every patch, so this teaches it faster.
DENSE_SPEC = CanvasSpec(objects=(10, 16), side=(18, 28), gap=0)
# The first lesson: upright, of one size, on the grid of patches.
FIRST_SPEC = CanvasSpec(objects=(12, 16), side=(24, 24), gap=0, snap=8, turn=0.0, plain=0.8)


@dataclass(frozen=True)
class Canvases:
    """n pictures with up to K objects each.

    images uint8 [n, size, size, 3]; there bool [n, K]; classes int64 [n, K] (place in digits, `THINGS`, number); colours int64
    [n, K], -1 for things; values int64 [n, K], what a number reads, -1 otherwise; boxes float [n, K, 4] (top, left, bottom,
    right) in pixels.
    """

    images: Tensor
    there: Tensor
    classes: Tensor
    colours: Tensor
    values: Tensor
    boxes: Tensor
    spec: CanvasSpec

    def owners(self) -> Tensor:
        """Object that covers at least `COVERED` of each patch, the larger share first, -1 where there is none: [n, N]."""
        edges = torch.arange(self.spec.grid) * float(self.spec.patch)
        rows = _overlap(self.boxes[..., 0], self.boxes[..., 2], edges, self.spec.patch)
        columns = _overlap(self.boxes[..., 1], self.boxes[..., 3], edges, self.spec.patch)
        share = rows[..., :, None] * columns[..., None, :] * self.there[..., None, None]
        best, owner = share.flatten(2).max(1)
        return torch.where(best >= COVERED, owner, -1)

    def centres(self) -> Tensor:
        """Centres (row, column) of the boxes as shares of the picture: [n, K, 2]."""
        return (self.boxes[..., :2] + self.boxes[..., 2:]) / 2 / self.spec.size


def _overlap(low: Tensor, high: Tensor, edges: Tensor, width: int) -> Tensor:
    """Share of every interval [edge, edge + width] inside [low, high]: [n, K, edges]."""
    start = torch.maximum(low[..., None], edges)
    end = torch.minimum(high[..., None], edges + width)
    return (end - start).clamp(min=0) / width


def make_canvases(generator: torch.Generator, sheet: Sheet, n: int, *, spec: CanvasSpec | None = None) -> Canvases:
    """Draw n fresh canvases from the digits, pictures and backgrounds of `sheet`."""
    spec = spec or CanvasSpec()
    slots = spec.objects[1]
    wanted = torch.arange(slots) < _integers(generator, spec.objects[0], spec.objects[1] + 1, (n, 1))
    family = torch.multinomial(torch.tensor(spec.kinds), n * slots, True, generator=generator).view(n, slots)
    side = _between(generator, spec.side, (n, slots)).round()
    side = torch.where(family == 1, (side * spec.number).round(), side)
    height = torch.where(family == 1, (side * _BAND).round(), side)
    boxes, there = _place(generator, torch.stack([height, side], -1), wanted, spec)
    colours = torch.where(family == 2, -1, _colours(generator, n, slots))
    ink, classes, values = _draw_from(generator, sheet, family, there)
    images = _background(generator, sheet, n, spec)
    _paste(generator, images, ink, family, colours, boxes, side, there, spec)
    noise = _between(generator, spec.noise, (n, 1, 1, 1))
    images.add_(noise * torch.randn(images.shape, generator=generator)).clamp_(0, 1).mul_(255).round_()
    pixels = images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return Canvases(pixels, there, classes, colours, values, boxes, spec)


def _integers(generator: torch.Generator, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _between(generator: torch.Generator, limits: tuple[float, float], shape: tuple[int, ...]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(shape, generator=generator)


def _place(generator: torch.Generator, sizes: Tensor, wanted: Tensor, spec: CanvasSpec) -> tuple[Tensor, Tensor]:
    """Boxes [n, K, 4] that do not overlap, one object after the other; an object that finds no room is left out."""
    n, slots, _ = sizes.shape
    boxes = torch.full((n, slots, 4), -1000.0)
    there = wanted.clone()
    tries = torch.rand(n, slots, _TRIES, 2, generator=generator)
    for slot in range(slots):
        size = sizes[:, slot, None]
        start = (tries[:, slot] * (spec.size - size + 1) / spec.snap).floor() * spec.snap
        box = torch.cat([start, start + size], -1)
        others = boxes[:, None, :slot]
        apart = (box[:, :, None, :2] >= others[..., 2:] + spec.gap) | (box[:, :, None, 2:] + spec.gap <= others[..., :2])
        free = apart.any(-1).all(-1)
        first = free.int().argmax(1)
        chosen = box[torch.arange(n), first]
        there[:, slot] &= free.any(1)
        boxes[:, slot] = torch.where(there[:, slot, None], chosen, boxes[:, slot])
    return boxes, there


def _colours(generator: torch.Generator, n: int, slots: int) -> Tensor:
    """Colour per object: half of them take one of two colours of the picture, so that colours repeat; the rest any."""
    pair = torch.rand(n, len(COLOURS), generator=generator).argsort(1)[:, :2]
    common = pair.gather(1, _integers(generator, 0, 2, (n, slots)))
    any_colour = _integers(generator, 0, len(COLOURS), (n, slots))
    return torch.where(torch.rand(n, slots, generator=generator) < 0.45, common, any_colour)


def _draw_from(generator: torch.Generator, sheet: Sheet, family: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour times opacity and opacity [M, 4, 40, 40] of the objects that are `there`; class and value of all [n, K]."""
    n, slots = family.shape
    first, second = (_integers(generator, 0, len(sheet.digits), (n, slots)) for _ in range(2))
    # every thing is as frequent as the others, however many pictures it has
    thing = _integers(generator, 0, len(THINGS), (n, slots))
    same = sheet.picture_labels[None] == thing.flatten()[:, None]
    picture = torch.multinomial(same.float(), 1, generator=generator).view(n, slots)
    ink = torch.zeros(int(there.sum()), 4, PICTURE_SIDE, PICTURE_SIDE)
    is_digit, is_number, is_thing = (family[there] == number for number in range(3))
    ink[is_thing] = sheet.pictures[picture[there][is_thing]].float() / 255
    ink[is_digit] = _resized(sheet.digits[first[there][is_digit]], PICTURE_SIDE, PICTURE_SIDE)[:, None]
    high, width = round(PICTURE_SIDE * _BAND), PICTURE_SIDE // 2
    top = (PICTURE_SIDE - high) // 2
    pair = [
        # two digits side by side, their side margins cut off
        _resized(sheet.digits[chosen[there][is_number]][..., 3 : DIGIT_SIDE - 3], high, width)
        for chosen in (first, second)
    ]
    ink[is_number] = F.pad(torch.cat(pair, -1), (0, 0, top, PICTURE_SIDE - high - top))[:, None]
    tens, ones = sheet.digit_labels[first], sheet.digit_labels[second]
    classes = torch.where(family == 0, tens, torch.where(family == 1, NUMBER, 10 + thing))
    return ink, classes, torch.where(family == 1, 10 * tens + ones, -1)


def _resized(digits: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(digits[:, None].float() / 255, size=(height, width), mode="bilinear")[:, 0]


def _background(generator: torch.Generator, sheet: Sheet, n: int, spec: CanvasSpec) -> Tensor:
    """Darkened photographs, or blurred noise with a tint: float [n, 3, size, size]."""
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator)
    tint = torch.rand(n, 3, 1, 1, generator=generator)
    smooth = F.interpolate(0.6 * coarse + 0.4 * tint, size=(spec.size, spec.size), mode="bilinear", align_corners=True)
    crop = sheet.backgrounds[_integers(generator, 0, len(sheet.backgrounds), (n,))].permute(0, 3, 1, 2).float() / 255
    top, left = _integers(generator, 0, CROP_SIDE - spec.size + 1, (2,)).tolist()
    crop = crop[:, :, top : top + spec.size, left : left + spec.size]
    flip = torch.rand(n, generator=generator) < 0.5
    crop[flip] = crop[flip].flip(-1)
    plain = torch.rand(n, 1, 1, 1, generator=generator) < spec.plain
    picture = torch.where(plain, smooth, crop)
    # faded: the colours of objects are brighter than those behind them
    light = 0.5 * _between(generator, spec.light, (n, 1, 1, 1))
    return (picture + picture.mean(1, keepdim=True)).mul_(light)


def _paste(
    generator: torch.Generator, images: Tensor, ink: Tensor, family: Tensor, colours: Tensor, boxes: Tensor, side: Tensor,
    there: Tensor, spec: CanvasSpec,
) -> None:  # fmt: skip
    """Draw the objects into `images` [n, 3, size, size], turned, scaled, in their colours."""
    n, slots = there.shape
    palette = torch.tensor(list(COLOURS.values()))
    shade = palette[colours.clamp(min=0)] * _between(generator, (0.85, 1.0), (n, slots, 1))
    shade = (shade + 0.06 * torch.randn(n, slots, 3, generator=generator)).clamp(0, 1)
    shade = torch.where((family == 2)[..., None], 1.0, shade)
    angle = spec.turn * (2 * torch.rand(n, slots, generator=generator) - 1)
    drawn = _turned(ink, angle[there], _WINDOW / side[there])
    drawn[:, :3] *= shade[there][:, :, None, None]
    clear = 1 - drawn[:, 3:]
    margin = _WINDOW // 2
    padded = F.pad(images, [margin] * 4)
    corners = ((boxes[..., :2] + boxes[..., 2:]) / 2)[there].floor().int().tolist()
    owners = there.nonzero()[:, 0].tolist()
    for number, (picture, (top, left)) in enumerate(zip(owners, corners, strict=True)):  # slices: far faster than indices
        under = padded[picture, :, top : top + _WINDOW, left : left + _WINDOW]
        under.mul_(clear[number]).add_(drawn[number, :3])
    images.copy_(padded[:, :, margin:-margin, margin:-margin])


def _turned(ink: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Objects [M, 4, 40, 40] drawn in the middle of a window of 52 px: [M, 4, 52, 52]."""
    cos, sin, none = torch.cos(angle) * zoom, torch.sin(angle) * zoom, torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, none, sin, cos, none], 1).view(-1, 2, 3)
    places = F.affine_grid(theta, [len(ink), 4, _WINDOW, _WINDOW], align_corners=False)
    return F.grid_sample(ink, places, align_corners=False)
