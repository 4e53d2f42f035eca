"""PQ: the vector is cut into M blocks, each with a codebook of its own; OPQ turns the space first.

Contiguous blocks of D / M; indices [..., M], or one integer k = sum_i k_i prod_{j<i} K_j (book 0 least significant). With
`rotation` z R is quantized and the code multiplied by R^T; `fit` learns R by alternating with a Procrustes problem.
For search table[i, k] = ||z_i - C_i[k]||^2 and a distance is the sum over blocks (asymmetric distance).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.asymmetric import AsymmetricSearch
from tokenry.codecs.vq.base import Choice, spread
from tokenry.codecs.vq.lookup import LookupOptions, LookupQuantizer
from tokenry.codecs.vq.single import check_bank, fit_book
from tokenry.core.checks import check_int
from tokenry.core.codebooks.codebooks import nearest_codes
from tokenry.core.codebooks.stats import check_indices
from tokenry.core.codebooks.terms import joined

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ProductVQ(AsymmetricSearch, LookupQuantizer):
    """M sub-spaces with a codebook each: x [..., D] -> codes [..., D], indices [..., M]; `codebook` is [M, K, D/M].

    Args:
        dim: width D, divisible by `groups`.
        groups: number of blocks M.
        codebook_size: K of each.
        rotation: quantize z R with an orthogonal R [D, D] (buffer `rotation`, identity until `fit`): OPQ.
        options: as for `VectorQuantizer`, block by block (distance, ema, decay, ..., seed, channels_first).

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: section 3.3 of the survey.
    """

    def __init__(
        self,
        dim: int,
        groups: int,
        codebook_size: int,
        *,
        rotation: bool = False,
        **options: Unpack[LookupOptions],
    ) -> None:
        width = check_int("code_dim", options.get("code_dim") or check_int("dim", dim, 1), 1)
        if width % check_int("groups", groups, 1):
            raise ValueError(f"groups must divide the width {width}, got {groups}")
        super().__init__(dim, codebook_size, books=groups, book_dim=width // groups, **options)
        self.groups = int(groups)
        self.register_buffer("rotation", torch.eye(width) if rotation else None)

    rotation: Tensor | None

    def _turned(self, z: Tensor) -> Tensor:
        return z if self.rotation is None else z @ self.rotation

    def _blocks(self, z: Tensor) -> list[Tensor]:
        return [self._prepare(block) for block in self._turned(z).chunk(self.groups, dim=-1)]

    def _combine(self, codes: Tensor) -> Tensor:
        joined = codes.flatten(-2)
        return joined if self.rotation is None else joined @ self.rotation.t()

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        step = self._next_step(z)
        blocks = self._blocks(z if keep is None else z[keep])
        stages = [self._stage(block, book, step) for book, block in enumerate(blocks)]
        pairs = enumerate(zip(blocks, stages, strict=True))
        codes = [self._codes(block, stage.rows, stage.soft, step, book) for book, (block, stage) in pairs]
        codes = self._combine(torch.stack(codes, dim=-2))
        indices = torch.stack([stage.indices for stage in stages], dim=-1)
        losses = torch.stack([stage.loss for stage in stages])
        # blocks are equally wide, so that the mean over blocks is the mean over all elements
        terms = joined([stage.terms for stage in stages], [1 / len(stages)] * len(stages)) or {}
        apart = self._orthogonality_terms()
        loss = losses.mean() + apart["orthogonality"] if apart else losses.mean()
        return Choice(spread(codes, keep), spread(indices, keep, -1), loss, losses, terms | apart)

    def _encode(self, z: Tensor) -> Tensor:
        found = [nearest_codes(b, self._compared(i), dot=self._dot) for i, b in enumerate(self._blocks(z))]
        return torch.stack(found, dim=-1)

    def _questions(self, z: Tensor, given: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield from enumerate(self._blocks(z))

    def pack(self, indices: Tensor) -> Tensor:
        """Indices [..., M] -> one integer [...], sum_i k_i K^i; -1 where a book has -1.

        Raises:
            ValueError: K^M does not fit 63 bits, or an index is out of range.
        """
        self._check_packs()
        check_indices("indices", indices, self.codebook_size)
        basis = self.codebook_size ** torch.arange(self.groups, device=indices.device)
        return (indices.long() * basis).sum(dim=-1).masked_fill((indices < 0).any(dim=-1), -1)

    def unpack(self, packed: Tensor) -> Tensor:
        """One integer [...] -> indices [..., M], the inverse of `pack`."""
        self._check_packs()
        check_indices("packed", packed, self.codebook_size**self.groups)
        basis = self.codebook_size ** torch.arange(self.groups, device=packed.device)
        digits = packed.long()[..., None].div(basis, rounding_mode="floor") % self.codebook_size
        return digits.masked_fill((packed < 0)[..., None], -1)

    def _check_packs(self) -> None:
        if self.bits >= 63:
            raise ValueError(f"one integer holds 63 bits, got {self.groups} books of {self.codebook_size} ({self.bits:g} bits)")

    @torch.no_grad()
    def distance_tables(self, queries: Tensor) -> Tensor:
        """||q_i - C_i[k]||^2 for each block i: queries [Q, D] -> [Q, M, K]."""
        blocks = self._turned(self._queries(queries)).chunk(self.groups, dim=-1)
        tables = []
        for book, block in enumerate(blocks):
            rows = self._emitted(book)
            scores = rows.square().sum(dim=-1) - 2 * block @ rows.t() + block.square().sum(dim=-1, keepdim=True)
            tables.append(scores.clamp(min=0))
        return torch.stack(tables, dim=1)

    def _absent(self, queries: Tensor, tables: Tensor) -> Tensor:
        blocks = self._turned(self._queries(queries)).unflatten(-1, (self.groups, -1))
        return blocks.square().sum(dim=-1, keepdim=True)

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 25, rotation_rounds: int = 20) -> ProductVQ:
        """Set the books by k-means on a bank x [N, D], block by block, and with `rotation` R as well; returns self.

        OPQ alternates: books and codes for X R, then R = U V^T of the singular vectors of X^T Y, where Y are the decoded
        codes: the rotation that minimises ||X R - Y||.
        """
        z = self.project_in(check_bank(x, self.dim, self.codebook_size))
        if self.rotation is not None:
            for round_ in range(rotation_rounds):
                self._fit_blocks(z, max(1, iterations // 5), warm=round_ > 0)
                decoded = torch.cat(
                    [F.embedding(k, self._emitted(i)) for i, k in enumerate(self._encode(z).unbind(-1))], dim=-1
                )
                u, _, vt = torch.linalg.svd((z.t() @ decoded).double(), full_matrices=False)
                self.rotation = (u @ vt).to(self.rotation)  # not in place: a graph may hold the old one
        self._fit_blocks(z, iterations, warm=self.rotation is not None)
        return self

    def _fit_blocks(self, z: Tensor, iterations: int, warm: bool) -> None:
        for book, block in enumerate(self._blocks(z)):
            fit_book(self, book, block, iterations, warm)
