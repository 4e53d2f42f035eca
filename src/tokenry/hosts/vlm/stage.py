"""Dropping visual tokens inside the decoder: decided at one block during prefill, in force for all later blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from tokenry.core.precision import no_autocast
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks
from tokenry.hosts.attention import LogitRule, Observed, observe
from tokenry.hosts.cache import TrackedLayer, slot_mask
from tokenry.hosts.release import cache_in
from tokenry.hosts.vlm.kept_columns import KeptColumns


@dataclass(frozen=True)
class BlockView:
    """What the deciding block sees during prefill.

    Attributes:
        query: [B,Hq,T,d] rotated queries.
        key: [B,Hkv,T,d] rotated keys.
        rule: how the block makes its logits.
        real: [B,T] bool, False = padding.
        visual: [B,T] bool, the visual tokens still there, separators included.
    """

    query: Tensor
    key: Tensor
    rule: LogitRule
    real: Tensor
    visual: Tensor


@dataclass(frozen=True)
class DecoderStage:
    """Remove what `decide` does not keep after block `layer` (0-based): ``decide(view) -> keep [B,T] bool``."""

    layer: int
    decide: Callable[[BlockView], Tensor]


class StageState(threading.local):
    """Decision about the prompt in flight; `layout` is None until it is made, or when it keeps everything."""

    real: Tensor | None = None
    visual: Tensor | None = None
    layout: KeptColumns | None = None
    rotary: Any = None
    mask: Tensor | None = None
    mask_known = False
    fresh: Tensor | None = None

    def begin(self, real: Tensor | None, visual: Tensor | None) -> None:
        """A new prompt; None = no prompt."""
        self.real, self.visual = real, visual
        self.layout = self.rotary = self.mask = None
        self.mask_known = False


class StageHooks:
    """Hooks on the decoder's blocks that carry a `DecoderStage` out."""

    def __init__(self, hooks: Hooks, language: Any, stage: DecoderStage) -> None:
        blocks = language.layers
        if any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=language.config).layers):
            raise UnsupportedModelError(
                f"{type(language).__name__} has sliding-window layers, from which visual tokens are not dropped: a window "
                "would hold other tokens after the decision than before it. Prune before the decoder: with another method, "
                "or with threshold=0 for ToDRE"
            )
        if not 0 <= stage.layer < len(blocks) - 1:
            raise ValueError(
                f"layer must be in [0, {len(blocks) - 2}] for a decoder of {len(blocks)} blocks, got {stage.layer}"
            )
        self.stage, self.config = stage, language.config
        self.state = StageState()
        observe(hooks, blocks[stage.layer].self_attn, self._at_decision)
        for number in range(stage.layer + 1, len(blocks)):
            hooks.forward_pre(blocks[number], self._entering(number))

    def begin(self, real: Tensor, visual: Tensor) -> None:
        """Start a prompt whose slots are `real` [B,T], with visual tokens at `visual` [B,T]."""
        self.state.begin(real, visual)

    def take_layout(self) -> KeptColumns | None:
        """What was decided in the forward that ends now; the next one starts without a prompt."""
        layout = self.state.layout
        self.state.begin(None, None)
        return layout

    def _at_decision(self, seen: Observed) -> None:
        state = self.state
        if state.real is None or state.visual is None or not bool(state.visual.any()):
            return
        with no_autocast():
            keep = self.stage.decide(BlockView(seen.query, seen.key, seen.rule, state.real, state.visual))
        keep = keep | ~state.visual
        if not bool((keep | ~state.real).all()):
            state.layout = KeptColumns.of(state.real, keep)

    def _entering(self, number: int) -> Callable[..., Any]:
        first = number == self.stage.layer + 1

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
            layout = self.state.layout
            if layout is None:
                return self._continue(number, args, kwargs)
            if first and args:
                args = (layout.take(args[0]), *args[1:])
            elif first:
                kwargs = {**kwargs, "hidden_states": layout.take(kwargs["hidden_states"])}
            return args, self._shortened(layout, kwargs, (args[0] if args else kwargs["hidden_states"]).dtype)

        return hook

    def _shortened(self, layout: KeptColumns, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        state = self.state
        if not state.mask_known:
            given = kwargs.get("attention_mask")
            state.mask, state.mask_known = layout.prefill_mask(given, self.config._attn_implementation, dtype), True
            cos, sin = kwargs["position_embeddings"]
            state.rotary = (layout.take(cos), layout.take(sin))
        kwargs = {**kwargs, "attention_mask": state.mask, "position_embeddings": state.rotary}
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = layout.take(kwargs["position_ids"])
        return kwargs

    def _continue(self, number: int, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """New tokens after a prompt that was cut here: the mask of this layer's own slots."""
        cache = cache_in(kwargs)
        layer = cache.layers[number] if cache is not None and number < len(cache.layers) else None
        if not isinstance(layer, TrackedLayer) or layer.past is None or layer.fed == layer.past.real.shape[1]:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        fresh = self.state.fresh
        mask = slot_mask(hidden, layer.held, layer.real, fresh, self.config._attn_implementation, hidden.dtype)
        return args, {**kwargs, "attention_mask": mask}
