"""Pruning patches inside a vision transformer on a schedule: after block b keep a share of the patches that are still there.

EET, CLS-row pruning, ToMe-style merging and random pruning share this schedule, so that they are compared at equal
token counts.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_finite, check_int
from tokenry.core.selection import check_keep, resolve_budget, top_k
from tokenry.hosts.vision import BlockSignals, Dropped, Selected, Selector, describe, drop_after
from tokenry.pruning.base import RECORDING, Kept, PruningTrace

PAPER_DEPTH = 12
PAPER_SCHEDULE: Mapping[int, float] = MappingProxyType({3: 0.5, 7: 0.5, 9: 0.25})


def scaled_schedule(depth: int) -> dict[int, float]:
    """The schedule of EET (blocks 3, 7, 9 of 12) moved to a model of `depth` blocks, at the same relative depths.

    The paper gives 12 blocks only; the scaling is ours. Block b of 12 becomes ``round((b + 1) * depth / 12) - 1``; stages that
    fall on one block are multiplied.

    Raises:
        ValueError: fewer than 4 blocks (a stage would follow no block).
    """
    check_int("depth", depth, 4)
    schedule: dict[int, float] = {}
    for block, ratio in PAPER_SCHEDULE.items():
        moved = round((block + 1) * depth / PAPER_DEPTH) - 1
        schedule[moved] = schedule.get(moved, 1.0) * ratio
    return schedule


@dataclass(frozen=True)
class PatchPruner(ABC):
    """Keeps after block ``b`` a share ``keep[b]`` of the patches present then; other tokens always stay.

    Attributes:
        keep: block (0-based) -> ratio in (0, 1] of the patches present, rounded down but at least 1, or a count, which is a
            cap: an image with fewer patches keeps them all. Padded patches do not count. None is the schedule of EET for 12
            blocks, {3: 0.5, 7: 0.5, 9: 0.25}: 98, 49 and 12 of 196 patches.

    Raises:
        ValueError, TypeError: no stage, a negative block, or a budget outside its range; the message names the block.
    """

    keep: Mapping[int, float | int] | None = None
    needs_cls: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.keep is None:
            return
        if not isinstance(self.keep, Mapping):
            raise TypeError(f"keep must map blocks to budgets, as in {{3: 0.5}}, got {self.keep!r}")
        if not self.keep:
            raise ValueError("keep must name at least one block, got {}")
        for block, budget in self.keep.items():
            check_int("block in keep", block, 0)
            check_keep(budget, name=f"keep[{block}]")
        object.__setattr__(self, "keep", dict(sorted(self.keep.items())))

    def schedule(self, depth: int | None = None) -> Mapping[int, float | int]:
        """Budgets by block for a model of `depth` blocks.

        Raises:
            ValueError: a block that a model of this depth does not have, or no explicit `keep` for a depth other than 12.
        """
        if self.keep is None:
            if depth is None or depth == PAPER_DEPTH:
                return PAPER_SCHEDULE
            hint = f"; the paper's schedule at this depth would be {scaled_schedule(depth)}" if depth >= 4 else ""
            raise ValueError(f"keep must be given for a model of {depth} blocks (the default is for 12){hint}")
        last = max(self.keep)
        if depth is not None and last >= depth:
            raise ValueError(f"keep names block {last}, but the model has blocks 0 to {depth - 1}")
        return self.keep

    def stages(self, n: int) -> dict[int, int]:
        """Patches left after each block of the schedule, starting with `n` patches."""
        counts: dict[int, int] = {}
        for block, budget in self.schedule().items():
            n = counts[block] = stage_count(budget, n)
        return counts

    def plan(self, n: int) -> int:
        """Patches that leave the last block out of `n`, known before anything is encoded."""
        return list(self.stages(n).values())[-1]

    @abstractmethod
    def scores(self, signals: BlockSignals) -> Tensor:
        """Scores [B,N] of the patches present after a block; the largest stay."""

    @contextmanager
    def attach(self, model: nn.Module, *, record: bool = True) -> Iterator[PruningTrace]:
        """Prune inside `model` until the block ends; yields the trace, with one entry per image and stage.

        A ratio of 1.0 everywhere gives the result of the plain model bit for bit. With ``record=False`` the trace stays empty
        (for training loops).

        Raises:
            UnsupportedModelError: not a known vision transformer, or one that lacks what the scores need.
            ValueError: a stage after a block that the model does not have.
            RuntimeError: another attachment is active on the model.
        """
        host = describe(model)
        if self.needs_cls:
            host.require_cls(type(self).__name__)
        schedule = self.schedule(host.depth)
        trace = PruningTrace()
        recorder = _Recorder(trace, first=min(schedule)) if record else _ignore
        with self._attached(model, schedule, recorder):
            yield trace

    def _attached(
        self, model: nn.Module, schedule: Mapping[int, float | int], recorder: Callable[[Dropped], None]
    ) -> AbstractContextManager[object]:
        score = self._scorer()
        selectors = {block: _selector(budget, score) for block, budget in schedule.items()}
        return drop_after(model, selectors, owner=type(self).__name__, on_drop=recorder)

    def _scorer(self) -> Callable[[BlockSignals], Tensor]:
        """The score function of one attachment; methods that draw random numbers start their generator here."""
        return self.scores


def _selector(budget: float | int, score: Callable[[BlockSignals], Tensor]) -> Selector:
    def select(signals: BlockSignals) -> Selected:
        batch, n = signals.tokens.shape[:2]
        real = [n] * batch if signals.valid is None else signals.valid.sum(dim=1).tolist()
        counts = [stage_count(budget, present) for present in real]
        if counts == real:
            return Selected(torch.arange(n, device=signals.tokens.device).expand(batch, -1))
        with torch.no_grad():
            scores = score(signals)
            if min(counts) == max(counts):
                return Selected(top_k(scores, counts[0], mask=signals.valid), scores)
            return Selected(_ragged_top_k(scores, counts, signals.valid), scores)

    return select


def stage_count(budget: float | int, n: int) -> int:
    """Patches to keep out of `n`: the floor of a ratio (at least 1), or a count, which is a cap."""
    return min(budget, n) if isinstance(budget, int) else resolve_budget(n, budget, rounding="floor")


def _ragged_top_k(scores: Tensor, counts: Sequence[int], valid: Tensor | None) -> Tensor:
    """Another number of patches for every image, [B,max(counts)]: the shorter rows are filled up with padding.

    There is always enough: for budgets that grow by at most one a patch, a row of n less patches is at most n short.
    """
    assert valid is not None
    check_finite("scores", scores.masked_fill(~valid, 0.0))
    ranked = scores.float().masked_fill(~valid, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    limit = torch.tensor(counts, device=scores.device).unsqueeze(1)
    chosen = torch.zeros_like(valid).scatter_(1, ranked, torch.arange(scores.shape[1], device=scores.device) < limit)
    return torch.where(chosen, 2, (~valid).int()).sort(dim=1, descending=True, stable=True).indices[:, : max(counts)]


class _Recorder:
    """Turns the records of the host into trace entries with running image numbers."""

    def __init__(self, trace: PruningTrace, first: int) -> None:
        self.trace, self.first, self.seen = trace, first, 0
        self.own = threading.local()

    def __call__(self, dropped: Dropped) -> None:
        with RECORDING:
            if dropped.block == self.first:
                self.own.start = self.seen
                self.seen += dropped.index.shape[0]
            for row, (grid, index) in enumerate(zip(dropped.grids, dropped.index, strict=True)):
                total = grid[0] * grid[1]
                index = index if dropped.real is None else index[dropped.real[row]]
                scores = None if dropped.scores is None else dropped.scores[row, :total]
                self.trace.kept.append(Kept(self.own.start + row, dropped.block, index, total, scores, grid))


def _ignore(dropped: Dropped) -> None:
    """Record nothing."""
