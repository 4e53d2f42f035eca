"""Other ways to merge what D2O drops, for its claim: values alone, and keys with the rotation of their positions taken out.

The paper merges keys as they are cached, each rotated by its own position. An average of two rotations far apart answers to
neither, so two things are tried beside it: to leave the kept keys as they are and merge values alone, and to compare (and
merge) keys without their rotation, turned back to the position of the kept slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.hosts.cache import Budget, Slots
from tokenry.hosts.decoder import text_model
from tokenry.pruning.d2o import D2O
from tokenry.pruning.kv_method import slot_rows


@dataclass(frozen=True)
class OtherMerging(D2O):
    """D2O on one unpadded prompt, cut once: the place of a slot is then its position.

    Attributes:
        merges_keys: keys are merged too, not the values alone.
        rotation: (cos, sin) [T,D] of the positions, to match and merge keys without their rotation; None: as cached.
    """

    merges_keys: bool = True
    rotation: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """As D2O, with the keys turned to position 0 before it and back after it, or put back as they were."""
        places = torch.arange(slots.keys.shape[2], device=slots.keys.device)
        flat = slots if self.rotation is None else replace(slots, keys=rotated(slots.keys, self.rotation, places, back=True))
        kept, index = super().evict(flat, budget, state)
        if not self.merges_keys:
            kept.keys = slot_rows(slots.keys, index)
        elif self.rotation is not None:
            kept.keys = rotated(kept.keys, self.rotation, index)
        return kept, index


def rotation_of(model: nn.Module, length: int) -> tuple[Tensor, Tensor]:
    """(cos, sin) [length,D] of a decoder with one rotary embedding for all layers (Llama and its like)."""
    decoder: Any = text_model(model)
    at = next(model.parameters())
    cos, sin = decoder.rotary_emb(at.new_zeros(1), torch.arange(length, device=at.device)[None])
    return cos[0], sin[0]


def rotated(keys: Tensor, rotation: tuple[Tensor, Tensor], places: Tensor, *, back: bool = False) -> Tensor:
    """Keys [B,H,T,D] turned by the rotation of `places` ([T] or [B,H,T]), or by its inverse."""
    cos, sin = (x[places] for x in rotation)
    first, second = keys.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return keys * cos - turned * sin if back else keys * cos + turned * sin
