"""What every pruner shares: the budget, the call shapes and the trace of what was kept."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenry.core.checks import check_device, check_finite, check_float, check_shape
from tokenry.core.selection import check_keep, resolve_budget


@dataclass(frozen=True)
class Kept:
    """Tokens that survived one decision.

    Attributes:
        image: running number of the image, tile or frame (of the sequence row for KV-cache methods) within the attachment.
        layer: block after which the others were dropped; None = before the language model.
        indices: ascending kept indices [K] ([H,K] where heads differ) in the original numbering of that image or sequence.
        total: tokens before the decision.
        scores: [N] scores the decision was made from, where there are any.
        grid: (rows, columns) of the image's tokens, where they form one.
    """

    image: int
    layer: int | None
    indices: Tensor
    total: int
    scores: Tensor | None = None
    grid: tuple[int, int] | None = None


RECORDING = threading.RLock()
"""Held while entries of one forward get their running number, since threads may share an attachment."""


@dataclass
class PruningTrace:
    """Record of an attachment: one `Kept` per image (or sequence) and decision; `facts` holds what else was measured."""

    kept: list[Kept] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def of_image(self, image: int) -> list[Kept]:
        """The decisions about one image, in order."""
        return [entry for entry in self.kept if entry.image == image]

    def counts(self) -> dict[int, int]:
        """Tokens left per image after its last decision."""
        return {entry.image: entry.indices.shape[-1] for entry in self.kept}

    def to_rows(self) -> list[dict[str, Any]]:
        """Plain rows (image, layer, kept, total, ratio) for tables and JSON."""
        return [
            {
                "image": entry.image,
                "layer": entry.layer,
                "kept": entry.indices.shape[-1],
                "total": entry.total,
                "ratio": entry.indices.shape[-1] / max(entry.total, 1),
            }
            for entry in self.kept
        ]

    def clear(self) -> None:
        """Forget everything recorded so far."""
        self.kept.clear()
        self.facts.clear()

    def next_image(self) -> int:
        """The running number that the next image gets."""
        return max((entry.image for entry in self.kept), default=-1) + 1


@dataclass(frozen=True)
class Pruner(ABC):
    """Keeps `keep` of the tokens: a ratio (float in (0, 1]) or a count (int >= 1), which is a cap: of fewer tokens all stay."""

    keep: float | int = 0.25
    order_free: ClassVar[bool] = True
    """Whether the kept set is the same when the tokens come in another order (no ties assumed)."""

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def plan(self, n: int) -> int:
        """The exact number of tokens that will be kept out of `n`, known before anything is encoded."""
        return resolve_budget(n, self.capped(n))

    def capped(self, n: int) -> float | int:
        """`keep`, a count no larger than the `n` tokens there are."""
        return min(self.keep, n) if isinstance(self.keep, int) and n > 0 else self.keep

    @abstractmethod
    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Indices [B,K] of the kept tokens of `features` [B,N,D]; pure, needs no model."""

    @abstractmethod
    def attach(self, model: nn.Module) -> AbstractContextManager[PruningTrace]:
        """Prune inside `model` until the block ends; yields the trace."""


def check_tokens(features: Tensor, importance: Tensor | None = None) -> tuple[int, int]:
    """Check features [B,N,D] and, where given, importance [B,N]; return (B, N)."""
    sizes = check_shape("features", check_float("features", features), "B N D")
    check_finite("features", features)
    if importance is not None:
        check_shape("importance", check_float("importance", importance), "B N", B=sizes["B"], N=sizes["N"])
        check_device("importance", importance, "features", features)
        check_finite("importance", importance)
    return sizes["B"], sizes["N"]
