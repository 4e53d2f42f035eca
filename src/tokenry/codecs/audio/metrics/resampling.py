"""Change of sample rate: a windowed-sinc low-pass in polyphase form, in plain torch."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.audio.metrics.pair import check_lengths, check_wave, inside_of
from tokenry.core.checks import check_finite, check_int, check_range

ZEROS = 32  # zero crossings of the sinc a side
ROLLOFF = 0.95  # cut-off in units of the lower Nyquist frequency
BETA = 10.0  # of the Kaiser window


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
    window of shape `beta`; as set: -0.4 dB at 0.9, -6 dB at 0.95 and -100 dB beyond 1.1 of it. The ends are
    zero-padded; samples beyond `lengths` [B] count as zero, so that a batch gives what each clip gives alone.
    """
    check_wave("wave", wave)
    check_int("from_rate", from_rate, 1)
    check_int("to_rate", to_rate, 1)
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
    old, new = from_rate // common, to_rate // common
    kernel, width = _kernel(old, new, zeros, rolloff, beta)
    work = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    padded = F.pad(work, (width, width + old))
    phases = F.conv1d(padded[:, None], kernel.to(work), stride=old)  # [N, new, blocks]
    size = resampled_length(wave.shape[-1], from_rate, to_rate)
    out = phases.transpose(1, 2).reshape(len(work), -1)[:, :size]
    if lengths is not None:  # the filter rings past the end of a short clip
        out = torch.where(inside_of(-(-check_lengths(lengths, wave) * new // old), size), out, 0.0)
    return out.reshape(*wave.shape[:-1], size).to(wave.dtype)


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Samples that `resample` makes of `length` samples: ceil(length * to_rate / from_rate)."""
    return -(-length * to_rate // from_rate)


@lru_cache(maxsize=32)
def _kernel(old: int, new: int, zeros: int, rolloff: float, beta: float) -> tuple[Tensor, int]:
    """Filters [new, 1, taps], one per output phase, and the samples of context on the left."""
    cutoff = min(old, new) * rolloff / old  # in units of the input's Nyquist frequency
    width = math.ceil(zeros / cutoff)
    taps = torch.arange(-width, width + old, dtype=torch.float64)
    times = taps[None] - torch.arange(new, dtype=torch.float64)[:, None] * old / new  # input samples from the output's instant
    inside = (times.abs() * cutoff / zeros).clamp(max=1.0)
    window = torch.special.i0(beta * (1 - inside.square()).sqrt())  # the scale cancels below
    kernel = cutoff * torch.sinc(times * cutoff) * window * (times.abs() * cutoff <= zeros)
    return (kernel / kernel.sum(1, keepdim=True))[:, None], width
