"""One forward of a vision-language model: its images and clips, the columns of their placeholders, and what stays of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenry.hosts.cache import ShortenedPast
from tokenry.hosts.vlm.kept_columns import KeptColumns
from tokenry.hosts.vlm.signals import KINDS, Described, Kind, SignalCapture


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, tile or frame, as the language model would read them.

    Attributes:
        image: running number within this forward, in the order of the prompts.
        row: batch row whose prompt holds it.
        features: [n,D] after the projector.
        prunable: [n] bool; False = separator (``image_newline``), always kept and outside the budget.
        signals: per-token scores [n] that were asked for, such as ``"cls_attention"``.
        crop: [n] crop number, 0 = whole image or thumbnail; -1 on separators.
        grid: (rows, columns) if the tokens form one grid in raster order.
        clip: running number of the clip that this is a frame of; None = an image.
    """

    image: int
    row: int
    features: Tensor
    prunable: Tensor
    signals: Mapping[str, Tensor]
    crop: Tensor
    grid: tuple[int, int] | None
    clip: int | None = None


@dataclass(frozen=True)
class Place:
    """Where the tokens of one `VisualTokens` stand: batch row and columns [n]."""

    row: int
    columns: Tensor
    described: Described
    features: Tensor
    clip: int | None

    def followed_by(self, other: Place) -> bool:
        """Whether `other` begins in the next column."""
        return self.row == other.row and int(self.columns[-1]) + 1 == int(other.columns[0])


Chooser = Callable[[Sequence[VisualTokens]], Sequence[Tensor]]
"""All images and frames of a forward -> per image the ascending indices [K] to keep (separators included)."""


@dataclass
class ChunkedChoice:
    """What stays of a prompt that is run in chunks: `keep` and `visual` [B,S] over its columns, from column `start` on."""

    keep: Tensor
    visual: Tensor
    start: int


class Request(threading.local):
    """The forward in flight, one per thread, so that threads may share an attachment."""

    input_ids: Tensor | None = None
    mask: Any = None
    types: Tensor | None = None
    choice: ChunkedChoice | None = None
    layout: KeptColumns | None = None
    after: ShortenedPast | None = None
    columns = 0
    seen = 0
    encoding = False

    def __init__(self) -> None:
        self.features: dict[Kind, Sequence[Tensor]] = {}
        self.encoded: dict[Kind, list[tuple[Tensor, tuple[Described, ...]]]] = {}

    def begin(self, input_ids: Tensor | None, mask: Any = None, types: Tensor | None = None) -> None:
        """Forget the last forward; `mask` and `types` are the caller's attention mask and token types."""
        self.input_ids, self.mask, self.types = input_ids, mask, types
        self.features, self.layout, self.after = {}, None, None

    def places(self, config: Any, signals: SignalCapture) -> list[Place]:
        """Every image, tile and frame of this forward with the columns of its placeholders, in the order of the prompts.

        Raises:
            ValueError: no `input_ids`, another number of placeholders than features, or an entry spread over two rows.
        """
        places, clips = [], 0
        for kind in KINDS:
            entries = self.features.get(kind, ())
            columns = self._columns(kind, getattr(config, f"{kind}_token_id"), entries) if entries else ()
            for number, (entry, (row, index)) in enumerate(zip(entries, columns, strict=True)):
                clip, start = (None if kind == "image" else clips), 0
                known = self._described(kind, entry, number)
                for described in signals.unobserved(kind, entry) if known is None else known:
                    here = slice(start, start + len(described.prunable))
                    places.append(Place(row, index[here], described, entry[here], clip))
                    start = here.stop
                clips += kind == "video" and len(entry) > 0
        places.sort(key=lambda place: (place.row, int(place.columns[0])))
        return _joined(places) if signals.family.entries == "tile" else places

    def _columns(self, kind: Kind, token: int, entries: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Batch row and columns of every entry's placeholders (`token`)."""
        if self.input_ids is None:
            raise ValueError(f"input_ids must be given with the {kind}s while a pruner is attached (not inputs_embeds)")
        rows, columns = (self.input_ids == token).nonzero(as_tuple=True)
        counts = [len(entry) for entry in entries]
        if sum(counts) != len(rows):
            raise ValueError(f"input_ids hold {len(rows)} {kind} placeholders for {sum(counts)} {kind} features")
        found = []
        for row, column in zip(rows.split(counts), columns.split(counts), strict=True):
            if bool((row != row[:1]).any()):
                raise ValueError(f"input_ids: the placeholders of one {kind} are spread over two rows")
            found.append((int(row[0]) if len(row) else 0, column))
        return found

    def _described(self, kind: Kind, entry: Tensor, number: int) -> tuple[Described, ...] | None:
        """What the encoder's run said about these features; `generate` may have encoded earlier and copied them since."""
        known = self.encoded.get(kind, [])
        for features, described in known[number : number + 1] + known:
            if features is entry or (features.shape == entry.shape and torch.equal(features, entry)):
                return described
        return None


def _joined(places: Sequence[Place]) -> list[Place]:
    """Tiles that follow each other without a gap, as one image each: crops 1, 2, ... and the thumbnail, which comes last."""
    runs: list[list[Place]] = []
    for place in places:
        if runs and runs[-1][-1].followed_by(place):
            runs[-1].append(place)
        else:
            runs.append([place])
    return [run[0] if len(run) == 1 else _image_of(run) for run in runs]


def _image_of(tiles: Sequence[Place]) -> Place:
    parts = [tile.described for tile in tiles]
    numbers = [*range(1, len(tiles)), 0]
    described = Described(
        torch.cat([part.prunable for part in parts]),
        torch.cat([torch.full_like(part.crop, number) for part, number in zip(parts, numbers, strict=True)]),
        {name: torch.cat([part.signals[name] for part in parts]) for name in parts[0].signals},
        None,
    )
    columns, features = torch.cat([tile.columns for tile in tiles]), torch.cat([tile.features for tile in tiles])
    return replace(tiles[0], columns=columns, described=described, features=features)
