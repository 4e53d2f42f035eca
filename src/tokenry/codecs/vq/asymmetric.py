"""Search among coded vectors by look-up tables: queries stay exact, the bank stays coded (asymmetric distances)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.base import Quantizer
from tokenry.core.checks import check_finite, check_int, check_shape
from tokenry.core.codebooks.codebooks import squared_distances
from tokenry.core.codebooks.stats import check_indices

if TYPE_CHECKING:
    _Host = Quantizer
else:
    _Host = object

_BLOCK = 1 << 22


def search_tables(tables: Tensor, indices: Tensor, k: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(distances [Q, k] ascending, positions [Q, k]) of the nearest coded vectors.

    The distance of query q to vector n is sum_m tables[q, m, indices[n, m]] (+ offsets[n]); tables [Q, M, K],
    indices [N, M]. Memory O(Q block), flat in N.
    """
    rows = max(k, _BLOCK // max(1, len(tables)))
    best = tables.new_empty(len(tables), 0)
    where = torch.empty(len(tables), 0, dtype=torch.long, device=tables.device)
    for start in range(0, len(indices), rows):
        part = indices[start : start + rows].long()
        total = tables[:, 0].index_select(1, part[:, 0])
        for book in range(1, tables.shape[1]):
            total += tables[:, book].index_select(1, part[:, book])
        if offsets is not None:
            total += offsets[start : start + rows]
        best, where = _merged(best, where, total, start, k)
    return best, where


def _merged(best: Tensor, where: Tensor, found: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The k lowest of `best` [Q, b] at positions `where` and `found` [Q, n] at positions from `start`, ascending."""
    near = found.topk(min(k, found.shape[1]), dim=1, largest=False)
    best, where = torch.cat([best, near.values], dim=1), torch.cat([where, near.indices + start], dim=1)
    kept = best.topk(min(k, best.shape[1]), dim=1, largest=False)
    return kept.values, where.gather(1, kept.indices)


class DecodedSearch(_Host):
    """`search` for quantizers without tables: the bank is decoded block by block."""

    @torch.no_grad()
    def search(self, queries: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(squared distances [Q, k] ascending, positions [Q, k]) among vectors coded as `indices` [N, M].

        Distances are between the exact query and the decoded vector, in the space of inputs. Memory O(Q block + block D).

        Raises:
            TypeError: indices are not integers. ValueError: shapes do not fit, an index out of range, non-finite queries, or
                k > N.
        """
        check_shape("queries", queries, "Q D", D=self.dim)
        check_finite("queries", queries)
        check_shape("indices", indices, "N M")
        check_int("k", k, 1, len(indices))
        q = queries.to(self._dtype(queries))
        best, where = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.long, device=q.device)
        rows = max(k, _BLOCK // max(len(q), self.dim))
        for start in range(0, len(indices), rows):
            codes = self.decode(indices[start : start + rows])
            best, where = _merged(best, where, squared_distances(q, codes), start, k)
        return best.clamp(min=0), where


class AsymmetricSearch(_Host):
    """`distance_tables` and `search` for quantizers with several books."""

    def distance_tables(self, queries: Tensor) -> Tensor:
        """Tables [Q, M, K] of queries [Q, D], whose entries along a vector's indices add up to its squared distance."""
        raise NotImplementedError

    def _absent(self, queries: Tensor, tables: Tensor) -> Tensor:
        """What a book without a code (index -1) adds to the distance of each query: [Q, M, 1]."""
        raise NotImplementedError

    def _offsets(self, indices: Tensor) -> Tensor | None:
        """What a vector adds to its distance from any query: [N]; None for nothing."""
        return None

    @torch.no_grad()
    def search(self, queries: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(squared distances [Q, k] ascending, positions [Q, k]) among vectors coded as `indices` [N, M].

        Distances are between the exact query and the decoded vector: a book with index -1 adds nothing to that vector, nor do
        levels that are left out where a prefix can be decoded.

        Raises:
            TypeError: indices are not integers. ValueError: shapes do not fit, an index out of range, non-finite queries, or
                k > N.
        """
        check_shape("indices", indices, "N M")
        check_indices("indices", indices, self.codebook_size)
        if not self._fits_books(indices.shape[1]):
            raise ValueError(f"indices must have {self.books} books in their last axis, got shape {list(indices.shape)}")
        check_int("k", k, 1, len(indices))
        tables, offsets = self.distance_tables(queries), self._offsets(indices)
        lacking = tables.shape[1] - indices.shape[1]
        if lacking or bool((indices < 0).any()):
            tables = torch.cat([tables, self._absent(queries, tables)], dim=2)
            indices = F.pad(indices.long(), (0, lacking), value=-1)
            indices = torch.where(indices < 0, self.codebook_size, indices)
        return search_tables(tables, indices, k, offsets)

    def _queries(self, queries: Tensor) -> Tensor:
        check_shape("queries", queries, "Q D", D=self.dim)
        check_finite("queries", queries)
        return self.project_in(queries.to(self._dtype(queries)))


class AdditiveSearch(AsymmetricSearch):
    """Tables for codes that are sums of rows: ||q - x||^2 = ||q||^2 - 2 sum_m <q, C_m[k_m]> + ||x||^2."""

    codebook: Tensor

    @torch.no_grad()
    def distance_tables(self, queries: Tensor) -> Tensor:
        """-2 <q, C_m[k]> + ||q||^2 / M, [Q, M, K]; the norm of the decoded vector is added by `search`."""
        q = self._queries(queries)
        rows = torch.stack([self._emitted(m) for m in range(self.books or 1)])  # type: ignore[attr-defined]
        return q.square().sum(dim=-1)[:, None, None] / len(rows) - 2 * torch.einsum("qd,mkd->qmk", q, rows)

    def _absent(self, queries: Tensor, tables: Tensor) -> Tensor:
        share = self._queries(queries).square().sum(dim=-1) / tables.shape[1]
        return share[:, None, None].expand(-1, tables.shape[1], 1)

    def _offsets(self, indices: Tensor) -> Tensor:
        norms = [self._combine(self.codes_of(part)).square().sum(dim=-1) for part in indices.split(1 << 16)]
        return torch.cat(norms)
