"""A real knowledge graph for link prediction: films of MovieLens-100K, their people, genres, awards and countries."""

from __future__ import annotations

from collections import Counter

import torch

from tokenry.core.checks import check_int, check_range
from tokenry.lab.assets.folders import fetch
from tokenry.lab.beds.graphs.knowledge_graph import KnowledgeGraph

Triple = tuple[str, str, str]
_TWIN = 0.9


def film_graph(core: int = 5, *, held_out: float = 0.05, seed: int = 0, offline: bool | None = None) -> KnowledgeGraph:
    """Triples among nodes with at least `core` edges, `held_out` of them for the test; relations in alphabetical order.

    A relation whose triples are another one's turned round is left out: with it, a held-out link would stand in the training
    triples the other way.

    Raises:
        AssetMissingError: MovieLens-100K is not here.
    """
    check_int("core", core, 1)
    check_range("held_out", held_out, 0.0, 0.5, low_open=True)
    path = next(fetch("movielens", offline=offline).glob("**/ml-100k.kg"))
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    kept = core_of(without_twins({(head, relation, tail) for head, relation, tail in lines}), core)
    nodes = {name: i for i, name in enumerate(sorted({end for head, _, tail in kept for end in (head, tail)}))}
    kinds = {name: i for i, name in enumerate(sorted({relation for _, relation, _ in kept}))}
    triples = torch.tensor(sorted((nodes[h], kinds[r], nodes[t]) for h, r, t in kept))
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))
    cut = round(held_out * len(triples))
    train, test = triples[order[cut:]], triples[order[:cut]]
    seen = torch.bincount(train[:, [0, 2]].flatten(), minlength=len(nodes)) > 0
    both = seen[test[:, 0]] & seen[test[:, 2]]  # a node without a training edge cannot be asked for
    return KnowledgeGraph(torch.cat([train, test[~both]]), test[both], len(nodes), len(kinds))


def without_twins(triples: set[Triple]) -> set[Triple]:
    """The triples without relations that repeat an earlier one (in alphabetical order) with head and tail exchanged."""
    pairs: dict[str, set[tuple[str, str]]] = {}
    for head, relation, tail in triples:
        pairs.setdefault(relation, set()).add((head, tail))
    kept: list[str] = []
    for relation in sorted(pairs):
        turned = {(tail, head) for head, tail in pairs[relation]}
        if not any(len(turned & pairs[other]) >= _TWIN * len(turned) for other in kept):
            kept.append(relation)
    return {triple for triple in triples if triple[1] in kept}


def core_of(triples: set[Triple], core: int) -> set[Triple]:
    """The largest set of triples in which every node has at least `core` of them."""
    while True:
        degree = Counter(end for head, _, tail in triples for end in (head, tail))
        fewer = {triple for triple in triples if degree[triple[0]] >= core and degree[triple[2]] >= core}
        if len(fewer) == len(triples):
            return triples
        triples = fewer
