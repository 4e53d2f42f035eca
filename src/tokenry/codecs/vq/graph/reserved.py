"""Nodes from their connected relations and a few reserved nodes (EARL, Chen et al., AAAI 2023).

A node is described by how often each relation leaves and enters it, and by the reserved nodes (about a tenth of all) whose
relation counts are most like its own. Only reserved nodes and relations have vectors, so, as with anchors, the parameters do
not grow with the graph. What comes after in the paper, a graph network over these vectors, is the caller's.

Inferred (details of the paper were not at hand): counts enter as log(1 + count), rows of unit norm; likeness is their cosine;
the nearest reserved nodes are mixed by a softmax of cosine / temperature; a reserved node uses its own vector for that part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenry.codecs.vq.graph.anchors import Edges, check_ids, edge_columns
from tokenry.core.checks import check_int, check_range
from tokenry.core.selection import top_k
from tokenry.core.similarity import unit_rows

_ROWS = 4096


def connected_relations(edges: Edges, num_nodes: int, num_relations: int) -> tuple[Tensor, Tensor, Tensor]:
    """How often relations leave (r) and enter (R + r) nodes: (nodes [P], relations [P], counts [P]), by node, then relation."""
    heads, kinds, tails = edge_columns(edges, num_nodes, num_relations)
    width = 2 * num_relations
    keys, counts = torch.cat([heads * width + kinds, tails * width + num_relations + kinds]).unique(return_counts=True)
    return keys // width, keys % width, counts


class ReservedNodeEmbedding(nn.Module):
    """Node vectors [..., d] from connected relations and the most similar reserved nodes.

    Args:
        edges: int64 [E,3] of (head, relation, tail), or the three columns.
        num_nodes: N.
        num_relations: R.
        dim: d.
        reserved: how many nodes have a vector of their own (drawn by `seed`), or their ids; a tenth of N when None.
        nearest: k, reserved nodes that a node is mixed from.
        temperature: of the softmax over their cosines.
        seed: of the draw.

    Raises:
        ValueError, TypeError: ids out of range, more reserved nodes than nodes, k above them.
    """

    reserved: Tensor
    near: Tensor
    weights: Tensor
    owners: Tensor
    relations: Tensor
    shares: Tensor

    def __init__(
        self,
        edges: Edges,
        num_nodes: int,
        num_relations: int,
        dim: int,
        *,
        reserved: int | Tensor | None = None,
        nearest: int = 10,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_nodes = check_int("num_nodes", num_nodes, 1)
        self.width = 2 * check_int("num_relations", num_relations, 1)
        self.dim = check_int("dim", dim, 1)
        check_range("temperature", temperature, 0.0, low_open=True)
        ids = _reserved(reserved, num_nodes, seed)
        check_int("nearest", nearest, 1, len(ids))
        owners, relations, counts = connected_relations(edges, num_nodes, num_relations)
        shares = (1.0 + counts).log()
        norm = torch.zeros(num_nodes).index_add_(0, owners, shares.square()).sqrt()
        shares = shares / norm[owners]
        near, cosine = self._nearest(owners, relations, shares, ids, nearest)
        # a reserved node is its own and only one
        place = torch.full((num_nodes,), -1).index_put((ids,), torch.arange(len(ids)))
        weights = torch.softmax(cosine / temperature, dim=1)
        own = place >= 0
        near[own] = place[own, None]
        weights[own] = 1.0 / nearest
        for name, value in (("reserved", ids), ("near", near), ("weights", weights), ("owners", owners),
                            ("relations", relations), ("shares", shares)):  # fmt: skip
            self.register_buffer(name, value)
        self.relation = nn.Embedding(self.width, dim)
        self.node = nn.Embedding(len(ids), dim)
        for table in (self.relation, self.node):
            nn.init.normal_(table.weight, std=dim**-0.5)
        self.join = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def _nearest(self, owners: Tensor, relations: Tensor, shares: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ranks and cosines [N,k] of the reserved nodes most like each node; memory O(rows x (R + A))."""
        starts = torch.searchsorted(owners, torch.arange(self.num_nodes + 1))

        def rows(nodes: Tensor) -> Tensor:
            counts = starts[nodes + 1] - starts[nodes]
            row = torch.repeat_interleave(torch.arange(len(nodes)), counts)
            entry = torch.repeat_interleave(starts[nodes] - counts.cumsum(0) + counts, counts) + torch.arange(len(row))
            dense = torch.zeros(len(nodes), self.width)
            dense[row, relations[entry]] = shares[entry]
            return dense

        anchors = unit_rows(rows(ids))
        found: list[tuple[Tensor, Tensor]] = []
        for chunk in torch.arange(self.num_nodes).split(_ROWS):
            cosine = unit_rows(rows(chunk)) @ anchors.T
            rank = top_k(cosine, k)
            found.append((rank, cosine.gather(1, rank)))
        return torch.cat([rank for rank, _ in found]), torch.cat([value for _, value in found])

    def forward(self, nodes: Tensor | None = None) -> Tensor:
        """Vectors of `nodes` [...] int64, of all nodes when None."""
        linked = torch.zeros(self.num_nodes, self.dim, device=self.shares.device, dtype=self.relation.weight.dtype)
        linked = linked.index_add(0, self.owners, self.relation(self.relations) * self.shares[:, None].to(linked.dtype))
        if nodes is not None:
            check_ids("nodes", nodes, self.num_nodes)
            linked, near, weights = linked[nodes], self.near[nodes], self.weights[nodes]
        else:
            near, weights = self.near, self.weights
        mixed = (self.node(near) * weights[..., None].to(linked.dtype)).sum(dim=-2)
        return self.join(torch.cat([linked, mixed], dim=-1))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"nodes={self.num_nodes}, reserved={len(self.reserved)}, nearest={self.near.shape[1]}"


def _reserved(given: Any, nodes: int, seed: int) -> Tensor:
    if given is None:
        given = max(1, nodes // 10)
    if isinstance(given, Tensor):
        check_ids("reserved", given, nodes)
        if given.dim() != 1 or not len(given) or len(given.unique()) < len(given):
            raise ValueError(f"reserved must be distinct node ids in one dimension, got shape {list(given.shape)}")
        return given.cpu().long()
    count = check_int("reserved", given, 1, nodes)
    return torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))[:count].sort().values
