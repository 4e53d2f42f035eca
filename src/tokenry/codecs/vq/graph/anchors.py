"""Graph anchor-relation tokens: a node is its nearest anchors, their distances, and the relations it takes part in.

The eighth family of the survey "Discrete Tokenization for Multimodal LLMs" (arXiv 2507.22920, "GART"). The vocabulary is A
anchor nodes, R relation types, distances, PAD and NOTHING; there is no row per node, so it does not grow with the graph and a
node that was not there in training needs nothing but its edges. `GraphAnchorTokenizer` follows NodePiece (Galkin et
al., ICLR 2022): anchors by a mix of degree, PageRank and chance; distances over edges in both directions; m distinct relation
types per node. ``variant="random"`` is RandomEQ: k random anchors and m random relations per node, which asks how much the
structure in a hash matters beyond hashes being different. `NodeHashEmbedding`
turns hashes into vectors.

Inferred: ties go to the anchor of lower rank (rank = order of choice); a hash is ordered by (distance, rank).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.codecs.vq.graph.distance import (
    MISSING,
    Adjacency,
    adjacency,
    in_order,
    nearest_anchors,
    pagerank,
    place_in_group,
    random_keys,
    sampled_anchors,
)
from tokenry.codecs.vq.graph.health import HashHealth, hash_health
from tokenry.core.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from tokenry.core.checks import check_choice, check_int, check_range, check_tensor

STRATEGY: Mapping[str, float] = {"degree": 0.4, "pagerank": 0.4, "random": 0.2}
PAD, NOTHING = 0, 1
_KIND = "GraphAnchorTokenizer"
Edges = Tensor | tuple[Tensor, Tensor, Tensor]


class NodeHash(NamedTuple):
    """Hashes of nodes.

    Attributes:
        anchors: ranks of the anchors [..., k], nearest first; -1 = none (NOTHING).
        distances: length of the shortest path to each [..., k]; -1 where there is no anchor.
        relations: distinct relation types [..., m], ascending; -1 = none (PAD).
    """

    anchors: Tensor
    distances: Tensor
    relations: Tensor


class GraphAnchorTokenizer(nn.Module):
    """Tokens of the nodes of a graph with typed edges.

    Args:
        edges: int64 [E,3] of (head, relation, tail), or the three columns; repeated edges count once.
        num_nodes: N; ids are 0..N-1, nodes without edges are allowed.
        num_relations: R; relation types are 0..R-1.
        anchors: how many, or their node ids in order of rank.
        nearest: k, anchors in a hash.
        relations: m, relation types in a hash; may be 0.
        strategy: shares of the anchors chosen by ``degree``, ``pagerank`` and ``random``; they sum to 1.
        anchor_choice: the k ``"nearest"`` anchors, or k ``"random"`` ones among those within reach.
        relation_choice: the m lowest types of a node (``"sorted"``), or a sample of them (``"sampled"``).
        inverse_relations: tell what comes in from what goes out: an edge gives its tail the relation R + r.
        max_distance: anchors farther than this do not count; None = no limit.
        variant: ``"nodepiece"``, or ``"random"`` for hashes drawn without a look at the graph (distances 0).
        seed: of everything drawn.

    Raises:
        ValueError, TypeError: ids out of range, shares that do not sum to 1, more anchors than nodes, k above the anchors.
    """

    anchor_nodes: Tensor
    hash_anchors: Tensor
    hash_distances: Tensor
    hash_relations: Tensor

    def __init__(
        self,
        edges: Edges,
        num_nodes: int,
        num_relations: int,
        *,
        anchors: int | Tensor | Sequence[int],
        nearest: int = 20,
        relations: int = 12,
        strategy: Mapping[str, float] | None = None,
        anchor_choice: str = "nearest",
        relation_choice: str = "sorted",
        inverse_relations: bool = False,
        max_distance: int | None = None,
        variant: str = "nodepiece",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_nodes = check_int("num_nodes", num_nodes, 1)
        self.num_relations = check_int("num_relations", num_relations, 1)
        self.nearest = check_int("nearest", nearest, 1)
        self.relations = check_int("relations", relations, 0)
        self.anchor_choice = check_choice("anchor_choice", anchor_choice, ("nearest", "random"))
        self.relation_choice = check_choice("relation_choice", relation_choice, ("sorted", "sampled"))
        self.inverse_relations = bool(inverse_relations)
        self.max_distance = None if max_distance is None else check_int("max_distance", max_distance, 0)
        self.variant = check_choice("variant", variant, ("nodepiece", "random"))
        self.seed = check_int("seed", seed, 0)
        heads, kinds, tails = edge_columns(edges, self.num_nodes, self.num_relations)
        graph = adjacency(heads, tails, self.num_nodes)
        chosen = self._choose(anchors, strategy, heads, tails, graph)
        if self.nearest > len(chosen):
            raise ValueError(f"nearest must be <= the number of anchors, {len(chosen)}, got {self.nearest}")
        owners, types = self._incident(heads, kinds, tails)
        nodes = torch.arange(self.num_nodes)
        ranks, distances = self._anchors_of(graph, chosen, nodes)
        self.register_buffer("anchor_nodes", chosen)
        self.register_buffer("hash_anchors", ranks)
        self.register_buffer("hash_distances", distances)
        self.register_buffer("hash_relations", self._relations_of(owners, types, nodes))
        # a new node is at most one edge beyond the farthest known one
        farthest = int(distances.max()) + 1 if self.variant == "nodepiece" else 0
        self.num_distances = 1 + (farthest if self.max_distance is None else self.max_distance)

    # vocabulary -------------------------------------------------------------------------------------------------

    @property
    def num_anchors(self) -> int:
        """A, the anchors in the vocabulary."""
        return len(self.anchor_nodes)

    @property
    def relation_types(self) -> int:
        """Relation tokens in the vocabulary: R, or 2 R with inverse relations."""
        return self.num_relations * (1 + self.inverse_relations)

    @property
    def vocab_size(self) -> int:
        """Ids that `to_ids` uses: PAD, NOTHING, anchors, relations, distances."""
        return 2 + self.num_anchors + self.relation_types + self.num_distances

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"nodes={self.num_nodes}, anchors={self.num_anchors}, nearest={self.nearest}, relations={self.relations} of "
            f"{self.relation_types}, distances={self.num_distances}, variant={self.variant!r}"
        )

    # encoding ---------------------------------------------------------------------------------------------------

    def encode(self, nodes: Tensor | None = None) -> NodeHash:
        """Hashes of `nodes` [...] int64; of all nodes when None."""
        if nodes is None:
            return NodeHash(self.hash_anchors, self.hash_distances, self.hash_relations)
        check_ids("nodes", nodes, self.num_nodes)
        return NodeHash(self.hash_anchors[nodes], self.hash_distances[nodes], self.hash_relations[nodes])

    forward = encode

    def encode_new(self, edges: Edges, count: int = 1) -> NodeHash:
        """Hashes of nodes that were not in the graph, from their edges alone: [count,k], [count,k], [count,m].

        New nodes are N..N+count-1 in `edges`; each edge joins one of them to a known node (or to itself). With the nearest
        anchors the hash is the one that the graph with this node would give; with random ones, distances are those of the
        way through the neighbours' hashes.
        """
        check_int("count", count, 1)
        heads, kinds, tails = edge_columns(edges, self.num_nodes + count, self.num_relations)
        new_head, new_tail = heads >= self.num_nodes, tails >= self.num_nodes
        if bool((~new_head & ~new_tail).any()) or bool((new_head & new_tail & (heads != tails)).any()):
            raise ValueError(
                f"edges must join one new node (ids {self.num_nodes} to {self.num_nodes + count - 1}) and one known node each"
            )
        nodes = torch.arange(self.num_nodes, self.num_nodes + count)
        owners, types = self._incident(heads, kinds, tails)
        relations = self._relations_of(owners, types, nodes)
        between = new_head != new_tail
        news = torch.where(new_head, heads, tails)[between] - self.num_nodes
        known = torch.where(new_head, tails, heads)[between]
        if self.variant == "random":
            ranks, distances = self._anchors_of(None, self.anchor_nodes, nodes)
        else:
            ranks, distances = self._through_neighbours(news, known, count)
        home = self.anchor_nodes.device
        return NodeHash(ranks.to(home), distances.to(home), relations.to(home))

    def to_ids(self, hashes: NodeHash) -> Tensor:
        """One id tensor [..., 2 k + m]: anchors, distances, relations, each kind with its own range of ids.

        0 is PAD, 1 is NOTHING, then come A anchors, the relation types and the distances.
        """
        relations = hashes.relations + (2 + self.num_anchors)
        distances = hashes.distances + (2 + self.num_anchors + self.relation_types)
        return torch.cat(
            [
                (hashes.anchors + 2).masked_fill(hashes.anchors == MISSING, NOTHING),
                distances.masked_fill(hashes.distances == MISSING, NOTHING),
                relations.masked_fill(hashes.relations == MISSING, PAD),
            ],
            dim=-1,
        )

    def from_ids(self, ids: Tensor) -> NodeHash:
        """The hashes that `to_ids` wrote."""
        check_ids("ids", ids, self.vocab_size)
        if ids.shape[-1] != 2 * self.nearest + self.relations:
            raise ValueError(f"ids must have {2 * self.nearest + self.relations} in the last dimension, got {ids.shape[-1]}")
        anchors, distances, relations = ids.split([self.nearest, self.nearest, self.relations], dim=-1)
        first = 2 + self.num_anchors
        return NodeHash(
            (anchors - 2).clamp_min(MISSING),
            (distances - first - self.relation_types).clamp_min(MISSING),
            (relations - first).clamp_min(MISSING),
        )

    def health(self, *, pairs: int = 10_000) -> HashHealth:
        """How different the hashes of the nodes are; `pairs` random pairs give the Jaccard distance."""
        return hash_health(self.hash_anchors, self.hash_distances, self.hash_relations, self.num_anchors, pairs, self.seed)

    # files ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the vocabulary and all hashes: ``config.json`` and ``model.safetensors``."""
        names = (
            "num_nodes", "num_relations", "nearest", "relations", "anchor_choice", "relation_choice", "inverse_relations",
            "max_distance", "variant", "seed", "num_distances",
        )  # fmt: skip
        write_checkpoint(folder, self, {"kind": _KIND} | {name: getattr(self, name) for name in names})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GraphAnchorTokenizer:
        """Read what `save_pretrained` wrote. Raises ValueError or FileNotFoundError naming the file."""
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if config.pop("kind", None) != _KIND:
            raise ValueError(f"{Path(folder) / CONFIG} does not describe a {_KIND}")
        tokenizer = cls.__new__(cls)
        nn.Module.__init__(tokenizer)
        tokenizer.__dict__.update(config)
        state = load_file(Path(folder) / WEIGHTS)
        for name in ("anchor_nodes", "hash_anchors", "hash_distances", "hash_relations"):
            if name not in state:
                raise ValueError(f"{Path(folder) / WEIGHTS} holds no {name}")
            tokenizer.register_buffer(name, state[name])
        return tokenizer

    # construction -----------------------------------------------------------------------------------------------

    def _choose(
        self, anchors: Any, strategy: Mapping[str, float] | None, heads: Tensor, tails: Tensor, graph: Adjacency
    ) -> Tensor:
        if not isinstance(anchors, int) or isinstance(anchors, bool):
            if strategy is not None:
                raise ValueError("strategy must be None when anchors are given as node ids")
            chosen = torch.as_tensor(anchors).cpu()
            check_ids("anchors", chosen, self.num_nodes)
            if chosen.dim() != 1 or not len(chosen) or len(chosen.unique()) < len(chosen):
                raise ValueError(f"anchors must be distinct node ids in one dimension, got shape {list(chosen.shape)}")
            return chosen.long()
        check_int("anchors", anchors, 1, self.num_nodes)
        shares = _shares(STRATEGY if strategy is None else strategy)
        counts = _portions(anchors, list(shares.values()))
        taken = torch.zeros(self.num_nodes, dtype=torch.bool)
        chosen = []
        for name, count in zip(shares, counts, strict=True):
            if not count:
                continue
            if name == "degree":
                score = torch.bincount(torch.cat([heads, tails]), minlength=self.num_nodes).double()
            elif name == "pagerank":
                score = pagerank(graph)
            else:
                score = torch.rand(self.num_nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed))
            order = score.masked_fill(taken, -1.0).sort(descending=True, stable=True).indices[:count]
            taken[order] = True
            chosen.append(order)
        return torch.cat(chosen)

    def _anchors_of(self, graph: Adjacency | None, anchors: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        if graph is None or self.variant == "random":
            keys = random_keys(self.seed, nodes[:, None], torch.arange(len(anchors))[None])
            ranks = keys.argsort(dim=1)[:, : self.nearest].sort(dim=1).values
            return ranks, torch.zeros_like(ranks)
        if self.anchor_choice == "nearest":
            return nearest_anchors(graph, anchors, self.nearest, self.max_distance)
        return sampled_anchors(graph, anchors, self.nearest, self.seed, self.max_distance)

    def _incident(self, heads: Tensor, kinds: Tensor, tails: Tensor) -> tuple[Tensor, Tensor]:
        """(node, relation type) of every edge end, distinct and sorted."""
        inverse = kinds + self.num_relations if self.inverse_relations else kinds
        width = self.relation_types
        pairs = torch.cat([heads * width + kinds, tails * width + inverse]).unique()
        return pairs // width, pairs % width

    def _relations_of(self, owners: Tensor, types: Tensor, nodes: Tensor) -> Tensor:
        """The m relation types in the hash of each of `nodes` (consecutive ids), ascending, -1 last."""
        size, first = self.relations, int(nodes[0])
        if self.variant == "random":
            keys = random_keys(self.seed + 1, nodes[:, None], torch.arange(self.relation_types)[None])
            drawn = keys.argsort(dim=1)[:, :size].sort(dim=1).values
            return nn.functional.pad(drawn, (0, size - drawn.shape[1]), value=MISSING)
        if self.relation_choice == "sampled":
            order = random_keys(self.seed + 1, owners, types).argsort()
            order = order[owners[order].argsort(stable=True)]
            owners, types = owners[order], types[order]
        place = place_in_group(owners)
        mine = (place < size) & (owners >= first) & (owners < first + len(nodes))
        table = torch.full((len(nodes), size), self.relation_types)
        table[owners[mine] - first, place[mine]] = types[mine]
        table = table.sort(dim=1).values
        return table.masked_fill(table == self.relation_types, MISSING)

    def _through_neighbours(self, news: Tensor, known: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Anchors of new nodes: those of the neighbours, one edge farther; shortest way, then (distance, rank)."""
        ranks, distances = self.hash_anchors.cpu()[known], self.hash_distances.cpu()[known] + 1
        near = (ranks != MISSING) & (distances <= (self.num_distances - 1))
        owner = news[:, None].expand_as(ranks)[near]
        span, total = self.num_distances, self.num_anchors
        found = ((owner * total + ranks[near]) * span + distances[near]).unique()
        pair, length = found // span, found % span
        shortest = place_in_group(pair) == 0
        pair, length = pair[shortest], length[shortest]
        owner, rank = pair // total, pair % total
        if self.anchor_choice == "random":
            order = random_keys(self.seed, owner + self.num_nodes, rank).argsort()
        else:
            order = (length * total + rank).argsort()
        order = order[owner[order].argsort(stable=True)]
        owner, rank, length = owner[order], rank[order], length[order]
        place = place_in_group(owner)
        kept = place < self.nearest
        table = torch.full((2, count, self.nearest), MISSING)
        table[0, owner[kept], place[kept]], table[1, owner[kept], place[kept]] = rank[kept], length[kept]
        return in_order(table[0], table[1], total)


def edge_columns(edges: Any, nodes: int, relations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three checked columns of distinct edges on the CPU."""
    if isinstance(edges, tuple) and len(edges) == 3:
        parts = [check_tensor(f"edges[{i}]", column).cpu() for i, column in enumerate(edges)]
        if any(part.dim() != 1 or len(part) != len(parts[0]) for part in parts):
            raise ValueError(f"edges must be three columns of one length, got {[list(part.shape) for part in parts]}")
        table = torch.stack(parts, dim=1)
    else:
        table = check_tensor("edges", edges).cpu()
        if table.dim() != 2 or table.shape[1] != 3:
            raise ValueError(f"edges must have shape [E, 3] (head, relation, tail), got {list(table.shape)}")
    for column, (name, size) in enumerate((("heads", nodes), ("relations", relations), ("tails", nodes))):
        check_ids(f"edges: {name}", table[:, column], size)
    table = table.long().unique(dim=0)
    return table[:, 0].contiguous(), table[:, 1].contiguous(), table[:, 2].contiguous()


def check_ids(name: str, ids: Any, size: int) -> None:
    """Raise unless `ids` is an integer tensor with entries in [0, size)."""
    check_tensor(name, ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {ids.dtype}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= size):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"{name} must be in [0, {size - 1}], got {bad}")


def _shares(strategy: Mapping[str, float]) -> dict[str, float]:
    unknown = [name for name in strategy if name not in STRATEGY]
    if unknown:
        raise ValueError(f"strategy must hold shares of {', '.join(STRATEGY)}, got {unknown[0]!r}")
    shares = {name: check_range(f"strategy[{name!r}]", strategy.get(name, 0.0), 0.0, 1.0) for name in STRATEGY}
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        raise ValueError(f"strategy must sum to 1, got {sum(shares.values()):g} from {dict(strategy)}")
    return shares


def _portions(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total` in proportion to `shares` (largest remainders, the first wins a tie)."""
    exact = [total * share for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    rest = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in rest[: total - sum(counts)]:
        counts[i] += 1
    return counts
