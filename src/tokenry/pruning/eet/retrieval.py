"""Scores of a Hamming ranking: distances and mean average precision."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_device, check_int, check_shape, check_tensor
from tokenry.pruning.eet.hashing import check_codes

Ties = Literal["stable", "expected"]
_CHUNK = 256


def hamming_distances(query: Tensor, database: Tensor) -> Tensor:
    """Number of differing bits [Q,n] (int64) between codes [Q,K] and [n,K] in {-1,+1}: ``(K - q . b) / 2``.

    Raises:
        ValueError: other values than -1 and +1, or code lengths that differ.
    """
    bits = check_codes("query", query).shape[1]
    check_shape("database", check_codes("database", database), "n K", K=bits)
    check_device("database", database, "query", query)
    return _distances(query.float(), database.float())


def _distances(query: Tensor, database: Tensor) -> Tensor:
    return ((query.shape[1] - query @ database.T) / 2).round().long()


def average_precision(
    query_codes: Tensor,
    query_labels: Any,
    database_codes: Tensor,
    database_labels: Any,
    top: int | None = None,
    *,
    ties: Ties = "stable",
) -> Tensor:
    """Average precision [Q] (float64) of each query's Hamming ranking of the database; relevant = same label.

    AP is the mean over the relevant items j (in rank order) of ``j / rank_j``; a query without relevant items gets 0.

    Args:
        query_codes: [Q,K] in {-1,+1}.
        query_labels: [Q] ints.
        database_codes: [n,K] in {-1,+1}.
        database_labels: [n] ints.
        top: rank only the first `top` items; relevant items are then counted among those.
        ties: codes have only K + 1 distinct distances, so ties are the rule. ``"stable"`` ranks them in database order, which
            is what most published numbers do; ``"expected"`` gives the exact mean over all orders of tied items (McSherry and
            Najork 2008), which does not depend on how the database happens to be sorted.

    Raises:
        ValueError: codes or labels that do not fit, `top` out of range, or `top` with ``ties="expected"``.
    """
    check_choice("ties", ties, ("stable", "expected"))
    bits = check_codes("query_codes", query_codes).shape[1]
    n = check_shape("database_codes", check_codes("database_codes", database_codes), "n K", K=bits)["n"]
    if n == 0:
        raise ValueError("database_codes must hold at least one item, got 0")
    check_device("database_codes", database_codes, "query_codes", query_codes)
    wanted = _labels("query_labels", query_labels, query_codes)
    present = _labels("database_labels", database_labels, database_codes)
    if top is not None:
        check_int("top", top, 1, n)
        if ties == "expected":
            raise ValueError("top must be None with ties='expected', got a cut that may fall inside a tie")
    database = database_codes.float()
    parts = []
    for start in range(0, query_codes.shape[0], _CHUNK):
        distance = _distances(query_codes[start : start + _CHUNK].float(), database)
        relevant = wanted[start : start + _CHUNK, None] == present[None]
        parts.append(_stable(distance, relevant, top) if ties == "stable" else _expected(distance, relevant, bits))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def mean_average_precision(
    query_codes: Tensor,
    query_labels: Any,
    database_codes: Tensor,
    database_labels: Any,
    top: int | None = None,
    *,
    ties: Ties = "stable",
) -> float:
    """Mean over the queries of `average_precision` (same arguments and errors).

    Raises:
        ValueError: as there, or no query at all.
    """
    scores = average_precision(query_codes, query_labels, database_codes, database_labels, top, ties=ties)
    if not len(scores):
        raise ValueError("query_codes must hold at least one query, got 0")
    return float(scores.mean())


def _stable(distance: Tensor, relevant: Tensor, top: int | None) -> Tensor:
    order = distance.argsort(dim=1, stable=True)[:, :top]
    hits = relevant.gather(1, order).double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    return (hits * hits.cumsum(dim=1) / rank).sum(dim=1) / hits.sum(dim=1).clamp(min=1.0)


def _expected(distance: Tensor, relevant: Tensor, bits: int) -> Tensor:
    """Exact expectation over the orders within each tie.

    In a tie of t items, r relevant, behind n items with R relevant, the item at place i (from 0) is relevant with probability
    r/t and then has on average ``R + 1 + i (r-1)/(t-1)`` relevant items up to itself, at rank n + i + 1.
    """
    zeros = torch.zeros(len(distance), bits + 1, dtype=torch.float64, device=distance.device)
    t = zeros.scatter_add(1, distance, torch.ones_like(distance, dtype=torch.float64))
    r = zeros.scatter_add(1, distance, relevant.double())
    n, before = t.cumsum(1) - t, r.cumsum(1) - r
    places = torch.arange(1, distance.shape[1] + 1, dtype=torch.float64, device=distance.device)
    harmonic = torch.cat([places.new_zeros(1), (1.0 / places).cumsum(0)])
    # sum_i 1/(n+i+1) and sum_i i/(n+i+1) over i = 0..t-1
    inverse = harmonic[(n + t).long()] - harmonic[n.long()]
    weighted = t - (n + 1) * inverse
    slope = (r - 1) / (t - 1).clamp(min=1.0)
    total = (r / t.clamp(min=1.0)) * ((before + 1) * inverse + slope * weighted)
    return total.sum(1) / r.sum(1).clamp(min=1.0)


def _labels(name: str, labels: Any, codes: Tensor) -> Tensor:
    labels = check_tensor(name, torch.as_tensor(labels))
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must hold integer labels, got {labels.dtype}")
    check_shape(name, labels, "n", n=codes.shape[0])
    return labels.to(codes.device)
