"""What the KV-cache engine and a KV-cache method say to each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """Slots of one layer, per sequence: `heavy` chosen by score and `recent` kept as a window."""

    heavy: tuple[int, ...]
    recent: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Budget:
        """From (heavy, recent) of every sequence."""
        heavy, recent = zip(*pairs, strict=True)
        return cls(heavy, recent)

    @property
    def slots(self) -> int:
        """Slots the layer needs: the most that any sequence of the batch keeps."""
        return max(h + r for h, r in zip(self.heavy, self.recent, strict=True))

    @property
    def uniform(self) -> bool:
        """Whether all sequences of the batch have the same split."""
        return len(set(self.heavy)) == 1 and len(set(self.recent)) == 1


@dataclass(frozen=True)
class Signal:
    """Attention scores a method wants.

    Attributes:
        kind: none, exact column sums over the prompt, those of its last `window` queries, or both.
        window: queries of the window.
        per_step: scores go on after the prompt, one row per decoded token.
    """

    kind: Literal["none", "exact", "window", "both"]
    window: int = 32
    per_step: bool = False


@dataclass
class Prompt:
    """What a method may look at when it settles the budgets: after the prompt, and again after every later turn.

    Attributes:
        layers: numbers of the layers that can be compressed.
        total_layers: decoder layers of the model, sliding ones included.
        lengths: per layer the real tokens of each sequence so far [L][B]; they differ where visual tokens left on the way.
        held: per layer the real slots of each sequence [L][B], less than `lengths` on a later turn.
        scores: per layer [B,H,T] float32 over the slots held, or None where the method asked for none.
        states: per layer what the method remembers between settlements and evictions.
        facts: what the method wants to report in the trace.
    """

    layers: list[int]
    total_layers: int
    lengths: list[list[int]]
    held: list[list[int]]
    scores: list[Tensor | None]
    states: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Slots:
    """One layer's cache in a method's hands: keys, values [B,H,T,D], scores [B,H,T] or None, real [B,T] or None."""

    keys: Tensor
    values: Tensor
    scores: Tensor | None
    real: Tensor | None


class CachePolicy(Protocol):
    """A KV-cache method. `evict` gets one layer and returns it with at most ``budget.slots`` slots, and the kept indices."""

    @property
    def signal(self) -> Signal: ...  # noqa: D102
    @property
    def while_decoding(self) -> bool: ...  # noqa: D102
    @property
    def evict_every(self) -> int: ...  # noqa: D102

    def budgets(self, prompt: Prompt) -> list[Budget | None]: ...  # noqa: D102
    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]: ...  # noqa: D102


@dataclass(frozen=True)
class Compressed:
    """Report of one finished prompt; after a later turn only `facts` is filled.

    Attributes:
        kept: slot indices per compressed layer, [B,H,K] or [B,1,K]; -1 marks an empty slot.
        lengths: per compressed layer the real tokens of each sequence.
        offsets: per compressed layer the padding slots before them.
        scores: [B,Hkv,K] per compressed layer, or None.
        facts: bytes before and after, slots per layer, and what the method reports.
    """

    kept: dict[int, Tensor]
    lengths: dict[int, list[int]]
    offsets: dict[int, list[int]]
    scores: dict[int, Tensor | None]
    facts: dict[str, Any]
