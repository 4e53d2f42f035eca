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
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import DynamicLayer

from tokenry.core.attention import column_sums
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.attention import Observed, implementation_of, observe
from tokenry.hosts.cache.layer import TrackedLayer
from tokenry.hosts.cache.masks import MASKED_BACKENDS, last_row, slot_mask
from tokenry.hosts.cache.policy import CachePolicy, Compressed
from tokenry.hosts.cache.prompt import evict_layer, settle
from tokenry.hosts.cache.scores import add_scores, latest_queries, step_scores
from tokenry.hosts.decoder import SUPPORTED, OnSliding, attention_modules, full_attention_indices, text_model
from tokenry.hosts.release import CACHE, cache_in, check_takes_cache, release
from tokenry.hosts.wrappers import unwrapped

_MODES = ("greedy_search", "sample")
_ARGUMENTS = {
    **dict.fromkeys(("beam_search", "beam_sample", "group_beam_search", "constrained_beam_search"), "num_beams must be 1"),
    "assisted_generation": "assistant_model and prompt_lookup_num_tokens must be None",
    "contrastive_search": "penalty_alpha must be None",
}
"""Generation mode -> what the caller has to change."""
_PREFILL = getattr(getattr(GenerationMixin, "_prefill", None), "__code__", None)


class _Call(threading.local):
    """What belongs to the forward call in flight; one per thread, so that threads may share an attachment."""

    hold = False
    use_cache = True
    mask: Tensor | None = None
    fresh: Tensor | None = None
    cache: Any = None
    count = 0
    turn = 0

    def __init__(self) -> None:
        self.queries: dict[int, Tensor] = {}


