"""Queries and keys where every family of transformers hands them over: at the attention interface.

What an attention module passes to its attention function is final: projected, normed, rotated, with the cache's earlier keys in
front, together with the factor of the logits, the soft cap and the sinks. Reading there needs no table of families.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, Undo, opaque

_NAME = "tokenry_observed"
_INTERFACE, _EAGER = "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"


@dataclass(frozen=True)
class LogitRule:
    """How one attention layer turns queries and keys into probabilities.

    Attributes:
        scale: factor of the logits.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``.
        sinks: [Hq], a logit per head that takes part in the softmax and belongs to no slot.
    """

    scale: float
    soft_cap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Observed:
    """One call of one attention layer: query [B,Hq,q,d] of the new tokens, key [B,Hkv,T,d] of all slots."""

    query: Tensor
    key: Tensor
    rule: LogitRule


Observer = Callable[[Observed], None]


@dataclass
class _Watch:
    config: Any
    observers: list[Observer]

    @property
    def implementation(self) -> str:
        """The implementation now: it may be set to another one at any time."""
        return str(self.config._attn_implementation)


_watched = 0


def uses_interface(attention: nn.Module) -> bool:
    """Whether the module looks its attention function up, so that `observe` can stand there."""
    code = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    return code is not None and _INTERFACE in code.co_names


def implementation_of(attention: nn.Module) -> str:
    """Name of the attention implementation, observed or not: ``sdpa``, ``eager``, ``flash_attention_2`` ..."""
    watch = getattr(attention.config, _NAME, None)
    return str(attention.config._attn_implementation) if watch is None else watch.implementation  # pyright: ignore


def observe(hooks: Hooks, attention: nn.Module, observer: Observer) -> None:
    """Call `observer` after every run of `attention` (a module for which `uses_interface` holds), until the hooks go."""
    seen_through = opaque(observer)
    hooks.do(lambda: _begin(attention, seen_through))


def _begin(attention: Any, observer: Observer) -> Undo:
    global _watched
    watch: _Watch | None = getattr(attention.config, _NAME, None)
    if watch is None:
        config = attention.config
        watch = _Watch(config, [])
        own = copy(config)  # the model's config stays: masks are made from its implementation
        object.__setattr__(own, "_attn_implementation_internal", _NAME)
        object.__setattr__(own, _NAME, watch)
        attention.config = own
        if _watched == 0:
            AttentionInterface.register(_NAME, opaque(_observed))
        _watched += 1
    watch.observers.append(observer)
    return lambda: _end(attention, watch, observer)


def _end(attention: Any, watch: _Watch, observer: Observer) -> None:
    global _watched
    watch.observers.remove(observer)
    if not watch.observers:
        attention.config = watch.config
        _watched -= 1
        if _watched == 0:
            AttentionInterface._global_mapping.pop(_NAME, None)


def _observed(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    watch: _Watch = getattr(module.config, _NAME)
    names = inspect.unwrap(type(module).forward).__globals__
    attend = names[_INTERFACE].get_interface(watch.implementation, names.get(_EAGER))
    output = attend(module, query, key, value, attention_mask, *args, **kwargs)
    rule = _rule(module, watch.implementation, query, kwargs)
    for observer in tuple(watch.observers):
        observer(Observed(query, key, rule))
    return output


def _rule(module: nn.Module, implementation: str, query: Tensor, given: dict[str, Any]) -> LogitRule:
    if given.get("position_bias") is not None:
        raise UnsupportedModelError(f"{type(module).__name__} adds a position bias to its logits, which is not observed")
    scale, sinks = given.get("scaling"), given.get("s_aux")
    soft_cap = None if implementation == "sdpa" else given.get("softcap")  # transformers' SDPA function leaves the cap out
    return LogitRule(
        query.shape[-1] ** -0.5 if scale is None else float(scale), soft_cap, None if sinks is None else sinks.detach()
    )
