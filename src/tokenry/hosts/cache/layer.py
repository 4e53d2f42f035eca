"""The one cache layer of the wing: it may hold fewer slots than it has seen tokens, and knows both numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attention import LogitRule
from tokenry.hosts.cache.policy import Budget

Rows = Callable[[Tensor], Tensor]
"""Picks, repeats or reorders the rows [B,...] of a tensor."""


@dataclass(frozen=True)
class ShortenedPast:
    """What came before in a cache whose prompts were shortened before the language model read them.

    Attributes:
        real: [B,F] bool, the columns that were fed, False = padding.
        dropped: [B] real tokens that were taken out.
        next_position: [B] position that the next token has in the unshortened sequence.
    """

    real: Tensor
    dropped: Tensor
    next_position: Tensor

    def rows(self, pick: Rows) -> ShortenedPast:
        """The same for other rows."""
        return ShortenedPast(pick(self.real), pick(self.dropped), pick(self.next_position))

    def cropped(self, count: int) -> ShortenedPast:
        """The same without its last `count` columns."""
        width = self.real.shape[1] - count
        return replace(self, real=self.real[:, :width], next_position=self.next_position - count)


class _Seen:
    """What both kinds of tracked layers share: tokens that were seen and never fed, and who must be there to continue.

    Attributes:
        unfed: tokens of the sequence that were taken out before this layer.
        past: see `ShortenedPast`; None where nothing was taken out.
    """

    unfed: int
    past: ShortenedPast | None
    needs: dict[str, str]
    _armed: set[str]

    def _forget(self) -> None:
        self.unfed, self.past = 0, None
        self.needs, self._armed = {}, set()

    def need(self, kind: str, owner: str) -> None:
        """From now on tokens may only be added while `owner` is attached: nobody else masks and counts this layer rightly."""
        self.needs[kind] = owner

    def arm(self, kind: str) -> None:
        """Tell the layer that the attachment of this kind is there, for the next update."""
        self._armed.add(kind)

    def is_armed(self, kind: str) -> bool:
        """Whether the attachment of this kind has announced itself for the next update."""
        return kind in self._armed

    def _check_armed(self) -> None:
        missing = [owner for kind, owner in self.needs.items() if kind not in self._armed]
        self._armed.clear()
        if missing:
            raise RuntimeError(
                f"this cache was shortened by {missing[0]} and cannot be continued without it; "
                f"continue inside its `with ... .attach(model):` block, or start a new cache"
            )


class TrackedLayer(_Seen, DynamicLayer):
    """A dynamic cache layer that may hold fewer slots than it has seen tokens.

    ``get_seq_length`` answers with the tokens seen, so that positions and input slicing stay right;
    ``keys.shape[-2]`` is the number of slots held. Rows can be repeated, selected and reordered; slots that were merged or
    evicted cannot be brought back, so cropping stops there.

    Attributes:
        fed: columns that reached this layer, padding included.
        real: [B,T] bool over the slots held, False = padding; None while every slot is real.
        scores: attention received per slot, [B,Hq,T] before the first compression and [B,Hkv,T] after it.
        tail: the last rotated queries of the prompt [B,Hq,w,d], for methods that score by a window.
        rule: how the layer makes its logits, as last observed.
        budget: None = never compressed.
        planned: the prompt is complete and `budget` is settled.
        state: what the method remembers between steps.
        policy: the KV-cache method, None where only the prompt was shortened.
    """

    def __init__(self, policy: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.policy = policy
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self.fed = self.croppable = 0
        self.real: Tensor | None = None
        self.padding: Tensor | None = None
        self.scores: Tensor | None = None
        self.tail: Tensor | None = None
        self.rule: LogitRule | None = None
        self.budget: Budget | None = None
        self.planned = False
        self.state: dict[str, Any] = {}

    @classmethod
    def adopting(cls, layer: DynamicLayer) -> TrackedLayer:
        """The same keys and values in a tracked layer."""
        tracked = cls()
        keys, values = layer.keys, layer.values
        if keys is not None and values is not None and layer.is_initialized:
            tracked.lazy_initialization(keys, values)
            tracked.keys, tracked.values = keys, values
            tracked.fed = tracked.croppable = keys.shape[-2]
        return tracked

    @property
    def seen(self) -> int:
        """Tokens of the sequence so far, whether held or not."""
        return self.fed + self.unfed

    @property
    def held(self) -> int:
        """Slots held now."""
        return super().get_seq_length()

    @property
    def lengths(self) -> list[int]:
        """Real tokens fed so far, per row."""
        batch = self.stored[0].shape[0]
        return [self.fed] * batch if self.padding is None else (self.fed - self.padding).tolist()

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
        """Append the new tokens; returns all keys and values.

        Raises:
            RuntimeError: the cache was shortened in a way that only the attachment that did it can continue.
        """
        self._check_armed()
        self.fed += key_states.shape[-2]
        self.croppable += key_states.shape[-2]
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
        if fresh is not None:
            padding = (~after).sum(dim=1)
            self.padding = padding if self.padding is None else self.padding + padding

    def lost(self, *, after: int = 0) -> None:
        """Note that slots were evicted or merged, or tokens taken out: only the last `after` columns can be cropped."""
        self.croppable = after

    def move_padding_first(self) -> None:
        """Move padding between real slots (of rows of which a pruner kept less) to the front of its row.

        Keys carry their positions, so the order of the slots is free; methods may then count the latest ones from the end.
        """
        order = None if self.real is None else padding_first(self.real)
        if order is None:
            return
        self.keys, self.values = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in self.stored)
        self.real = self.real.gather(1, order)  # pyright: ignore[reportOptionalMemberAccess]
        if self.scores is not None and self.scores.shape[2] == order.shape[1]:  # else of an earlier prompt: made anew
            self.scores = self.scores.gather(2, order[:, None].expand_as(self.scores))
        self.lost()

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

    @property
    def is_croppable(self) -> bool:
        """Whether assisted decoding may take tokens back; what a method evicted in between cannot come back."""
        return self.policy is None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens (a negative number), as far as nothing was dropped among or after them.

        Raises:
            ValueError: further back than the last tokens that were dropped, or a positive number.
        """
        count = -tokens_to_remove
        if count < 0:
            raise ValueError(f"tokens_to_remove must be 0 or negative (tokens to take back), got {tokens_to_remove}")
        if count > self.croppable:
            raise ValueError(
                f"tokens_to_remove must be at least {-self.croppable} on this shortened KV cache, got {tokens_to_remove}: "
                "tokens before were dropped and cannot come back"
            )
        if count == 0:
            return
        super().crop(tokens_to_remove)
        if self.real is not None:
            gone = (~self.real[:, -count:]).sum(dim=1)
            self.padding = None if self.padding is None else self.padding - gone
            self.real = self.real[:, :-count]
        if self.scores is not None:
            self.scores = self.scores[..., :-count]
        if self.past is not None:
            self.past = self.past.cropped(count)
        self.fed -= count
        self.croppable -= count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order `beam_idx`."""
        self._pick(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._pick(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        self._pick(lambda x: x[indices.to(x.device)])

    def _pick(self, pick: Rows) -> None:
        if self.keys is None or self.values is None or not self.is_initialized:
            return
        batch = self.keys.shape[0]
        rows = pick(torch.arange(batch)).tolist()
        self.keys, self.values = pick(self.keys), pick(self.values)
        for name in ("real", "padding", "scores", "tail"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else pick(value))
        self.past = None if self.past is None else self.past.rows(pick)
        if self.budget is not None:
            heavy, recent = self.budget.heavy, self.budget.recent
            self.budget = Budget(tuple(heavy[row] for row in rows), tuple(recent[row] for row in rows))
        self.state = {
            name: pick(value) if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch else value
            for name, value in self.state.items()
        }


class TrackedSlidingLayer(_Seen, DynamicSlidingWindowLayer):
    """A sliding-window layer that counts the tokens that were taken out before it as seen."""

    def __init__(self, sliding_window: int, **kwargs: Any) -> None:
        super().__init__(sliding_window, **kwargs)
        self._forget()

    @classmethod
    def adopting(cls, layer: DynamicSlidingWindowLayer) -> TrackedSlidingLayer:
        """The same keys and values in a tracked layer."""
        tracked = cls(layer.sliding_window)
        vars(tracked).update(vars(layer))
        return tracked

    @property
    def seen(self) -> int:
        """Tokens of the sequence so far."""
        return super().get_seq_length() + self.unfed

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens; returns all keys and values within reach.

        Raises:
            RuntimeError: as in `TrackedLayer`.
        """
        self._check_armed()
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots, first position) for the mask builder."""
        length, offset = super().get_mask_sizes(query_length)
        return length, offset + self.unfed

    def reset(self) -> None:
        """Empty the layer and forget what was taken out."""
        super().reset()
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens, by the rules of the plain layer."""
        unfed, self.unfed = self.unfed, 0  # the plain layer compares its own count with the window
        try:
            super().crop(tokens_to_remove)
        finally:
            self.unfed = unfed
        if self.past is not None:
            self.past = self.past.cropped(-tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self.past = None if self.past is None else self.past.rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows `indices`."""
        super().batch_select_indices(indices)
        self.past = None if self.past is None else self.past.rows(lambda x: x[indices])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order `beam_idx`."""
        super().reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]
        self.past = None if self.past is None else self.past.rows(lambda x: x.index_select(0, beam_idx.to(x.device)))


def padding_first(real: Tensor) -> Tensor | None:
    """Order [B,T] in which the padding of `real` [B,T] comes first and all else stays in sequence; None if it is so already."""
    if not bool((real[:, :-1] & ~real[:, 1:]).any()):
        return None
    return real.int().argsort(dim=1, stable=True)


def tracked(layer: Any) -> TrackedLayer | TrackedSlidingLayer:
    """The layer itself where it is tracked already, else a tracked one with the same keys and values.

    Raises:
        UnsupportedModelError: a layer of another kind (static, quantized, offloaded).
    """
    if isinstance(layer, (TrackedLayer, TrackedSlidingLayer)):
        return layer
    if type(layer) is DynamicLayer:
        return TrackedLayer.adopting(layer)
    if type(layer) is DynamicSlidingWindowLayer:
        return TrackedSlidingLayer.adopting(layer)
    raise UnsupportedModelError.of(layer, ["DynamicLayer", "DynamicSlidingWindowLayer"], reason="its slots cannot be counted")
