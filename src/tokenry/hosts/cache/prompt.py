"""What happens to the cache once a prompt is complete: budgets, eviction, and forks of one observed prompt."""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from tokenry.core.attention import group_heads, last_window_scores
from tokenry.hosts.cache.layer import TrackedLayer
from tokenry.hosts.cache.policy import Budget, CachePolicy, Compressed, Prompt, Signal, Slots
from tokenry.hosts.decoder import AttentionFacts, attention_facts, attention_modules, full_attention_indices


def finish_prompt(
    layers: dict[int, TrackedLayer], policy: CachePolicy, facts: dict[int, AttentionFacts], total_layers: int
) -> Compressed:
    """Settle the budgets of all layers from the scores collected so far, and compress every layer to its own."""
    for i, layer in layers.items():
        _window_scores(layer, policy.signal, facts[i])
    first = next(iter(layers.values()))
    batch = first.stored[0].shape[0]
    lengths = [first.seen] * batch if first.real is None else first.real.sum(dim=1).tolist()
    prompt = Prompt(list(layers), total_layers, lengths, [layer.scores for layer in layers.values()], first.real)
    full = sum(layer.nbytes for layer in layers.values())
    kept: dict[int, torch.Tensor] = {}
    for (i, layer), budget in zip(layers.items(), policy.budgets(prompt), strict=True):
        layer.planned, layer.budget = True, budget
        if layer.scores is not None:
            layer.scores = None if budget is None else group_heads(layer.scores, facts[i].kv_heads)
        if budget is not None and layer.held > budget.slots:
            kept[i] = evict_layer(layer, policy)
    used = sum(layer.nbytes for layer in layers.values())
    held = {i: layer.held for i, layer in layers.items()}
    report = {**prompt.facts, "cache_bytes_full": full, "cache_bytes": used, "slots": held}
    return Compressed(kept, lengths, [first.seen - n for n in lengths], {i: layers[i].scores for i in kept}, report)


def _window_scores(layer: TrackedLayer, signal: Signal, facts: AttentionFacts) -> None:
    if signal.kind == "window" and layer.tail is not None:
        keys = layer.stored[0]
        layer.scores = last_window_scores(layer.tail, keys, window=signal.window, scale=facts.scale, mask=layer.real)
    layer.tail = None


def evict_layer(layer: TrackedLayer, policy: CachePolicy) -> torch.Tensor:
    """Cut one layer to its budget in place; returns the kept indices [B,H,K]."""
    if layer.budget is None:
        raise RuntimeError("the layer has no budget")
    after, index = policy.evict(Slots(*layer.stored, layer.scores, layer.real), layer.budget, layer.state)
    layer.keys, layer.values = after.keys, after.values
    layer.scores = after.scores if policy.signal.per_step else None
    layer.real = after.real
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
    not continued. Saves one prefill per method when several are compared on the same prompt.
    """
    facts = {i: attention_facts(attention_modules(model)[i]) for i in full_attention_indices(model)}
    fork = DynamicCache()
    layers: dict[int, TrackedLayer] = {}
    for i, layer in enumerate(observed.layers):
        if not isinstance(layer, TrackedLayer) or layer.planned or not isinstance(layer.policy, Observe):
            raise ValueError(
                f"observed must be an unfinished cache made under Observe, got a {type(layer).__name__} in layer {i}"
            )
        layers[i] = _copy(layer, policy)
    fork.layers.extend(layers.values())
    return fork, finish_prompt(layers, policy, facts, len(layers))


def _copy(layer: TrackedLayer, policy: CachePolicy) -> TrackedLayer:
    copy = TrackedLayer(policy)
    keys, values = layer.stored
    copy.lazy_initialization(keys, values)
    copy.keys, copy.values = keys, values  # shared: updates and evictions make new tensors
    copy.seen, copy.real, copy.tail = layer.seen, layer.real, layer.tail
    copy.scores = layer.scores if policy.signal.kind == "exact" else None
    return copy
