"""Change of sample rate: a windowed-sinc low-pass in polyphase form, in plain torch, at any pair of rates.

The filters of a pair old/new (in lowest terms) are one per phase, `new` of them, each as long as the low-pass is at the lower
of the two rates. Where they fit `DENSE` elements, all phases are one strided convolution; else the filters are kept as they
are, up to `BANK` elements; else they are read off a fine table, block by block, for the outputs at hand. What is held besides
input and output stays below 64 MB, with gradients too (blocks are computed again on the way back).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tokenry.codecs.audio.metrics.pair import check_lengths, check_wave, inside_of
from tokenry.core.checks import check_finite, check_int, check_range

ZEROS = 32  # zero crossings of the sinc a side
ROLLOFF = 0.95  # cut-off in units of the lower Nyquist frequency
BETA = 10.0  # of the Kaiser window
HIGHEST = 2**31 - 1  # Hz
DENSE = 1 << 19  # elements (4 MB) of the filters of all phases side by side
BANK = 1 << 22  # elements (32 MB) of the filters of all phases, each only as long as it is
BLOCK = 1 << 17  # elements of everything that is made for some outputs
FINE = 4096  # values per zero crossing of the table that filters are read from where the bank would be too large


class _LowPass(NamedTuple):
    """The low-pass of a pair of rates: `cutoff` in units of the input's Nyquist frequency, `width` its samples a side."""

    old: int
    new: int
    zeros: int
    rolloff: float
    beta: float

    @property
    def cutoff(self) -> float:
        return min(self.old, self.new) * self.rolloff / self.old

    @property
    def width(self) -> int:
        return math.ceil(self.zeros / self.cutoff)

    def at(self, times: Tensor) -> Tensor:
        """Its values at times in input samples, float64."""
        scaled = times.abs() * self.cutoff
        inside = (scaled / self.zeros).clamp(max=1.0)
        window = torch.special.i0(self.beta * (1 - inside.square()).sqrt())  # the scale cancels in the sum over taps
        return self.cutoff * torch.sinc(times * self.cutoff) * window * (scaled <= self.zeros)

    def near(self, times: Tensor) -> Tensor:
        """`at`, interpolated between `FINE` values per zero crossing, for a gain of 1 in the limit of many phases."""
        table = _table(self.zeros, self.beta)
        place = (times.abs() * (self.cutoff * FINE)).clamp_(max=self.zeros * FINE)
        below = place.long()
        value = torch.lerp(table[below], table[below + 1], place - below)
        return value * (self.cutoff * FINE / (2 * table.sum() - table[0]))


