"""Levels of any quantizers in a row: each quantizes what those before it left over, at a scale of its own.

r_0 = z; q_m = s_m Q_m(r_{m-1} / s_m), r_m = r_{m-1} - q_m; z_q = sum q_m. Three ways for the gradient of the sum:

- "through": the chain rule through the estimators of the levels, subtraction included, as DAC has it; levels that pass the
  gradient straight through pass it once.
- "once": z_q = z + sg(sum q_m - z) and r_m = r_{m-1} - sg(q_m), as SoundStream and EnCodec have it; the levels learn from
  their losses alone.
- "each": r_m = r_{m-1} - sg(q_m), and every level passes the gradient: M times for M levels (vector-quantize-pytorch).

FSQ levels nest exactly: with L levels a channel in [-L/(L-1), L/(L-1)] leaves a remainder in the L-th part of that range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tokenry.codecs.vq.base import Choice, Quantized, Quantizer
from tokenry.codecs.vq.binary import LFQ
from tokenry.codecs.vq.prefixes import LevelPrefixes
from tokenry.codecs.vq.scalar import FSQ
from tokenry.codecs.vq.stacks.base import Member, Stack, as_columns, checked, describe
from tokenry.core.checks import check_choice, check_finite, check_int, check_range
from tokenry.core.codebooks.estimators import straight_through
from tokenry.core.codebooks.pending import in_backward
from tokenry.core.codebooks.ranks import own_rank, world_size
from tokenry.core.codebooks.terms import joined

Gradient = Literal["through", "once", "each"]


class ResidualStack(LevelPrefixes, Stack):
    """Quantizers in a row: x [..., D] -> codes [..., D], indices [..., M] with the columns of each level.

    Args:
        levels: quantizers of one width d, or their descriptions.
        dim: width D of inputs and codes, if not d; linear maps lead in and out of the whole.
        scales: s_m of each level, numbers or [d] each; 1 by default.
        clamp: c, a number or [d]: z becomes c tanh(z / c) before the first level; None leaves it.
        gradient: "through", "once" or "each" (see above).
        quantizer_dropout: probability, in training, that only a random prefix of the levels is used.
        dropout_scope: draw once per "batch" (the same on every rank), or for each "sample" (entry of the first axis; of
            several ranks one sample each uses all levels, so that none waits for another).
        allowed_levels: lengths a prefix may have; 1 ... M by default.
        seed: of the maps and of the draws.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: section 3.2 of the survey, for levels of any kind.
    """

    def __init__(
        self,
        levels: Sequence[Member],
        *,
        dim: int | None = None,
        scales: Sequence[float | Sequence[float]] | None = None,
        clamp: float | Sequence[float] | None = None,
        gradient: Gradient = "through",
        quantizer_dropout: float = 0.0,
        dropout_scope: Literal["batch", "sample"] = "batch",
        allowed_levels: Sequence[int] | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        made = checked("levels", levels)
        widths = [level.dim for level in made]
        if len(set(widths)) > 1:
            raise ValueError(f"levels must have one width, got {widths}")
        super().__init__("levels", made, widths[0], dim, seed=seed, channels_first=channels_first)
        self.arguments["levels"] = [describe(level) for level in made]
        self.gradient = check_choice("gradient", gradient, ("through", "once", "each"))
        if gradient == "once":
            self._check_once(made)
        count = len(made)
        if scales is not None and len(scales) != count:
            raise ValueError(f"scales must hold one for each of {count} levels, got {len(scales)}")
        rows = [_row("scales", scale, widths[0]) for scale in scales or [1.0] * count]
        self.register_buffer("scales", torch.stack(rows), persistent=False)
        self.register_buffer("clamp", None if clamp is None else _row("clamp", clamp, widths[0]), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.quantizer_dropout = check_range("quantizer_dropout", quantizer_dropout, 0, 1)
        self.dropout_scope = check_choice("dropout_scope", dropout_scope, ("batch", "sample"))
        self.allowed_levels = tuple(check_int("allowed_levels", n, 1, count) for n in allowed_levels or range(1, count + 1))

    scales: Tensor
    clamp: Tensor | None
    steps: Tensor

    @staticmethod
    def _check_once(levels: list[Quantizer]) -> None:
        for number, level in enumerate(levels):
            if not isinstance(level.project_out, nn.Identity):
                raise ValueError(f"gradient='once' would never train the maps of levels[{number}]; take 'through'")

    def forward(
        self, x: Tensor, mask: Tensor | None = None, levels: int | None = None, *, with_loss: bool | None = None
    ) -> Quantized:
        """Quantize x [..., D] with all levels, or the first `levels`."""
        samples = x.shape[0] if isinstance(x, Tensor) and x.dim() > 1 else 1
        return super().forward(x, mask, with_loss=with_loss, samples=samples, levels=levels)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.columns)

    def _fits_books(self, count: int) -> bool:
        return count in [sum(self.columns[:n]) for n in range(1, len(self.columns) + 1)]

    def _bounded(self, z: Tensor) -> Tensor:
        return z if self.clamp is None else self.clamp * torch.tanh(z / self.clamp)

    def _quantize(
        self, z: Tensor, keep: Tensor | None, samples: int = 1, levels: int | None = None, asked: bool | None = None
    ) -> Choice:
        used = self._count(levels)
        lengths = self._lengths(z, keep, samples, used)
        points = self._bounded(z)
        left, total, indices, losses, terms = points, torch.zeros_like(points), [], [], []
        for number, (level, scale) in enumerate(zip(self.members, self.scales.to(z.dtype), strict=True)):
            active = keep if lengths is None else lengths > number if keep is None else keep & (lengths > number)
            if number >= used or (lengths is not None and active is not None and not bool(active.any())):
                indices.append(torch.full((z.shape[0], self.columns[number]), -1, device=z.device))
                losses.append(z.new_zeros(()))
                continue
            out = level(left / scale, active, with_loss=asked)
            share = out.codes * scale
            total = total + share
            left = left - (share if self.gradient == "through" else share.detach())
            indices.append(as_columns(out.indices))
            losses.append(out.loss)
            terms.append(out.stats.terms)
        if self.gradient == "once":
            total = straight_through(points, total)
        each = torch.stack(losses)
        return Choice(total, torch.cat(indices, dim=-1), each.sum(), each, joined(terms))

    def _encode(self, z: Tensor, levels: int) -> Tensor:
        left, indices = self._bounded(z), []
        for level, scale in zip(self.members[:levels], self.scales.to(z.dtype), strict=False):
            found = level.encode(left / scale)  # type: ignore[operator]
            left = left - level.decode(found).to(z.dtype) * scale  # type: ignore[operator]
            indices.append(as_columns(found))
        return torch.cat(indices, dim=-1)

    def _lookup(self, indices: Tensor) -> Tensor:
        """What each level adds: [..., levels, d]."""
        parts = [level.decode(k) for level, k in zip(self.members, self._parts(indices), strict=False)]  # type: ignore[operator]
        return torch.stack([part * scale for part, scale in zip(parts, self.scales, strict=False)], dim=-2)

    def _lengths(self, z: Tensor, keep: Tensor | None, samples: int, used: int) -> Tensor | None:
        """Number of levels each row may use [N], or None for all."""
        if not self.training or not self.quantizer_dropout:
            return None
        if in_backward():
            raise RuntimeError(
                "activation checkpointing repeats the forward pass of ResidualStack, which has drawn its levels: keep it "
                "out of the checkpointed part, or take quantizer_dropout=0"
            )
        self.steps += 1
        alone = self.dropout_scope == "sample"
        generator = self._generator(int(self.steps) * 1009 + 503 + (own_rank() * 4099 if alone else 0))
        draws = samples if alone else 1
        drop = torch.rand(draws, generator=generator) < self.quantizer_dropout
        allowed = torch.tensor(self.allowed_levels)
        prefix = allowed[torch.randint(len(allowed), (draws,), generator=generator)]
        lengths = torch.where(drop, prefix, len(self.columns)).clamp(max=used)
        if world_size() > 1 and alone:
            # every rank must call every level, whose statistics are summed over ranks: one sample uses them all
            first = 0 if keep is None else int(keep.nonzero()[0]) // (len(z) // draws)
            lengths[first] = used
        return lengths.repeat_interleave(len(z) // draws).to(z.device)


def residual_fsq(levels: Sequence[int], count: int, **options: object) -> ResidualStack:
    """`count` levels of FSQ with `levels` a channel, each finer by these: level m has the scale L^-m.

    A channel stands for a grid of L^count evenly spaced values. `options` are those of `ResidualStack` (dim, seed, ...).

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: residual FSQ as in Stable Audio's codec (arXiv 2411.19842); the exact nesting is vector-quantize-pytorch's.
    """
    sizes = [check_int("levels", level, 2) for level in levels]
    made = [FSQ(sizes, symmetric=True, bound="clamp") for _ in range(check_int("count", count, 1))]
    scales = [[float(size) ** -m for size in sizes] for m in range(count)]
    return ResidualStack(made, scales=scales, clamp=[size / (size - 1) for size in sizes], **options)  # type: ignore[arg-type]


def residual_lfq(
    bits: int, count: int, *, entropy_weight: float = 0.1, commitment: float = 0.0, groups: int = 1, **options: object
) -> ResidualStack:
    """`count` levels of LFQ with `bits` channels: level m gives out +-2^-m; `options` are those of `ResidualStack`.

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: vector-quantize-pytorch.
    """
    made = [
        LFQ(bits, scale=2.0**-m, entropy_weight=entropy_weight, commitment=commitment, groups=groups)
        for m in range(check_int("count", count, 1))
    ]
    return ResidualStack(made, **options)  # type: ignore[arg-type]


def _row(name: str, value: float | Sequence[float], width: int) -> Tensor:
    """A number, or one for each channel, as a row [d] of positive numbers."""
    row = torch.as_tensor(value, dtype=torch.float32)
    if row.dim() > 1 or (row.dim() == 1 and len(row) != width):
        raise ValueError(f"{name} must be a number or {width} numbers, got shape {list(row.shape)}")
    if bool((check_finite(name, row) <= 0).any()):
        raise ValueError(f"{name} must be > 0, got {row.min().item()}")
    return row.expand(width).clone()
