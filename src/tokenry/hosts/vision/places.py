"""What a model says about places, kept in step with the patches that are left: masks, rotary tables, relative position biases.

`slots` [B,N] are the tokens present, prefix included, in the numbering of the sequence that entered the first block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.errors import UnsupportedModelError


def with_prefix(kept: Tensor, prefix: int) -> Tensor:
    """Slots [B,prefix+K] of the prefix tokens and the patches `kept` [B,K], which are numbered without the prefix."""
    head = torch.arange(prefix, device=kept.device).expand(kept.shape[0], -1)
    return torch.cat([head, kept + prefix], dim=1)


def gather_mask(mask: Any, slots: Tensor) -> Tensor:
    """The part of a mask or bias of the whole sequence that the present tokens need.

    `mask` is [B,N] (flash attention), or [B or 1, heads or 1, N or 1, N].

    Raises:
        UnsupportedModelError: a mask that is not a tensor (flex attention).
    """
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError.of(
            mask, ("tensor masks, as sdpa, eager and flash attention use them",), reason="attention mask"
        )
    if mask.dim() == 2:
        return mask.expand(slots.shape[0], -1).gather(1, slots)
    mask = mask.expand(slots.shape[0], -1, -1, -1)
    mask = mask.gather(3, slots[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    if mask.shape[2] > 1:
        mask = mask.gather(2, slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    return mask


def gather_rotary(tables: tuple[Tensor, ...], kept: Tensor) -> tuple[Tensor, ...]:
    """Rows of the rotary tables [P,d] for the patches `kept` [B,K]: [B,1,K,d] each, the same for all heads."""
    return tuple(table[kept].unsqueeze(1) for table in tables)


def rotate(keys: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
    """Keys [B,H,N,d] with their last P rows turned by cosines and sines [P,d] or [B,1,P,d]; float32."""
    cos, sin = (table.float() for table in tables)
    first = keys.shape[2] - cos.shape[-2]
    prefix, patches = keys[:, :, :first].float(), keys[:, :, first:].float()
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([prefix, turned], dim=2)


def real_tokens(mask: Tensor | None, batch: int, prefix: int) -> Tensor | None:
    """Which patches a mask lets be seen, [B,N] bool; None: all.

    `mask` is what the model was called with: [B,N] over patches and prefix (zeros hide), or a prepared [B,1,Q,N].
    """
    if mask is None:
        return None
    if mask.dim() == 4:
        row = mask[:, 0, 0]
        seen = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
    else:
        seen = mask.bool()
    return seen.expand(batch, -1)[:, prefix:]
