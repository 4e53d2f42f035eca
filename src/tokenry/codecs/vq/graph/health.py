"""How different the hashes of nodes are: entropy of the codes, use of the anchors, Jaccard distance of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import check_int


@dataclass(frozen=True)
class HashHealth:
    """How different the hashes of the nodes of a graph are.

    Attributes:
        distinct: share of the nodes' hashes that differ from every earlier one, in (0, 1].
        entropy: of the distribution of whole hashes, in nats; at most ln N.
        normalised_entropy: entropy / ln N (1 for one node).
        anchor_usage: share of the anchors that occur in some hash.
        anchor_perplexity: exp of the entropy of the anchors over all hashes, in [1, A]; 0 when no hash holds one.
        jaccard: mean Jaccard distance of the token sets (anchors, relations) of random pairs of nodes, in [0, 1].
    """

    distinct: float
    entropy: float
    normalised_entropy: float
    anchor_usage: float
    anchor_perplexity: float
    jaccard: float


def hash_health(anchors: Tensor, distances: Tensor, relations: Tensor, num_anchors: int, pairs: int, seed: int) -> HashHealth:
    """Health of hashes [N,k], [N,k], [N,m]; -1 marks what is missing. `pairs` random pairs of two nodes are compared."""
    check_int("pairs", pairs, 1)
    anchors, distances, relations = anchors.cpu(), distances.cpu(), relations.cpu()
    n = len(anchors)
    counts = torch.cat([anchors, distances, relations], dim=1).unique(dim=0, return_counts=True)[1]
    entropy = _entropy(counts)
    used = torch.bincount(anchors[anchors >= 0], minlength=num_anchors)
    return HashHealth(
        distinct=len(counts) / n,
        entropy=entropy,
        normalised_entropy=entropy / math.log(n) if n > 1 else 1.0,
        anchor_usage=float((used > 0).double().mean()),
        anchor_perplexity=math.exp(_entropy(used)) if int(used.sum()) else 0.0,
        jaccard=_jaccard(anchors, relations, pairs, seed),
    )


def _entropy(counts: Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log()).sum())


def _jaccard(anchors: Tensor, relations: Tensor, pairs: int, seed: int) -> float:
    n = len(anchors)
    if n < 2:
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(n, (pairs,), generator=generator)
    right = (left + torch.randint(1, n, (pairs,), generator=generator)) % n
    shared = torch.zeros(pairs)
    total = torch.zeros(pairs)
    for table in (anchors, relations):
        a, b = table[left], table[right]
        shared += ((a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]).sum(dim=(1, 2))
        total += (a >= 0).sum(dim=1) + (b >= 0).sum(dim=1)
    return float(torch.where(total > 0, 1.0 - shared / (total - shared).clamp_min(1), 0.0).mean())
