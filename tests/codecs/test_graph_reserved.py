"""Reserved nodes: counts by hand, likeness against a dense computation, parameters, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.codecs.vq.graph.reserved import ReservedNodeEmbedding, connected_relations
from tokenry.core.seeding import seeded

EDGES = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 1, 3], [1, 0, 2], [4, 1, 4]])


def dense(edges, nodes, relations):
    counts = torch.zeros(nodes, 2 * relations)
    for h, r, t in edges.unique(dim=0).tolist():
        counts[h, r] += 1
        counts[t, relations + r] += 1
    return counts


def test_counts_by_hand():
    owners, relations, counts = connected_relations(EDGES.repeat(2, 1), 6, 2)
    assert list(zip(owners.tolist(), relations.tolist(), counts.tolist(), strict=True)) == [
        (0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 2, 1), (2, 2, 2), (3, 3, 1), (4, 1, 1), (4, 3, 1),
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), nodes=st.integers(3, 20), relations=st.integers(1, 4))
def test_reserved_nodes_are_the_most_alike(seed, nodes, relations):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, 10**6, (30, 3), generator=generator) % torch.tensor([nodes, relations, nodes])
    k = min(3, max(1, nodes // 2))
    embed = ReservedNodeEmbedding(edges, nodes, relations, 4, reserved=max(k, nodes // 2), nearest=k, seed=seed)
    rows = torch.nn.functional.normalize((1 + dense(edges, nodes, relations)).log(), dim=1)
    cosine = rows @ rows[embed.reserved].T
    best = cosine.topk(k, dim=1).values
    for v in range(nodes):
        assert embed.weights[v].sum() == pytest.approx(1.0, abs=1e-5)
        if v in embed.reserved:
            assert embed.reserved[embed.near[v]].tolist() == [v] * k
        else:
            assert torch.allclose(cosine[v, embed.near[v]], best[v], atol=1e-5)


@seeded(0)
def test_vectors_depend_on_relations_and_reserved_nodes_alone():
    embed = ReservedNodeEmbedding(EDGES, 6, 2, 8, reserved=torch.tensor([0, 2]), nearest=2)
    every = embed()
    assert every.shape == (6, 8)
    assert torch.allclose(embed(torch.tensor([[3, 1], [5, 5]])), every[torch.tensor([[3, 1], [5, 5]])], atol=1e-6)
    assert torch.isfinite(every).all()  # node 5 has no edge
    every.sum().backward()
    assert all(p.grad is not None for p in embed.parameters())
    again = ReservedNodeEmbedding(EDGES, 6, 2, 8, reserved=torch.tensor([0, 2]), nearest=2)
    again.load_state_dict(embed.state_dict())
    assert torch.equal(again(), embed())
    grown = ReservedNodeEmbedding(EDGES, 600, 2, 8, reserved=2, nearest=2)
    assert sum(p.numel() for p in grown.parameters()) == sum(p.numel() for p in embed.parameters())
    assert len(ReservedNodeEmbedding(EDGES, 600, 2, 8).reserved) == 60


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reserved": 7}, "reserved must be in"),
        ({"reserved": torch.tensor([1, 1])}, "distinct node ids"),
        ({"reserved": torch.tensor([9])}, "reserved must be in"),
        ({"reserved": 2, "nearest": 3}, "nearest must be in"),
        ({"reserved": 2, "nearest": 1, "temperature": 0.0}, "temperature must be"),
    ],
)
def test_bad_input(options, match):
    with pytest.raises(ValueError, match=match):
        ReservedNodeEmbedding(EDGES, 6, 2, 8, **options)
    with pytest.raises(ValueError, match="nodes must be in"):
        ReservedNodeEmbedding(EDGES, 6, 2, 8, reserved=2, nearest=1)(torch.tensor([6]))
