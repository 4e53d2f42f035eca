"""KV-cache baselines under the budget semantics of D2O: full cache, StreamingLLM, H2O, SnapKV.

- StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): attention sinks and a recent window. The paper re-numbers positions inside
  the cache; here keys keep the rotation of their original position, which is the same for prompts within the trained length.
- H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters by accumulated attention and a recent window, half and half.
- SnapKV (Li et al. 2024, arXiv 2404.14469): the last `window` queries vote for earlier slots; votes are pooled along the
  sequence; the prompt is compressed once and decoded tokens are all kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.hosts.cache import Budget, Signal, Slots
from tokenry.pruning.kv_method import CacheMethod, at_least_one, choose_slots, floor_slots, take_slots


@dataclass(frozen=True)
class FullCache(CacheMethod):
    """Nothing is dropped: the reference arm under the same interface."""

    budget: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_identity:
            raise ValueError(f"budget of FullCache must be 1.0, got {self.budget}")

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """The reference, whatever the budget of the others."""
        return cls()

    @property
    def signal(self) -> Signal:
        """No scores."""
        return Signal("none")

    def split(self, slots: int, length: int) -> tuple[int, int]:
        """All slots are recent ones."""
        return 0, slots

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Never called: the budgets are None."""
        raise NotImplementedError


@dataclass(frozen=True)
class StreamingLLM(CacheMethod):
    """The first `sinks` slots and the latest ones (Xiao et al. 2023, section 3)."""

    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("sinks", self.sinks, 0)

    @property
    def signal(self) -> Signal:
        """No scores."""
        return Signal("none")

    def split(self, slots: int, length: int) -> tuple[int, int]:
        """Sinks first, at most all slots but one; the rest is the window."""
        chosen = min(self.sinks, max(slots - 1, 0))
        return at_least_one(chosen, slots - chosen)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Keep sinks and window; all heads alike."""
        batch, _, total, _ = slots.keys.shape
        nothing = torch.zeros(batch, 1, total, device=slots.keys.device)
        index = choose_slots(nothing, budget.heavy, budget.recent, sinks=self.sinks, real=slots.real)
        return take_slots(slots, index, uniform=budget.uniform), index


@dataclass(frozen=True)
class H2O(CacheMethod):
    """Heavy hitters by accumulated attention, and a recent window (Zhang et al. 2023, Algorithm 1).

    Attributes:
        heavy_share: part of the budget that goes to heavy hitters.
        sinks: first slots that are always kept; 0 in the paper, 4 makes it D2O without layer budgets and without merging.
        cut_every: decoded tokens between two cuts; the cache then holds up to ``cut_every - 1`` slots more.
    """

    heavy_share: float = 0.5
    sinks: int = 0
    cut_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("heavy_share", self.heavy_share, 0.0, 1.0)
        check_int("sinks", self.sinks, 0)
        check_int("cut_every", self.cut_every, 1)

    @property
    def signal(self) -> Signal:
        """Exact column sums over all queries, during the prompt and after."""
        return Signal("none") if self.is_identity else Signal("exact", per_step=True)

    @property
    def evict_every(self) -> int:
        """`cut_every`."""
        return self.cut_every

    def split(self, slots: int, length: int) -> tuple[int, int]:
        """`heavy_share` of the slots, rounded down, are chosen."""
        chosen = floor_slots(slots * self.heavy_share)
        return at_least_one(chosen, slots - chosen)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Keep the best scores and the window, per key head."""
        index = choose_slots(_scores(slots), budget.heavy, budget.recent, sinks=self.sinks, real=slots.real)
        return take_slots(slots, index, uniform=budget.uniform), index


@dataclass(frozen=True)
class SnapKV(CacheMethod):
    """The last queries of the prompt vote for the slots to keep (Li et al. 2024, section 4).

    Attributes:
        window: observation window; its slots are always kept.
        kernel: width of the pooling over votes (odd).
        pooling: ``"max"`` or ``"avg"``; the paper's listing pools, its released code offers both.
    """

    window: int = 32
    kernel: int = 7
    pooling: Literal["max", "avg"] = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("window", self.window, 1)
        check_int("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        check_choice("pooling", self.pooling, ("max", "avg"))

    @property
    def while_decoding(self) -> bool:
        """The prompt is compressed once; decoded tokens are all kept."""
        return False

    @property
    def signal(self) -> Signal:
        """Attention of the last `window` queries."""
        return Signal("none") if self.is_identity else Signal("window", self.window)

    def split(self, slots: int, length: int) -> tuple[int, int]:
        """The window, and voted slots for the rest of the budget (none when the budget is within the window)."""
        recent = min(self.window, slots)
        return at_least_one(slots - recent, recent)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Keep the window and the slots with the best pooled votes, per key head."""
        index = choose_slots(self.votes(_scores(slots), slots.real), budget.heavy, budget.recent, real=slots.real)
        return take_slots(slots, index, uniform=budget.uniform), index

    def votes(self, scores: Tensor, real: Tensor | None = None) -> Tensor:
        """Window scores [B,H,T] pooled along the slots before the window; the window's own slots and padding give no votes."""
        earlier = scores[..., : max(scores.shape[-1] - self.window, 0)]
        if real is not None:
            earlier = earlier * real[:, None, : earlier.shape[-1]]
        pooled = earlier
        if earlier.shape[-1] > 0:
            pool = F.max_pool1d if self.pooling == "max" else F.avg_pool1d
            pooled = pool(earlier, self.kernel, stride=1, padding=self.kernel // 2)
        return F.pad(pooled, (0, scores.shape[-1] - pooled.shape[-1]))


def _scores(slots: Slots) -> Tensor:
    if slots.scores is None:
        raise RuntimeError("attention scores are missing")
    return slots.scores


def contract_instances() -> dict[str, CacheMethod]:
    """What the contract of KV-cache methods is checked on."""
    return {"streaming": StreamingLLM(0.3), "H2O": H2O(0.3), "SnapKV": SnapKV(0.3, window=8)}
