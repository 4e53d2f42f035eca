"""One forward of a vision-language model: its images, the columns of their placeholders, and what stays of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.hosts.cache import ShortenedPast
from tokenry.hosts.vlm.kept_columns import KeptColumns
from tokenry.hosts.vlm.signals import Described


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, as the language model would read them.

    Attributes:
        image: running number of the image within this forward.
        row: batch row whose prompt holds it.
        features: [n,D] after the projector.
        prunable: [n] bool; False = separator (``image_newline``), always kept and outside the budget.
        signals: per-token scores [n] that were asked for, such as ``"cls_attention"``.
        crop: [n] crop number, 0 = whole image or thumbnail; -1 on separators.
        grid: (rows, columns) if the tokens form one grid in raster order.
    """

    image: int
    row: int
    features: Tensor
    prunable: Tensor
    signals: Mapping[str, Tensor]
    crop: Tensor
    grid: tuple[int, int] | None


Chooser = Callable[[Sequence[VisualTokens]], Sequence[Tensor]]
"""All images of a forward -> per image the ascending indices [K] to keep (separators included)."""


@dataclass
class ChunkedChoice:
    """What stays of a prompt that is run in chunks: `keep` and `visual` [B,S] over its columns, from column `start` on."""

    keep: Tensor
    visual: Tensor
    start: int


class Request(threading.local):
    """The forward in flight, one per thread, so that threads may share an attachment."""

    input_ids: Tensor | None = None
    features: Sequence[Tensor] | None = None
    choice: ChunkedChoice | None = None
    layout: KeptColumns | None = None
    after: ShortenedPast | None = None
    columns = 0
    seen = 0

    def begin(self, input_ids: Tensor | None) -> None:
        """Forget the last forward."""
        self.input_ids, self.features, self.layout, self.after = input_ids, None, None, None

    def __init__(self) -> None:
        self.encoded: list[tuple[Tensor, Described]] = []

    def places(self, token: int) -> list[tuple[int, Tensor]]:
        """Batch row and columns of every image's placeholders (`token`).

        Raises:
            ValueError: no `input_ids`, another number of placeholders than features, or an image spread over two rows.
        """
        ids, features = self.input_ids, self.features or ()
        if ids is None:
            raise ValueError("input_ids must be given with the images while a pruner is attached (not inputs_embeds)")
        rows, columns = (ids == token).nonzero(as_tuple=True)
        counts = [len(f) for f in features]
        if sum(counts) != len(rows):
            raise ValueError(f"input_ids hold {len(rows)} image placeholders for {sum(counts)} image features")
        places = []
        for row, column in zip(rows.split(counts), columns.split(counts), strict=True):
            if bool((row != row[0]).any()):
                raise ValueError("input_ids: the placeholders of one image are spread over two rows")
            places.append((int(row[0]), column))
        return places

    def described(self, features: Tensor) -> Described | None:
        """What the encoder's run said about these features; `generate` may have encoded earlier and copied them since."""
        for known, described in self.encoded:
            if known is features or (known.shape == features.shape and torch.equal(known, features)):
                return described
        return None
