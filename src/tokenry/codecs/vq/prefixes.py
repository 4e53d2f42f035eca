"""Prefixes of levels: what quantizers of levels in a row have in common."""

from __future__ import annotations

from torch import Tensor

from tokenry.codecs.vq.base import Quantizer
from tokenry.core.checks import check_int


class LevelPrefixes(Quantizer):
    """Levels in a row, whose codes add up; the first of them decode to a coarser code.

    Attributes:
        levels: number of levels.
    """

    levels: int

    def encode(self, x: Tensor, mask: Tensor | None = None, levels: int | None = None) -> Tensor:
        """Indices [..., M] of x [..., D], or of the first `levels`; never learns."""
        return super().encode(x, mask, levels=self._count(levels))

    def _count(self, levels: int | None) -> int:
        return self.levels if levels is None else check_int("levels", levels, 1, self.levels)

    def _fits_books(self, count: int) -> bool:
        return 1 <= count <= self.levels

    def _combine(self, codes: Tensor) -> Tensor:
        return codes.sum(dim=-2)
