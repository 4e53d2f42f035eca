"""What all KV-cache methods share: the budget, the split into chosen and recent slots, the choice by score, and `attach`.

A budget is a share of each sequence's own prompt (float in (0, 1]) or slots per layer (int); every method reads it alike, so
that comparisons are fair. 1.0 leaves the cache alone.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice, check_int
from tokenry.core.selection import check_keep
from tokenry.hosts.cache import Budget, Compressed, Prompt, Signal, Slots, compress_cache
from tokenry.hosts.decoder import OnSliding, attention_modules, full_attention_indices
from tokenry.pruning.base import RECORDING, Kept, PruningTrace


@dataclass(frozen=True)
class CacheMethod(ABC):
    """A KV-cache method.

    Attributes:
        budget: share of the prompt (float in (0, 1]) or number of slots (int >= 1) per layer and sequence.
        skip_layers: layers never compressed; negative numbers count from the last layer.
        on_sliding: ``"skip"`` leaves sliding-window layers alone, ``"refuse"`` raises when there are any.
        min_slots: a share never leaves a layer fewer slots than this (while the sequence has as many tokens).

    A share follows the sequence it is a share of: it is settled after the prompt, stands still while single tokens are decoded,
    and is settled again after every later turn (a call with several tokens).
    """

    budget: float | int = 0.2
    skip_layers: tuple[int, ...] = ()
    on_sliding: OnSliding = "skip"
    min_slots: int = 4

    def __post_init__(self) -> None:
        check_keep(self.budget, "budget")
        for number in self.skip_layers:
            check_int("skip_layers", number)
        check_choice("on_sliding", self.on_sliding, ("skip", "refuse"))
        check_int("min_slots", self.min_slots, 1)

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """The method as it is compared with others; nothing is drawn, so `seed` does not matter."""
        return cls(budget=keep)

    @property
    def is_identity(self) -> bool:
        """Whether the budget is the whole prompt, so that nothing is ever dropped."""
        return isinstance(self.budget, float) and self.budget == 1.0

    @property
    def while_decoding(self) -> bool:
        """Whether the cache is cut back to its budget after each decoded token too."""
        return True

    @property
    def evict_every(self) -> int:
        """Decoded tokens between two cuts."""
        return 1

    @property
    @abstractmethod
    def signal(self) -> Signal:
        """The attention scores the method needs."""

    @abstractmethod
    def split(self, slots: int, length: int) -> tuple[int, int]:
        """(chosen, recent) slots out of `slots` for a prompt of `length` tokens."""

    @abstractmethod
    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Cut one layer to its budget; also returns the kept indices [B,H,K] (-1 = empty slot)."""

    def plan(self, n: int) -> int:
        """Slots per compressed layer for a prompt of `n` tokens (the mean over layers, where they differ)."""
        check_int("n", n, 0)
        return min(self._slots_of(n), n)

    def budgets(self, prompt: Prompt) -> list[Budget | None]:
        """One budget per compressible layer; None = never compressed."""
        if self.is_identity:
            return [None] * len(prompt.layers)
        self.warn_if_short(min(map(min, prompt.lengths)))
        skipped = self.skipped(prompt)
        return [
            None if i in skipped else Budget.of(self.split(self._slots_of(n), n) for n in lengths)
            for i, lengths in zip(prompt.layers, prompt.lengths, strict=True)
        ]

    def _slots_of(self, length: int) -> int:
        # not bounded by the length: a chat that opens with one token would keep one slot for good
        return self.budget if isinstance(self.budget, int) else max(floor_slots(length * self.budget), self.min_slots)

    def warn_if_short(self, length: int) -> None:
        """Say that a share of a sequence this short is no cache to continue from, so that `min_slots` acts."""
        if isinstance(self.budget, float) and floor_slots(length * self.budget) < min(self.min_slots, length):
            warnings.warn(
                f"budget={self.budget} of {length} tokens rounds to {floor_slots(length * self.budget)} slots; "
                f"min_slots={self.min_slots} are kept in every layer until the sequence is longer",
                stacklevel=2,
            )

    def skipped(self, prompt: Prompt) -> set[int]:
        """The layer numbers of `skip_layers`, counted from the front."""
        return self._skipped(prompt.total_layers)

    def _skipped(self, total: int) -> set[int]:
        for number in self.skip_layers:
            check_int("skip_layers", number, -total, total - 1)
        return {number % total for number in self.skip_layers}

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[PruningTrace]:
        """Compress the KV cache of `model` until the block ends; yields the trace (one entry per sequence and layer).

        Raises:
            UnsupportedModelError: the model, its attention implementation or its cache cannot be compressed.
            ValueError: `skip_layers` and sliding layers leave nothing to compress.
        """
        trace = PruningTrace()
        self._check_layers(model)
        with compress_cache(model, self, on_sliding=self.on_sliding, report=lambda done: _record(trace, done)):
            yield trace

    def _check_layers(self, model: nn.Module) -> None:
        full = full_attention_indices(model, on_sliding=self.on_sliding)
        total = len(attention_modules(model))
        if not self.is_identity and not set(full) - self._skipped(total):
            raise ValueError(
                f"skip_layers must leave a layer to compress, got {self.skip_layers}: {type(model).__name__} keeps every token "
                f"in {len(full)} of {total} layers ({', '.join(map(str, full))}), the others slide"
            )


def _record(trace: PruningTrace, done: Compressed) -> None:
    with RECORDING:
        _append(trace, done)


