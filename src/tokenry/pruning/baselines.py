"""What every pruner of visual tokens is compared with, under the same interface; and free composition of parts by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tokenry.core.attention import attention_rows
from tokenry.core.checks import check_choice, check_int, check_mask, check_range
from tokenry.core.precision import outside_autocast
from tokenry.core.selection import RULES, greedy_select, top_k
from tokenry.core.similarity import unit_rows
from tokenry.hosts.vlm import BlockView, DecoderStage, Signals, VisualTokens
from tokenry.pruning.base import check_tokens
from tokenry.pruning.importance import SOURCES, Source, resolve_source, signals_for, unit_importance
from tokenry.pruning.visual import VideoBudget, VisualPruner, identity, rank_by

Selector = Literal["top_k", "mmr", "max_min", "max_sum", "product"]
SELECTORS: tuple[Selector, ...] = ("top_k", *RULES)


@dataclass(frozen=True)
class NoPruning(VisualPruner):
    """Keep everything: the reference."""

    keep: float | int = 1.0

    def __post_init__(self) -> None:
        if self.keep != 1.0 or isinstance(self.keep, int):
            raise ValueError(f"keep must be 1.0 for NoPruning, got {self.keep!r}")

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """The reference, whatever the budget of the others."""
        return cls()

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """0..N-1 for every row."""
        check_tokens(features, importance)
        return identity(features)


@dataclass(frozen=True)
class RandomPruner(VisualPruner):
    """Keep tokens at random. `select` draws from `seed` alone; images of an attachment draw one after the other."""

    order_free: ClassVar[bool] = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("seed", self.seed, 0)

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """Drawn under `seed`."""
        return cls(keep, seed=seed)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """K distinct indices [B,K], the same positions in every row; masked tokens are never taken."""
        return self._draw(features, importance, mask, self.seed)

    def _draw(self, features: Tensor, importance: Tensor | None, mask: Tensor | None, seed: int) -> Tensor:
        batch, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None:
            return identity(features)
        scores = torch.rand(n, generator=torch.Generator().manual_seed(seed)).to(features.device)
        return top_k(scores.expand(batch, -1), k, mask=mask)

    def _select_unit(self, features: Tensor, importance: Tensor | None, grid: tuple[int, int] | None, number: int) -> Tensor:
        return self._draw(features, importance, None, self.seed * 1_000_003 + number)

    def _batched(self) -> bool:
        return False


@dataclass(frozen=True)
class UniformGrid(VisualPruner):
    """Keep tokens evenly spaced: over the image's rows and columns where the grid is known, else along the sequence."""

    order_free: ClassVar[bool] = False

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """K evenly spaced indices [B,K], ascending; a square N is read as a square grid, a mask as a sequence."""
        batch, n = check_tokens(features, importance)
        k = self.plan(n)
        if mask is not None:
            return torch.cat([self._spaced_over(row.nonzero().squeeze(1), k) for row in mask]).view(batch, k)
        side = isqrt(n)
        grid = (side, side) if side * side == n else None
        return self._select_unit(features, None, grid, 0)

    def _spaced_over(self, allowed: Tensor, k: int) -> Tensor:
        if len(allowed) < k:
            raise ValueError(f"mask must leave at least k = {k} tokens in every row, got a row with {len(allowed)}")
        return allowed[_spaced(len(allowed), k).to(allowed.device)]

    def _select_unit(self, features: Tensor, importance: Tensor | None, grid: tuple[int, int] | None, number: int) -> Tensor:
        batch, n = features.shape[:2]
        k = self.plan(n)
        index = _spaced(n, k) if grid is None else _lattice(grid, k)
        return index.to(features.device).expand(batch, -1)


def _spaced(n: int, k: int) -> Tensor:
    return ((2 * torch.arange(k) + 1) * n) // (2 * k)


