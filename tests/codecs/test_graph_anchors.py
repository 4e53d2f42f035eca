"""Graph anchors: hashes against brute-force searches, strategies, new nodes, health, embeddings, files, bad input."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.codecs.vq.graph.anchors import NOTHING, PAD, GraphAnchorTokenizer
from tokenry.codecs.vq.graph.distance import adjacency, pagerank, place_in_group, random_keys
from tokenry.codecs.vq.graph.embedding import ENCODERS, NodeHashEmbedding
from tokenry.core.seeding import seeded

FAST = settings(max_examples=25, deadline=None)


@st.composite
def graphs(draw):
    """(edges [E,3], nodes, relations), sparse enough to have parts that do not meet; loops and repeats allowed."""
    nodes, relations = draw(st.integers(2, 14)), draw(st.integers(1, 4))
    triple = st.tuples(st.integers(0, nodes - 1), st.integers(0, relations - 1), st.integers(0, nodes - 1))
    rows = draw(st.lists(triple, max_size=22))
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 3), nodes, relations


def walk(edges, nodes, start):
    """Distances from `start` by a queue over a dictionary of neighbours."""
    near = {v: set() for v in range(nodes)}
    for head, _, tail in edges.tolist():
        near[head].add(tail)
        near[tail].add(head)
    found, queue = {start: 0}, deque([start])
    while queue:
        v = queue.popleft()
        for w in near[v] - found.keys():
            found[w] = found[v] + 1
            queue.append(w)
    return found


def expected_hashes(edges, nodes, anchors, k, longest=None):
    reach = [walk(edges, nodes, a) for a in anchors]
    rows = []
    for v in range(nodes):
        near = sorted((r[v], i) for i, r in enumerate(reach) if v in r and (longest is None or r[v] <= longest))[:k]
        rows.append((near + [(-1, -1)] * k)[:k])
    return [[i for _, i in row] for row in rows], [[d for d, _ in row] for row in rows]


PATH = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 0, 3], [3, 2, 4]])  # 0 - 1 - 2 - 3 - 4, and 5 alone


# hashes -------------------------------------------------------------------------------------------------------------


@FAST
@given(graph=graphs(), data=st.data())
def test_hashes_are_those_of_a_search_from_every_anchor(graph, data):
    edges, nodes, relations = graph
    anchors = data.draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=6, unique=True))
    k = data.draw(st.integers(1, len(anchors)))
    longest = data.draw(st.sampled_from([None, 0, 1, 2]))
    tokenizer = GraphAnchorTokenizer(edges, nodes, relations, anchors=anchors, nearest=k, relations=2, max_distance=longest)
    ranks, distances = expected_hashes(edges, nodes, anchors, k, longest)
    assert tokenizer.encode().anchors.tolist() == ranks
    assert tokenizer.encode().distances.tolist() == distances
    for rank, node in enumerate(anchors):  # an anchor is its own nearest
        assert tokenizer.encode(torch.tensor(node)).anchors[0] == rank
    assert int(tokenizer.encode().distances.max()) < tokenizer.num_distances


@FAST
@given(graph=graphs(), data=st.data())
def test_random_anchors_are_within_reach_at_true_distances(graph, data):
    edges, nodes, relations = graph
    anchors = data.draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=6, unique=True))
    k = data.draw(st.integers(1, len(anchors)))
    tokenizer = GraphAnchorTokenizer(
        edges, nodes, relations, anchors=anchors, nearest=k, relations=1, anchor_choice="random", seed=3
    )
    reach = [walk(edges, nodes, a) for a in anchors]
    for v, (ranks, distances) in enumerate(zip(*(part.tolist() for part in tokenizer.encode()[:2]), strict=True)):
        held = [(d, r) for r, d in zip(ranks, distances, strict=True) if r >= 0]
        assert len(held) == min(k, sum(v in r for r in reach))
        assert held == sorted(set(held))
        assert all(reach[r][v] == d for d, r in held)


@FAST
@given(graph=graphs(), m=st.integers(0, 5), inverse=st.booleans(), choice=st.sampled_from(["sorted", "sampled"]))
def test_relations_are_the_distinct_ones_of_a_node(graph, m, inverse, choice):
    edges, nodes, relations = graph
    tokenizer = GraphAnchorTokenizer(
        edges, nodes, relations, anchors=1, nearest=1, relations=m, inverse_relations=inverse, relation_choice=choice
    )
    for v, row in enumerate(tokenizer.encode().relations.tolist()):
        mine = {r for h, r, _ in edges.tolist() if h == v}
        mine |= {r + relations * inverse for _, r, t in edges.tolist() if t == v}
        held = [r for r in row if r >= 0]
        assert len(row) == m
        assert held == sorted(set(held))
        assert len(held) == min(m, len(mine))
        assert set(held) <= mine
        if choice == "sorted":
            assert held == sorted(mine)[:m]


@FAST
@given(graph=graphs(), data=st.data())
def test_a_new_node_gets_the_hash_of_the_graph_that_has_it(graph, data):
    edges, nodes, relations = graph
    anchors = data.draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=6, unique=True))
    k = data.draw(st.integers(1, len(anchors)))
    longest = data.draw(st.sampled_from([None, 1, 2]))
    known = data.draw(st.lists(st.tuples(st.integers(0, nodes), st.integers(0, relations - 1)), max_size=4))
    rows = [[nodes, r, v] if i % 2 else [v, r, nodes] for i, (v, r) in enumerate(known)]  # in and out, and loops
    new = torch.tensor(rows, dtype=torch.long).reshape(-1, 3)
    options = {"anchors": anchors, "nearest": k, "relations": 3, "max_distance": longest, "inverse_relations": True}
    short = GraphAnchorTokenizer(edges, nodes, relations, **options)
    grown = GraphAnchorTokenizer(torch.cat([edges, new]), nodes + 1, relations, **options)
    expected, found = grown.encode(torch.tensor([nodes])), short.encode_new(new)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert int(short.to_ids(found).max()) < short.vocab_size


def test_several_new_nodes_are_independent():
    tokenizer = GraphAnchorTokenizer(PATH, 6, 3, anchors=[0, 4], nearest=2, relations=2)
    both = tokenizer.encode_new(torch.tensor([[6, 1, 0], [7, 2, 3], [5, 0, 7]]), count=3)
    one = tokenizer.encode_new(torch.tensor([[6, 2, 3], [5, 0, 6]]))
    assert both.anchors.tolist() == [[0, 1], [1, 0], [-1, -1]]
    assert both.distances.tolist() == [[1, 5], [2, 4], [-1, -1]]
    assert both.relations.tolist() == [[1, -1], [0, 2], [-1, -1]]
    assert torch.equal(both.anchors[1], one.anchors[0])


def test_hashes_by_hand():
    tokenizer = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=2, relations=2)
    anchors, distances, relations = tokenizer.encode()
    assert anchors.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [-1, -1]]  # node 2: a tie, lower rank first
    assert distances.tolist() == [[1, 3], [0, 2], [1, 1], [0, 2], [1, 3], [-1, -1]]
    assert relations.tolist() == [[0, -1], [0, 1], [0, 1], [0, 2], [2, -1], [-1, -1]]
    ids = tokenizer.to_ids(tokenizer.encode())
    assert tokenizer.vocab_size == 2 + 2 + 3 + 5  # distances 0 to 4: a new node may be at 4
    assert ids[0].tolist() == [3, 2, 8, 10, 4, PAD]
    assert ids[5].tolist() == [NOTHING] * 4 + [PAD] * 2
    for a, b in zip(tokenizer.from_ids(ids), tokenizer.encode(), strict=True):
        assert torch.equal(a, b)
    assert tokenizer(torch.tensor([[0, 1], [2, 5]])).anchors.shape == (2, 2, 2)


def test_three_columns_and_repeated_edges_are_the_same_graph():
    options = {"anchors": 2, "nearest": 2, "relations": 2, "strategy": {"degree": 1.0}}
    table = GraphAnchorTokenizer(PATH.repeat(3, 1), 6, 3, **options)
    columns = GraphAnchorTokenizer(tuple(PATH.T), 6, 3, **options)
    assert torch.equal(table.hash_anchors, columns.hash_anchors)
    assert torch.equal(table.anchor_nodes, torch.tensor([1, 2]))  # equal degrees: the lower id


# anchors ------------------------------------------------------------------------------------------------------------


@FAST
@given(graph=graphs(), data=st.data())
def test_anchors_are_distinct_and_as_many_as_asked(graph, data):
    edges, nodes, relations = graph
    count, seed = data.draw(st.integers(1, nodes)), data.draw(st.integers(0, 5))
    strategy = {"degree": 0.5, "pagerank": 0.25, "random": 0.25}
    options = {"anchors": count, "nearest": 1, "relations": 1, "strategy": strategy, "seed": seed}
    tokenizer = GraphAnchorTokenizer(edges, nodes, relations, **options)
    assert tokenizer.num_anchors == count == len(tokenizer.anchor_nodes.unique())
    again = GraphAnchorTokenizer(edges, nodes, relations, **options)
    assert torch.equal(tokenizer.anchor_nodes, again.anchor_nodes)


def test_degree_and_pagerank_put_hubs_first():
    star = torch.tensor([[0, 0, i] for i in range(1, 6)] + [[6, 0, 7], [6, 0, 8], [6, 0, 9]])
    for strategy in ({"degree": 1.0}, {"pagerank": 1.0}):
        tokenizer = GraphAnchorTokenizer(star, 10, 1, anchors=2, nearest=1, relations=1, strategy=strategy)
        assert tokenizer.anchor_nodes.tolist() == [0, 6]


def test_pagerank_agrees_with_networkx():
    networkx = pytest.importorskip("networkx")
    graph = networkx.barabasi_albert_graph(60, 2, seed=1)
    graph.add_node(60)
    heads, tails = torch.tensor(list(graph.edges)).T
    expected = networkx.pagerank(graph, alpha=0.85, tol=1e-12, max_iter=500)
    found = pagerank(adjacency(heads, tails, 61))
    assert torch.allclose(found, torch.tensor([expected[v] for v in range(61)], dtype=torch.float64), atol=1e-8)
    assert abs(float(found.sum()) - 1) < 1e-9


# random hashes and health ----------------------------------------------------------------------------------------------


def test_random_hashes_do_not_look_at_the_graph():
    options = {"anchors": 10, "nearest": 3, "relations": 2, "variant": "random"}
    graph = torch.randint(0, 5, (400, 3), generator=torch.Generator().manual_seed(0)) * torch.tensor([10, 1, 10])
    first = GraphAnchorTokenizer(graph, 50, 5, strategy={"random": 1.0}, **options)
    second = GraphAnchorTokenizer(PATH, 50, 5, strategy={"random": 1.0}, **options)
    assert torch.equal(first.hash_anchors, second.hash_anchors)
    assert torch.equal(first.hash_relations, second.hash_relations)
    assert first.num_distances == 1
    assert bool((first.hash_anchors.diff(dim=1) > 0).all())
    other = GraphAnchorTokenizer(PATH, 50, 5, seed=1, strategy={"random": 1.0}, **options)
    assert not torch.equal(first.hash_anchors, other.hash_anchors)
    new = first.encode_new(torch.tensor([[50, 0, 1]]))
    assert new.anchors.shape == (1, 3)
    assert not torch.equal(new.anchors[0], first.encode_new(torch.tensor([[51, 0, 1]]), count=2).anchors[1])


def test_random_keys_are_spread_and_reproducible():
    keys = random_keys(2**70, torch.arange(300)[:, None], torch.arange(100)[None])
    assert bool((keys >= 0).all())
    assert len(keys.unique()) == 30_000
    assert torch.equal(keys[7:9], random_keys(2**70, torch.arange(7, 9)[:, None], torch.arange(100)[None]))
    first = torch.bincount(keys.argmin(dim=1), minlength=100)
    assert int(first.max()) < 15  # 300 draws over 100 columns


def test_health():
    same = GraphAnchorTokenizer(PATH, 6, 3, anchors=[5], nearest=1, relations=0).health()
    assert same.distinct == 2 / 6
    assert same.anchor_usage == 1.0
    assert same.anchor_perplexity == pytest.approx(1.0)
    spread = GraphAnchorTokenizer(PATH, 6, 3, anchors=list(range(6)), nearest=1, relations=0).health()
    assert spread.distinct == 1.0
    assert spread.normalised_entropy == pytest.approx(1.0)
    assert spread.anchor_perplexity == pytest.approx(6.0)
    assert spread.jaccard == pytest.approx(1.0)
    assert 0.0 <= same.jaccard < spread.jaccard
    lonely = GraphAnchorTokenizer(torch.zeros(0, 3, dtype=torch.long), 1, 1, anchors=1, nearest=1, relations=1).health()
    assert (lonely.entropy, lonely.normalised_entropy, lonely.jaccard) == (0.0, 1.0, 0.0)


def test_place_in_group():
    assert place_in_group(torch.tensor([0, 0, 2, 2, 2, 5])).tolist() == [0, 1, 0, 1, 2, 0]
    assert place_in_group(torch.tensor([], dtype=torch.long)).tolist() == []


# vectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@seeded(0)
def test_vectors_depend_on_hashes_alone(encoder):
    tokenizer = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=2, relations=2)
    embed = NodeHashEmbedding(tokenizer, 8, encoder=encoder).eval()
    hashes = tokenizer.encode(torch.tensor([[0, 5], [2, 0]]))
    vectors = embed(hashes)
    assert vectors.shape == (2, 2, 8)
    assert torch.allclose(vectors[0, 0], vectors[1, 1], atol=1e-6)
    assert not torch.allclose(vectors[0, 0], vectors[0, 1])
    vectors.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in embed.parameters())
    assert embed.relation.weight.grad is not None
    assert not embed.relation.weight.grad[-1].any()  # PAD is never trained


@pytest.mark.parametrize("encoder", ["deepsets", "transformer"])
@seeded(0)
def test_more_padding_changes_nothing(encoder):
    narrow = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=2, relations=3)
    wide = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=2, relations=9)
    embed = NodeHashEmbedding(narrow, 8, encoder=encoder).eval()
    other = NodeHashEmbedding(wide, 8, encoder=encoder).eval()
    other.load_state_dict(embed.state_dict())
    assert torch.allclose(embed(narrow.encode()), other(wide.encode()), atol=1e-6)


def test_embedding_refuses_other_hashes():
    tokenizer = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=2, relations=2)
    other = GraphAnchorTokenizer(PATH, 6, 3, anchors=[3, 1], nearest=1, relations=2)
    with pytest.raises(ValueError, match="hashes must hold 2 anchors"):
        NodeHashEmbedding(tokenizer, 8)(other.encode())
    with pytest.raises(ValueError, match="encoder must be one of"):
        NodeHashEmbedding(tokenizer, 8, encoder="sum")
    with pytest.raises(ValueError, match="heads must divide dim=6"):
        NodeHashEmbedding(tokenizer, 6, encoder="transformer")


# files and bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["nodepiece", "random"])
def test_saved_and_read(tmp_path, variant):
    tokenizer = GraphAnchorTokenizer(PATH, 6, 3, anchors=3, nearest=2, relations=2, variant=variant, inverse_relations=True)
    tokenizer.save_pretrained(tmp_path)
    again = GraphAnchorTokenizer.from_pretrained(tmp_path)
    assert repr(again) == repr(tokenizer)
    new = torch.tensor([[6, 1, 4]])
    for ours, theirs in ((tokenizer.encode(), again.encode()), (tokenizer.encode_new(new), again.encode_new(new))):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe"):
        GraphAnchorTokenizer.from_pretrained(tmp_path)


GOOD = {"edges": PATH, "num_nodes": 6, "num_relations": 3, "anchors": 2, "nearest": 1, "relations": 1}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"num_nodes": 4}, ValueError, r"edges: tails must be in \[0, 3\], got 4"),
        ({"num_relations": 2}, ValueError, r"edges: relations must be in \[0, 1\], got 2"),
        ({"edges": PATH.float()}, TypeError, "integer tensor"),
        ({"edges": PATH[:, :2]}, ValueError, r"shape \[E, 3\]"),
        ({"edges": (PATH[:, 0], PATH[:, 1], PATH[:2, 2])}, ValueError, "three columns of one length"),
        ({"edges": PATH - 1}, ValueError, "got -1"),
        ({"edges": [[0, 0, 1]]}, TypeError, "torch.Tensor"),
        ({"anchors": 7}, ValueError, "anchors must be in"),
        ({"anchors": 0}, ValueError, "anchors must be"),
        ({"anchors": True}, TypeError, "integer tensor"),
        ({"anchors": [1, 1]}, ValueError, "distinct node ids"),
        ({"anchors": [1, 9]}, ValueError, r"anchors must be in \[0, 5\], got 9"),
        ({"anchors": [1, 2], "strategy": {"degree": 1.0}}, ValueError, "strategy must be None"),
        ({"nearest": 3}, ValueError, "nearest must be <= the number of anchors, 2"),
        ({"nearest": 0}, ValueError, "nearest must be"),
        ({"relations": -1}, ValueError, "relations must be"),
        ({"strategy": {"degree": 0.5}}, ValueError, "strategy must sum to 1, got 0.5"),
        ({"strategy": {"degree": 0.5, "betweenness": 0.5}}, ValueError, "got 'betweenness'"),
        ({"strategy": {"degree": 1.5, "random": -0.5}}, ValueError, r"strategy\['degree'\]"),
        ({"anchor_choice": "best"}, ValueError, "anchor_choice must be one of"),
        ({"variant": "earl"}, ValueError, "variant must be one of"),
        ({"max_distance": -1}, ValueError, "max_distance"),
    ],
)
def test_bad_construction(change, error, match):
    with pytest.raises(error, match=match):
        GraphAnchorTokenizer(**(GOOD | change))


def test_bad_calls():
    tokenizer = GraphAnchorTokenizer(**GOOD)
    with pytest.raises(ValueError, match=r"nodes must be in \[0, 5\], got 6"):
        tokenizer.encode(torch.tensor([6]))
    with pytest.raises(TypeError, match="nodes must be an integer tensor"):
        tokenizer.encode(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="join one new node"):
        tokenizer.encode_new(torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="join one new node"):
        tokenizer.encode_new(torch.tensor([[6, 1, 7]]), count=2)
    with pytest.raises(ValueError, match="got 7"):
        tokenizer.encode_new(torch.tensor([[7, 1, 2]]))
    with pytest.raises(ValueError, match="ids must have 3"):
        tokenizer.from_ids(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="ids must be in"):
        tokenizer.from_ids(torch.full((2, 3), 99))
