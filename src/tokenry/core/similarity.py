"""Float32-safe cosine similarity and chunked nearest neighbours; never an N x N matrix unless asked."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_shape
from tokenry.core.precision import outside_autocast


def unit_rows(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Rows of `x` [..., D] divided by (norm + eps), in float32 (float64 stays); zero rows stay zero."""
    rows = x if x.dtype == torch.float64 else x.float()
    return rows / (torch.linalg.vector_norm(rows, dim=-1, keepdim=True) + eps)


@outside_autocast
def cosine(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine of matching rows: [..., D], [..., D] -> [...] float32; 0 where a row is zero."""
    return (unit_rows(a, eps) * unit_rows(b, eps)).sum(dim=-1)


@outside_autocast
def cosine_matrix(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """All pairs: [..., M, D], [..., N, D] -> [..., M, N] float32. Memory O(M N): for callers that want the matrix."""
    return unit_rows(a, eps) @ unit_rows(b, eps).transpose(-1, -2)


@outside_autocast
def nearest(a: Tensor, b: Tensor, *, mask: Tensor | None = None, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Best cosine match in `b` [B,N,D] for each row of `a` [B,M,D]: (values [B,M] float32, index [B,M]).

    Rows of `b` where `mask` [B,N] is False never match; the lowest index wins ties. Memory O(chunk x N).
    """
    sizes = check_shape("a", a, "B M D")
    check_shape("b", b, "B N D", B=sizes["B"], D=sizes["D"])
    check_int("chunk", chunk, 1)
    left, right = unit_rows(a), unit_rows(b).transpose(-1, -2)
    values, index = [], []
    for start in range(0, left.shape[1], chunk):
        block = left[:, start : start + chunk] @ right
        if mask is not None:
            block.masked_fill_(~mask[:, None, :], float("-inf"))
        best = block.max(dim=-1)
        values.append(best.values)
        index.append(best.indices)
    if not values:
        return left.new_zeros(left.shape[:2]), torch.zeros(left.shape[:2], dtype=torch.long, device=a.device)
    return torch.cat(values, dim=1), torch.cat(index, dim=1)
