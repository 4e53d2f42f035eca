"""The CLS row of a block's attention, captured while the model runs as usual."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.attention import cls_row
from tokenry.hosts.attach import Hooks
from tokenry.hosts.vision.places import rotate
from tokenry.hosts.vision.towers import VisionHost, describe


class ClsAttention:
    """What one block's attention looked like to CLS in the latest forward; filled by `capture_cls_row`."""

    def __init__(self, host: VisionHost, layer: int) -> None:
        self._capture = AttentionCapture(host, layer)

    @property
    def attention(self) -> Tensor:
        """CLS row over the patches, [B,H,N] float32.

        Raises:
            RuntimeError: the model has not run since the capture was installed.
        """
        return self._capture.cls_attention()

    @property
    def content(self) -> Tensor:
        """Attention output of each patch per head before the output projection, [B,H,N,d].

        Raises:
            RuntimeError: the model has not run since the capture was installed.
        """
        return self._capture.content()


class AttentionCapture(threading.local):
    """Hooks on one attention module: CLS query, keys, per-head output and mask of the thread's latest forward."""

    def __init__(self, host: VisionHost, layer: int) -> None:
        self.host, self.layer = host, layer
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.output: Tensor | None = None
        self.mask: Tensor | None = None
        self.rotary: tuple[Tensor, ...] | None = None

    def install(self, hooks: Hooks) -> None:
        """Put the hooks on the attention module of the block."""
        attention: Any = self.host.attentions[self.layer]
        hooks.forward_pre(attention, self._on_enter)
        hooks.forward(attention.q_proj, self._on_query)
        hooks.forward(attention.k_proj, self._on_key)
        hooks.forward_pre(self.host.outputs[self.layer], self._on_output)

    def keys(self) -> Tensor:
        """Keys of the patches, [B,H,N,d], before any rotation."""
        return self._heads(_filled(self.key))[:, :, self.host.prefix :]

    def content(self) -> Tensor:
        """Per-head attention output of the patches, [B,H,N,d]."""
        return self._heads(_filled(self.output))[:, :, self.host.prefix :]

    def cls_attention(self) -> Tensor:
        """CLS row over the patches, [B,H,N] float32."""
        query, key = self._heads(_filled(self.query)), self._heads(_filled(self.key))
        scale = self.host.scale(self.layer)
        if self.rotary is not None:  # CLS itself is not turned
            key = rotate(key, self.rotary)
        if self.mask is not None:
            row = self.mask.bool()[:, None] if self.mask.dim() == 2 else self.mask[:, :, 0]
            query, key = _with_bias(query, key, row, scale)
        return cls_row(query, key, scale=scale)[..., self.host.prefix :]

    def clear(self) -> None:
        """Forget the latest forward."""
        self.query = self.key = self.output = self.mask = self.rotary = None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.host.heads, -1)).transpose(1, 2)

    def _on_enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.clear()
        self.mask = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
        self.rotary = kwargs.get("position_embeddings")

    def _on_query(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        self.query = output[:, :1].detach()

    def _on_key(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        self.key = output.detach()

    def _on_output(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.output = args[0].detach()


def capture_cls_row(hooks: Hooks, vision_model: nn.Module, layer: int = -1) -> ClsAttention:
    """Record the CLS row of block `layer` of `vision_model` during its normal forwards.

    The holder keeps the latest forward only: CLS query, keys and per-head outputs, O(B N D) memory. The row is computed when it
    is read. Nothing in the model's result changes. Works for the vision tower inside a larger model: pass that tower.

    Raises:
        UnsupportedModelError: unknown class, or a model without a CLS token (SigLIP).
        ValueError: no such block.
    """
    host = describe(vision_model)
    host.require_cls("the CLS row of attention")
    row = ClsAttention(host, host.block(layer))
    row._capture.install(hooks)
    return row


def _with_bias(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Fold a mask row [B,1,N] into one more channel, so that ``scale * (q . k)`` holds it as an additive bias."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
    bias = mask.float().expand(key.shape[0], key.shape[1], -1).unsqueeze(-1)
    one = query.new_full((*query.shape[:-1], 1), 1.0 / scale, dtype=torch.float32)
    return torch.cat([query.float(), one], dim=-1), torch.cat([key.float(), bias], dim=-1)


def _filled(x: Tensor | None) -> Tensor:
    if x is None:
        raise RuntimeError("nothing has been captured yet: run the model inside the context first")
    return x
