"""Distances between spectrograms: log-mel, and magnitudes at several resolutions. Differentiable, usable as losses.

Magnitudes are relative to a sine at full scale (1.0 = 0 dB) and floored at -80 dB, where 16-bit noise lies; without a floor
inaudible noise in empty bands would outweigh everything that is heard. Frames start at sample 0 and the last one is
zero-padded, so that a clip has 1 + ceil((T - window) / hop) frames wherever it stands in a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.audio.metrics.pair import Pair, check_pair, check_wave, inside_of
from tokenry.core.checks import check_finite, check_int

FLOOR = 1e-4  # of full scale, -80 dB
RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))


def mel_distance(
    reference: Tensor,
    estimate: Tensor,
    sample_rate: int,
    lengths: Tensor | None = None,
    *,
    mels: int = 80,
    window: int | None = None,
    hop: int | None = None,
) -> Tensor:
    """Mean absolute difference of log10 mel magnitudes per item; 0 for equal waveforms, 0.1 is 2 dB.

    `window` is by default the power of two next above 32 ms, `hop` a quarter of it.
    """
    window, hop = _sizes(sample_rate, window, hop)
    pair = check_pair(reference, estimate, lengths)
    s, e = (_log_mel(x, sample_rate, mels, window, hop) for x in (pair.reference, pair.estimate))
    return pair.result(_masked_mean((s - e).abs().mean(-1), pair, window, hop))


def log_mel(wave: Tensor, sample_rate: int, *, mels: int = 80, window: int | None = None, hop: int | None = None) -> Tensor:
    """log10 of mel magnitudes (0 = a sine at full scale, at least -4) of a waveform [..., T]: [..., frames, mels]."""
    window, hop = _sizes(sample_rate, window, hop)
    check_finite("wave", check_wave("wave", wave))
    flat = wave.reshape(-1, wave.shape[-1])
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    out = _log_mel(flat, sample_rate, mels, window, hop)
    return out.reshape(*wave.shape[:-1], *out.shape[1:])


def multi_resolution_stft_distance(
    reference: Tensor,
    estimate: Tensor,
    lengths: Tensor | None = None,
    *,
    resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS,
) -> Tensor:
    """Spectral convergence |S - E|_F / |S|_F plus mean |ln S - ln E|, averaged over (FFT, hop, window) settings, per item.

    The settings are those of Yamamoto, Song and Kim (2020). A silent reference counts as a steady -80 dB.
    """
    if not resolutions:
        raise ValueError("resolutions must hold at least one (FFT, hop, window), got none")
    pair = check_pair(reference, estimate, lengths)
    terms = []
    for fft, hop, window in resolutions:
        for name, value in (("FFT", fft), ("hop", hop), ("window", window)):
            check_int(f"{name} of resolutions", value, 1, fft)
        s, e = (_magnitudes(x, fft, hop, window).clamp_min(FLOOR) for x in (pair.reference, pair.estimate))
        valid = inside_of(frame_counts(pair.lengths, window, hop), s.shape[1])[..., None]
        gap = torch.where(valid, s - e, 0.0).square().sum((1, 2))
        size = torch.where(valid, s, 0.0).square().sum((1, 2))
        logs = _masked_mean((s.log() - e.log()).abs().mean(-1), pair, window, hop)
        differ = gap > 0  # the root has no gradient at 0
        terms.append(torch.where(differ, torch.where(differ, gap / size, 1.0).sqrt(), 0.0) + logs)
    return pair.result(torch.stack(terms).mean(0))


def frame_counts(lengths: Tensor, window: int, hop: int) -> Tensor:
    """Frames of clips of `lengths` samples: 1 + ceil(max(T - window, 0) / hop)."""
    return 1 + -(-(lengths - window).clamp_min(0) // hop)


def _sizes(sample_rate: int, window: int | None, hop: int | None) -> tuple[int, int]:
    check_int("sample_rate", sample_rate, 1)
    window = 1 << math.ceil(math.log2(0.032 * sample_rate)) if window is None else check_int("window", window, 2)
    return window, max(1, window // 4) if hop is None else check_int("hop", hop, 1, window)


def _masked_mean(per_frame: Tensor, pair: Pair, window: int, hop: int) -> Tensor:
    counts = frame_counts(pair.lengths, window, hop)
    return torch.where(inside_of(counts, per_frame.shape[1]), per_frame, 0.0).sum(1) / counts


def _magnitudes(flat: Tensor, fft: int, hop: int, window: int) -> Tensor:
    """|STFT| of [N, T] under a Hann window, a full-scale sine at 1: [N, frames, fft / 2 + 1]."""
    size = flat.shape[-1]
    frames = 1 + -(-max(size - window, 0) // hop)
    padded = F.pad(flat, (0, window + (frames - 1) * hop - size))
    taper = torch.hann_window(window, dtype=flat.dtype, device=flat.device)
    spectrum = torch.fft.rfft(padded.unfold(-1, window, hop) * taper, fft)
    # the summand keeps the gradient finite at silence
    return (spectrum.real.square() + spectrum.imag.square() + 1e-20).sqrt() / (taper.sum() / 2)


def _log_mel(flat: Tensor, sample_rate: int, mels: int, window: int, hop: int) -> Tensor:
    check_int("mels", mels, 1, window // 2)
    bank = _mel_bank(sample_rate, window, mels).to(flat)
    return (_magnitudes(flat, window, hop, window) @ bank).clamp_min(FLOOR).log10()


@lru_cache(maxsize=32)
def _mel_bank(sample_rate: int, fft: int, mels: int) -> Tensor:
    """Triangles of unit height at equal steps of the mel scale 2595 log10(1 + f/700): [fft / 2 + 1, mels]."""
    from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of filters that see nothing: they are widened below
        # up to twice the highest frequency, then cut: half of an odd rate is rounded there
        bank = torch.from_numpy(mel_filter_bank(fft + 1, mels, 0.0, sample_rate / 2, 2 * sample_rate)[: fft // 2 + 1])
    centres = torch.from_numpy(mel_to_hertz(np.linspace(0.0, hertz_to_mel(sample_rate / 2), mels + 2)[1:-1]))
    step = sample_rate / fft
    # a triangle narrower than a bin would see nothing: it is never narrower than one bin a side
    near = 1 - (torch.arange(fft // 2 + 1, dtype=torch.float64)[:, None] * step - centres).abs() / step
    return torch.maximum(bank, near)
