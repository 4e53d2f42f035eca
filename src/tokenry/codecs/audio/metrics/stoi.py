"""Short-time objective intelligibility (Taal, Hendriks, Heusdens and Jensen 2011), batched.

Both signals are brought to 10 kHz; frames in which the reference is more than 40 dB below its loudest frame are left out
of both; magnitudes in 15 third-octave bands from 150 Hz are compared over segments of 30 frames (384 ms) by correlation,
after the estimate was scaled to the reference's energy and clipped at a signal-to-distortion ratio of -15 dB.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.audio.metrics.pair import check_pair, inside_of
from tokenry.codecs.audio.metrics.resampling import resample
from tokenry.core.checks import check_int

RATE = 10_000
WINDOW = 256
HOP = WINDOW // 2
FFT = 512
BANDS = 15
LOWEST = 150.0  # centre of the first band, Hz
SEGMENT = 30  # frames
CLIP_DB = -15.0
RANGE_DB = 40.0
_FILTER = {"zeros": 36, "rolloff": 1.0, "beta": 5.65}  # 60 dB Kaiser design as in Matlab, in which the measure was written


@torch.no_grad()
def stoi(reference: Tensor, estimate: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """STOI per item, at most 1 (identical); nothing in common is about 0. No gradients.

    Raises ValueError for a clip with fewer than 30 frames (about 0.4 s) of sound, which includes a silent reference: the
    measure is not defined there.
    """
    check_int("sample_rate", sample_rate, 1)
    pair = check_pair(reference, estimate, lengths)
    low = -(-pair.lengths * RATE // sample_rate)
    s, e = (resample(x, sample_rate, RATE, lengths=pair.lengths, **_FILTER) for x in (pair.reference, pair.estimate))
    s, e, frames = _without_silence(s, e, low)
    short = (frames < SEGMENT).nonzero()
    if len(short):
        item = int(short[0])
        raise ValueError(
            f"STOI needs {SEGMENT} frames of sound ({(SEGMENT + 1) * HOP / RATE:.2f} s), item {item} has {int(frames[item])} "
            f"({len(short)} such items); leave such clips out"
        )
    bands = [_bands(x) for x in (s, e)]
    x, y = (band.unfold(1, SEGMENT, 1) for band in bands)  # [N, segments, BANDS, SEGMENT]
    norm_x, norm_y = (z.square().sum(-1, keepdim=True).sqrt() for z in (x, y))
    y = torch.minimum(y * norm_x / norm_y.clamp_min(_eps(y)), x * (1 + 10 ** (-CLIP_DB / 20)))
    score = _correlation(x, y).mean(-1)  # over bands
    valid = inside_of(frames - SEGMENT + 1, score.shape[1])
    return pair.result(torch.where(valid, score, 0.0).sum(1) / valid.sum(1))


def _without_silence(s: Tensor, e: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both signals without the frames in which the reference is silent, and how many frames are left in each.

    The kept windowed frames are added up again, half overlapping. A frame is whole: what does not fill one is left out.
    """
    taper = torch.hann_window(WINDOW + 2, periodic=False, dtype=s.dtype, device=s.device)[1:-1]
    if s.shape[-1] < WINDOW + HOP:
        s, e = (F.pad(z, (0, WINDOW + HOP - z.shape[-1])) for z in (s, e))
    a, b = (z.unfold(-1, WINDOW, HOP) * taper for z in (s, e))
    # frames start at 0, HOP, ... below length - WINDOW, so a frame that ends with the clip is not one of them
    whole = inside_of(-(-(lengths - WINDOW).clamp_min(0) // HOP), a.shape[1])
    energy = 20 * torch.log10(a.square().sum(-1).sqrt() + _eps(a))
    loudest = energy.masked_fill(~whole, -torch.inf).amax(1, keepdim=True)
    sound = a.abs().amax(-1).masked_fill(~whole, 0.0).amax(1, keepdim=True) > 0
    keep = whole & (energy > loudest - RANGE_DB) & sound
    order = (~keep).long().argsort(dim=1, stable=True)
    counts = keep.sum(1)
    packed = []
    for z in (a, b):
        kept = torch.where(inside_of(counts, z.shape[1])[..., None], z.take_along_dim(order[..., None], 1), 0.0)
        size = (kept.shape[1] - 1) * HOP + WINDOW
        columns = kept.transpose(1, 2)
        packed.append(F.fold(columns, (1, size), (1, WINDOW), stride=(1, HOP))[:, 0, 0])
    return packed[0], packed[1], (counts - 1).clamp_min(0)  # the last start is not below length - WINDOW


def _bands(signal: Tensor) -> Tensor:
    """Magnitudes in third-octave bands [N, frames, BANDS] of [N, T]."""
    taper = torch.hann_window(WINDOW + 2, periodic=False, dtype=signal.dtype, device=signal.device)[1:-1]
    power = torch.fft.rfft(signal.unfold(-1, WINDOW, HOP) * taper, FFT).abs().square()
    return (power @ _band_matrix().to(power)).sqrt()


@lru_cache(maxsize=1)
def _band_matrix() -> Tensor:
    """0/1 matrix [FFT / 2 + 1, BANDS]: the bins between the edges of each band, edges moved to the nearest bin."""
    bins = torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE / FFT
    number = torch.arange(BANDS, dtype=torch.float64)
    matrix = torch.zeros(len(bins), BANDS, dtype=torch.float64)
    for band in range(BANDS):
        edges = [LOWEST * 2 ** ((2 * float(number[band]) + side) / 6) for side in (-1, 1)]
        first, last = (int((bins - edge).abs().argmin()) for edge in edges)
        matrix[first:last, band] = 1.0
    return matrix


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation over the last axis; a constant row counts as uncorrelated."""
    x, y = (z - z.mean(-1, keepdim=True) for z in (x, y))
    size = x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt()
    return (x * y).sum(-1) / size.clamp_min(_eps(x))


def _eps(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).eps)
