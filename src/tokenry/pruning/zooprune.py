"""ZOO-Prune: visual tokens by projector sensitivity times novelty (arXiv 2509.24837, CVPR 2026).

Scores every visual token by how strongly the projector's output reacts to small perturbations of it (eq. 3-4), then keeps
tokens one after the other, each the largest ``S * (1 - max cosine to the kept)`` on the projected features (eq. 6-7). No
training, no attention maps.

S is min-max scaled with epsilon 1e-8; where it is constant (a linear projector) it is 1 for all tokens. The released LLaVA-1.5
code does this, its LLaVA-NeXT code does not and would choose by ties. Budgets round down, as released. With several crops the
budget is divided by the number of crops and spent in each separately, separators (``image_newline``) are kept on top.

Ours: `method="exact"` replaces the difference quotient by the derivative it approximates. For Qwen2.5-VL the projector reads
2 x 2 patches at once; the perturbed token is that group (the paper does not say).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice, check_int, check_range, check_shape
from tokenry.core.selection import greedy_select, resolve_budget
from tokenry.hosts.vlm import Signals, VisualTokens
from tokenry.pruning.base import check_tokens
from tokenry.pruning.sensitivity import (
    Map,
    exact_sensitivity,
    low_rank,
    normalised,
    two_layer,
    two_sided_sensitivity,
    unit_directions,
)
from tokenry.pruning.visual import BudgetUnit, Scope, VisualPruner, identity

Method = Literal["finite_difference", "exact"]


@dataclass(frozen=True)
class ZOOPrune(VisualPruner):
    """Keep visual tokens by zeroth-order sensitivity times novelty.

    Attributes:
        keep: ratio or count of tokens to keep; ratios round down. Paper: 192, 128, 64 of 576.
        directions: random directions m. Paper: 64.
        step: perturbation size h of the two-sided difference. Paper: 0.01.
        method: how `attach` computes the sensitivity; ``"exact"`` needs no step and is faster.
        rank: probe a truncated projector with this many singular values (released LLaVA-NeXT path: 128); None = the projector.
        per_crop: spend the budget crop by crop (LLaVA-OneVision), as released for LLaVA-NeXT.
        seed: seed of the directions.
    """

    directions: int = 64
    step: float = 0.01
    method: Method = "finite_difference"
    rank: int | None = None
    per_crop: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("directions", self.directions, 1)
        check_range("step", self.step, 0.0, low_open=True)
        check_choice("method", self.method, ("finite_difference", "exact"))
        check_int("seed", self.seed, 0)
        if self.rank is not None:
            check_int("rank", self.rank, 1)

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """With the exact sensitivity, which needs no step size and is faster."""
        return cls(keep, method="exact", seed=seed)

    def plan(self, n: int) -> int:
        """The exact number of tokens kept out of `n`: ``int(keep * n)``, at least 1."""
        return resolve_budget(n, self.capped(n), rounding="floor")

    def sensitivity(
        self,
        projector: Map,
        x: Tensor,
        directions: Tensor | None = None,
        generator: torch.Generator | None = None,
        method: Method | None = None,
    ) -> Tensor:
        """Sensitivity [B,N] float32 of the projector at its input tokens `x` [B,N,d_v] (eq. 3-4).

        Args:
            projector: token-wise map [..., N, d_v] -> [..., N, d_l] in eval mode.
            x: projector input, any float dtype; the probe runs in float32.
            directions: [m,d_v] rows, normalised here; None = `self.directions` draws from `generator` (or from the seed).
            generator: source of the draws.
            method: ``"finite_difference"`` or ``"exact"``; None = the pruner's.

        Raises:
            ValueError: non-finite input, a projector in training mode or one that mixes tokens.
        """
        check_choice("method", method or self.method, ("finite_difference", "exact"))
        check_shape("x", x, "B N d")
        if directions is None:
            generator = generator or torch.Generator().manual_seed(self.seed)
            directions = unit_directions(self.directions, x.shape[-1], generator=generator).to(x.device)
        else:
            directions = normalised(directions)
        if (method or self.method) == "exact":
            return exact_sensitivity(projector, x, directions)
        return two_sided_sensitivity(projector, x, directions, step=self.step)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Indices [B,K] in selection order for projected `features` [B,N,D] and sensitivities `importance` [B,N] (eq. 6-7).

        ``K = N`` returns 0..N-1.

        Raises:
            ValueError: importance missing, of another shape or not finite; fewer than K unmasked tokens.
        """
        if importance is None:
            raise ValueError("importance must be given ([B, N] sensitivities, see `sensitivity`), got None")
        _, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None:
            return identity(features)
        return greedy_select(features, k, rule="product", importance=importance, mask=mask)

    def _scope(self) -> Scope:
        return "crop" if self.per_crop else "image"

    def _signals(self, model: nn.Module) -> Signals:
        return Signals(projector={"sensitivity": self._probe})

    def _probe(self, projector: nn.Module, x: Tensor) -> Tensor:
        if self.rank is not None and two_layer(projector) is not None:
            return self.sensitivity(low_rank(projector, self.rank), x)
        return self.sensitivity(projector, x)

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor:
        return torch.cat([image.signals["sensitivity"][index] for image, index in tokens])

    def _budgets(self, units: Sequence[BudgetUnit]) -> list[int]:
        """Each image's budget, divided by its number of crops and rounded down."""
        sizes: dict[int, list[int]] = {}
        for unit in units:
            sizes.setdefault(unit.parts[0][0], []).append(len(unit))
        budgets = []
        for unit in units:
            crops = sizes[unit.parts[0][0]]
            each = self.plan(sum(crops)) // len(crops)
            if each < 1:
                raise ValueError(f"keep must leave a token to each of the {len(crops)} crops, got {self.keep}")
            budgets.append(min(each, len(unit)))
        return budgets


def contract_instances() -> dict[str, ZOOPrune]:
    """What the contract of the wing is checked on."""
    return {"default": ZOOPrune(0.25)}
