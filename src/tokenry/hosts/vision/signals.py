"""Vision transformers as hosts: final tokens, the CLS row of attention without attention maps, dropping patches after a block.

Families: ViT, DeiT (with its distillation token), ViT-MSN, I-JEPA, ViTMAE, BEiT, DINOv2 (with registers), DINOv3, CLIP vision,
SigLIP and SigLIP 2 vision.
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


def final_tokens(model: nn.Module, pixel_values: Tensor, *, resize: bool = False, **inputs: Any) -> FinalTokens:
    """Tokens after the final layer norm, split into prefix and patches.

    Most towers normalise all tokens themselves. CLIP normalises only the pooled CLS token and BEiT, where it averages patches,
    only their average: the norm is applied to all tokens here. SigLIP and I-JEPA have no CLS token: their prefix is empty.
    ViTMAE must hide nothing (``config.mask_ratio = 0``); its patches come in the order of the image, not shuffled.

    Args:
        model: a supported vision tower, or a classifier around one.
        pixel_values: [B,C,H,W] as the model's image processor makes them.
        resize: allow images of another size than the model's (its position embeddings are interpolated); otherwise the model
            itself refuses them (DINOv2, DINOv3 and BEiT always accept them).
        inputs: what else the model takes; SigLIP 2 needs ``spatial_shapes`` and ``pixel_attention_mask``.

    Raises:
        UnsupportedModelError: unknown model class.
        ValueError: image sides that are not multiples of the patch side, or a ViTMAE that hides patches.
    """
    host = describe(model)
    output = _run(host, pixel_values, resize, **inputs)
    tokens = output.last_hidden_state
    if host.final_norm is not None:
        tokens = host.final_norm(tokens)
    return FinalTokens(tokens[:, : host.prefix], tokens[:, host.prefix :])


def global_and_patches(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    anchor: Literal["cls", "pooled"] = "cls",
    resize: bool = False,
    **inputs: Any,
) -> Tensor:
    """One global token followed by the patch tokens, [B,1+N,D]: registers and the distillation token are left out.

    `anchor` ``"cls"`` takes the CLS token. ``"pooled"`` takes SigLIP's attention-pooled vector, which must be asked for because
    it is another kind of vector than a CLS token; SigLIP 2 has one, too, and no other family. `inputs` as in `final_tokens`.

    Raises:
        UnsupportedModelError: ``"cls"`` on a model without CLS, ``"pooled"`` on a model without a pooling head.
    """
    check_choice("anchor", anchor, ("cls", "pooled"))
    host = describe(model)
    if anchor == "cls":
        host.require_cls("anchor='cls'")
        prefix, patches = final_tokens(model, pixel_values, resize=resize, **inputs)
        return torch.cat([prefix[:, :1], patches], dim=1)
    if host.family not in ("siglip", "siglip2") or not getattr(host.model, "use_head", False):
        supported = ("SiglipVisionModel", "Siglip2VisionModel")
        raise UnsupportedModelError.of(model, supported, reason="anchor='pooled' needs a model with an attention-pooling head")
    output = _run(host, pixel_values, resize, **inputs)
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


def _run(host: VisionHost, pixel_values: Tensor, resize: bool, **inputs: Any) -> Any:
    if not host.layout.packed:
        host.grid(image_size_of(pixel_values))
    if resize and host.layout.resize == "argument":
        inputs["interpolate_pos_encoding"] = True
    if host.layout.shuffled:
        inputs["noise"] = _in_order(host, pixel_values)
    return host.model(pixel_values, **inputs)


def _in_order(host: VisionHost, pixel_values: Tensor) -> Tensor:
    """Noise [B,N] that leaves the patches of ViTMAE in the order of the image."""
    config: Any = host.model.config
    if config.mask_ratio != 0:
        raise ValueError(f"config.mask_ratio must be 0 where all patches are read, got {config.mask_ratio}")
    rows, columns = host.grid(image_size_of(pixel_values))
    return torch.arange(rows * columns, device=pixel_values.device).float().expand(len(pixel_values), -1)
