"""Dropping visual tokens inside the decoder: decided at one block during prefill, in force for all later blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokenry.hosts.attach import Hooks
from tokenry.hosts.decoder import queries_keys
from tokenry.hosts.vlm.kept_columns import KeptColumns


@dataclass(frozen=True)
class BlockView:
    """What the deciding block sees during prefill.

    Attributes:
        query: [B,Hq,T,d] rotated queries.
        key: [B,Hkv,T,d] rotated keys.
        scale: factor of the logits.
        real: [B,T] bool, False = padding.
        visual: [B,T] bool, the visual tokens still there, separators included.
    """

    query: Tensor
    key: Tensor
    scale: float
    real: Tensor
    visual: Tensor


@dataclass(frozen=True)
class DecoderStage:
    """Remove what `decide` does not keep after block `layer` (0-based): ``decide(view) -> keep [B,T] bool``."""

    layer: int
    decide: Callable[[BlockView], Tensor]


@dataclass
class StageState:
    """Decision about one prompt; `layout` is None until it is made, or when it keeps everything."""

    real: Tensor
    visual: Tensor
    layout: KeptColumns | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    mask_known: bool = False
    prefill: bool = True
    new: int = 0


class StageHooks:
    """Hooks on the decoder's blocks that carry a `DecoderStage` out."""

    def __init__(self, hooks: Hooks, language: Any, stage: DecoderStage) -> None:
        blocks = language.layers
        if not 0 <= stage.layer < len(blocks) - 1:
            raise ValueError(
                f"layer must be in [0, {len(blocks) - 2}] for a decoder of {len(blocks)} blocks, got {stage.layer}"
            )
        self.stage, self.config = stage, language.config
        self.state: StageState | None = None
        hooks.forward_pre(blocks[stage.layer].self_attn, self._at_decision)
        for number in range(stage.layer + 1, len(blocks)):
            hooks.forward_pre(blocks[number], self._first if number == stage.layer + 1 else self._later)

    def begin(self, real: Tensor, visual: Tensor) -> StageState:
        """Start a prompt whose slots are `real` [B,T], with visual tokens at `visual` [B,T]."""
        self.state = StageState(real, visual)
        return self.state

    def resume(self, state: StageState | None, new: int) -> None:
        """Continue a prompt with `new` tokens after it, the ones of this step included."""
        self.state = state
        if state is not None:
            state.prefill, state.new = False, new
            state.rotary = None

    def spread(self, hidden: Tensor) -> Tensor:
        """Hidden states of the last block back to the columns before the decision."""
        layout = None if self.state is None else self.state.layout
        return hidden if layout is None else layout.spread(hidden)

    def _at_decision(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        state = self.state
        if state is None or not state.prefill or not bool(state.visual.any()):
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        query, key = queries_keys(module, hidden, kwargs["position_embeddings"])
        keep = self.stage.decide(BlockView(query, key, float(module.scaling), state.real, state.visual))  # pyright: ignore
        keep = keep | ~state.visual
        if not bool((keep | ~state.real).all()):
            state.layout = KeptColumns.of(state.real, keep)

    def _first(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        state = self.state
        if state is not None and state.prefill and state.layout is not None:
            if args:
                args = (state.layout.take(args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "hidden_states": state.layout.take(kwargs["hidden_states"])}
        return self._later(module, args, kwargs)

    def _later(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        state = self.state
        if state is None or state.layout is None:
            return None
        kwargs, layout = dict(kwargs), state.layout
        hidden = args[0] if args else kwargs["hidden_states"]
        implementation = self.config._attn_implementation
        given = kwargs.get("attention_mask")
        if not state.prefill:
            kwargs["attention_mask"] = layout.decode_mask(given, hidden.shape[1], state.new, implementation, hidden.dtype)
            return args, kwargs
        if not state.mask_known:
            state.mask, state.mask_known = layout.prefill_mask(given, implementation, hidden.dtype), True
            cos, sin = kwargs["position_embeddings"]
            state.rotary = (layout.take(cos), layout.take(sin))
        kwargs["attention_mask"], kwargs["position_embeddings"] = state.mask, state.rotary
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = layout.take(kwargs["position_ids"])
        return args, kwargs
