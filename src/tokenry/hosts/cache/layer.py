"""The cache layer that a compressed model uses: it remembers how many tokens it has seen and which of its slots are real."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tokenry.hosts.cache.policy import Budget


class TrackedLayer(DynamicLayer):
    """A dynamic cache layer that may hold fewer slots than it has seen tokens.

    ``get_seq_length`` answers with the tokens seen, so that positions and input slicing stay right after compression;
    ``keys.shape[-2]`` is the number of slots held. Beam search and assisted decoding would have to undo or reorder
    evictions and are refused.

    Attributes:
        real: [B,T] bool, False = padding; None while every slot is real.
        scores: attention received per slot, [B,Hq,T] before the first compression and [B,Hkv,T] after it.
        tail: the last rotated queries of the prompt [B,Hq,w,d], for methods that score by a window.
        budget: None = never compressed.
        planned: the prompt is complete and `budget` is settled.
        state: what the method remembers between steps.
    """

    is_croppable = False

    def __init__(self, policy: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policy = policy
        self._forget()

    def _forget(self) -> None:
        self.seen = 0
        self.real: Tensor | None = None
        self.scores: Tensor | None = None
        self.tail: Tensor | None = None
        self.budget: Budget | None = None
        self.planned = False
        self.state: dict[str, Any] = {}

    @property
    def held(self) -> int:
        """Slots held now."""
        return super().get_seq_length()

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values held, [B,H,T,D] each."""
        if self.keys is None or self.values is None:
            raise RuntimeError("the cache layer is empty")
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values) if x is not None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens; returns all keys and values."""
        self.seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def append_real(self, fresh: Tensor | None, batch: int, count: int) -> None:
        """Note which of the `count` newest slots are real ([B,count] bool; None = all)."""
        if self.real is None and fresh is None:
            return
        device = self.stored[0].device
        held = self.held - count
        before = torch.ones(batch, held, dtype=torch.bool, device=device) if self.real is None else self.real
        after = torch.ones(batch, count, dtype=torch.bool, device=device) if fresh is None else fresh.to(device)
        self.real = torch.cat((before, after), dim=1)

    def get_seq_length(self) -> int:
        """Tokens seen, whether still held or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots, first position) for the mask builder; attention hooks replace the result where slots are missing."""
        return self.held + query_length, self.seen - self.held

    def reset(self) -> None:
        """Empty the layer and forget everything about the prompt."""
        super().reset()
        self._forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: see the class."""
        raise _refusal("beam search (reorder_cache)")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: see the class."""
        raise _refusal("assisted decoding (crop)")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused: see the class."""
        raise _refusal("repeating a compressed cache (batch_repeat_interleave)")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused: see the class."""
        raise _refusal("selecting rows of a compressed cache (batch_select_indices)")


def _refusal(what: str) -> ValueError:
    return ValueError(f"{what} is not supported on a compressed KV cache; use greedy search or sampling with num_beams=1")