class CacheSession:
    """Hooks of one attachment; made by `compress_cache`."""

    def __init__(self, model: nn.Module, policy: CachePolicy, layers: list[int], report: Callable[[Compressed], None]) -> None:
        self.policy, self._name = policy, type(policy).__name__
        self._layers = layers
        self._attentions = attention_modules(model)
        self._model = model
        self._check_backend()
        self._report = report
        self._parameters = list(inspect.signature(text_model(model).forward).parameters)
        self._call = _Call()

    @property
    def _backend(self) -> str:
        return implementation_of(self._attentions[0])

    def _check_backend(self) -> None:
        backend = self._backend
        if backend not in MASKED_BACKENDS and "flash" not in backend:
            reason = f"attention implementation {backend!r}; use sdpa, eager or flash"
            raise UnsupportedModelError.of(self._model, SUPPORTED, reason=reason)

    @contextmanager
    def prompt_chunks(self) -> Iterator[None]:
        """Treat all forward calls inside as parts of one prompt: the cache is compressed when the block ends."""
        call = self._call
        call.hold, call.cache, call.turn = True, None, 0
        try:
            yield
        finally:
            call.hold = False
        if call.cache is not None:
            self._settle()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Observe the prompt inside without settling it: for `fork_cache`."""
        self._call.hold, self._call.turn = True, 0
        try:
            yield
        finally:
            self._call.hold, self._call.cache = False, None

    def wire(self, model: nn.Module, hooks: Hooks) -> None:
        """Register all hooks and patches."""
        decoder = text_model(model)
        check_takes_cache(decoder)
        hooks.forward_pre(decoder, self._before_model)
        hooks.forward(decoder, self._after_model)
        for i, attention in enumerate(self._attentions):
            hooks.forward_pre(attention, self._before_layer(i))
            if i in self._layers:
                if self.policy.signal.kind != "none":
                    observe(hooks, attention, self._scores(i))
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
                    f"{_ARGUMENTS.get(name, 'the generation mode')} while {self._name} is attached, got {name}: only "
                    f"{' and '.join(_MODES)} go forward alone, without undoing evictions"
                )
            if config.use_cache is False:
                raise ValueError(self._needs_cache("use_cache=False"))
            if config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation must be None or 'dynamic' while {self._name} is attached, "
                    f"got {config.cache_implementation!r}"
                )
            return original(mode, config, *args, **kwargs)

        return validate

    def _needs_cache(self, got: str) -> str:
        return (
            f"use_cache must be True while {self._name} is attached, got {got}: it works on the cache of a generation. "
            "Pass use_cache=True, or leave its `with` block to train or to score without a cache"
        )

    # ---- one forward pass --------------------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(self._parameters, args, strict=False)) | kwargs
        mask = named.get("attention_mask")
        if isinstance(mask, dict):  # made by the caller, with one mask per kind of layer
            mask = mask.get("full_attention")
            mask = last_row(mask) if isinstance(mask, Tensor) else mask
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            kind = f"a {mask.dim()}-D tensor" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask must be None or [B,T] while the KV cache is compressed, got {kind} (masks made before, as by "
                "generate_batch, are not understood)"
            )
        self._check_backend()
        call, asked = self._call, named.get("use_cache")
        call.mask, call.fresh = mask, None
        call.use_cache = bool(module.config.use_cache if asked is None else asked)  # pyright: ignore
        call.cache = None

    def _before_layer(self, i: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            cache = self._call.cache
            if cache is None:
                cache = self._open(cache_in(kwargs), hidden)
            layer = cache.layers[i]
            if not isinstance(layer, TrackedLayer):
                return None
            layer.arm("cache")
            if not layer.planned:
                return None
            return args, {**kwargs, "attention_mask": self._layer_mask(layer, hidden)}

        return hook

    def _open(self, cache: Any, hidden: Tensor) -> Any:
        """Check the cache of this call, put tracked layers into a fresh one, and read the mask of the new tokens."""
        call = self._call
        if cache is None:
            decoder: Any = text_model(self._model)
            if decoder.training and getattr(decoder, "gradient_checkpointing", False):
                raise ValueError(self._needs_cache("gradient checkpointing, which switches it off"))
            if call.use_cache:
                raise UnsupportedModelError(f"{self._name} found no cache in the decoder's layers; this is {release()}")
            raise ValueError(self._needs_cache("a call without a cache"))
        if getattr(cache, "offloading", False):
            raise UnsupportedModelError.of(cache, ["DynamicCache"], reason="its layers are offloaded")
        while len(cache.layers) < len(self._attentions) and getattr(cache, "layer_class_to_replicate", None) is not None:
            cache.layers.append(cache.layer_class_to_replicate())
        for i in self._layers:
            cache.layers[i] = self._tracked(cache.layers[i])
        call.cache = cache
        call.count = hidden.shape[1]
        call.turn = call.count + (call.turn if call.hold else 0)
        if call.count > 1 and not call.hold and (size := _chunk_size_outside()) is not None:
            raise ValueError(
                f"prefill_chunk_size must be None while {self._name} is attached to a part of the model that generates, got "
                f"{size}: it would take every chunk for a prompt of its own; attach to the whole model"
            )
        call.fresh = self._fresh_mask(hidden, cache.layers[self._layers[0]])
        return cache

    def _tracked(self, layer: Any) -> TrackedLayer:
        if isinstance(layer, TrackedLayer) and layer.policy is not None:
            if layer.policy != self.policy:
                raise ValueError(f"{CACHE} was compressed by {layer.policy}, and {self.policy} is attached now")
            return layer
        if type(layer) is not DynamicLayer and not isinstance(layer, TrackedLayer):
            raise UnsupportedModelError.of(layer, ["DynamicLayer"], reason="only dynamic cache layers can be compressed")
        if layer.get_seq_length() > 0:
            raise ValueError(
                f"{CACHE} must be empty or made while {self._name} is attached, got one that holds "
                f"{layer.get_seq_length()} tokens whose attention was not observed; run the prompt inside the block"
            )
        return TrackedLayer(self.policy)

    def _fresh_mask(self, hidden: Tensor, layer: TrackedLayer) -> Tensor | None:
        """[B,q] bool of the new tokens, None when all are real; refuses anything but left padding."""
        if self._call.mask is None:
            return None
        fresh = self._call.mask[:, -hidden.shape[1] :].bool()
        if bool(fresh.all()):
            return None
        if self._backend not in MASKED_BACKENDS:
            raise ValueError(f"attention_mask must not mark padding under {self._backend}; use sdpa or eager, or batch size 1")
        started = layer.real[:, -1:] if layer.real is not None else torch.full_like(fresh[:, :1], layer.fed > 0)
        after = torch.cat((started, fresh[:, :-1]), dim=1) & ~fresh
        own = layer.past is not None or layer.is_armed("visual")  # a pruner pads rows that keep less than others
        if bool(after.any()) and not own:
            raise ValueError("attention_mask must be left-padded (zeros, then ones) while the KV cache is compressed")
        return fresh

    def _fresh_of(self, hidden: Tensor, mask: Any) -> Tensor | None:
        """`_fresh_mask` for this layer: where tokens left on the way, its own attention mask says which slots are real."""
        count = hidden.shape[1]
        if count == self._call.count:
            return self._call.fresh
        if not isinstance(mask, Tensor):
            return None
        return last_row(mask)[:, -count:].expand(hidden.shape[0], -1)

    def _layer_mask(self, layer: TrackedLayer, hidden: Tensor) -> Tensor | None:
        """The attention mask that fits this layer's own slots, in the form its backend wants."""
        return slot_mask(hidden, layer.held, layer.real, self._call.fresh, self._backend, hidden.dtype)

    def _scores(self, i: int) -> Callable[[Observed], None]:
        """Attention that the newest queries give, added to what layer `i` has received."""

        @torch.no_grad()
        def observer(seen: Observed) -> None:
            cache = self._call.cache
            if cache is None:
                return
            layer, signal = cache.layers[i], self.policy.signal
            may_settle = self._call.hold or self._long_turn()
            if layer.planned and (layer.budget is None or not (signal.per_step or may_settle)):
                return
            layer.rule = seen.rule
            self._call.queries[i] = seen.query

        return observer

    @torch.no_grad()
    def _after_layer_scores(self, i: int, layer: TrackedLayer) -> None:
        queries, rule = self._call.queries.pop(i, None), layer.rule
        if queries is None or rule is None:
            return
        signal = self.policy.signal
        if layer.planned and signal.per_step:
            add_scores(layer, step_scores(queries, layer, rule))
            return
        if signal.kind in ("exact", "both"):
            add_scores(layer, column_sums(queries, layer.stored[0], mask=layer.real, **vars(rule)))
        if signal.kind in ("window", "both"):
            if self._call.turn == self._call.count:  # an earlier turn may have been too short to be settled
                layer.tail = None
            layer.tail = latest_queries(layer, queries)[:, :, -signal.window :].clone()

    def _after_layer(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            layer = self._call.cache.layers[i]
            hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            layer.append_real(self._fresh_of(hidden, kwargs.get("attention_mask")), hidden.shape[0], hidden.shape[1])
            self._after_layer_scores(i, layer)

        return hook

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._call.cache is not None and not self._call.hold:
            self._settle()

    # ---- compression -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _settle(self) -> None:
        """Compress every layer that holds more than its budget; after a prompt or a turn, settle the budgets first."""
        call = self._call
        layers = {i: call.cache.layers[i] for i in self._layers}
        if not layers[self._layers[0]].planned or self._long_turn():
            self._report(settle(layers, self.policy, len(self._attentions)))
        elif self.policy.while_decoding:
            for layer in layers.values():
                if layer.budget is not None and layer.held >= layer.budget.slots + self.policy.evict_every:
                    evict_layer(layer, self.policy)
        self._bind(layers)
        call.cache = None  # the cache is the caller's: do not keep it alive

    def _long_turn(self) -> bool:
        """Whether the turn, in as many calls as it came, is one whose share of the sequence counts, not a step of decoding."""
        return self._call.turn > (1 if self.policy.while_decoding else self.policy.signal.window)

    def _bind(self, layers: dict[int, TrackedLayer]) -> None:
        """A cache that transformers alone would mask wrongly may not be continued without this attachment."""
        alike = len({layer.held for layer in layers.values()}) == 1 and len(layers) == len(self._attentions)
        for layer in layers.values():
            if layer.croppable == 0 and not (alike and layer.real is None):
                layer.need("cache", repr(self.policy))


def _chunk_size_outside() -> int | None:
    """`prefill_chunk_size` of a ``generate`` that is running its prompt around this call; an inner model is not told."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is _PREFILL:
            return getattr(frame.f_locals.get("generation_config"), "prefill_chunk_size", None)
        frame = frame.f_back
    return None


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
    model = unwrapped(model)
    layers = full_attention_indices(model, on_sliding=on_sliding)
    session = CacheSession(model, policy, layers, report)
    with attached(model, owner=type(policy).__name__, kind="cache", core=text_model(model)) as hooks:
        session.wire(model, hooks)
        yield session
