"""Graph anchors: link prediction with a table of nodes, with hashes of anchors and relations, and with random hashes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tokenry.codecs import GraphAnchorTokenizer
from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded
from tokenry.lab.beds.graphs.knowledge_graph import (
    HashedNodes,
    NodeTable,
    community_graph,
    popularity,
    reciprocal_ranks,
    train_distmult,
)

# learning rate and drop-out: for each kind of node vector the best of those that trained without collapse, on a graph that
# the claim does not use (seed 100)
_TABLE = {"learning_rate": 0.1, "dropout": 0.8, "weight_decay": 0.01}
_HASHED = {"learning_rate": 0.03, "dropout": 0.5, "weight_decay": 0.01}


def measure_links(
    nodes: int, anchors: int, epochs: int, items: int, seed: int, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, float | str]]:
    """Reciprocal rank of `items` held-out links (mean over head and tail) for each kind of node vector."""
    edges = (nodes - 8) * 8 + 28
    graph = community_graph(nodes, 6, attach=8, held_out=items / edges, seed=seed)
    makers: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {"table": (lambda: NodeTable(nodes, 32), _TABLE)}
    facts: dict[str, float | str] = {"links_popularity_mrr": float(reciprocal_ranks(popularity(graph), graph).mean())}
    for variant in ("nodepiece", "random"):
        tokenizer = GraphAnchorTokenizer(
            graph.train, nodes, 6, anchors=anchors, nearest=5, relations=4, inverse_relations=True, variant=variant, seed=seed
        )
        makers[variant] = (lambda t=tokenizer: HashedNodes(t, 32), _HASHED)
        health = tokenizer.health()
        facts |= {f"hash_{variant}_distinct": health.distinct, f"hash_{variant}_jaccard": health.jaccard}
        facts[f"hash_{variant}_normalised_entropy"] = health.normalised_entropy
    arms: dict[str, list[float]] = {}
    for done, (name, (make, options)) in enumerate(makers.items()):
        progress(f"links: {name}", done / len(makers))
        with seeded(seed):
            source = make()
        model = train_distmult(graph, source, dim=32, epochs=epochs, seed=seed, **options)  # type: ignore[arg-type]
        ranks = reciprocal_ranks(model, graph)
        arms[f"links_{name}"] = ranks.view(2, -1).mean(dim=0)[:items].tolist()
        facts[f"links_{name}_parameters"] = float(model.node_parameters())
        facts[f"links_{name}_mrr"] = float(ranks.mean())
    facts["links_table_vectors"], facts["links_anchor_vectors"] = float(nodes), float(anchors)
    return arms, facts
