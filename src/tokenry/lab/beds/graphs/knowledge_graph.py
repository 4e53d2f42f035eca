"""Link prediction on a synthetic knowledge graph: where a table of nodes and hashes of nodes can be compared.

Nodes arrive one by one and attach to earlier ones in proportion to their degree (Barabasi and Albert), but rather to nodes of
communities that theirs has to do with, and half the time to a neighbour of a node that they have just chosen, which closes a
triangle. The type of an edge is that of the pair of communities, with some noise. So a missing edge can be told from hubs,
communities and neighbourhoods: all that a hash of anchors and relations holds. Models are DistMult with inverse relations and
a soft-max over all nodes; they differ only in where the node vectors come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.codecs.vq.graph.anchors import GraphAnchorTokenizer
from tokenry.codecs.vq.graph.embedding import NodeHashEmbedding
from tokenry.core.checks import check_int, check_range
from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded

COMMUNITY = 15  # nodes of a community, on average
_PARTNERS = 3  # communities that one picks as related, besides itself
_NEAR, _FAR = 1.0, 0.003
_CLOSING = 0.3


@dataclass(frozen=True)
class KnowledgeGraph:
    """Triples int64 [.,3] of (head, relation, tail): those to learn from and those to predict."""

    train: Tensor
    test: Tensor
    num_nodes: int
    num_relations: int

    @property
    def every(self) -> Tensor:
        """All triples."""
        return torch.cat([self.train, self.test])


def community_graph(
    nodes: int = 300,
    relations: int = 6,
    *,
    attach: int = 8,
    held_out: float = 0.1,
    noise: float = 0.05,
    seed: int = 0,
) -> KnowledgeGraph:
    """A graph of `nodes` with about `nodes` x `attach` typed edges, `held_out` of them for the test.

    A test edge's ends both keep an edge in the training part. Same seed, same graph.
    """
    check_int("nodes", nodes, 20)
    check_int("relations", relations, 1)
    check_int("attach", attach, 1, nodes // 4)
    check_range("held_out", held_out, 0.0, 0.5, low_open=True)
    check_range("noise", noise, 0.0, 1.0)
    rng = np.random.default_rng(seed)
    groups = max(4, nodes // COMMUNITY)
    community = rng.integers(groups, size=nodes)
    related = np.eye(groups, dtype=bool)
    for row in range(groups):
        related[row, rng.choice(groups, _PARTNERS, replace=False)] = True
    affinity = np.where(related | related.T, _NEAR, _FAR)
    types = rng.integers(relations, size=(groups, groups))
    pairs = _grow(community, affinity, attach, rng)
    kinds = types[community[pairs[:, 0]], community[pairs[:, 1]]]
    wrong = rng.random(len(pairs)) < noise
    kinds[wrong] = rng.integers(relations, size=int(wrong.sum()))
    triples = np.column_stack([pairs[:, 0], kinds, pairs[:, 1]])
    train, test = _split(triples, nodes, held_out, rng)
    return KnowledgeGraph(torch.from_numpy(train), torch.from_numpy(test), nodes, relations)


def _grow(community: np.ndarray, affinity: np.ndarray, attach: int, rng: np.random.Generator) -> np.ndarray:
    nodes = len(community)
    degree = np.zeros(nodes)
    near: list[list[int]] = [[] for _ in range(nodes)]
    pairs = []
    for v in range(1, nodes):
        weight = (degree[:v] + 1.0) * affinity[community[v], community[:v]]
        chosen: list[int] = []
        for _ in range(min(attach, v)):
            closing = [u for u in near[chosen[-1]] if u not in chosen and u != v] if chosen else []
            if closing and rng.random() < _CLOSING:
                u = closing[rng.integers(len(closing))]
            else:
                share = weight.copy()
                share[chosen] = 0.0
                u = int(rng.choice(v, p=share / share.sum()))
            chosen.append(u)
        for u in chosen:
            near[u].append(v)
            near[v].append(u)
            degree[[u, v]] += 1.0
            pairs.append((v, u))
    return np.array(pairs)


def _split(triples: np.ndarray, nodes: int, held_out: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training and test triples; a triple whose end would lose its last edge stays in training."""
    left = np.bincount(triples[:, [0, 2]].ravel(), minlength=nodes)
    wanted = round(held_out * len(triples))
    out = np.zeros(len(triples), dtype=bool)
    for row in rng.permutation(len(triples)):
        head, _, tail = triples[row]
        if out.sum() == wanted:
            break
        if left[head] > 1 and left[tail] > 1:
            out[row] = True
            left[[head, tail]] -= 1
    return triples[~out], triples[out]


