"""Codes of several books as one vector per frame: an offset embedding, and attention over the books (DASB's protocol)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_float, check_int, check_mask, check_shape, check_tensor


class BookEmbedding(nn.Module):
    """One table for all books: code k of book m uses row offset_m + k, with offset_m = m K for books of equal size.

    Args:
        codebook_sizes: codes of every book.
        dim: width.
        weights: rows [sum K, dim] to start from, for example the codec's own codebooks; None = normal, of variance 1 / dim.
        frozen: keep the rows as they are.
        seed: of the initial rows.

    Raises:
        TypeError, ValueError: a size below 2, or weights of another shape.
    """

    offsets: Tensor
    sizes: Tensor

    def __init__(
        self, codebook_sizes: Sequence[int], dim: int, *, weights: Tensor | None = None, frozen: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        if not codebook_sizes:
            raise ValueError("codebook_sizes must name at least one book, got none")
        sizes = torch.tensor([check_int("codebook_sizes", size, 2) for size in codebook_sizes])
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        rows = int(sizes.sum())
        check_int("dim", dim, 1)
        if weights is None:
            weights = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5
        given = check_float("weights", weights)
        check_shape("weights", given, "rows dim", rows=rows, dim=dim)
        self.weight = nn.Parameter(given.detach().clone(), requires_grad=not frozen)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of every book."""
        return tuple(self.sizes.tolist())

    def rows(self, codes: Tensor) -> Tensor:
        """Row of every code [..., m], the first m books; -1 stays -1. `codes` itself is not changed.

        Raises:
            TypeError, ValueError: codes that are not integers, out of range, or of more books than there are.
        """
        check_tensor("codes", codes)
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be integers, got {codes.dtype}")
        books = codes.shape[-1] if codes.dim() else 0
        if not 1 <= books <= len(self.sizes):
            raise ValueError(f"codes must have 1 to {len(self.sizes)} books in their last axis, got {list(codes.shape)}")
        sizes = self.sizes[:books]
        if bool(((codes < -1) | (codes >= sizes)).any()):
            raise ValueError(f"codes must be 0..K-1 with K = {tuple(sizes.tolist())}, or -1 for padding")
        return torch.where(codes < 0, -1, codes + self.offsets[:books])

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [..., m] -> vectors [..., m, dim], zero where the code is -1."""
        rows = self.rows(codes)
        return nn.functional.embedding(rows.clamp_min(0), self.weight) * (rows >= 0)[..., None]


class BookAttention(nn.Module):
    """Weighted sum over books: w = softmax over books of Linear(1, no bias)(ReLU(Linear(e))).

    Args:
        dim: width of the vectors.
        hidden: width of the inner layer; None = `dim`.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = check_int("hidden", dim if hidden is None else hidden, 1)
        self.score = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False))

    def weights(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights [..., M] that sum to 1 over the books; books where `mask` [..., M] is False get none (all False: zeros)."""
        check_float("vectors", vectors)
        scores = self.score(vectors)[..., 0]
        if mask is None:
            return scores.softmax(dim=-1)
        check_mask("mask", mask, scores.shape)
        scores = scores.masked_fill(~mask, -torch.inf)
        return torch.where(mask.any(-1, keepdim=True), scores, 0.0).softmax(dim=-1) * mask

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors [..., M, dim] -> [..., dim]."""
        return (self.weights(vectors, mask)[..., None] * vectors).sum(dim=-2)
