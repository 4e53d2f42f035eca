"""How a selection trades importance for diversity: importance retention and the Hopkins statistic (IDPruner, Section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import check_finite, check_shape
from tokenry.core.selection import gather_tokens
from tokenry.core.similarity import unit_rows


def importance_retention(importance: Tensor, index: Tensor) -> Tensor:
    """Share of the total importance [B,N] that the tokens at `index` [B,K] hold: [B] float32.

    Raises:
        ValueError: negative importance, or a row that sums to 0.
    """
    check_shape("importance", importance, "B N")
    check_shape("index", index, "B K", B=importance.shape[0])
    check_finite("importance", importance)
    total = importance.float().sum(dim=1)
    if bool((importance < 0).any()) or bool((total <= 0).any()):
        raise ValueError("importance must be non-negative with a positive sum in every row")
    return importance.float().gather(1, index).sum(dim=1) / total


def hopkins_statistic(features: Tensor, index: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Hopkins statistic of the tokens at `index` [B,K>=2] within `features` [B,N,D]: [B] in [0, 1], high = clumped.

    ``sum_r d(r, S) / (sum_r d(r, S) + sum_{v in S} d(v, S without v))`` with d the cosine distance to the nearest member of S.
    The K reference points r are rows of `features` drawn without replacement (the paper says "the same feature space"; taking
    rows of it is our reading). Memory O(K N) per batch row.
    """
    sizes = check_shape("features", features, "B N D")
    check_shape("index", index, "B K", B=sizes["B"])
    if index.shape[1] < 2:
        raise ValueError(f"index must hold at least 2 tokens per row, got {index.shape[1]}")
    rows = unit_rows(features)
    kept = gather_tokens(rows, index)
    draws = [torch.randperm(sizes["N"], generator=generator)[: index.shape[1]] for _ in range(sizes["B"])]
    reference = gather_tokens(rows, torch.stack(draws).to(features.device))
    outside = (1 - torch.bmm(reference, kept.transpose(1, 2))).clamp(min=0).amin(dim=2).sum(dim=1)
    among = 1 - torch.bmm(kept, kept.transpose(1, 2))
    among.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    inside = among.clamp(min=0).amin(dim=2).sum(dim=1)
    return outside / (outside + inside).clamp(min=torch.finfo(torch.float32).tiny)
