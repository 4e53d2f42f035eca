"""Attention masks over the slots that a layer really holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKED_BACKENDS = ("sdpa", "eager")


def as_layer_mask(visible: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """A bool mask as the attention implementation wants it: bool for SDPA, 0 / lowest float for eager."""
    if implementation == "eager":
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
    return visible


def of_layer_mask(mask: Tensor) -> Tensor:
    """What `as_layer_mask` made `mask` of: bool, True = visible."""
    return mask if mask.dtype == torch.bool else mask == 0


def last_row(mask: Tensor) -> Tensor:
    """The real slots [B,T] behind a layer's mask [B,1,q,T], whose last query sees all of them; a padding mask as bool."""
    return of_layer_mask(mask[:, 0, -1]) if mask.dim() == 4 else mask.bool()


def slot_mask(
    hidden: Tensor, held: int, real: Tensor | None, fresh: Tensor | None, implementation: str, dtype: torch.dtype
) -> Tensor | None:
    """Mask of new tokens over `held` earlier slots and themselves, in the form the attention implementation wants.

    Args:
        hidden: [B,q,D], the new tokens (read for its shape and device).
        held: slots before them.
        real: [B,held] bool, False = padding or an empty slot; None = all real.
        fresh: [B,q] bool of the new tokens, likewise.
        implementation: name of the attention implementation.
        dtype: of the additive mask of eager attention.

    Returns:
        None where the implementation needs no mask; [B or 1,1,q,held+q]; for flash attention [B,held+q].
    """
    batch, count, device = hidden.shape[0], hidden.shape[1], hidden.device
    padded = real is not None or fresh is not None
    if not padded and (count == 1 or implementation not in MASKED_BACKENDS):
        return None
    slots = None
    if padded:
        before = torch.ones(batch, held, dtype=torch.bool, device=device) if real is None else real
        new = torch.ones(batch, count, dtype=torch.bool, device=device) if fresh is None else fresh
        slots = torch.cat((before, new), dim=1)
        if implementation not in MASKED_BACKENDS:
            return slots.long()
    own = torch.arange(held, held + count, device=device)
    visible = (torch.arange(held + count, device=device)[None, :] <= own[:, None])[None, None]
    if slots is not None:
        alone = nn.functional.pad(torch.eye(count, dtype=torch.bool, device=device), (held, 0))
        visible = (visible & slots[:, None, None, :]) | alone  # padding sees itself: a row without any slot would be NaN
    return as_layer_mask(visible, implementation, dtype)
