"""Waveform metrics of audio codecs in plain torch: the argument order is always (reference, estimate).

Every metric takes [T], [B, T] or [B, C, T] (time last) and returns one value per waveform, [] or [B] or [B, C]; with
`lengths` [B] the value of an item is that of the item alone on its unpadded audio. Energies are summed in float64.

Rules at the edges, the same for all ratios in dB: a perfect estimate gives +300 dB (the ratio is bounded, so that a mean
over clips stays finite; `sdr` solves a linear system and reaches about 250), a silent reference gives -300 dB, and so does
an estimate that holds nothing of the reference, such as silence (for `snr`, which does not project, silence is 0 dB). Both
silent counts as perfect. Ratios and resampling are differentiable.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs.audio.metrics.pair import LIMIT_DB, check_pair, decibels, projected_decibels
from tokenry.codecs.audio.metrics.resampling import resample
from tokenry.codecs.audio.metrics.sdr import ci_sdr, sdr
from tokenry.codecs.audio.metrics.spectral import log_mel, mel_distance, multi_resolution_stft_distance
from tokenry.codecs.audio.metrics.stoi import stoi
from tokenry.core.checks import check_choice
from tokenry.errors import MissingDependencyError

__all__ = [
    "LIMIT_DB", "ci_sdr", "log_mel", "mel_distance", "multi_resolution_stft_distance", "pesq", "resample", "sdr", "si_sdr",
    "si_snr", "snr", "stoi",
]  # fmt: skip


def snr(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Signal-to-noise ratio in dB: 10 log10(|s|^2 / |s - e|^2). Not invariant to scale, offset or delay."""
    pair = check_pair(reference, estimate, lengths)
    error = (pair.reference - pair.estimate).square().sum(-1)
    return pair.result(decibels(pair.reference.square().sum(-1), error))


def si_sdr(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Scale-invariant SDR in dB: a = <e, s> / |s|^2, then 10 log10(|a s|^2 / |e - a s|^2). The means stay in."""
    pair = check_pair(reference, estimate, lengths)
    return pair.result(_scale_invariant(pair.reference, pair.estimate))


def si_snr(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None) -> Tensor:
    """SI-SDR after the means of both signals are removed, in dB: blind to a constant offset too."""
    pair = check_pair(reference, estimate, lengths).zero_mean()
    return pair.result(_scale_invariant(pair.reference, pair.estimate))


def _scale_invariant(s: Tensor, e: Tensor) -> Tensor:
    energy = s.square().sum(-1, keepdim=True)
    a = (e * s).sum(-1, keepdim=True) / torch.where(energy == 0, 1.0, energy)
    target, error = (a * s).square().sum(-1), (e - a * s).square().sum(-1)
    return projected_decibels(s, target, error)


def pesq(reference: Tensor, estimate: Tensor, sample_rate: int, lengths: Tensor | None = None) -> Tensor:
    """PESQ (ITU-T P.862, P.862.2), about 1 to 4.6, by the optional package `pesq`; narrow band at 8 kHz, wide band at 16 kHz.

    A silent clip or estimate, and a clip in which it finds no utterance, give nan; a warning counts and names the items.
    Raises MissingDependencyError without the package.
    """
    check_choice("sample_rate", sample_rate, (8000, 16000))
    pair = check_pair(reference, estimate, lengths, minimum=sample_rate // 4)
    try:
        import pesq as library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("PESQ is computed by the package pesq; run: pip install pesq") from error
    mode: Any = "wb" if sample_rate == 16000 else "nb"
    values = torch.full((len(pair.lengths),), torch.nan, dtype=torch.float64)
    silent = (pair.reference == 0).all(-1) | (pair.estimate == 0).all(-1)  # the package fails there
    for item in (~silent).nonzero()[:, 0].tolist():
        s, e = (x[item, : int(pair.lengths[item])].detach().cpu().numpy() for x in (pair.reference, pair.estimate))
        with suppress(library.NoUtterancesError):
            values[item] = float(library.pesq(sample_rate, s, e, mode))
    if without := values.isnan().nonzero()[:, 0].tolist():
        listed = ", ".join(map(str, without[:10])) + (" ..." if len(without) > 10 else "")
        warnings.warn(
            f"PESQ is nan for {len(without)} of {len(values)} clips (silence, or no utterance): items {listed}", stacklevel=2
        )
    return pair.result(values.to(reference.device))