def resample(
    wave: Tensor,
    from_rate: int,
    to_rate: int,
    *,
    lengths: Tensor | None = None,
    zeros: int = ZEROS,
    rolloff: float = ROLLOFF,
    beta: float = BETA,
) -> Tensor:
    """Waveform [..., T] at `from_rate` Hz to [..., ceil(T to/from)] at `to_rate` Hz, without shift in time; differentiable.

    The low-pass is a sinc with `zeros` zero crossings a side at `rolloff` times the lower Nyquist frequency under a Kaiser
    window of shape `beta`; as set: -0.4 dB at 0.9, -6 dB at 0.95 and -100 dB beyond 1.1 of it. zeros=10, rolloff=1, beta=5
    is the low-pass of `scipy.signal.resample_poly`. The ends are zero-padded; samples beyond `lengths` [B] count as zero, so
    that a batch gives what each clip gives alone.

    Rates are whole numbers up to 2^31 - 1. Where the filters of a pair would take more than 32 MB (192001 -> 16000), they
    are interpolated between 4096 values per zero crossing (3e-8 of the largest), and a phase's gain at 0 Hz is that of the
    continuous low-pass instead of exactly 1 (apart by less than the stop band: 1e-5 as set).
    """
    check_wave("wave", wave)
    check_int("from_rate", from_rate, 1, HIGHEST)
    check_int("to_rate", to_rate, 1, HIGHEST)
    check_int("zeros", zeros, 1)
    check_range("rolloff", rolloff, 0.0, 1.0, low_open=True)
    check_range("beta", beta, 0.0)
    flat = wave.reshape(-1, wave.shape[-1])
    if lengths is not None:
        flat = torch.where(inside_of(check_lengths(lengths, wave), wave.shape[-1]), flat, 0.0)
    check_finite("wave", flat)
    if from_rate == to_rate:
        return flat.reshape(wave.shape)
    common = math.gcd(from_rate, to_rate)
    low = _LowPass(from_rate // common, to_rate // common, zeros, rolloff, beta)
    work = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    size = resampled_length(wave.shape[-1], from_rate, to_rate)
    dense = low.new * (2 * low.width + low.old) <= DENSE
    out = _convolved(work, low, size) if dense else _in_blocks(work, low, size)
    if lengths is not None:  # the filter rings past the end of a short clip
        out = torch.where(inside_of(-(-check_lengths(lengths, wave) * low.new // low.old), size), out, 0.0)
    return out.reshape(*wave.shape[:-1], size).to(wave.dtype)


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Samples that `resample` makes of `length` samples: ceil(length * to_rate / from_rate)."""
    return -(-length * to_rate // from_rate)


def _convolved(work: Tensor, low: _LowPass, size: int) -> Tensor:
    """All phases [N, size] as one convolution of [N, T] with the stride of a period."""
    padded = F.pad(work, (low.width, low.width + low.old))
    phases = F.conv1d(padded[:, None], _kernel(low).to(work), stride=low.old)  # [N, new, periods]
    return phases.transpose(1, 2).reshape(len(work), -1)[:, :size]


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept for callers that learn too
def _kernel(low: _LowPass) -> Tensor:
    """Filters [new, 1, taps], one per output phase, over one period and the context on both its sides."""
    taps = torch.arange(-low.width, low.width + low.old, dtype=torch.float64)
    times = taps[None] - torch.arange(low.new, dtype=torch.float64)[:, None] * low.old / low.new
    kernel = low.at(times)
    return (kernel / kernel.sum(1, keepdim=True))[:, None]


def _in_blocks(work: Tensor, low: _LowPass, size: int) -> Tensor:
    """Outputs [N, size], some at a time: the samples around each, weighted by its phase's filter."""
    taps = 2 * low.width + 2
    bank = _bank(low) if low.new * taps <= BANK else None
    step = max(1, BLOCK // min(taps, work.shape[-1]))
    rows = max(1, BLOCK // (step * min(taps, work.shape[-1])))
    parts = []
    for group in work.split(rows):
        blocks = [(group, first, min(first + step, size), low, bank) for first in range(0, size, step)]
        if work.requires_grad and torch.is_grad_enabled():
            made = [checkpoint(_block, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
        else:
            made = [_block(*block) for block in blocks]
        parts.append(torch.cat(made, 1))
    return torch.cat(parts)


def _block(work: Tensor, first: int, last: int, low: _LowPass, bank: Tensor | None) -> Tensor:
    """Outputs first..last of [N, T]; only the part of a filter that meets the input is made."""
    place = torch.arange(first, last) * low.old
    at, phase = place // low.new, place % low.new
    end = work.shape[-1] - 1
    left, right = max(-low.width, -int(at[-1])), min(low.width + 1, end - int(at[0]))
    total = work.new_zeros(len(work), last - first)
    for start in range(left, right + 1, BLOCK):
        offsets = torch.arange(start, min(start + BLOCK, right + 1))
        if bank is None:
            weights = low.near(offsets - (phase.double() / low.new)[:, None])
        else:
            weights = bank[phase, start + low.width : start + low.width + len(offsets)]
        samples = at[:, None] + offsets
        weights = (weights * ((samples >= 0) & (samples <= end))).to(work)
        total = total + torch.einsum("nok,ok->no", work[:, samples.clamp_(0, end).to(work.device)], weights)
    return total


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # kept for callers that learn too
def _bank(low: _LowPass) -> Tensor:
    """Filters [new, 2 width + 2] of all phases, around the input sample that is not later than the output."""
    offsets = torch.arange(-low.width, low.width + 2, dtype=torch.float64)
    bank = torch.empty(low.new, len(offsets), dtype=torch.float64)
    for phases in torch.arange(low.new).split(max(1, BLOCK // len(offsets))):
        filters = low.at(offsets - (phases.double() / low.new)[:, None])
        bank[phases] = filters / filters.sum(1, keepdim=True)
    return bank


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # kept for callers that learn too
def _table(zeros: int, beta: float) -> Tensor:
    """The low-pass at `FINE` places per zero crossing, from its middle to a little past its end."""
    return _LowPass(FINE, 1, zeros, 1.0, beta).at(torch.arange(zeros * FINE + 2, dtype=torch.float64)) * FINE
