"""Vision transformers as hosts: final tokens, the CLS row of attention without attention maps, dropping patches after a block.

Families: ViT, DeiT (with its distillation token), DINOv2, DINOv2 with registers, CLIP vision, SigLIP vision.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import attached
from tokenry.hosts.vision.edit import BlockSignals, Dropped, Merged, Merger, Selected, Selector, drop_after, merge_after
from tokenry.hosts.vision.rows import ClsAttention, capture_cls_row
from tokenry.hosts.vision.towers import SUPPORTED, VisionHost, as_pair, describe, image_size_of

__all__ = [
    "SUPPORTED",
    "BlockSignals",
    "ClsAttention",
    "Dropped",
    "FinalTokens",
    "Merged",
    "Merger",
    "Selected",
    "Selector",
    "VisionHost",
    "as_pair",
    "capture_cls_row",
    "cls_attention",
    "describe",
    "drop_after",
    "final_tokens",
    "global_and_patches",
    "image_size_of",
    "merge_after",
]


class FinalTokens(NamedTuple):
    """Normalised tokens after the last block: `prefix` [B,P,D] (CLS first) and `patches` [B,N,D]."""

    prefix: Tensor
    patches: Tensor


def final_tokens(model: nn.Module, pixel_values: Tensor, *, resize: bool = False) -> FinalTokens:
    """Tokens after the final layer norm, split into prefix and patches.

    ViT, DeiT, DINOv2 and SigLIP normalise all tokens themselves. CLIP normalises only the pooled CLS token, so its
    ``post_layernorm`` is applied to all tokens here. SigLIP has no CLS token: its prefix is empty.

    Args:
        model: a supported vision tower, or a classifier around one.
        pixel_values: [B,C,H,W] as the model's image processor makes them.
        resize: allow images of another size than the model's (its position embeddings are interpolated); otherwise the model
            itself refuses them (DINOv2 always accepts them).

    Raises:
        UnsupportedModelError: unknown model class.
        ValueError: image sides that are not multiples of the patch side.
    """
    host = describe(model)
    output = _run(host, pixel_values, resize)
    tokens = output.last_hidden_state
    if host.final_norm is not None:
        tokens = host.final_norm(tokens)
    return FinalTokens(tokens[:, : host.prefix], tokens[:, host.prefix :])


def global_and_patches(
    model: nn.Module, pixel_values: Tensor, *, anchor: Literal["cls", "pooled"] = "cls", resize: bool = False
) -> Tensor:
    """One global token followed by the patch tokens, [B,1+N,D]: registers and the distillation token are left out.

    `anchor` ``"cls"`` takes the CLS token. ``"pooled"`` takes SigLIP's attention-pooled vector, which must be asked for because
    it is another kind of vector than a CLS token; no other family has one.

    Raises:
        UnsupportedModelError: ``"cls"`` on a model without CLS, ``"pooled"`` on a model without a pooling head.
    """
    check_choice("anchor", anchor, ("cls", "pooled"))
    host = describe(model)
    if anchor == "cls":
        host.require_cls("anchor='cls'")
        prefix, patches = final_tokens(model, pixel_values, resize=resize)
        return torch.cat([prefix[:, :1], patches], dim=1)
    if host.family != "siglip" or not getattr(host.model, "use_head", False):
        raise UnsupportedModelError.of(
            model, ("SiglipVisionModel",), reason="anchor='pooled' needs a model with an attention-pooling head"
        )
    output = _run(host, pixel_values, resize)
    return torch.cat([output.pooler_output[:, None], output.last_hidden_state], dim=1)


@torch.no_grad()
def cls_attention(model: nn.Module, pixel_values: Tensor, *, layer: int = -1, resize: bool = False) -> Tensor:
    """Attention of the CLS token to the patches in block `layer`, [B,H,N] float32, from one plain forward.

    Recomputed from the query of CLS and all keys, so it works under SDPA and flash attention, where transformers returns no
    maps. The softmax runs over all tokens; the columns of the prefix tokens are then left out.

    Raises:
        UnsupportedModelError: unknown class, or no CLS token (SigLIP).
        ValueError: no such block.
    """
    host = describe(model)
    with attached(host.model, owner="cls_attention") as hooks:
        row = capture_cls_row(hooks, host.model, layer=layer)
        _run(host, pixel_values, resize)
    return row.attention


def _run(host: VisionHost, pixel_values: Tensor, resize: bool) -> Any:
    host.grid(image_size_of(pixel_values))
    options = {"interpolate_pos_encoding": True} if resize and host.resize == "argument" else {}
    return host.model(pixel_values, **options)
