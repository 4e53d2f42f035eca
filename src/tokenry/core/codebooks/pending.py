"""What forward passes counted since the last update of a book, and whether a forward pass is one that backward repeats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.codebooks.codebooks import local_sums


class PendingCounts:
    """Sums of a book's vectors over several forward passes: memory O(K D), plus the vectors themselves with `keep_rows`."""

    def __init__(self, codes: int, keep_rows: bool) -> None:
        self.codes = codes
        self.keep_rows = keep_rows
        self._sums: Tensor | None = None
        self._rows: list[Tensor] = []

    def add(self, x: Tensor, indices: Tensor) -> None:
        """Count the rows of x [N, D] under their indices [N]."""
        sums = local_sums(x, indices, self.codes)
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums
        if self.keep_rows:
            self._rows.append(x.detach())

    def take(self, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sums [K, D + 1] with the counts in the last column, kept rows [N, D]) of this rank; nothing is pending then."""
        nothing = like.new_zeros(0, width)
        sums = local_sums(nothing, torch.zeros(0, dtype=torch.long, device=like.device), self.codes)
        sums = sums if self._sums is None else self._sums.to(like.device)
        rows = torch.cat([nothing, *(part.to(nothing) for part in self._rows)])
        self._sums, self._rows = None, []
        return sums, rows


# Out of compiled graphs. (Typed loosely: torch's own type hides the function's.)
eagerly: Any = torch.compiler.disable


@eagerly
def in_backward() -> bool:
    """Whether the backward pass is running: a forward pass inside it is one that activation checkpointing repeats."""
    return torch._C._current_graph_task_id() >= 0
