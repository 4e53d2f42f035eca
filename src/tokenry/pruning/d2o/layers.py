"""D2O, layer level: how concentrated a layer's attention is, and the share of the prompt it keeps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_finite, check_float, check_range, check_shape

Density = Literal["variance", "released"]
DENSITIES: tuple[Density, ...] = ("variance", "released")


def layer_ratios(
    density: Tensor,
    heavy: float,
    recent: float,
    *,
    lower: float = 0.01,
    upper: float = 1.0,
) -> Tensor:
    """Share of the prompt that each layer keeps: ``clamp(softmax(-F) * L * (heavy + recent), lower, upper)``.

    Args:
        density: F, [L] (or [B,L], one row per sequence).
        heavy: heavy-hitter share of the prompt, >= 0.
        recent: recent share of the prompt, >= 0; heavy + recent in (0, 1].
        lower: smallest share of a layer.
        upper: largest share of a layer.

    Returns:
        Shares like `density`, float32 (float64 stays); before the clamp they sum to ``L * (heavy + recent)``.
    """
    check_float("density", density)
    if density.dim() not in (1, 2) or density.shape[-1] == 0:
        raise ValueError(f"density must have shape [L] or [B, L] with L >= 1, got {list(density.shape)}")
    check_finite("density", density)
    check_range("heavy", heavy, 0.0, 1.0)
    check_range("recent", recent, 0.0, 1.0)
    share = check_range("heavy + recent", heavy + recent, 0.0, 1.0 + 1e-9, low_open=True)
    check_range("upper", upper, 0.0, 1.0, low_open=True)
    check_range("lower", lower, 0.0, upper)
    values = density if density.dtype == torch.float64 else density.float()
    return (torch.softmax(-values, dim=-1) * density.shape[-1] * share).clamp(lower, upper)


def attention_density(attention: Tensor, mode: Density = "variance", *, per_sequence: bool = False) -> Tensor:
    """How concentrated one layer's attention is: the unbiased variance of its column sums over the slots.

    Args:
        attention: maps [B,H,N,N] (rows = queries) or their column sums [B,H,N].
        mode: ``"variance"``: variance of the head-averaged column sums (paper), mean over the batch. ``"released"``: variance
            per head, mean over the batch, min-max scaled over the heads, mean over heads; lies in [0, 1].
        per_sequence: return [B], each sequence on its own, instead of one number.
    """
    check_float("attention", attention)
    check_choice("mode", mode, DENSITIES)
    if attention.dim() == 4:
        check_shape("attention", attention, "B H N N")
        sums = attention.float().sum(dim=-2) if attention.dtype != torch.float64 else attention.sum(dim=-2)
    else:
        check_shape("attention", attention, "B H N")
        sums = attention if attention.dtype == torch.float64 else attention.float()
    check_finite("attention", sums)
    rows = torch.stack([_density(row[None], mode) for row in sums]) if per_sequence else _density(sums, mode)
    return rows


def _density(sums: Tensor, mode: Density) -> Tensor:
    unbiased = sums.shape[-1] > 1
    if mode == "variance":
        return sums.mean(dim=1).var(dim=-1, unbiased=unbiased).mean()
    spread = sums.var(dim=-1, unbiased=unbiased).mean(dim=0)
    return ((spread - spread.min()) / (spread.max() - spread.min() + 1e-6)).mean()
