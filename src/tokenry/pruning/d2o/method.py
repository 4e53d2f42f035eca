"""D2O as a KV-cache method for the decoders of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.hosts.cache import Budget, Prompt, Signal, Slots
from tokenry.pruning.d2o.layers import DENSITIES, Density, attention_density, layer_ratios
from tokenry.pruning.d2o.tokens import MERGES, Merge, ema_weights, evict_and_merge
from tokenry.pruning.kv_method import CacheMethod, at_least_one, choose_slots, floor_slots, take_slots


@dataclass(frozen=True)
class D2O(CacheMethod):
    """D2O for a decoder of transformers: ``with D2O(budget=0.2).attach(model): model.generate(...)``.

    Attributes:
        budget: rho, the mean share of the prompt that a layer keeps, or slots per layer.
        skip_layers: layers never compressed (released code: the first two and the last); they take part in the softmax.
        heavy_share: heavy hitters' part of the budget (released code 1:1 with recent slots; the paper found 3:1 best).
        sinks: first slots that are always kept.
        lower: smallest share of a layer.
        upper: largest share of a layer.
        exact_budget: scale the shares of the compressed layers so that the mean over ALL layers is `budget`.
        density: see `attention_density`; None gives every layer the same share.
        merge: see `compress`; None drops instead of merging.
        new_weight: see `compress`.
        old_weight: see `compress`.
        score: ``"exact"`` column sums over the whole prompt, or ``"window"``, those of its last `window` queries (cheaper;
            differs from the paper).
        window: queries of the score window.
        cut_every: decoded tokens between two cuts; the cache then holds up to ``cut_every - 1`` slots more.
    """

    skip_layers: tuple[int, ...] = (0, 1, -1)
    heavy_share: float = 0.5
    sinks: int = 4
    lower: float = 0.01
    upper: float = 1.0
    exact_budget: bool = False
    density: Density | None = "released"
    merge: Merge | None = "weighted"
    new_weight: float = 0.7
    old_weight: float | None = None
    score: Literal["exact", "window"] = "exact"
    window: int = 64
    cut_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("heavy_share", self.heavy_share, 0.0, 1.0)
        check_int("sinks", self.sinks, 0)
        check_range("upper", self.upper, 0.0, 1.0, low_open=True)
        check_range("lower", self.lower, 0.0, self.upper)
        check_choice("density", self.density, (*DENSITIES, None))
        check_choice("merge", self.merge, (*MERGES, None))
        ema_weights(self.old_weight, self.new_weight)
        check_choice("score", self.score, ("exact", "window"))
        check_int("window", self.window, 1)
        check_int("cut_every", self.cut_every, 1)

    @property
    def signal(self) -> Signal:
        """Accumulated attention, during the prompt and after."""
        return Signal("none") if self.is_identity else Signal(self.score, self.window, per_step=True)

    @property
    def evict_every(self) -> int:
        """`cut_every`."""
        return self.cut_every

    def split(self, slots: int, length: int) -> tuple[int, int]:
        """Heavy and recent slots out of `slots`."""
        chosen = floor_slots(slots * self.heavy_share)
        return at_least_one(chosen, slots - chosen)

    def budgets(self, prompt: Prompt) -> list[Budget | None]:
        """Layer budgets per sequence from the density of the prompt's attention."""
        if self.is_identity:
            return [None] * len(prompt.layers)
        self.warn_if_short(min(map(min, prompt.lengths)))
        skipped = self.skipped(prompt)
        compressed = torch.tensor([i not in skipped for i in prompt.layers])
        ratios = self.ratios(self._densities(prompt), prompt.lengths[0], compressed)
        prompt.facts["ratios"] = {i: ratios[:, place].tolist() for place, i in enumerate(prompt.layers)}
        return [
            Budget.of(self._slots(n, float(ratios[row, place])) for row, n in enumerate(prompt.lengths[place]))
            if bool(compressed[place])
            else None
            for place in range(len(prompt.layers))
        ]

    def _densities(self, prompt: Prompt) -> Tensor:
        """[B,L] float64; padding is left out of the variance. A layer without scores on a later turn keeps what it had."""
        rows = []
        for sums, held, state in zip(prompt.scores, prompt.held, prompt.states, strict=True):
            if self.density is None:
                state["density"] = torch.zeros(len(held))
            elif sums is not None:
                own = [sums[b : b + 1, :, sums.shape[-1] - n :] for b, n in enumerate(held)]
                state["density"] = torch.stack([attention_density(x, self.density) for x in own])
            rows.append(state["density"])
        return torch.stack([row.double().cpu() for row in rows], dim=1)

    def ratios(self, density: Tensor, lengths: list[int], compressed: Tensor) -> Tensor:
        """Shares [B,L] of the prompt from densities [B,L]; `compressed` [L] bool marks the layers that are cut at all."""
        out = []
        for row, n in zip(density, lengths, strict=True):
            share = min(self.budget / max(n, 1), 1.0) if isinstance(self.budget, int) else self.budget
            heavy = share * self.heavy_share
            ratios = layer_ratios(row, heavy, share - heavy, lower=self.lower, upper=self.upper)
            out.append(self._exact(ratios, share, compressed) if self.exact_budget else ratios)
        return torch.stack(out)

    def _exact(self, ratios: Tensor, share: float, compressed: Tensor) -> Tensor:
        """Rescale the compressed layers so that skipped ones (share 1) and they average to `share`, within the bounds."""
        total = len(ratios) * share - float((~compressed).sum())
        free = compressed.clone()
        if total < self.lower * float(free.sum()):
            raise ValueError(
                f"budget must leave slots for the compressed layers when exact_budget is set, got {self.budget} with "
                f"{int((~compressed).sum())} of {len(ratios)} layers skipped; raise it or shorten skip_layers"
            )
        scaled = ratios.clone()
        for _ in range(len(ratios)):  # bounds reached by scaling are settled, the rest is scaled again
            settled = float(scaled[compressed & ~free].sum())
            scaled[free] = ratios[free] * (total - settled) / float(ratios[free].sum())
            out = free & ((scaled < self.lower) | (scaled > self.upper))
            if not bool(out.any()):
                break
            scaled[out] = scaled[out].clamp(self.lower, self.upper)
            free &= ~out
            if not bool(free.any()):
                break
        return torch.where(compressed, scaled, torch.ones_like(scaled))

    def _slots(self, length: int, ratio: float) -> tuple[int, int]:
        if isinstance(self.budget, int) and length <= self.budget:
            return self.split(self.budget, length)
        heavy = floor_slots(length * ratio * self.heavy_share)
        recent = floor_slots(length * ratio * (1.0 - self.heavy_share))
        return (heavy, recent) if heavy + recent >= self.min_slots else self.split(self.min_slots, length)

    def evict(self, slots: Slots, budget: Budget, state: dict[str, Any]) -> tuple[Slots, Tensor]:
        """Keep sinks, heavy hitters and recent slots per key head; merge or drop the others."""
        if self.merge is None:
            if slots.scores is None:
                raise RuntimeError("attention scores are missing")
            index = choose_slots(slots.scores, budget.heavy, budget.recent, sinks=self.sinks, real=slots.real)
            return take_slots(slots, index, uniform=budget.uniform), index
        weights = ema_weights(self.old_weight, self.new_weight)
        kept, index, tau = evict_and_merge(slots, budget, state.get("threshold"), self.merge, weights, self.sinks)
        state["threshold"] = tau
        return kept, index
