"""Token budgets, top-k, and one greedy selector for every importance/diversity rule of the library.

The greedy selector needs one similarity column (N values) per kept token. Columns are computed in blocks for the tokens that
lead the current score, because one matrix product over a block reads the features once where single columns read them once
each; a column that turns out not to be needed costs time but never changes the result. Cost O(K N D), memory O(N D).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import (
    check_choice,
    check_device,
    check_finite,
    check_float,
    check_int,
    check_mask,
    check_range,
    check_shape,
    check_tensor,
)
from tokenry.core.precision import outside_autocast

Rule = Literal["mmr", "max_min", "max_sum", "product"]
RULES: tuple[Rule, ...] = ("mmr", "max_min", "max_sum", "product")
_NORM_EPS = 1e-8
_MINMAX_EPS = {"mmr": 1e-6, "product": 1e-8}
_COLUMN_BLOCK = 32


def check_keep(keep: float | int, name: str = "keep") -> float | int:
    """Return `keep` if it is a ratio (float in (0, 1]) or a count (int >= 1), else raise."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"{name} must be a float in (0, 1] or an int >= 1, got {type(keep).__name__} {keep!r}")
    if isinstance(keep, int):
        if keep < 1:
            raise ValueError(f"{name} as a count must be an int >= 1, got {keep}")
    elif not 0.0 < keep <= 1.0:
        hint = f"; for a count pass the int {int(keep)}" if 1 < keep < math.inf and keep == int(keep) else ""
        hint = hint or (f"; did you mean {keep / 100:g}?" if 1 < keep <= 100 else "")
        raise ValueError(f"{name} as a ratio must be in (0, 1], got {keep}{hint}")
    return keep


def resolve_budget(
    n: int,
    keep: float | int,
    *,
    rounding: Literal["half_even", "floor"] = "half_even",
    minimum: int = 1,
) -> int:
    """Number of tokens to keep out of `n`.

    A float in (0, 1] is a ratio: ``round(n * keep)`` with halves to even, or its floor. An int is a count. A result below
    `minimum` is raised to it, and never passes `n`; ``n = 0`` gives 0.

    Raises:
        ValueError: `keep` is 0, negative, a float above 1, NaN, or a count above `n`.
        TypeError: `keep` is a bool or not a number.
    """
    check_int("n", n, 0)
    check_int("minimum", minimum, 0)
    check_choice("rounding", rounding, ("half_even", "floor"))
    check_keep(keep)
    if n == 0:
        return 0
    if isinstance(keep, int):
        if keep > n:
            raise ValueError(f"keep as a count must be <= the {n} tokens there are, got {keep}")
        return max(keep, min(minimum, n))
    count = round(n * keep) if rounding == "half_even" else math.floor(n * keep)
    return min(max(count, minimum), n)


