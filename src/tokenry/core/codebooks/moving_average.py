"""A book that follows a moving average of its vectors.

n_k <- g n_k + (1 - g) count_k, m_k <- g m_k + (1 - g) sum of its z, c_k = m_k / n~_k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTHINGS = ("laplace", "clamp")


def smoothed(counts: Tensor, epsilon: float, smoothing: str) -> Tensor:
    """n~ of counts n [K]: (n_k + eps) / (sum n + K eps) sum n for "laplace", max(n_k, eps) for "clamp"."""
    if smoothing == "clamp":
        return counts.clamp(min=epsilon)
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


@torch.no_grad()
def move_counts(counts: Tensor, seen: Tensor, decay: float) -> None:
    """Running counts [K] after a step that saw `seen` [K], in place."""
    counts.mul_(decay).add_(seen.to(counts.dtype), alpha=1 - decay)


@torch.no_grad()
def move_rows(
    rows: Tensor, mass: Tensor, counts: Tensor, sums: Tensor, *, decay: float, epsilon: float, smoothing: str, dot: bool
) -> None:
    """Rows [K, d] and the mass [K] behind them after a step that saw `sums` [K, d], in place; `counts` have moved already.

    The running sum of a code is its row times its mass.
    """
    running = (mass[:, None] * decay) * rows + (1 - decay) * sums.to(rows.dtype)
    if dot:
        # the book has unit rows, so the length of the running sum is what has to be remembered
        mass.copy_(torch.linalg.vector_norm(running, dim=-1))
        rows.copy_(F.normalize(running, dim=-1))
    else:
        mass.copy_(smoothed(counts, epsilon, smoothing))
        rows.copy_(running / mass[:, None])
