"""Method names of the comparison and what they build: baselines by name, and every system whose row takes part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenry.catalog import Comparison, systems
from tokenry.lazy import suggest
from tokenry.pruning.baselines import SELECTORS, Compose, DivPrune, FastV, NoPruning, RandomPruner, TopK, UniformGrid
from tokenry.pruning.importance import SOURCES
from tokenry.pruning.kv_baselines import H2O, FullCache, SnapKV, StreamingLLM
from tokenry.pruning.visual import VisualPruner

AtBudget = Callable[[float, int], Any]
_BASELINES: dict[Comparison, dict[str, AtBudget]] = {
    "vlm": {
        "none": NoPruning.at_budget,
        "random": RandomPruner.at_budget,
        "uniform": UniformGrid.at_budget,
        "topk": TopK.at_budget,
        "divprune": DivPrune.at_budget,
        "fastv": FastV.at_budget,
    },
    "cache": {
        "full": FullCache.at_budget,
        "streaming": StreamingLLM.at_budget,
        "h2o": H2O.at_budget,
        "snapkv": SnapKV.at_budget,
    },
}


def methods_of(kind: Comparison) -> dict[str, AtBudget]:
    """Methods of a comparison by name, baselines first; the arguments are the budget and the seed.

    A system is imported when it is built, not when it is listed.
    """
    rows = {row.slug: row for row in systems() if row.compare == kind}
    return _BASELINES[kind] | {slug: lambda keep, seed, row=row: row.load().at_budget(keep, seed) for slug, row in rows.items()}


def default_methods(kind: Comparison) -> tuple[str, ...]:
    """What is compared when nothing else is asked for: every method, in catalogue order."""
    return tuple(methods_of(kind))


def quick_methods() -> tuple[str, ...]:
    """What a first look at visual pruners compares: the reference, chance, and the systems."""
    return ("none", "random", *(row.slug for row in systems() if row.compare == "vlm" and row.status == "built"))


def visual_method(name: str, keep: float, seed: int) -> VisualPruner:
    """The pruner of that name, or the composition ``SOURCE+SELECTOR``.

    Raises:
        ValueError: unknown name; the message holds the nearest ones and what can be composed.
    """
    known = methods_of("vlm")
    if name in known:
        return known[name](keep, seed)
    if "+" in name:
        return Compose.named(name, keep)
    raise ValueError(
        f"there is no method {name!r}{suggest(name, known)}; methods: {', '.join(known)}, or SOURCE+SELECTOR with "
        f"sources {', '.join(SOURCES)} and selectors {', '.join(SELECTORS)}"
    )


def kv_method(name: str, keep: float) -> Any:
    """The KV-cache method of that name.

    Raises:
        ValueError: unknown name.
    """
    known = methods_of("cache")
    if name not in known:
        raise ValueError(f"there is no KV-cache method {name!r}{suggest(name, known)}; methods: {', '.join(known)}")
    return known[name](keep, 0)