def top_k(scores: Tensor, k: int, *, mask: Tensor | None = None) -> Tensor:
    """Indices [B,K] of the `k` largest of `scores` [B,N], largest first; the lowest index wins ties.

    Raises:
        ValueError: non-finite scores, `k` outside [1, N], or a row with fewer than `k` unmasked tokens.
    """
    sizes = check_shape("scores", check_float("scores", scores), "B N")
    check_int("k", k, 1, sizes["N"])
    check_finite("scores", scores)
    ranked = scores if scores.dtype == torch.float64 else scores.float()
    if mask is not None:
        ranked = ranked.masked_fill(~_enough(mask, scores, k), float("-inf"))
    return torch.sort(ranked, dim=1, descending=True, stable=True).indices[:, :k]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of `x` [B,N,D] at `index` [B,K] -> [B,K,D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def complement(index: Tensor, n: int) -> Tensor:
    """The indices of 0..n-1 that are not in `index` [B,K], ascending: [B,n-K]. Rows must hold distinct indices."""
    dropped = torch.ones(index.shape[0], n, dtype=torch.bool, device=index.device).scatter_(1, index, False)
    return dropped.nonzero()[:, 1].view(index.shape[0], n - index.shape[1])


def min_max(scores: Tensor, *, eps: float = 1e-6, mask: Tensor | None = None) -> Tensor:
    """``(s - min) / (max - min + eps)`` per row of [B,N] over unmasked tokens, float32; masked tokens get 0."""
    values = scores if scores.dtype == torch.float64 else scores.float()
    low = values if mask is None else values.masked_fill(~mask, float("inf"))
    high = values if mask is None else values.masked_fill(~mask, float("-inf"))
    low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
    scaled = (values - low) / (high - low + eps)
    return scaled if mask is None else scaled.masked_fill(~mask, 0.0)


@torch.no_grad()
@outside_autocast
def greedy_select(
    features: Tensor,
    k: int,
    *,
    rule: Rule,
    importance: Tensor | None = None,
    balance: float = 0.5,
    first: int | Tensor | None = None,
    mask: Tensor | None = None,
    per_round: int = 1,
    clamp_negative: bool = False,
) -> Tensor:
    """Choose `k` of the N tokens of each row one after the other; indices [B,K] in the order of selection.

    With m the largest (s the summed) cosine of a token to those already chosen and w its min-max scaled importance:

    - ``"mmr"`` takes the largest ``balance * w - (1 - balance) * m`` (IDPruner, Algorithm 1), first the largest w;
    - ``"product"`` takes the largest ``w * (1 - m)`` (ZOO-Prune, eq. 7), first the largest w; w is 1 where all are equal;
    - ``"max_min"`` takes the smallest m (farthest point, k-center);
    - ``"max_sum"`` takes the smallest s (ToDRE, Algorithm 1).

    Args:
        features: [B,N,D], any float dtype; zero rows have cosine 0 to everything.
        k: tokens to choose, 1 <= k <= N (and <= the unmasked tokens of every row).
        rule: one of the four above.
        importance: [B,N] on any scale; needed by ``mmr`` and ``product``. Where given, the other rules start at its largest.
        balance: weight of importance in [0, 1] (``mmr`` only).
        first: index, or [B] indices, of the first token; default the most important one, or index 0 without importance.
        mask: [B,N] bool, False = never chosen (padding, separators).
        per_round: tokens taken per round; more is faster and less diverse (AngelSlim's ``parallel_k``).
        clamp_negative: treat negative cosines as 0 instead of as a bonus.

    The lowest index wins ties. Float32 inside (float64 input stays float64). Cost O(K N D), memory O(N D).

    Raises:
        ValueError: wrong shape, non-finite values, `k` out of range, missing importance; the message names the argument.
    """
    sizes = check_shape("features", check_float("features", features), "B N D")
    check_choice("rule", rule, RULES)
    check_int("k", k, 1, sizes["N"])
    check_int("per_round", per_round, 1)
    check_range("balance", balance, 0.0, 1.0)
    valid = None if mask is None else _enough(mask, features, k)
    weight = _weight(features, rule, importance, valid)
    state = _Greedy(features, rule, weight, balance, valid, clamp_negative)
    chosen = _first(features, weight, first, valid, min(per_round, k))
    state.take(chosen)
    picked = [chosen]
    while (count := sum(c.shape[1] for c in picked)) < k:
        chosen = state.best(min(per_round, k - count))
        state.take(chosen)
        picked.append(chosen)
    return torch.cat(picked, dim=1)


class _Greedy:
    """Scores of one greedy run and the block of similarity columns that is at hand."""

    def __init__(
        self,
        features: Tensor,
        rule: Rule,
        weight: Tensor | None,
        balance: float,
        valid: Tensor | None,
        clamp_negative: bool,
    ) -> None:
        self.rows = features if features.dtype == torch.float64 else features.float()
        # Norms are kept beside the rows instead of normalised rows: no second copy of the features.
        norms = torch.linalg.vector_norm(self.rows, dim=-1)
        if not bool(torch.isfinite(norms).all()):  # one pass over the features less than to look at each number
            check_finite("features", features)
        self.inverse = 1.0 / (norms + _NORM_EPS)
        self.rule, self.balance, self.clamp_negative = rule, balance, clamp_negative
        self.weight = weight
        self.reach = torch.full_like(self.inverse, 0.0 if rule == "max_sum" else -2.0)
        self.blocked = torch.zeros_like(self.inverse, dtype=torch.bool) if valid is None else ~valid
        self.columns: Tensor | None = None
        self.slots = torch.full_like(self.blocked, -1, dtype=torch.long)

    def score(self) -> Tensor:
        """Current score [B,N]; chosen and masked tokens are -inf."""
        if self.rule == "mmr":
            assert self.weight is not None
            score = self.balance * self.weight - (1.0 - self.balance) * self.reach
        elif self.rule == "product":
            assert self.weight is not None
            score = self.weight * (1.0 - self.reach).clamp_(min=0.0)
        else:
            score = -self.reach
        return score.masked_fill_(self.blocked, float("-inf"))

    def best(self, count: int) -> Tensor:
        """The `count` leading tokens [B,count], lowest index first among equals."""
        if count == 1:
            return self.score().argmax(dim=1, keepdim=True)
        return torch.sort(self.score(), dim=1, descending=True, stable=True).indices[:, :count]

    def take(self, chosen: Tensor) -> None:
        """Mark `chosen` [B,P] as taken and fold their similarity columns into the state."""
        self.blocked.scatter_(1, chosen, True)
        columns = self._columns(chosen)
        if self.clamp_negative:
            columns = columns.clamp(min=0.0)
        if self.rule == "max_sum":
            self.reach += columns.sum(dim=2)
        else:
            torch.maximum(self.reach, columns.amax(dim=2), out=self.reach)

    def _columns(self, chosen: Tensor) -> Tensor:
        width = min(_COLUMN_BLOCK, self.rows.shape[1])
        # A device queue is fast at single columns and slow at the question "is it here?"; a CPU is the other way round.
        if self.rows.device.type != "cpu" or chosen.shape[1] >= width:
            return self._similarity(chosen)
        if self.columns is None:
            self.columns = self.rows.new_empty(*self.rows.shape[:2], width)
        missing = (self.slots.gather(1, chosen) < 0).any(dim=1)
        if bool(missing.any()):
            score = self.score().scatter_(1, chosen, float("inf"))
            for row in missing.nonzero().flatten().tolist():
                self._refill(row, score[row], self.columns[row])
        slots = self.slots.gather(1, chosen)
        return self.columns.gather(2, slots.unsqueeze(1).expand(-1, self.columns.shape[1], -1))

    def _refill(self, row: int, score: Tensor, columns: Tensor) -> None:
        """Put the columns of the leading tokens of one row of the batch into `columns` [N,width]; other rows keep theirs."""
        width = columns.shape[1]
        block = score.topk(width).indices
        self.slots[row].fill_(-1)[block] = torch.arange(width, device=block.device)
        torch.matmul(self.rows[row], self.rows[row, block].T, out=columns)
        columns.mul_(self.inverse[row].unsqueeze(1)).mul_(self.inverse[row, block])

    def _similarity(self, index: Tensor) -> Tensor:
        """Cosine of every token to those at `index` [B,P]: [B,N,P]."""
        dots = torch.bmm(self.rows, gather_tokens(self.rows, index).transpose(1, 2))
        return dots.mul_(self.inverse.unsqueeze(2)).mul_(self.inverse.gather(1, index).unsqueeze(1))


def _weight(features: Tensor, rule: Rule, importance: Tensor | None, valid: Tensor | None) -> Tensor | None:
    if importance is None:
        if rule in _MINMAX_EPS:
            raise ValueError(f"importance must be given for rule {rule!r}, got None")
        return None
    check_shape("importance", check_float("importance", importance), "B N", B=features.shape[0], N=features.shape[1])
    check_device("importance", importance, "features", features)
    check_finite("importance", importance if valid is None else importance.masked_fill(~valid, 0.0))
    weight = min_max(importance, eps=_MINMAX_EPS.get(rule, 1e-6), mask=valid)
    if rule == "product":
        # No token is more sensitive than another: pure diversity, not a product with zeros.
        flat = (weight == 0).all(dim=1, keepdim=True)
        weight = torch.where(flat, torch.ones_like(weight), weight)
    return weight.to(features.dtype) if features.dtype == torch.float64 else weight.float()


def _first(features: Tensor, weight: Tensor | None, first: int | Tensor | None, valid: Tensor | None, count: int) -> Tensor:
    batch, n = features.shape[:2]
    if first is None:
        score = torch.zeros(batch, n, device=features.device) if weight is None else weight.clone()
        if valid is not None:
            score.masked_fill_(~valid, float("-inf"))
        return torch.sort(score, dim=1, descending=True, stable=True).indices[:, :count]
    if isinstance(first, Tensor):
        check_shape("first", first, "B", B=batch)
        if first.is_floating_point() or first.dtype == torch.bool:
            raise TypeError(f"first must hold integer indices, got {first.dtype}")
        index = first.to(features.device, torch.long)
    else:
        index = torch.full((batch,), check_int("first", first, 0, n - 1), device=features.device)
    if bool(((index < 0) | (index >= n)).any()):
        raise ValueError(f"first must be in [0, {n - 1}], got {index.tolist()}")
    if valid is not None and not bool(valid.gather(1, index[:, None]).all()):
        raise ValueError(f"first must be an unmasked token in every row, got {index.tolist()}")
    return index.unsqueeze(1)


def _enough(mask: Tensor, x: Tensor, k: int) -> Tensor:
    check_tensor("mask", mask)
    check_mask("mask", mask, x.shape[:2])
    check_device("mask", mask, "the scored tokens", x)
    fewest = int(mask.sum(dim=1).min())
    if fewest < k:
        raise ValueError(f"mask must leave at least k = {k} tokens in every row, got a row with {fewest}")
    return mask
