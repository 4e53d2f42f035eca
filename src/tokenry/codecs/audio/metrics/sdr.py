"""SDR of BSS-eval (Vincent, Gribonval and Fevotte 2006) with one source, and the convolution-invariant CI-SDR.

The reference may pass through any FIR filter of 512 taps before it is compared: s_target = h * s with the h that is
nearest to the estimate in the least squares sense, SDR = 10 log10(|s_target|^2 / |e - s_target|^2). The normal equations
are Toeplitz; autocorrelation and cross-correlation come from FFTs, everything in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.codecs.audio.metrics.pair import check_pair, projected_decibels
from tokenry.core.checks import check_int, check_range

FILTER_LENGTH = 512
_LOADS = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-10, 1e-8)


def sdr(reference: Tensor, estimate: Tensor, lengths: Tensor | None = None, *, filter_length: int = FILTER_LENGTH) -> Tensor:
    """SDR of BSS-eval version 3 for one source, in dB: forgives scale, delays of 0 to 511 samples and short filters.

    Means stay in. A clip must be at least `filter_length` samples long. Equal to `ci_sdr` in value; without gradients.
    """
    with torch.no_grad():
        return ci_sdr(reference, estimate, lengths, filter_length=filter_length)


def ci_sdr(
    reference: Tensor,
    estimate: Tensor,
    lengths: Tensor | None = None,
    *,
    filter_length: int = FILTER_LENGTH,
    soft_maximum: float | None = None,
) -> Tensor:
    """Convolution-invariant SDR in dB, differentiable (Boeddeker et al. 2021): the loss is its negative.

    `soft_maximum` in dB bounds the value smoothly by adding 10^(-maximum/10) of the target's energy to the error, so that
    clips that are solved already stop to pull in training.
    """
    check_int("filter_length", filter_length, 1)
    pair = check_pair(reference, estimate, lengths, minimum=filter_length)
    s, e = pair.reference, pair.estimate
    size = s.shape[-1] + filter_length - 1
    fast = 1 << (size - 1).bit_length()
    spectrum = torch.fft.rfft(s, fast)
    correlation = torch.fft.irfft(spectrum.abs().square(), fast)[:, :filter_length]
    crossed = torch.fft.irfft(spectrum.conj() * torch.fft.rfft(e, fast), fast)[:, :filter_length]
    h = _solve(correlation, crossed)
    target = torch.fft.irfft(spectrum * torch.fft.rfft(h, fast), fast)[:, :size]
    error = (torch.nn.functional.pad(e, (0, filter_length - 1)) - target).square().sum(-1)
    energy = target.square().sum(-1)
    if soft_maximum is not None:
        error = error + energy * 10 ** (-check_range("soft_maximum", soft_maximum) / 10)
    return pair.result(projected_decibels(s, energy, error))


def _solve(correlation: Tensor, crossed: Tensor) -> Tensor:
    """Solve the Toeplitz systems [N, L] by Cholesky; the smallest load on the diagonal under which a matrix factors.

    A tone or a band-limited signal does not span all its shifts: its matrix is singular up to rounding.
    """
    lags = torch.arange(correlation.shape[-1], device=correlation.device)
    scale = correlation[:, :1].clamp_min(torch.finfo(correlation.dtype).tiny)
    matrix = (correlation / scale)[:, (lags[:, None] - lags).abs()]
    eye = torch.eye(len(lags), dtype=matrix.dtype, device=matrix.device)
    load = torch.zeros(len(matrix), dtype=matrix.dtype, device=matrix.device)
    with torch.no_grad():
        failed = torch.ones_like(load, dtype=torch.bool)
        for value in _LOADS:
            load[failed] = value
            failed[failed.clone()] = torch.linalg.cholesky_ex(matrix[failed] + value * eye).info != 0
            if not bool(failed.any()):
                break
        load[failed] = 1.0  # silence: any filter will do
    factor = torch.linalg.cholesky(matrix + load[:, None, None] * eye)
    return torch.cholesky_solve((crossed / scale)[..., None], factor)[..., 0]
