"""What compare offers: baselines, and the systems whose rows take part."""

import pytest

from tokenry.catalog import System, system
from tokenry.cli import run
from tokenry.lab.compare.methods import default_methods, kv_method, quick_methods, visual_method
from tokenry.pruning import D2O, H2O, FullCache, IDPruner, NoPruning, RandomPruner, ToDRE, ZOOPrune


def test_names_come_from_the_catalogue():
    assert default_methods("vlm") == ("none", "random", "uniform", "topk", "divprune", "fastv", "idpruner", "zooprune", "todre")
    assert default_methods("cache") == ("full", "streaming", "h2o", "snapkv", "d2o")
    assert quick_methods() == ("none", "random", "idpruner", "zooprune", "todre")


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (visual_method("none", 0.25, 3), NoPruning()), (visual_method("random", 0.25, 3), RandomPruner(0.25, seed=3)),
        (visual_method("idpruner", 0.25, 3), IDPruner(0.25)), (visual_method("todre", 0.25, 3), ToDRE(0.25, seed=3)),
        (visual_method("zooprune", 0.25, 3), ZOOPrune(0.25, method="exact", seed=3)),
        (kv_method("full", 0.25), FullCache()), (kv_method("h2o", 0.25), H2O(budget=0.25)), (kv_method("d2o", 0.25), D2O(budget=0.25)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_method_is_built_at_its_budget(made, wanted):
    assert made == wanted


@pytest.mark.parametrize(
    ("words", "limit", "batch", "keeps", "methods"),
    [
        ([], 48, 8, (0.25, 0.1), quick_methods()), (["--all"], 200, 16, (0.5, 0.25, 0.1), None),
        (["--model", "m", "--data", "d"], 200, 16, (0.5, 0.25, 0.1), None), (["--limit", "9", "--methods", "topk"], 9, 8, (0.25, 0.1), ("topk",)),
    ],
)  # fmt: skip
def test_the_default_is_a_quick_look(monkeypatch, capsys, words, limit, batch, keeps, methods):
    seen = []

    def compared(settings, out, progress, *, fresh):
        assert not fresh
        seen.append(settings)
        return {"model": "m", "data": "d", "quality": "accuracy", "items": 1, "rows": []}

    monkeypatch.setattr("tokenry.lab.compare.compare_pruning", compared)
    assert run(["compare", "pruning", *words]) == 0
    (settings,) = seen
    assert (settings.limit, settings.batch, settings.keeps, settings.methods) == (limit, batch, keeps, methods)
    assert ("a quick look" in capsys.readouterr().out) == (words != ["--all"] and "--model" not in words)


def test_rows_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="wing of x must be one of"):
        System("x", "", "", "prunning", "")
    with pytest.raises(ValueError, match="compare of x must be one of vlm, cache"):
        System("x", "", "", "pruning", "", ("X",), compare="vision")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="for a system that exports something"):
        System("x", "", "", "pruning", "", compare="vlm")
    with pytest.raises(ValueError, match="seed is planned: it has no claim"):
        system("seed").load_claim()
    assert System("x", "", "", "text", "", ("X",)).entry == "tokenry.text.x.X"
