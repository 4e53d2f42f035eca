"""One engine for every method that shortens the KV cache of a decoder, as hooks on an unchanged transformers model.

A method (a `CachePolicy`) says which attention scores it needs, how many slots every layer
gets, and which slots survive. The engine collects the scores block by block during the prompt (never a Q x T map), compresses
all layers once the prompt is complete, then after every decoded token, and gives each layer the mask that fits its own slots.

- State lives in the cache's layers (`TrackedLayer`), so each new cache starts fresh.
- Keys keep the rotation of their original position; the cache reports the tokens it has seen, so positions stay right.
- Batches must be left-padded. Padding scores nothing, is dropped first and is never seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from tokenry.core.attention import column_sums, decode_row
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.cache.layer import TrackedLayer
from tokenry.hosts.cache.policy import CachePolicy, Compressed
from tokenry.hosts.cache.prompt import evict_layer, finish_prompt
from tokenry.hosts.decoder import (
    SUPPORTED,
    AttentionFacts,
    OnSliding,
    attention_facts,
    attention_modules,
    full_attention_indices,
    queries_from,
    query_source,
    text_model,
)
from tokenry.hosts.release import CACHE, cache_in, check_takes_cache, release

_MASKED_BACKENDS = ("sdpa", "eager")
_MODES = ("greedy_search", "sample")


class CacheSession:
    """Hooks of one attachment; made by `compress_cache`."""

    def __init__(self, model: nn.Module, policy: CachePolicy, layers: list[int], report: Callable[[Compressed], None]) -> None:
        self.policy, self._name = policy, type(policy).__name__
        self._layers = layers
        self._attentions = attention_modules(model)
        self._facts = {i: attention_facts(self._attentions[i]) for i in layers}
        self._backend = _backend(model, self._attentions[0])
        self._report = report
        self._parameters = list(inspect.signature(text_model(model).forward).parameters)
        self._hold = False
        self._mask: Tensor | None = None
        self._use_cache = True
        self._fresh: Tensor | None = None
        self._cache: Any = None
        self._projected: dict[int, Tensor] = {}

    @contextmanager
    def prompt_chunks(self) -> Iterator[None]:
        """Treat all forward calls inside as parts of one prompt: the cache is compressed when the block ends."""
        self._hold, self._cache = True, None
        try:
            yield
        finally:
            self._hold = False
        if self._cache is not None:
            self._settle()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Observe the prompt inside without settling it: for `fork_cache`."""
        self._hold = True
        try:
            yield
        finally:
            self._hold, self._cache = False, None

    def wire(self, model: nn.Module, hooks: Hooks) -> None:
        """Register all hooks and patches."""
        decoder = text_model(model)
        check_takes_cache(decoder)
        hooks.forward_pre(decoder, self._before_model)
        hooks.forward(decoder, self._after_model)
        for i, attention in enumerate(self._attentions):
            hooks.forward_pre(attention, self._before_layer(i))
            if i in self._facts and self.policy.signal.kind != "none":
                hooks.forward(query_source(attention), self._keep_projection(i))
            if i in self._facts:
                hooks.forward(attention, self._after_layer(i))
        if hasattr(model, "_prefill"):
            hooks.patch(model, "_prefill", self._whole_prefill(model._prefill))  # pyright: ignore[reportArgumentType]
        if hasattr(model, "_validate_generation_mode"):
            validate = self._refuse_modes(model._validate_generation_mode)  # pyright: ignore[reportArgumentType]
            hooks.patch(model, "_validate_generation_mode", validate)

    # ---- generate --------------------------------------------------------------------------------------------------

    def _whole_prefill(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prefill(*args: Any, **kwargs: Any) -> Any:
            with self.prompt_chunks():
                return original(*args, **kwargs)

        return prefill

    def _refuse_modes(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def validate(mode: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
            name = str(getattr(mode, "value", mode))
            if name not in _MODES:
                raise ValueError(
                    f"generation mode must be one of {', '.join(_MODES)} while {self._name} is attached, "
                    f"got {name} (beam search and assisted decoding would have to undo evictions)"
                )
            if config.use_cache is False:
                raise ValueError(f"use_cache must be True while {self._name} is attached, got False")
            if config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation must be None or 'dynamic' while {self._name} is attached, "
                    f"got {config.cache_implementation!r}"
                )
            return original(mode, config, *args, **kwargs)

        return validate

    # ---- one forward pass --------------------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(self._parameters, args, strict=False)) | kwargs
        mask = named.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            kind = f"a {mask.dim()}-D tensor" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"attention_mask must be None or [B,T] while the KV cache is compressed, got {kind}")
        self._mask = mask
        asked = named.get("use_cache")
        self._use_cache = bool(module.config.use_cache if asked is None else asked)  # pyright: ignore
        self._cache = None
        self._projected.clear()

    def _before_layer(self, i: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            cache = self._cache
            if cache is None:
                cache = self._open(cache_in(kwargs), hidden)
            layer = cache.layers[i]
            if not isinstance(layer, TrackedLayer) or not self._compressed():
                return None
            return args, {**kwargs, "attention_mask": self._layer_mask(layer, hidden)}

        return hook

    def _open(self, cache: Any, hidden: Tensor) -> Any:
        """Check the cache of this call, put tracked layers into a fresh one, and read the mask of the new tokens."""
        if cache is None:
            if self._use_cache:
                raise UnsupportedModelError(f"{self._name} found no cache in the decoder's layers; this is {release()}")
            raise ValueError(f"use_cache must be True while {self._name} is attached, got a call without a cache")
        if getattr(cache, "offloading", False):
            raise UnsupportedModelError.of(cache, ["DynamicCache"], reason="its layers are offloaded")
        while len(cache.layers) < len(self._attentions) and getattr(cache, "layer_class_to_replicate", None) is not None:
            cache.layers.append(cache.layer_class_to_replicate())
        for i in self._layers:
            cache.layers[i] = self._tracked(cache.layers[i])
        self._cache = cache
        self._fresh = self._fresh_mask(hidden, cache.layers[self._layers[0]])
        return cache

    def _tracked(self, layer: Any) -> TrackedLayer:
        if isinstance(layer, TrackedLayer):
            if layer.policy != self.policy:
                raise ValueError(f"{CACHE} was compressed by {layer.policy}, and {self.policy} is attached now")
            return layer
        if type(layer) is not DynamicLayer:
            raise UnsupportedModelError.of(layer, ["DynamicLayer"], reason="only dynamic cache layers can be compressed")
        if layer.get_seq_length() > 0:
            raise ValueError(
                f"{CACHE} must be empty or made while {self._name} is attached, got one that holds "
                f"{layer.get_seq_length()} tokens whose attention was not observed; run the prompt inside the block"
            )
        return TrackedLayer(self.policy)

    def _fresh_mask(self, hidden: Tensor, layer: TrackedLayer) -> Tensor | None:
        """[B,q] bool of the new tokens, None when all are real; refuses anything but left padding."""
        if self._mask is None:
            return None
        fresh = self._mask[:, -hidden.shape[1] :].bool()
        if bool(fresh.all()):
            return None
        if not self._backend.startswith(_MASKED_BACKENDS):
            raise ValueError(f"attention_mask must not mark padding under {self._backend}; use sdpa or eager, or batch size 1")
        started = layer.real[:, -1:] if layer.real is not None else torch.full_like(fresh[:, :1], layer.seen > 0)
        if bool((torch.cat((started, fresh[:, :-1]), dim=1) & ~fresh).any()):
            raise ValueError("attention_mask must be left-padded (zeros, then ones) while the KV cache is compressed")
        return fresh

    def _compressed(self) -> bool:
        return self._cache.layers[self._layers[0]].planned

    def _layer_mask(self, layer: TrackedLayer, hidden: Tensor) -> Tensor | None:
        """The attention mask that fits this layer's own slots, in the form its backend wants."""
        count, held = hidden.shape[1], layer.held
        if layer.real is None and (count == 1 or not self._backend.startswith(_MASKED_BACKENDS)):
            return None
        own = torch.arange(held, held + count, device=hidden.device)
        visible = torch.arange(held + count, device=hidden.device)[None, :] <= own[:, None]
        visible = visible[None, None]
        if layer.real is not None:
            real = nn.functional.pad(layer.real, (0, count), value=True)
            visible = visible & real[:, None, None, :]
        if self._backend == "sdpa":
            return visible
        return torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(
            ~visible, torch.finfo(hidden.dtype).min
        )

    def _keep_projection(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            layer = self._cache.layers[i]
            if not layer.planned or (layer.budget is not None and self.policy.signal.per_step):
                self._projected[i] = output.detach()

        return hook

    @torch.no_grad()
    def _after_layer_scores(self, i: int, layer: TrackedLayer, embeddings: Any) -> None:
        projected = self._projected.pop(i, None)
        if projected is None:
            return
        facts, signal = self._facts[i], self.policy.signal
        queries = queries_from(self._attentions[i], projected, embeddings)
        if layer.planned:
            _add(layer, _step_scores(queries, layer, facts))
            return
        if signal.kind in ("exact", "both"):
            keys, scale, cap = layer.stored[0], facts.scale, facts.soft_cap
            _add(layer, column_sums(queries, keys, scale=scale, mask=layer.real, soft_cap=cap))
        if signal.kind in ("window", "both"):
            tail = queries[:, :, -signal.window :]
            joined = tail if layer.tail is None else torch.cat((layer.tail, tail), dim=2)
            layer.tail = joined[:, :, -signal.window :].clone()

    def _after_layer(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            layer = self._cache.layers[i]
            hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            layer.append_real(self._fresh, hidden.shape[0], hidden.shape[1])
            self._after_layer_scores(i, layer, kwargs.get("position_embeddings"))

        return hook

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._cache is not None and not self._hold:
            self._settle()

    # ---- compression -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _settle(self) -> None:
        """Compress every layer that holds more than its budget; the first time, settle the budgets."""
        layers = {i: self._cache.layers[i] for i in self._layers}
        if not self._compressed():
            self._report(finish_prompt(layers, self.policy, self._facts, len(self._attentions)))
        elif self.policy.while_decoding:
            for layer in layers.values():
                if layer.budget is not None and layer.held >= layer.budget.slots + self.policy.evict_every:
                    evict_layer(layer, self.policy)
        self._projected.clear()
        self._cache = None  # the cache is the caller's: do not keep it alive


def _step_scores(queries: Tensor, layer: TrackedLayer, facts: AttentionFacts) -> Tensor:
    """[B,Hkv,T]: what the newest queries add to every slot, averaged over the query heads of a key head."""
    keys, scale, cap = layer.stored[0], facts.scale, facts.soft_cap
    if queries.shape[2] == 1:
        return decode_row(queries, keys, scale=scale, mask=layer.real, soft_cap=cap).mean(dim=2)
    return column_sums(queries, keys, scale=scale, mask=layer.real, soft_cap=cap, reduce="mean")


def _add(layer: TrackedLayer, sums: Tensor) -> None:
    """Add `sums` over all slots to the layer's scores over the earlier ones; a new slot enters with its own attention."""
    if layer.scores is not None:
        sums[..., : layer.scores.shape[-1]] += layer.scores
    layer.scores = sums


def _backend(model: nn.Module, attention: nn.Module) -> str:
    config: Any = attention.config
    backend = str(config._attn_implementation)
    if backend in _MASKED_BACKENDS or "flash" in backend:
        return backend
    raise UnsupportedModelError.of(model, SUPPORTED, reason=f"attention implementation {backend!r}; use sdpa, eager or flash")


@contextmanager
def compress_cache(
    model: nn.Module,
    policy: CachePolicy,
    *,
    on_sliding: OnSliding = "skip",
    report: Callable[[Compressed], None] = lambda compressed: None,
) -> Iterator[CacheSession]:
    """Compress the KV cache of `model` by `policy` until the block ends.

    A forward call on an empty cache is a prompt and is compressed right after it; ``generate`` with ``prefill_chunk_size`` is
    understood, and hand-made chunks go inside ``session.prompt_chunks()``. Later calls on the same cache may bring any number
    of tokens. `report` is called once per prompt.

    Raises:
        UnsupportedModelError: the model, its attention implementation or its cache layers cannot be compressed.
        RuntimeError: something is attached to `model` already.
    """
    layers = full_attention_indices(model, on_sliding=on_sliding)
    session = CacheSession(model, policy, layers, report)
    with attached(model, owner=type(policy).__name__) as hooks:
        session.wire(model, hooks)
        yield session
