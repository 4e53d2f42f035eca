"""Soft selection for training: visual tokens multiplied by weights that a module computes from them, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.hosts.attach import attached
from tokenry.hosts.vlm.families import language_of
from tokenry.hosts.wrappers import unwrapped

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(visual tokens [B,N,D], mask [B,N] True = real) -> weights [B,N]; N is the largest number of visual tokens in a row."""


@contextmanager
def weigh_visual_tokens(model: nn.Module, owner: str, weigh: Weigh) -> Iterator[None]:
    """Multiply the visual tokens of every prompt by ``weigh(tokens, mask)`` before the language model reads them.

    Raises:
        UnsupportedModelError: another model class; the message lists the supported ones.
        RuntimeError: something is attached to the model already.
    """
    model = unwrapped(model)
    inner: Any = model.model
    language = language_of(model)
    token = int(model.config.image_token_id)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    seen: dict[str, Tensor | None] = {}

    def before_model(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["ids"] = kwargs.get("input_ids", args[0] if args else None)

    def before_language(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        ids, embeds = seen.get("ids"), kwargs["inputs_embeds"]
        if ids is None or ids.shape != embeds.shape[:2]:
            return None
        visual = ids == token
        if not bool(visual.any()):
            return None
        return args, {**kwargs, **_weighed(kwargs, visual, weigh)}

    with attached(model, owner, kind="visual") as hooks:
        hooks.forward_pre(inner, before_model)
        hooks.forward_pre(language, before_language)
        yield


def _weighed(given: dict[str, Any], visual: Tensor, weigh: Weigh) -> dict[str, Any]:
    """Embeddings, and what a DeepStack model adds to them later, times the weights of the tokens they belong to."""
    embeds: Tensor = given["inputs_embeds"]
    counts = visual.sum(dim=1)
    width = int(counts.max())
    mask = torch.arange(width, device=embeds.device) < counts.unsqueeze(1)
    tokens = embeds.new_zeros(embeds.shape[0], width, embeds.shape[2])
    tokens[mask] = embeds[visual].detach()
    weights = torch.ones(visual.shape, dtype=embeds.dtype, device=embeds.device)
    weights = weights.masked_scatter(visual, weigh(tokens, mask)[mask].to(embeds.dtype))
    weighed: dict[str, Any] = {"inputs_embeds": embeds * weights.unsqueeze(-1)}
    added = given.get("deepstack_visual_embeds")
    if added is not None:
        own = weights[given["visual_pos_masks"]].unsqueeze(-1)
        weighed["deepstack_visual_embeds"] = [feature * own.to(feature) for feature in added]
    return weighed
