"""Link prediction on a real knowledge graph: a vector per node against hashes of anchors, reserved nodes, random hashes.

Films of MovieLens-100K, their people, genres and awards (10-core, without relations that repeat another one backwards).
DistMult; learning rate and drop-out are each arm's best of three on another split (seed 100), those of reserved nodes are the
anchors'. Reported: filtered mean reciprocal rank with the interval of three splits' test links, parameters of the node
vectors, training time.

    python benchmarks/node_hashes.py [--quick] [--tune] [--epochs 30]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from results_file import environment, write
from tokenry.codecs import GraphAnchorTokenizer
from tokenry.codecs.vq import NodeHashEmbedding, ReservedNodeEmbedding
from tokenry.lab.beds.graphs.film_graph import film_graph
from tokenry.lab.beds.graphs.knowledge_graph import (
    HashedNodes,
    KnowledgeGraph,
    NodeTable,
    popularity,
    reciprocal_ranks,
    train_distmult,
)
from tokenry.lab.evidence.claim import bootstrap_difference

DIM, CORE, ANCHORS = 64, 10, 140
RATES = {"vector per node": (0.03, 0.5), "anchors": (0.03, 0.3), "random hashes": (0.03, 0.3), "reserved nodes": (0.03, 0.3)}


def hashed(graph: KnowledgeGraph, variant: str, seed: int) -> nn.Module:
    tokenizer = GraphAnchorTokenizer(
        graph.train, graph.num_nodes, graph.num_relations, anchors=ANCHORS, nearest=8, relations=6, inverse_relations=True,
        variant=variant, seed=seed,
    )  # fmt: skip
    nodes = HashedNodes(tokenizer, DIM)
    nodes.embed = NodeHashEmbedding(tokenizer, DIM, hidden=32)
    return nodes


def arms(graph: KnowledgeGraph, seed: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "vector per node": lambda: NodeTable(graph.num_nodes, DIM),
        "anchors": lambda: hashed(graph, "nodepiece", seed),
        "random hashes": lambda: hashed(graph, "random", seed),
        "reserved nodes": lambda: ReservedNodeEmbedding(
            graph.train, graph.num_nodes, graph.num_relations, DIM, reserved=ANCHORS, seed=seed
        ),
    }


def train(graph: KnowledgeGraph, make: Callable[[], nn.Module], rate: float, dropout: float, seed: int, epochs: int) -> Any:
    torch.manual_seed(seed)
    return train_distmult(
        graph, make(), dim=DIM, epochs=epochs, batch=1024, learning_rate=rate, dropout=dropout, weight_decay=0.01, seed=seed
    )


def tune(epochs: int) -> None:
    graph = film_graph(CORE, seed=100)
    for name, make in arms(graph, 100).items():
        table = name == "vector per node"
        for rate, dropout in ((0.03, 0.5), (0.1, 0.5), (0.1, 0.8)) if table else ((0.01, 0.3), (0.03, 0.3), (0.03, 0.5)):
            model = train(graph, make, rate, dropout, 100, epochs)
            print(name, rate, dropout, f"{float(reciprocal_ranks(model, graph).mean()):.4f}", flush=True)


def measure(seeds: int, epochs: int) -> list[dict[str, Any]]:
    ranks: dict[str, list[list[float]]] = {"popularity": []}
    cost: dict[str, dict[str, float]] = {"popularity": {"parameters": 0, "train s": 0.0}}
    for seed in range(seeds):
        graph = film_graph(CORE, seed=seed)
        ranks["popularity"].append(reciprocal_ranks(popularity(graph), graph).tolist())
        for name, make in arms(graph, seed).items():
            started = time.perf_counter()
            model = train(graph, make, *RATES[name], seed, epochs)
            cost[name] = {"parameters": model.node_parameters(), "train s": time.perf_counter() - started}
            ranks.setdefault(name, []).append(reciprocal_ranks(model, graph).tolist())
            print(seed, name, cost[name], sum(ranks[name][-1]) / len(ranks[name][-1]), flush=True)
    rows = []
    for name, found in ranks.items():
        mean, low, high = bootstrap_difference(found, [[0.0] * len(row) for row in found])
        rows.append({"node vectors": name, **cost[name], "MRR": mean, "low": low, "high": high})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one split, two epochs; writes nothing")
    parser.add_argument("--tune", action="store_true", help="print the search for rates and drop-out")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tune:
        tune(args.epochs)
        return
    rows = measure(1 if args.quick else 3, 2 if args.quick else args.epochs)
    if args.quick:
        return
    setting = (
        "Films of MovieLens-100K: 1,432 nodes, 14 relations, 16,669 training and 877 test links; DistMult, "
        f"d = {DIM}, {args.epochs} epochs, three splits; {ANCHORS} anchors (or reserved nodes), 8 of them and 6 relations in "
        "a hash; one thread. low, high: 95 %."
    )
    print(write("node_hashes", {"setting": setting, "environment": environment("cpu"), "rows": rows}, "cpu"))


if __name__ == "__main__":
    main()
