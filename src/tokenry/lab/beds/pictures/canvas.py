"""Canvases of handwritten digits with questions about them.

A canvas is a square RGB picture cut into cells (16 px, that is 2x2 patches of 8 px by default). Some cells hold a
coloured handwritten digit, some hold clutter that is not a digit (a quarter of a digit, speckle, stripes), the rest is
noisy background. Questions need one region, several regions, or counting, and every question knows the patches that
answer it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.2),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 0.95, 0.1),
    "purple": (0.9, 0.2, 0.95),
    "cyan": (0.1, 0.9, 0.95),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
ZONES: tuple[str, ...] = (
    "top-left",
    "top",
    "top-right",
    "left",
    "center",
    "right",
    "bottom-left",
    "bottom",
    "bottom-right",
)
KINDS: tuple[str, ...] = (
    "digit_of_color",
    "color_of_digit",
    "digit_in_zone",
    "color_in_zone",
    "sum",
    "larger",
    "count",
    "count_color",
)
FAMILY: dict[str, str] = {
    "digit_of_color": "one region",
    "color_of_digit": "one region",
    "digit_in_zone": "one region",
    "color_in_zone": "one region",
    "sum": "several regions",
    "larger": "several regions",
    "count": "counting",
    "count_color": "counting",
}


@dataclass(frozen=True, kw_only=True)
class CanvasSpec:
    """Geometry (pixels) and content (inclusive ranges) of a canvas."""

    size: int = 112
    patch: int = 8
    cell: int = 16
    digits: tuple[int, int] = (3, 8)
    clutter: tuple[int, int] = (2, 8)
    noise: float = 0.04

    def __post_init__(self) -> None:
        if self.size % self.cell or self.cell % self.patch:
            raise ValueError(
                f"size={self.size}, cell={self.cell}, patch={self.patch}: cell must divide size and patch must divide cell"
            )
        if self.digits[0] < 2 or self.digits[1] + self.clutter[1] > self.cells**2:
            raise ValueError(
                f"digits={self.digits}, clutter={self.clutter}: at least 2 digits and at most {self.cells**2} things fit"
            )

    @property
    def cells(self) -> int:
        """Cells along one side."""
        return self.size // self.cell

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    def zone_of(self, cell: int) -> int:
        """Index into ZONES of a cell: the first two and the last two rows (columns) are the outer thirds."""
        row, column = divmod(cell, self.cells)
        thirds = [0 if i < 2 else 2 if i >= self.cells - 2 else 1 for i in (row, column)]
        return thirds[0] * 3 + thirds[1]

    def patches_of(self, cells: Sequence[int]) -> Tensor:
        """Bool [N] over the patches in raster order, true inside the cells."""
        mask = torch.zeros(self.cells**2, dtype=torch.bool)
        mask[list(cells)] = True
        return cells_to_patches(mask[None], self)[0]


def cells_to_patches(values: Tensor, spec: CanvasSpec) -> Tensor:
    """Repeat a value per cell [n, C] over the patches of the cell: [n, N] in raster order."""
    ratio = spec.cell // spec.patch
    grid = values.view(-1, spec.cells, spec.cells)
    return grid.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2).flatten(1)


@dataclass(frozen=True)
class Canvases:
    """n pictures; -1 in `labels` and `colours` marks a cell without a digit.

    images uint8 [n, size, size, 3]; labels, colours int64 [n, C]; clutter bool [n, C]; C cells in raster order.
    """

    images: Tensor
    labels: Tensor
    colours: Tensor
    clutter: Tensor
    spec: CanvasSpec

    def boxes(self, index: int) -> list[tuple[int, int, int, int]]:
        """Boxes (top, left, bottom, right) in pixels of the digits of one picture, in raster order."""
        side = self.spec.cell
        corners = [divmod(int(c), self.spec.cells) for c in (self.labels[index] >= 0).nonzero().flatten()]
        return [(r * side, c * side, (r + 1) * side, (c + 1) * side) for r, c in corners]

    def patch_labels(self) -> Tensor:
        """Digit class of every patch, -1 where there is none: [n, N]."""
        return cells_to_patches(self.labels, self.spec)

    def patch_colours(self) -> Tensor:
        """Colour of the digit of every patch, -1 where there is none: [n, N]."""
        return cells_to_patches(self.colours, self.spec)


@dataclass(frozen=True)
class Question:
    """One question: the text, its one-word answer, its kind (a key of FAMILY) and the cells it needs."""

    text: str
    answer: str
    kind: str
    cells: tuple[int, ...]


def make_canvases(
    generator: torch.Generator,
    digits: Tensor,
    labels: Tensor,
    n: int,
    *,
    spec: CanvasSpec | None = None,
    augment: bool = False,
    dense: bool = False,
) -> Canvases:
    """Draw n fresh canvases from digits [M, h, w] (uint8 or 0..1 floats) with labels [M].

    Two colours are always used exactly once, so that every kind of question can be asked. `augment` turns, scales and
    shifts the digits; `dense` fills four fifths of all cells with digits (for teaching a vision tower quickly).
    """
    if digits.ndim != 3 or labels.shape != digits.shape[:1]:
        raise ValueError(f"digits {tuple(digits.shape)} and labels {tuple(labels.shape)}: expected [M, h, w] and [M]")
    spec = spec or CanvasSpec()
    total = spec.cells**2
    low, high = (total * 7 // 10, total * 9 // 10) if dense else spec.digits
    count = _integers(generator, low, high + 1, (n, 1))
    spoiled = _integers(generator, spec.clutter[0], spec.clutter[1] + 1, (n, 1))
    rank = torch.rand(n, total, generator=generator).argsort(1).argsort(1)
    is_digit = rank < count
    clutter = (rank >= count) & (rank < count + spoiled)
    pick = _integers(generator, 0, len(digits), (n, total))
    colours = _colours(generator, rank)
    images = _background(generator, n, spec)
    tiles = images.view(n, spec.cells, spec.cell, spec.cells, spec.cell, 3).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
    palette = torch.tensor(list(COLOURS.values()))
    for mask, draw in ((is_digit, None), (clutter, _spoil)):
        glyphs = _glyphs(generator, digits[pick[mask]], spec.cell, augment)
        if draw is not None:
            glyphs = draw(generator, glyphs, spec.patch)
        tiles[mask] += glyphs[..., None] * palette[colours[mask]][:, None, None, :]
    tiles = tiles.view(n, spec.cells, spec.cells, spec.cell, spec.cell, 3).permute(0, 1, 3, 2, 4, 5)
    images = (tiles.reshape(n, spec.size, spec.size, 3).clamp(0, 1) * 255).round().to(torch.uint8)
    none = torch.tensor(-1)
    return Canvases(
        images=images,
        labels=torch.where(is_digit, labels[pick], none),
        colours=torch.where(is_digit, colours, none),
        clutter=clutter,
        spec=spec,
    )


def _integers(generator: torch.Generator, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _colours(generator: torch.Generator, rank: Tensor) -> Tensor:
    """Colour per thing: the first `distinct` (2..6) differ, later ones repeat any but the first two."""
    n, kinds = len(rank), len(COLOURS)
    order = torch.rand(n, kinds, generator=generator).argsort(1)
    distinct = _integers(generator, 2, kinds + 1, (n, 1))
    repeat = _integers(generator, 2, kinds, tuple(rank.shape))
    return order.gather(1, torch.where(rank < distinct, rank.clamp(max=kinds - 1), repeat))


def _background(generator: torch.Generator, n: int, spec: CanvasSpec) -> Tensor:
    """A dim tint, a gradient and noise: float [n, size, size, 3]."""
    tint = 0.12 * torch.rand(n, 1, 1, 3, generator=generator)
    slope = 0.1 * torch.rand(n, 2, 1, 3, generator=generator)
    ramp = torch.linspace(0, 1, spec.size)
    gradient = slope[:, :1] * ramp.view(1, -1, 1, 1) + slope[:, 1:] * ramp.view(1, 1, -1, 1)
    return tint + gradient + spec.noise * torch.randn(n, spec.size, spec.size, 3, generator=generator)


def _glyphs(generator: torch.Generator, digits: Tensor, side: int, augment: bool) -> Tensor:
    """Digits [m, h, w] redrawn at side x side pixels: [m, side, side] in 0..1."""
    m = len(digits)
    ink = digits.float() / 255 if digits.dtype == torch.uint8 else digits.float()
    spread = torch.rand(m, 5, generator=generator) * 2 - 1
    amount = torch.tensor([0.22, 0.12, 0.15, 0.07, 0.07] if augment else [0.0, 0.04, 0.0, 0.04, 0.04])
    angle, zoom, shear, dx, dy = (spread * amount).unbind(1)
    zoom = 21.0 / digits.shape[-1] * (1 + zoom)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack([zoom * cos, zoom * (shear - sin), dx, zoom * sin, zoom * cos, dy], 1).view(m, 2, 3)
    grid = F.affine_grid(theta, [m, 1, side, side], align_corners=False)
    return F.grid_sample(ink[:, None], grid, align_corners=False)[:, 0]


def _spoil(generator: torch.Generator, glyphs: Tensor, patch: int) -> Tensor:
    """Turn glyphs [m, side, side] into clutter: a quarter of a digit, a patch of speckle, or a patch of stripes."""
    m, side, _ = glyphs.shape
    style = _integers(generator, 0, 3, (m, 1, 1))
    speckle = torch.rand(m, side, side, generator=generator)
    lines = (torch.arange(side) // 2 % 2).float()
    stripes = torch.where(_integers(generator, 0, 2, (m, 1, 1)) == 0, lines.view(1, -1, 1), lines.view(1, 1, -1))
    drawn = torch.where(style == 0, glyphs, torch.where(style == 1, speckle, stripes * 0.8))
    corner = _integers(generator, 0, side // patch, (m, 2)) * patch
    inside = torch.arange(side)
    rows = (inside >= corner[:, :1]) & (inside < corner[:, :1] + patch)
    columns = (inside >= corner[:, 1:]) & (inside < corner[:, 1:] + patch)
    return drawn * rows[:, :, None] * columns[:, None, :]


@dataclass(frozen=True)
class _Thing:
    cell: int
    digit: int
    colour: str
    zone: str


def questions(canvases: Canvases, index: int, rng: random.Random, count: int, kinds: Sequence[str] = KINDS) -> list[Question]:
    """`count` questions about one picture, kinds in random order and as evenly as the picture allows."""
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds={list(kinds)}: choose from {list(KINDS)}")
    things = _things(canvases, index)
    drawn: list[Question] = []
    order: list[str] = []
    misses = 0
    while len(drawn) < count:
        order = order or rng.sample(list(kinds), len(kinds))
        question = _ASK[order.pop()](things, rng)
        misses = misses + 1 if question is None else 0
        if misses > 2 * len(kinds):
            raise ValueError(f"kinds={list(kinds)}: none of them can be asked about picture {index}")
        if question is not None:
            drawn.append(question)
    return drawn


def ask(canvases: Canvases, index: int, rng: random.Random, kind: str) -> Question | None:
    """A question of one kind about one picture, or None when the picture does not allow it."""
    if kind not in _ASK:
        raise ValueError(f"kind={kind!r}: choose from {list(KINDS)}")
    return _ASK[kind](_things(canvases, index), rng)


def _things(canvases: Canvases, index: int) -> list[_Thing]:
    labels, colours = canvases.labels[index].tolist(), canvases.colours[index].tolist()
    return [
        _Thing(cell, digit, COLOUR_NAMES[colours[cell]], ZONES[canvases.spec.zone_of(cell)])
        for cell, digit in enumerate(labels)
        if digit >= 0
    ]


def _unique(things: list[_Thing], attribute: str) -> list[_Thing]:
    values = [getattr(t, attribute) for t in things]
    return [t for t in things if values.count(getattr(t, attribute)) == 1]


def _lookup(kind: str, by: str, of: str) -> Callable[[list[_Thing], random.Random], Question | None]:
    word = "digit" if of == "digit" else "color"

    def ask(things: list[_Thing], rng: random.Random) -> Question | None:
        candidates = _unique(things, by)
        if not candidates:
            return None
        thing = rng.choice(candidates)
        return Question(f"what {word} is {getattr(thing, by)}", str(getattr(thing, of)), kind, (thing.cell,))

    return ask


def _pair(things: list[_Thing], rng: random.Random) -> tuple[_Thing, _Thing] | None:
    candidates = _unique(things, "colour")
    if len(candidates) < 2:
        return None
    first, second = rng.sample(candidates, 2)
    return first, second


def _ask_sum(things: list[_Thing], rng: random.Random) -> Question | None:
    pair = _pair(things, rng)
    if pair is None:
        return None
    a, b = pair
    return Question(f"sum of {a.colour} and {b.colour}", str(a.digit + b.digit), "sum", (a.cell, b.cell))


def _ask_larger(things: list[_Thing], rng: random.Random) -> Question | None:
    pair = _pair(things, rng)
    if pair is None or pair[0].digit == pair[1].digit:
        return None
    a, b = pair
    answer = "yes" if a.digit > b.digit else "no"
    return Question(f"is {a.colour} larger than {b.colour}", answer, "larger", (a.cell, b.cell))


def _ask_count(things: list[_Thing], rng: random.Random) -> Question | None:
    return Question("how many digits", str(len(things)), "count", tuple(t.cell for t in things))


def _ask_count_color(things: list[_Thing], rng: random.Random) -> Question | None:
    # Half of the time about the most frequent colour: otherwise 0 and 1 would be nearly all answers.
    colours = [t.colour for t in things]
    colour = rng.choice(COLOUR_NAMES) if rng.random() < 0.5 else max(sorted(set(colours)), key=colours.count)
    cells = tuple(t.cell for t in things if t.colour == colour)
    return Question(f"how many digits are {colour}", str(len(cells)), "count_color", cells)


_ASK: dict[str, Callable[[list[_Thing], random.Random], Question | None]] = {
    "digit_of_color": _lookup("digit_of_color", "colour", "digit"),
    "color_of_digit": _lookup("color_of_digit", "digit", "colour"),
    "digit_in_zone": _lookup("digit_in_zone", "zone", "digit"),
    "color_in_zone": _lookup("color_in_zone", "zone", "colour"),
    "sum": _ask_sum,
    "larger": _ask_larger,
    "count": _ask_count,
    "count_color": _ask_count_color,
}
