"""The synthetic knowledge graph: reproducible, split without orphans, ranks by hand, node vectors that learn."""

import pytest
import torch

from tests.contracts import random_state_kept
from tokenry.codecs.vq.graph.anchors import GraphAnchorTokenizer
from tokenry.core.seeding import seeded
from tokenry.lab.beds.graphs.knowledge_graph import (
    HashedNodes,
    KnowledgeGraph,
    NodeTable,
    community_graph,
    popularity,
    reciprocal_ranks,
    train_distmult,
)


def test_the_graph_is_reproducible_and_its_split_leaves_no_node_without_edges():
    graph, again, other = (community_graph(80, 6, attach=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(graph.every, again.every)
    assert not torch.equal(graph.every, other.every)
    assert len(graph.every.unique(dim=0)) == len(graph.every) == 3 * 4 // 2 + 76 * 4
    assert len(graph.test) == round(0.1 * len(graph.every))
    assert graph.train[:, [0, 2]].unique().tolist() == list(range(80))
    assert int(graph.every[:, 1].max()) < 6
    degree = torch.bincount(graph.every[:, [0, 2]].flatten(), minlength=80)
    assert int(degree.max()) > 3 * float(degree.float().mean())  # hubs


def test_ranks_are_filtered_and_ties_are_halved():
    train, test = torch.tensor([[0, 0, 1], [0, 0, 2]]), torch.tensor([[0, 0, 3]])
    graph = KnowledgeGraph(train, test, 5, 1)
    scores = torch.tensor([[0.0, 9.0, 8.0, 5.0, 7.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    found = reciprocal_ranks(lambda heads, kinds: scores, graph)
    # tail: 1 and 2 are known, so 4 alone is above; head: all five tie, the middle rank is 3
    assert found.tolist() == pytest.approx([1 / 2, 1 / 3])


def test_table_and_hashes_learn_links():
    graph = community_graph(60, 4, attach=4, seed=0)
    tokenizer = GraphAnchorTokenizer(graph.train, 60, 4, anchors=12, nearest=4, relations=3)
    chance = float(reciprocal_ranks(lambda heads, kinds: torch.zeros(len(heads), 60), graph).mean())
    known = float(reciprocal_ranks(popularity(graph), graph).mean())
    assert known > 1.5 * chance
    steps = []
    for make in (lambda: NodeTable(60, 16), lambda: HashedNodes(tokenizer, 16, hidden=24)):
        with seeded(0):
            nodes = make()
        model = train_distmult(
            graph, nodes, dim=16, epochs=60, batch=128, learning_rate=3e-2, progress=lambda text, done: steps.append(done)
        )
        assert not model.training
        assert float(reciprocal_ranks(model, graph).mean()) > 2 * chance
        again = train_distmult(graph, NodeTable(60, 16), dim=16, epochs=1, batch=128)
        assert again.node_parameters() == 60 * 16
    assert max(steps) == 1.0


def test_training_is_reproducible_and_leaves_the_global_generator_alone():
    graph = community_graph(40, 3, attach=3, seed=0)
    with seeded(0):
        first, second = NodeTable(40, 8), NodeTable(40, 8)
    second.load_state_dict(first.state_dict())
    with random_state_kept():
        a, b = (train_distmult(graph, nodes, dim=8, epochs=2, seed=5) for nodes in (first, second))
    assert torch.equal(a.nodes(), b.nodes())
    assert a.relation.weight.any()


def test_bad_sizes():
    with pytest.raises(ValueError, match="nodes must be >= 20"):
        community_graph(10)
    with pytest.raises(ValueError, match="attach must be in"):
        community_graph(40, attach=20)
    with pytest.raises(ValueError, match="held_out must be in"):
        community_graph(40, attach=3, held_out=0.0)


def test_twins_and_cores():
    from tokenry.lab.beds.graphs.film_graph import core_of, without_twins

    triples = {(f"f{i}", "by", f"p{i % 3}") for i in range(9)} | {(f"p{i % 3}", "made", f"f{i}") for i in range(9)}
    assert without_twins(triples) == {t for t in triples if t[1] == "by"}
    assert without_twins({("a", "x", "b"), ("b", "y", "c")}) == {("a", "x", "b"), ("b", "y", "c")}
    chain = {("a", "r", "b"), ("b", "r", "c"), ("c", "r", "a"), ("c", "r", "d")}
    assert core_of(chain, 2) == chain - {("c", "r", "d")}
    assert core_of(chain, 3) == set()


@pytest.mark.slow
def test_the_film_graph():
    from tokenry.lab.beds.graphs.film_graph import film_graph

    graph = film_graph()
    assert torch.equal(graph.every, film_graph().every)
    known = {tuple(row) for row in graph.train.tolist()}
    assert not known & {tuple(row) for row in graph.test.tolist()}
    turned = {(t, h) for h, _, t in known}
    assert sum((h, t) in turned for h, _, t in graph.test.tolist()) < 0.05 * len(graph.test)
    assert graph.train[:, [0, 2]].unique().tolist() == list(range(graph.num_nodes))
