"""Pairs of waveforms: checked at the door, cut to their lengths, in the precision the metrics are computed in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import check_device, check_finite, check_tensor

LIMIT_DB = 300.0


class Pair(NamedTuple):
    """reference, estimate [N, T] in float64 (float32 where there is none), zero beyond lengths [N]; shape of the input."""

    reference: Tensor
    estimate: Tensor
    lengths: Tensor
    shape: torch.Size
    dtype: torch.dtype

    def result(self, values: Tensor) -> Tensor:
        """Values [N] in the shape of the leading dimensions and the precision of the input (at least float32)."""
        return values.reshape(self.shape[:-1]).to(self.dtype)

    def zero_mean(self) -> Pair:
        """Both signals less their means over their own lengths."""
        inside = inside_of(self.lengths, self.reference.shape[-1])
        count = self.lengths[:, None]
        centred = [torch.where(inside, x - x.sum(-1, keepdim=True) / count, 0.0) for x in (self.reference, self.estimate)]
        return self._replace(reference=centred[0], estimate=centred[1])


def check_pair(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None, *, minimum: int = 1) -> Pair:
    """Check two waveforms [T], [B, T] or [B, C, T] of one shape (time last) and zero what lies beyond `lengths` [B].

    Raises TypeError for other than floating-point tensors and ValueError for shapes that differ, an empty batch, time on
    another axis, non-finite samples, lengths outside 1..T, or a clip shorter than `minimum` samples.
    """
    for name, x in (("reference", reference), ("estimate", estimate)):
        check_wave(name, x)
    if reference.shape != estimate.shape:
        raise ValueError(
            f"estimate must have the shape of reference, {list(reference.shape)} (trim it first), got {list(estimate.shape)}"
        )
    check_device("estimate", estimate, "reference", reference)
    per_item = check_lengths(lengths, reference)
    if minimum > 1 and int(per_item.min()) < minimum:
        item = int(per_item.argmin())
        raise ValueError(f"every clip must have at least {minimum} samples, got {int(per_item[item])} in item {item}")
    inside = inside_of(per_item, reference.shape[-1])
    dtype = torch.promote_types(torch.promote_types(reference.dtype, estimate.dtype), torch.float32)
    exact = torch.float32 if reference.device.type == "mps" else torch.float64
    cut = []
    for name, x in (("reference", reference), ("estimate", estimate)):
        flat = torch.where(inside, x.reshape(-1, x.shape[-1]).to(exact), 0.0)
        cut.append(check_finite(name, flat))
    return Pair(cut[0], cut[1], per_item, reference.shape, dtype)


def check_wave(name: str, x: Tensor) -> Tensor:
    """A floating-point waveform [T], [B, T] or [B, C, T] with time last; whether it is finite is for the caller to check."""
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point waveform in about -1..1, got {x.dtype} (divide int16 samples by 32768)"
        )
    if x.dim() not in (1, 2, 3) or x.numel() == 0:
        raise ValueError(f"{name} must have shape [T], [B, T] or [B, C, T] and hold samples, got {list(x.shape)}")
    if x.dim() > 1 and x.shape[-1] <= 8 and x.shape[-2] >= 1000:
        raise ValueError(f"{name} must have time on its last axis, got {list(x.shape)} (transpose it)")
    return x


def check_lengths(lengths: Tensor | None, x: Tensor) -> Tensor:
    """Lengths int64 of every row of `x` flattened to [N, T]: given per batch item as [B], or None for all T samples."""
    rows, size = x[..., 0].numel(), x.shape[-1]
    if lengths is None:
        return torch.full((rows,), size, dtype=torch.long, device=x.device)
    check_tensor("lengths", lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must hold integers, got {lengths.dtype}")
    if x.dim() == 1 or list(lengths.shape) != [x.shape[0]]:
        wanted = "None for a single waveform [T]" if x.dim() == 1 else f"of shape [{x.shape[0]}]"
        raise ValueError(f"lengths must be {wanted}, got {list(lengths.shape)}")
    if int(lengths.min()) < 1 or int(lengths.max()) > size:
        raise ValueError(f"lengths must be in [1, {size}], got {int(lengths.min())} to {int(lengths.max())}")
    return lengths.to(x.device, torch.long).repeat_interleave(rows // x.shape[0])


def inside_of(lengths: Tensor, size: int) -> Tensor:
    """True [N, size] where a position is below its row's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """10 log10(signal / noise) of energies, within +-300 dB; no signal is -300 dB, unless there is no noise either: +300."""
    tiny = 10 ** (-LIMIT_DB / 10)
    nothing = (signal == 0) & (noise == 0)
    low = torch.where(signal == 0, noise, signal) * tiny
    ratio = torch.maximum(signal, noise * tiny) / torch.where(nothing, 1.0, torch.maximum(noise, low))
    return 10 * torch.log10(torch.where(nothing, 1 / tiny, ratio))


def projected_decibels(reference: Tensor, target: Tensor, error: Tensor) -> Tensor:
    """`decibels` of the energies of a projection on the reference and of the rest; a silent estimate of a sound is -300 dB."""
    sound = reference.abs().amax(-1) > 0
    target = torch.where(sound, target, 0.0)
    return torch.where(sound & (target == 0) & (error == 0), -LIMIT_DB, decibels(target, error))
