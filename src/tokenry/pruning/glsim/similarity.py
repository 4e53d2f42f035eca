"""The GLS metric: how close each patch feature is to the global one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_finite, check_float, check_shape

Metric = Literal["cosine", "l1", "l2"]
_EPS = 1e-8
METRICS: tuple[Metric, ...] = ("cosine", "l1", "l2")


@torch.no_grad()
def global_local_similarity(tokens: Tensor, metric: Metric = "cosine") -> Tensor:
    """GLS of each patch to the global token: [B,1+N,D] -> [B,N], float32 inside, without gradient.

    With G = tokens[:, 0] and F_i = tokens[:, i]: ``"cosine"`` cos(G, F_i), largest is best; ``"l1"`` mean_k |G_k - F_ik| and
    ``"l2"`` mean_k (G_k - F_ik)^2, smallest is best. A zero vector has cosine 0. The tokens must be normalised as the model's
    final layer norm does it (`tokenry.hosts.vision.signals.global_and_patches`).

    Raises:
        ValueError: wrong shape, no patch, non-finite values, or an unknown metric.
    """
    check_shape("tokens", check_float("tokens", tokens), "B T D")
    check_choice("metric", metric, METRICS)
    if tokens.shape[1] < 2:
        raise ValueError(f"tokens must hold the global token and at least one patch, got {list(tokens.shape)}")
    rows = tokens if tokens.dtype == torch.float64 else tokens.float()
    if metric == "cosine":
        # One product and one norm per patch; normalised copies of the tokens would cost several times as much.
        norms = torch.linalg.vector_norm(rows, dim=-1)
        dots = torch.matmul(rows[:, 1:], rows[:, 0].unsqueeze(-1)).squeeze(-1)
        similarity = dots / ((norms[:, 1:] + _EPS) * (norms[:, :1] + _EPS))
    else:
        difference = rows[:, 1:] - rows[:, :1]
        similarity = difference.abs().mean(dim=-1) if metric == "l1" else difference.square().mean(dim=-1)
    if not bool(torch.isfinite(similarity).all()):
        check_finite("tokens", tokens)
        raise ValueError("tokens are too large for float32 norms; pass float64")
    return similarity


def best_first(similarity: Tensor, metric: Metric) -> Tensor:
    """`similarity` as a score where larger is better, whatever the metric."""
    check_choice("metric", metric, METRICS)
    return similarity if metric == "cosine" else -similarity