def _append(trace: PruningTrace, done: Compressed) -> None:
    start = trace.next_image()
    rows = max((len(index) for index in done.kept.values()), default=0)
    for row in range(rows):
        for layer, index in done.kept.items():
            own = index[row][:, index[row, 0] >= 0] - done.offsets[layer][row]  # empty slots are the same for all heads
            trace.kept.append(Kept(start + row, layer, (own[0] if len(own) == 1 else own).cpu(), done.lengths[layer][row]))
    trace.facts.update(done.facts)


def floor_slots(share: float) -> int:
    """Floor of a slot count that may carry rounding noise of a ratio (0.1 * 30 is 3, not 2.9999)."""
    return math.floor(share + 1e-6)


def at_least_one(chosen: int, recent: int) -> tuple[int, int]:
    """Give a layer whose budget rounds to nothing one recent slot, with a warning: no layer can attend to nothing."""
    if chosen + recent >= 1:
        return chosen, recent
    warnings.warn("budget rounds to 0 slots in a layer; 1 recent slot is kept there", stacklevel=2)
    return 0, 1


def choose_slots(
    scores: Tensor, heavy: tuple[int, ...], recent: tuple[int, ...], *, sinks: int = 0, real: Tensor | None = None
) -> Tensor:
    """The slots that stay: [B,H,K] ascending indices, -1 (first) where a sequence has fewer than K = max(heavy + recent).

    Per sequence the last `recent` slots, and the `heavy` best scores among the earlier ones; the first `sinks` real slots come
    before all scores, the lowest index wins ties, padding comes last of all.

    Args:
        scores: [B,H,T] finite.
        heavy: slots chosen by score, per sequence.
        recent: latest slots, per sequence.
        sinks: first slots that are always among the chosen (as far as `heavy` reaches).
        real: [B,T] bool, False = padding or an empty slot, which must be left of the real ones; None = all real.
    """
    total = scores.shape[-1]
    if real is None and len(set(heavy)) == 1 and len(set(recent)) == 1:
        return _choose_alike(scores, heavy[0], recent[0], sinks)
    return _choose_ragged(
        scores, heavy, recent, sinks, torch.ones_like(scores[:, 0], dtype=torch.bool) if real is None else real, total
    )


def _choose_alike(scores: Tensor, heavy: int, recent: int, sinks: int) -> Tensor:
    batch, heads, total = scores.shape
    older = scores[..., : total - recent].clone()
    older[..., :sinks] = float("inf")
    if older.shape[-1] == heavy + 1:  # one slot to drop, as in every decode step: no sort needed
        place = torch.arange(heavy + 1, device=scores.device)
        worst = older == older.amin(dim=-1, keepdim=True)
        drop = (worst * place).amax(dim=-1, keepdim=True)
        kept = torch.arange(heavy + recent, device=scores.device).expand(batch, heads, -1)
        return kept + (kept >= drop)
    best = torch.sort(older, dim=-1, descending=True, stable=True).indices[..., :heavy].sort(dim=-1).values
    window = torch.arange(total - recent, total, device=scores.device).expand(batch, heads, -1)
    return torch.cat((best, window), dim=-1)


def _choose_ragged(
    scores: Tensor, heavy: tuple[int, ...], recent: tuple[int, ...], sinks: int, real: Tensor, total: int
) -> Tensor:
    device = scores.device
    wanted = torch.tensor([h + r for h, r in zip(heavy, recent, strict=True)], device=device)
    latest = torch.tensor(recent, device=device)
    place = torch.arange(total, device=device)
    is_recent = (place[None, :] >= total - latest[:, None]) & real
    is_sink = (real.cumsum(dim=1) <= sinks) & real
    top = torch.finfo(scores.dtype).max
    rank = scores.masked_fill(is_sink[:, None], top).masked_fill(is_recent[:, None], float("inf"))
    rank = rank.masked_fill(~real[:, None], float("-inf"))
    width = int(wanted.max())
    order = torch.sort(rank, dim=-1, descending=True, stable=True).indices[..., :width]
    count = torch.minimum(wanted, real.sum(dim=1))
    alive = torch.arange(order.shape[-1], device=device)[None, :] < count[:, None]
    return order.masked_fill(~alive[:, None], -1).sort(dim=-1).values


def take_slots(slots: Slots, index: Tensor, *, uniform: bool) -> Slots:
    """Gather the slots at `index` [B,H or 1,K] of `choose_slots` into fresh tensors; empty slots become padding.

    `uniform` says that all sequences keep equally many, so that without padding there can be no empty slot.
    """
    place = index.clamp(min=0).expand(*slots.keys.shape[:2], -1)
    scores = None if slots.scores is None else slots.scores.gather(2, place)
    real = alive_slots(slots.real, index, uniform)
    return Slots(slot_rows(slots.keys, place), slot_rows(slots.values, place), scores, real)


def slot_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows [B,H,K,D] of `x` [B,H,T,D] at `index` [B,H,K], copied row by row (a gather would go number by number)."""
    batch, heads, total, width = x.shape
    start = total * torch.arange(batch * heads, device=x.device).view(batch, heads, 1)
    return x.reshape(-1, width).index_select(0, (index + start).flatten()).view(batch, heads, -1, width)


def alive_slots(real: Tensor | None, index: Tensor, uniform: bool) -> Tensor | None:
    """[B,K] bool of the slots that hold a token after a choice; None when all do."""
    if real is None and uniform:
        return None
    alive = index[:, 0] >= 0
    return None if bool(alive.all()) else alive