def _lattice(grid: tuple[int, int], k: int) -> Tensor:
    """K places on a rows x columns grid: about as many rows as the aspect ratio asks for, places spread evenly over them."""
    rows, columns = grid
    used = min(rows, max(-(-k // columns), round((k * rows / columns) ** 0.5)))
    at = _spaced(rows, used)
    share = [(i + 1) * k // used - i * k // used for i in range(used)]
    return torch.cat([at[i] * columns + _spaced(columns, count) for i, count in enumerate(share) if count])


@dataclass(frozen=True)
class TopK(VisualPruner):
    """Keep the most important tokens, whatever they look like."""

    importance: Source = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("importance", self.importance, SOURCES)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The K largest of `importance` [B,N], largest first; the lowest index wins ties."""
        _, n = check_tokens(features, importance)
        return rank_by(features, importance, self.plan(n), mask)

    def _signals(self, model: nn.Module) -> Signals:
        return signals_for(resolve_source(self.importance, model))

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor | None:
        return unit_importance(self.importance, features, tokens, number)


@dataclass(frozen=True)
class Compose(VisualPruner):
    """Any importance source with any selector: ``Compose.named("sensitivity+max_min", keep=0.25)``."""

    importance: Source = "auto"
    selector: Selector = "mmr"
    balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("importance", self.importance, SOURCES)
        check_choice("selector", self.selector, SELECTORS)
        check_range("balance", self.balance, 0.0, 1.0)

    @classmethod
    def named(cls, name: str, keep: float | int) -> Compose:
        """Build from ``"SOURCE+SELECTOR"``."""
        source, plus, selector = name.partition("+")
        if not plus:
            raise ValueError(f"name must be 'SOURCE+SELECTOR', such as 'norm+max_min', got {name!r}")
        return cls(keep, source, selector)  # pyright: ignore[reportArgumentType]

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Indices [B,K] in selection order; ``K = N`` returns 0..N-1."""
        if importance is None:
            raise ValueError("importance must be given, got None")
        _, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None:
            return identity(features)
        if self.selector == "top_k":
            return rank_by(features, importance, k, mask)
        return greedy_select(features, k, rule=self.selector, importance=importance, balance=self.balance, mask=mask)

    def _signals(self, model: nn.Module) -> Signals:
        return signals_for(resolve_source(self.importance, model))

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor | None:
        return unit_importance(self.importance, features, tokens, number)


@dataclass(frozen=True)
class DivPrune(VisualPruner):
    """Farthest-point selection by cosine distance (DivPrune, arXiv 2503.02175): max-min diversity, no importance.

    The first token is the one whose nearest neighbour is farthest, as in the method's released code. Two tokens that are each
    other's nearest tie there; the lower index wins.
    """

    order_free: ClassVar[bool] = False

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Indices [B,K] in selection order; `importance` is not used. ``K = N`` returns 0..N-1."""
        _, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None:
            return identity(features)
        first = _most_isolated(features, None if mask is None else check_mask("mask", mask, features.shape[:2]))
        return greedy_select(features, k, rule="max_min", first=first, mask=mask)


@outside_autocast
def _most_isolated(features: Tensor, mask: Tensor | None, chunk: int = 512) -> Tensor:
    """Index [B] of the token with the smallest cosine to its nearest other token; memory O(chunk N)."""
    rows = unit_rows(features)
    closest = []
    for start in range(0, rows.shape[1], chunk):
        block = rows[:, start : start + chunk] @ rows.transpose(1, 2)
        block.diagonal(start, dim1=1, dim2=2).fill_(float("-inf"))
        if mask is not None:
            block.masked_fill_(~mask[:, None, :], float("-inf"))
        closest.append(block.amax(dim=2))
    nearest = torch.cat(closest, dim=1)
    return (nearest if mask is None else nearest.masked_fill(~mask, float("inf"))).argmin(dim=1)


@dataclass(frozen=True)
class FastV(VisualPruner):
    """Drop the visual tokens that the last prompt token attends to least, after block `layer` (FastV, arXiv 2403.06764).

    Attributes:
        keep: ratio or count of visual tokens kept after that block; earlier blocks see all of them.
        layer: number of full blocks, counted from 1; the attention of the last of them decides. Paper: 2.
    """

    layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("layer", self.layer, 1)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The K largest of `importance` [B,N]: the last token's attention, averaged over heads."""
        _, n = check_tokens(features, importance)
        return rank_by(features, importance, self.plan(n), mask)

    def _budgets(self, units: Sequence[Any]) -> list[int]:
        return [len(unit) for unit in units]

    def _video_budgets(self) -> tuple[VideoBudget, ...]:
        return ("method",)  # one decision over all visual tokens of a prompt

    def _stage(self, model: nn.Module, run: Any) -> DecoderStage | None:
        return DecoderStage(self.layer - 1, lambda view: self._decide(view, run))

    def _decide(self, view: BlockView, run: Any) -> Tensor:
        slots = torch.arange(view.real.shape[1], device=view.real.device)
        last = slots.where(view.real, -1).amax(dim=1)  # each row's own last token: padding may stand on either side
        query = view.query.gather(2, last[:, None, None, None].expand(-1, view.query.shape[1], 1, view.query.shape[3]))
        seen = view.real & (slots <= last[:, None])
        rows = attention_rows(query, view.key, causal_offset=len(slots) - 1, mask=seen, **vars(view.rule))
        received = rows.mean(dim=1).squeeze(1)
        keep = view.real & ~view.visual
        for row in range(len(keep)):
            slots = view.visual[row].nonzero().squeeze(1)
            if len(slots):
                chosen = top_k(received[row, slots].unsqueeze(0), self.plan(len(slots))).squeeze(0)
                keep[row, slots[chosen]] = True
        run.record_stage(self.layer - 1, keep, view)
        return keep


def contract_instances() -> dict[str, VisualPruner]:
    """What the contract of the wing is checked on."""
    found: tuple[VisualPruner, ...] = (RandomPruner(0.25), UniformGrid(0.25), TopK(0.25), DivPrune(0.25), FastV(0.25))
    instances: dict[str, VisualPruner] = {type(pruner).__name__: pruner for pruner in found}
    return instances | {name: Compose.named(name, 0.25) for name in ("norm+max_min", "norm+product")}
