"""What happens to the cache once a prompt is complete: budgets, eviction, and forks of one observed prompt."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

from tokenry.core.attention import group_heads, last_window_scores
from tokenry.core.precision import outside_autocast
from tokenry.hosts.cache.layer import TrackedLayer
from tokenry.hosts.cache.policy import Budget, CachePolicy, Compressed, Prompt, Signal, Slots


@outside_autocast
def settle(layers: dict[int, TrackedLayer], policy: CachePolicy, total_layers: int) -> Compressed:
    """Settle the budgets of all layers from the scores collected so far, and compress every layer to its own.

    After the prompt, and again after a later turn: a budget that is a share follows the sequence it is a share of.
    """
    first = not next(iter(layers.values())).planned
    for layer in layers.values():
        layer.move_padding_first()
        _window_scores(layer, policy.signal)
    lengths = [layer.lengths for layer in layers.values()]
    held = [_held(layer) for layer in layers.values()]
    if min(min(row) for row in lengths) == 0:
        raise ValueError("attention_mask must mark at least one token in every row while the KV cache is compressed")
    scores, states = [layer.scores for layer in layers.values()], [layer.state for layer in layers.values()]
    prompt = Prompt(list(layers), total_layers, lengths, held, scores, states)
    full = sum(layer.nbytes * layer.fed // max(layer.held, 1) for layer in layers.values())
    kept: dict[int, torch.Tensor] = {}
    offsets = {i: [layer.held - n for n in row] for (i, layer), row in zip(layers.items(), held, strict=True)}
    for (i, layer), budget in zip(layers.items(), policy.budgets(prompt), strict=True):
        layer.planned, layer.budget = True, budget
        if layer.scores is not None:
            layer.scores = None if budget is None else _per_key_head(layer)
        if budget is not None and layer.held > budget.slots:
            kept[i] = evict_layer(layer, policy)
    used = sum(layer.nbytes for layer in layers.values())
    report = {**prompt.facts, "cache_bytes": used, "cache_bytes_full": full}
    report["slots"] = {i: layer.held for i, layer in layers.items()}
    if not first:
        return Compressed({}, {}, {}, {}, report)
    return Compressed(kept, dict(zip(layers, lengths, strict=True)), offsets, {i: layers[i].scores for i in kept}, report)


def _held(layer: TrackedLayer) -> list[int]:
    return [layer.held] * layer.stored[0].shape[0] if layer.real is None else layer.real.sum(dim=1).tolist()


def _per_key_head(layer: TrackedLayer) -> torch.Tensor | None:
    """Scores [B,Hkv,T]; those of a prompt, or of a window, come per query head."""
    scores, kv_heads = layer.scores, layer.stored[0].shape[1]
    return scores if scores is None or scores.shape[1] == kv_heads else group_heads(scores, kv_heads)


def _window_scores(layer: TrackedLayer, signal: Signal) -> None:
    if signal.kind == "window" and layer.tail is not None and layer.rule is not None:
        layer.scores = last_window_scores(
            layer.tail, layer.stored[0], window=signal.window, mask=layer.real, **vars(layer.rule)
        )
    layer.tail = None


@outside_autocast
def evict_layer(layer: TrackedLayer, policy: CachePolicy) -> torch.Tensor:
    """Cut one layer to its budget in place; returns the kept indices [B,H,K]."""
    if layer.budget is None:
        raise RuntimeError("the layer has no budget")
    after, index = policy.evict(Slots(*layer.stored, layer.scores, layer.real), layer.budget, layer.state)
    layer.keys, layer.values = after.keys, after.values
    layer.scores = after.scores if policy.signal.per_step else None
    layer.real = after.real
    layer.lost()
    return index


class Observe:
    """A policy that drops nothing and remembers what any method could ask for, so that one prompt serves many methods."""

    signal = Signal("both", window=64)
    while_decoding = False
    evict_every = 1

    def budgets(self, prompt: Prompt) -> list[Budget | None]:
        """Never reached: `fork_cache` settles a copy."""
        return [None] * len(prompt.layers)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, object]) -> tuple[Slots, torch.Tensor]:
        """Never called: the budgets are None."""
        raise NotImplementedError


@torch.no_grad()
def fork_cache(model: nn.Module, observed: Cache, policy: CachePolicy) -> tuple[DynamicCache, Compressed]:
    """The cache that `policy` would have made of the prompt behind `observed`, which stays as it is.

    `observed` must have been filled inside ``compress_cache(model, Observe())`` with ``session.hold()`` around the prompt, and
    not continued. Saves one prefill per method when several are compared on the same prompt. Sliding-window layers are copied
    as they are; no method touches them.
    """
    fork = DynamicCache()
    for i, layer in enumerate(observed.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            fork.layers.append(copy(layer))  # shares its tensors, which an update replaces
            continue
        if not isinstance(layer, TrackedLayer) or layer.planned or not isinstance(layer.policy, Observe):
            raise ValueError(
                f"observed must be an unfinished cache made under Observe, got a {type(layer).__name__} in layer {i}"
            )
        fork.layers.append(_copy(layer, policy))
    layers = {i: layer for i, layer in enumerate(fork.layers) if isinstance(layer, TrackedLayer)}
    return fork, settle(layers, policy, len(fork.layers))


def _copy(layer: TrackedLayer, policy: CachePolicy) -> TrackedLayer:
    fork = TrackedLayer(policy)
    keys, values = layer.stored
    fork.lazy_initialization(keys, values)
    fork.keys, fork.values = keys, values  # shared: updates and evictions make new tensors
    fork.fed, fork.real, fork.padding, fork.tail, fork.rule = layer.fed, layer.real, layer.padding, layer.tail, layer.rule
    fork.scores = layer.scores if policy.signal.kind == "exact" else None
    return fork