class NodeTable(nn.Module):
    """A vector per node."""

    def __init__(self, nodes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(nodes, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self) -> Tensor:
        """All vectors [N,d]."""
        return self.table.weight


class HashedNodes(nn.Module):
    """Node vectors from the hashes of a tokenizer."""

    def __init__(self, tokenizer: GraphAnchorTokenizer, dim: int, encoder: str = "concat", hidden: int | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.embed = NodeHashEmbedding(tokenizer, dim, encoder=encoder, hidden=hidden)

    def forward(self) -> Tensor:
        """All vectors [N,d]."""
        return self.embed(self.tokenizer.encode())


class DistMult(nn.Module):
    """Score of (h, r, t) = sum_d h_d r_d t_d; relations R..2R-1 are the inverse ones (Yang et al., ICLR 2015)."""

    def __init__(self, nodes: nn.Module, num_relations: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.nodes, self.num_relations = nodes, num_relations
        self.relation = nn.Embedding(2 * num_relations, dim)
        nn.init.normal_(self.relation.weight, mean=1.0, std=0.1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, heads: Tensor, kinds: Tensor) -> Tensor:
        """Scores of every node as the tail, [B,N]."""
        vectors = self.nodes()
        return self.dropout(vectors[heads] * self.relation(kinds)) @ vectors.T

    def node_parameters(self) -> int:
        """Numbers that the node vectors are made of."""
        return sum(p.numel() for p in self.nodes.parameters())


def _questions(triples: Tensor, num_relations: int) -> Tensor:
    """(head, relation, tail) in both directions, [2 T,3]."""
    back = torch.stack([triples[:, 2], triples[:, 1] + num_relations, triples[:, 0]], dim=1)
    return torch.cat([triples, back])


def train_distmult(
    graph: KnowledgeGraph,
    nodes: nn.Module,
    *,
    dim: int,
    epochs: int = 60,
    batch: int = 512,
    learning_rate: float = 1e-2,
    dropout: float = 0.2,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> DistMult:
    """Train on the soft-max over all tails, in both directions: AdamW, one cycle; in evaluation mode afterwards."""
    questions = _questions(graph.train, graph.num_relations)
    plan = Plan(
        steps=epochs * -(-len(questions) // batch), learning_rate=learning_rate, weight_decay=weight_decay, clip=None,
        warmup=0.3, decay="one_cycle",
    )  # fmt: skip
    rows = (part for _ in range(epochs) for part in torch.randperm(len(questions)).split(batch))
    with seeded(seed):  # order and drop-out draw from the global generator
        model = DistMult(nodes, graph.num_relations, dim, dropout)

        def loss_of(step: int) -> Tensor:
            heads, kinds, tails = questions[next(rows)].unbind(1)
            return F.cross_entropy(model(heads, kinds), tails)

        descend(model, loss_of, plan, progress=progress)
    return model.eval()


@torch.no_grad()
def reciprocal_ranks(score: Callable[[Tensor, Tensor], Tensor], graph: KnowledgeGraph) -> Tensor:
    """1 / rank of the true end of each test triple, tails first and then heads, [2 T]; filtered.

    Other true ends, of the training and of the test triples, do not count as rivals; among equal scores the rank is the
    middle one. ``score(heads, relations)`` gives [B,N].
    """
    asked, known = _questions(graph.test, graph.num_relations), _questions(graph.every, graph.num_relations)
    scores = score(asked[:, 0], asked[:, 1])
    width = 2 * graph.num_relations
    keys, key = known[:, 0] * width + known[:, 1], asked[:, 0] * width + asked[:, 1]
    row, fact = (key[:, None] == keys[None]).nonzero().unbind(1)
    true = scores.gather(1, asked[:, 2:])
    scores = scores.clone()
    scores[row, known[fact, 2]] = float("-inf")
    above, equal = (scores > true).sum(dim=1), (scores == true).sum(dim=1)
    return 1.0 / (1.0 + above + equal / 2.0)


def popularity(graph: KnowledgeGraph) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores that know only how often a node is the end of such a relation in the training triples."""
    questions = _questions(graph.train, graph.num_relations)
    counts = torch.zeros(2 * graph.num_relations, graph.num_nodes)
    counts.index_put_((questions[:, 1], questions[:, 2]), torch.ones(len(questions)), accumulate=True)
    return lambda heads, kinds: counts[kinds]
