"""Method names of the comparison and what they build."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenry.lazy import suggest
from tokenry.pruning.baselines import SELECTORS, Compose, DivPrune, FastV, NoPruning, RandomPruner, TopK, UniformGrid
from tokenry.pruning.idpruner import IDPruner
from tokenry.pruning.importance import SOURCES
from tokenry.pruning.todre import ToDRE
from tokenry.pruning.visual import VisualPruner
from tokenry.pruning.zooprune import ZOOPrune

VISUAL: dict[str, Callable[[float, int], VisualPruner]] = {
    "none": lambda keep, seed: NoPruning(),
    "random": lambda keep, seed: RandomPruner(keep, seed=seed),
    "uniform": lambda keep, seed: UniformGrid(keep),
    "topk": lambda keep, seed: TopK(keep),
    "divprune": lambda keep, seed: DivPrune(keep),
    "fastv": lambda keep, seed: FastV(keep),
    "idpruner": lambda keep, seed: IDPruner(keep),
    "zooprune": lambda keep, seed: ZOOPrune(keep, method="exact", seed=seed),
    "todre": lambda keep, seed: ToDRE(keep, seed=seed),
}


def visual_method(name: str, keep: float, seed: int) -> VisualPruner:
    """The pruner of that name, or the composition ``SOURCE+SELECTOR``.

    Raises:
        ValueError: unknown name; the message holds the nearest ones and what can be composed.
    """
    if name in VISUAL:
        return VISUAL[name](keep, seed)
    if "+" in name:
        return Compose.named(name, keep)
    raise ValueError(
        f"there is no method {name!r}{suggest(name, VISUAL)}; methods: {', '.join(VISUAL)}, or SOURCE+SELECTOR with "
        f"sources {', '.join(SOURCES)} and selectors {', '.join(SELECTORS)}"
    )


def kv_methods() -> dict[str, Callable[[float], Any]]:
    """KV-cache methods by name; the argument is the share of the prompt that is kept."""
    from tokenry.pruning.d2o import D2O
    from tokenry.pruning.kv_baselines import H2O, FullCache, SnapKV, StreamingLLM

    return {
        "full": lambda keep: FullCache(),
        "streaming": lambda keep: StreamingLLM(budget=keep),
        "h2o": lambda keep: H2O(budget=keep),
        "snapkv": lambda keep: SnapKV(budget=keep),
        "d2o": lambda keep: D2O(budget=keep),
    }


def kv_method(name: str, keep: float) -> Any:
    """The KV-cache method of that name.

    Raises:
        ValueError: unknown name.
    """
    known = kv_methods()
    if name not in known:
        raise ValueError(f"there is no KV-cache method {name!r}{suggest(name, known)}; methods: {', '.join(known)}")
    return known[name](keep)
