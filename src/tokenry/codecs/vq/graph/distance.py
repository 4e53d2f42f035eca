"""Anchors of a graph and the way to them: degree, PageRank, multi-source breadth-first search on a CSR adjacency.

Memory is O(E + N k): no N x N or N x A matrix is made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MISSING = -1
_ANCHORS_AT_ONCE = 64


class Adjacency(NamedTuple):
    """Undirected neighbours in CSR form: those of node v are ``neighbours[starts[v] : starts[v + 1]]``."""

    starts: Tensor
    neighbours: Tensor

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.starts) - 1


def adjacency(heads: Tensor, tails: Tensor, num_nodes: int) -> Adjacency:
    """Every edge in both directions, each pair of neighbours once, without loops."""
    pairs = torch.cat([heads * num_nodes + tails, tails * num_nodes + heads])[heads.repeat(2) != tails.repeat(2)].unique()
    counts = torch.bincount(pairs // num_nodes, minlength=num_nodes)
    return Adjacency(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), pairs % num_nodes)


def pagerank(graph: Adjacency, *, damping: float = 0.85, tolerance: float = 1e-10, iterations: int = 200) -> Tensor:
    """PageRank of the undirected graph, [N] float64 that sums to 1; what isolated nodes hold is spread over all."""
    n = graph.nodes
    degree = graph.starts.diff()
    source = torch.repeat_interleave(torch.arange(n), degree)
    rank = torch.full((n,), 1.0 / n, dtype=torch.float64)
    for _ in range(iterations):
        share = rank / degree.clamp_min(1)
        moved = torch.zeros_like(rank).index_add_(0, graph.neighbours, share[source])
        moved += rank[degree == 0].sum() / n
        following = damping * moved + (1.0 - damping) / n
        done = float((following - rank).abs().sum()) < tolerance
        rank = following
        if done:
            break
    return rank


def random_keys(seed: int, rows: Tensor, columns: Tensor) -> Tensor:
    """A pseudo-random non-negative int64 for each (row, column), the same in any order and in any batch.

    The finaliser of SplitMix64 on 64-bit words (integer overflow wraps around).
    """
    salt = (seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    x = rows * -7046029254386353131 + columns * -4658895280553007687 + (salt - (1 << 64) if salt >> 63 else salt)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (x ^ ((x >> 31) & ((1 << 33) - 1))) & ((1 << 63) - 1)


def place_in_group(groups: Tensor) -> Tensor:
    """Position of each entry among the entries of its group; `groups` [n] is sorted."""
    index = torch.arange(len(groups), device=groups.device)
    first = torch.ones_like(groups, dtype=torch.bool)
    first[1:] = groups[1:] != groups[:-1]
    return index - index[first].repeat_interleave(index[first].diff(append=index.new_tensor([len(groups)])))


def _expand(graph: Adjacency, nodes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(neighbour, value) for every neighbour of every node."""
    degree = graph.starts[nodes + 1] - graph.starts[nodes]
    offset = torch.arange(int(degree.sum())) - torch.repeat_interleave(degree.cumsum(0) - degree, degree)
    return graph.neighbours[torch.repeat_interleave(graph.starts[nodes], degree) + offset], values.repeat_interleave(degree)


def nearest_anchors(graph: Adjacency, anchors: Tensor, k: int, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest anchors of every node: ranks [N,k] and distances [N,k], ordered by (distance, rank); -1 = none.

    One search from all anchors at once, in which a node passes on only the k anchors it holds. That is exact: whatever k
    anchors precede anchor a at a node on the shortest path from v to a precede a at v too.
    """
    n, count = graph.nodes, len(anchors)
    ranks = torch.full((n, k), MISSING)
    distances = torch.full((n, k), MISSING)
    held = torch.zeros(n, dtype=torch.long)
    nodes, values, distance = anchors, torch.arange(count), 0
    while len(nodes):
        place = held[nodes] + place_in_group(nodes) if distance else torch.zeros_like(nodes)
        free = place < k
        nodes, values, place = nodes[free], values[free], place[free]
        ranks[nodes, place], distances[nodes, place] = values, distance
        held += torch.bincount(nodes, minlength=n)
        distance += 1
        if longest is not None and distance > longest:
            break
        nodes, values = _expand(graph, nodes, values)
        room = held[nodes] < k
        pairs = (nodes[room] * count + values[room]).unique()
        nodes, values = pairs // count, pairs % count
        fresh = ~(ranks[nodes] == values[:, None]).any(dim=1)
        nodes, values = nodes[fresh], values[fresh]
    return ranks, distances


def sampled_anchors(graph: Adjacency, anchors: Tensor, k: int, seed: int, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """A random k of the anchors that each node can reach, ordered by (distance, rank); -1 = none. O(N k + 64 N)."""
    n, count = graph.nodes, len(anchors)
    worst = torch.iinfo(torch.int64).max
    best = torch.full((n, k), worst)
    ranks, distances = torch.full((n, k), MISSING), torch.full((n, k), MISSING)
    rows = torch.arange(n)[:, None]
    for start in range(0, count, _ANCHORS_AT_ONCE):
        chunk = torch.arange(start, min(count, start + _ANCHORS_AT_ONCE))
        reach = _all_distances(graph, anchors[chunk], longest)
        keys = random_keys(seed, rows, chunk[None]).masked_fill(reach == MISSING, worst)
        keys, order = torch.cat([best, keys], dim=1).sort(dim=1, stable=True)
        best, order = keys[:, :k], order[:, :k]
        ranks = torch.cat([ranks, chunk.expand(n, -1)], dim=1).gather(1, order)
        distances = torch.cat([distances, reach], dim=1).gather(1, order)
    ranks = ranks.masked_fill(best == worst, MISSING)
    return in_order(ranks, distances.masked_fill(best == worst, MISSING), count)


def in_order(ranks: Tensor, distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows ordered by (distance, rank), missing entries last."""
    last = torch.iinfo(torch.int64).max
    order = (distances * (count + 1) + ranks).masked_fill(ranks == MISSING, last).argsort(dim=1, stable=True)
    return ranks.gather(1, order), distances.gather(1, order)


def _all_distances(graph: Adjacency, anchors: Tensor, longest: int | None) -> Tensor:
    """Distance of every node to every one of a few anchors, [N,A]; -1 = unreachable."""
    n, count = graph.nodes, len(anchors)
    found = torch.full((n, count), MISSING)
    nodes, values, distance = anchors, torch.arange(count), 0
    while len(nodes):
        found[nodes, values] = distance
        distance += 1
        if longest is not None and distance > longest:
            break
        nodes, values = _expand(graph, nodes, values)
        fresh = found[nodes, values] == MISSING
        pairs = (nodes[fresh] * count + values[fresh]).unique()
        nodes, values = pairs // count, pairs % count
    return found
