"""FSQ: every channel is rounded to a few levels; no codebook, no auxiliary loss.

With L levels, h = (L - 1)(1 + eps)/2, eps = 1e-3, o = 1/2 for even L and 0 for odd, s = atanh(o/h):
zhat = round(tanh(z + s) h - o), code value zhat / floor(L/2) in [-1, 1] (an even L spans -1 ... (L/2 - 1)/(L/2)).
`symmetric` codes are 2 floor((L - 1)(tanh z + 1)/2 + 1/2) / (L - 1) - 1; `bound="clamp"` has min(max(z, -1), 1) for tanh z
there: a uniform quantizer on [-1, 1]. The index is mixed radix, the first channel least significant. Rounding passes the
gradient straight through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from tokenry.codecs.vq.base import Choice, Quantizer
from tokenry.core.checks import check_choice, check_int
from tokenry.core.codebooks.estimators import rounded_tanh, straight_through

_EPS = 1e-3
_ROWS = 64  # rows that are worked on side by side

# Level sets of the FSQ paper by bits of the book they stand for.
SUGGESTED_LEVELS = {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5)}


class FSQ(Quantizer):
    """Finite scalar quantization: x [..., len(levels)] -> codes in [-1, 1], indices [...] below the product of levels.

    Args:
        levels: levels of each channel, at least 3 (2 with `symmetric`).
        symmetric: values evenly spread over [-1, 1] for even L too.
        bound: how a channel is kept in [-1, 1]: "tanh", or "clamp" (with `symmetric`), for inputs that lie there already.
        dim: width of inputs and codes, if not one per channel; linear maps lead in and out.
        seed: of those maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: a level below its minimum, a product above 2^62, or levels that are no list.

    Source: section 3.5 of the survey.
    """

    basis: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        symmetric: bool = False,
        *,
        bound: Literal["tanh", "clamp"] = "tanh",
        dim: int | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        if not isinstance(levels, Iterable):
            raise TypeError(f"levels must list the levels of each channel, such as [8, 5, 5], got {levels!r}")
        sizes = tuple(check_int("levels", level, 2) for level in levels)
        if not sizes:
            raise ValueError("levels must name at least one channel, got none")
        if min(sizes) == 2 and not symmetric:
            raise ValueError(f"levels must be >= 3 (2 needs symmetric=True, its bound is degenerate otherwise), got {sizes}")
        if check_choice("bound", bound, ("tanh", "clamp")) == "clamp" and not symmetric:
            raise ValueError("bound='clamp' needs symmetric=True, whose values are evenly spread, got symmetric=False")
        if math.prod(sizes) > 2**62:
            raise ValueError(f"levels must have a product of at most 2^62, got {math.prod(sizes)}")
        super().__init__(dim or len(sizes), len(sizes), None, math.prod(sizes), channels_first=channels_first, seed=seed)
        self.arguments["levels"] = list(sizes)
        self.levels = sizes
        self.symmetric = symmetric
        self.bound = bound
        widths = torch.tensor(sizes)
        half = (widths - 1) * (1 + _EPS) / 2
        offset = torch.where(widths % 2 == 0, 0.5, 0.0)
        constants = {
            "_half": half, "_lift": -offset, "_shift": torch.atanh(offset / half), "_steps": (widths - 1).float(),
            "_middle": (widths // 2).float(), "_sizes": widths,
            "basis": torch.tensor([math.prod(sizes[:i]) for i in range(len(sizes))]),
        }  # fmt: skip
        self._origin = sum(int(w // 2) * math.prod(sizes[:i]) for i, w in enumerate(sizes))
        for name, value in constants.items():
            # those of the channels are kept repeated, see `_side_by_side`
            repeats = 1 if name in ("_sizes", "basis") else _ROWS
            self.register_buffer(name, value.repeat(repeats), persistent=False)

    _half: Tensor
    _lift: Tensor
    _shift: Tensor
    _steps: Tensor
    _middle: Tensor
    _sizes: Tensor

    _squares = False

    def _bounded(self, z: Tensor) -> Tensor:
        """Channels before rounding, in units of levels: rounded values are -floor(L/2) ... , or 0 ... L - 1 if symmetric."""
        if self.symmetric:
            inside = torch.tanh(z) if self.bound == "tanh" else z.clamp(-1, 1)
            return _across(self._steps, z) * (inside + 1) / 2
        return torch.addcmul(_across(self._lift, z), torch.tanh(z + _across(self._shift, z)), _across(self._half, z))

    def _round(self, bounded: Tensor) -> Tensor:
        return (bounded + 0.5).floor() if self.symmetric else bounded.round()

    def _values(self, rounded: Tensor) -> Tensor:
        if self.symmetric:
            return rounded * _across(2 / self._steps, rounded) - 1
        return rounded / _across(self._middle, rounded)

    def _index(self, rounded: Tensor) -> Tensor:
        # floor(L/2) of every channel, weighed, is one constant
        digits = rounded.reshape(-1, self.code_dim)
        return self._weighed(digits, self._weights(self.basis)) + (0 if self.symmetric else self._origin)

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        rows = _side_by_side(z)
        if self.symmetric or torch.compiler.is_compiling():
            bounded = self._bounded(rows)
            rounded = self._round(bounded.detach())
            codes = self._values(straight_through(bounded, rounded))
        else:
            codes, rounded = rounded_tanh(
                rows, *(_across(c, rows) for c in (self._shift, self._half, self._lift, self._middle))
            )
        return Choice(codes.view(z.shape), self._index(rounded), z.new_zeros(()))

    def _encode(self, z: Tensor) -> Tensor:
        return self._index(self._round(self._bounded(_side_by_side(z))))

    def _lookup(self, indices: Tensor) -> Tensor:
        digits = indices.clamp(min=0)[..., None].div(self.basis, rounding_mode="floor") % self._sizes
        rounded = digits.float() if self.symmetric else digits.float() - _across(self._middle, digits)
        return self._values(rounded).masked_fill((indices < 0)[..., None], 0.0)


def _side_by_side(z: Tensor) -> Tensor:
    """Rows [N, d] joined to [N/t, t d], t up to 64: a row of a few channels is too short for a CPU's vector units."""
    if torch.compiler.is_compiling():
        return z
    return z.reshape(-1, math.gcd(len(z), _ROWS) * z.shape[1])


def _across(constant: Tensor, z: Tensor) -> Tensor:
    """A constant of the channels for z, in which rows may stand side by side."""
    return constant[: z.shape[-1]]
