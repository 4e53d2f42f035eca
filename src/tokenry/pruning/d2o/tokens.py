"""D2O, token level: which slots of a layer stay, and how dropped ones are merged into them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_device, check_finite, check_float, check_int, check_range, check_shape
from tokenry.core.precision import outside_autocast
from tokenry.core.similarity import unit_rows
from tokenry.hosts.cache import Budget, Slots
from tokenry.pruning.kv_method import choose_slots, slot_rows, take_slots

Merge = Literal["weighted", "scatter_mean"]
MERGES: tuple[Merge, ...] = ("weighted", "scatter_mean")
_TIE = 1e-6  # cosines this close to the threshold count as equal to it: rounding must not split a group of exact copies
_MATCH_CHUNK = 1024  # dropped slots compared at once: memory O(chunk x kept) per head


@torch.no_grad()
@outside_autocast
def compress(
    keys: Tensor,
    values: Tensor,
    scores: Tensor,
    *,
    heavy: int,
    recent: int,
    threshold: float | Tensor | None = None,
    merge: Merge = "weighted",
    new_weight: float = 0.7,
    old_weight: float | None = None,
    sinks: int = 4,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cut one layer's cache to ``heavy + recent`` slots, merging what is dropped into what resembles it.

    Args:
        keys: [B,H,T,D], as cached (rotated).
        values: [B,H,T,D].
        scores: accumulated attention [B,H,T].
        heavy: slots chosen by score, the sinks among them.
        recent: latest slots, always kept.
        threshold: tau so far, a number or [B] (NaN = none yet); None before the first eviction.
        merge: ``"weighted"`` (eqs. 11-12) or ``"scatter_mean"`` (released code: ``(k_j + sum u_ij k_i) / (1 + n_j)``).
        new_weight: weight of the newest mean match in the threshold (eq. 10).
        old_weight: weight of the earlier threshold, default ``1 - new_weight``.
        sinks: first slots that are always kept (as far as `heavy` reaches).

    Returns:
        (keys, values, scores, threshold [B]) with K = heavy + recent slots in temporal order. With T <= K the input comes back
        unchanged. Scores of kept slots do not grow by what they absorb.
    """
    sizes = check_shape("keys", check_float("keys", keys), "B H T D")
    check_shape("values", check_float("values", values), "B H T Dv", B=sizes["B"], H=sizes["H"], T=sizes["T"])
    check_shape("scores", check_float("scores", scores), "B H T", B=sizes["B"], H=sizes["H"], T=sizes["T"])
    check_device("values", values, "keys", keys)
    check_device("scores", scores, "keys", keys)
    for name, x in (("keys", keys), ("values", values), ("scores", scores)):
        check_finite(name, x)
    check_int("heavy", heavy, 0)
    check_int("recent", recent, 0)
    if heavy + recent < 1:
        raise ValueError(f"heavy + recent must be >= 1, got {heavy} + {recent}")
    check_int("sinks", sinks, 0)
    check_choice("merge", merge, MERGES)
    weights = ema_weights(old_weight, new_weight)
    tau = _threshold(threshold, keys)
    if sizes["T"] <= heavy + recent:
        return keys, values, scores, tau
    budget = Budget((heavy,) * sizes["B"], (recent,) * sizes["B"])
    slots, _, tau = evict_and_merge(Slots(keys, values, scores, None), budget, tau, merge, weights, sinks)
    return slots.keys, slots.values, slots.scores if slots.scores is not None else scores, tau


def ema_weights(old: float | None, new: float) -> tuple[float, float]:
    """Checked (old, new) weights of the threshold's moving average; `old` defaults to ``1 - new``."""
    check_range("new_weight", new, 0.0, 1.0)
    return (1.0 - new if old is None else check_range("old_weight", old, 0.0, 1.0)), new


def _threshold(threshold: float | Tensor | None, keys: Tensor) -> Tensor | None:
    if threshold is None:
        return None
    tau = torch.as_tensor(threshold, dtype=torch.float32, device=keys.device)
    if tau.dim() > 1 or (tau.dim() == 1 and len(tau) not in (1, len(keys))):
        raise ValueError(f"threshold must be a number or have shape [{len(keys)}], got {list(tau.shape)}")
    return tau.expand(len(keys))


def evict_and_merge(
    slots: Slots, budget: Budget, tau: Tensor | None, merge: Merge, weights: tuple[float, float], sinks: int
) -> tuple[Slots, Tensor, Tensor]:
    """One eviction: choose, match, update the threshold, merge; per sequence."""
    if slots.scores is None:
        raise RuntimeError("attention scores are missing")
    index = choose_slots(slots.scores, budget.heavy, budget.recent, sinks=sinks, real=slots.real)
    kept = take_slots(slots, index, uniform=budget.uniform)
    dropped, valid = _dropped(index, slots, budget.uniform)
    keys, values = slot_rows(slots.keys, dropped), slot_rows(slots.values, dropped)
    match, target = _match(keys, kept.keys, kept.real)
    shared = match.mean(dim=1)  # one decision per slot for all heads
    tau = _update(tau, shared, valid, weights)
    accept = shared >= tau[:, None] - _TIE
    accept = accept if valid is None else accept & valid
    own, weight, mass = _weights(merge, match, accept[:, None])
    kept.keys, kept.values = (
        _blend(mine, gone, target, weight, mass, own) for mine, gone in ((kept.keys, keys), (kept.values, values))
    )
    return kept, index, tau


def _dropped(index: Tensor, slots: Slots, uniform: bool) -> tuple[Tensor, Tensor | None]:
    """Dropped real slots [B,H,E] ascending, and which of them count [B,E] (None = all; shorter rows are filled in front)."""
    batch, heads, total, _ = slots.keys.shape
    if slots.real is None and uniform and index.shape[-1] == total - 1:  # as in every decode step: no sort needed
        return total * (total - 1) // 2 - index.sum(dim=-1, keepdim=True), None
    gone = torch.ones(batch, heads, total + 1, dtype=torch.bool, device=index.device)
    gone.scatter_(2, torch.where(index < 0, total, index), False)
    gone = gone[..., :total] if slots.real is None else gone[..., :total] & slots.real[:, None]
    order = gone.to(torch.uint8).sort(dim=-1, stable=True).indices  # kept slots first, then the dropped ones in order
    if slots.real is None and uniform:
        return order[..., index.shape[-1] :], None
    count = gone[:, 0].sum(dim=1)
    most = max(int(count.max()), 1)
    return order[..., total - most :], torch.arange(most, device=index.device)[None, :] >= most - count[:, None]


def _match(dropped: Tensor, kept: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """Best cosine match of every dropped key among the kept ones (eq. 9): values and indices [B,H,E], lowest index on ties."""
    few = dropped.shape[2] < kept.shape[3]  # then it is less work to divide the products than the kept keys
    rows = unit_rows(dropped)
    columns = (kept.to(rows.dtype) if few else unit_rows(kept)).transpose(-1, -2)
    norms = torch.linalg.vector_norm(columns, dim=-2, keepdim=True) + 1e-8 if few else None
    best: list[Tensor] = []
    where: list[Tensor] = []
    for block in rows.split(_MATCH_CHUNK, dim=2):
        cosine = block @ columns
        if norms is not None:
            cosine /= norms
        if alive is not None:
            cosine.masked_fill_(~alive[:, None, None, :], float("-inf"))
        top = cosine.max(dim=-1)
        best.append(top.values)
        where.append(top.indices)
    return torch.cat(best, dim=2), torch.cat(where, dim=2)


def _update(tau: Tensor | None, shared: Tensor, valid: Tensor | None, weights: tuple[float, float]) -> Tensor:
    """Threshold after seeing the mean match of this eviction (eq. 10), per sequence; rows that drop nothing keep theirs."""
    if valid is None:
        mean, seen = shared.mean(dim=1), None
    else:
        mean = (shared * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        seen = valid.any(dim=1)
    if tau is None:
        return mean if seen is None else torch.where(seen, mean, float("nan"))
    after = torch.where(torch.isnan(tau), mean, weights[0] * tau + weights[1] * mean)
    return after if seen is None else torch.where(seen, after, tau)


def _weights(merge: Merge, match: Tensor, accept: Tensor) -> tuple[float, Tensor, Tensor]:
    """(own weight, weights, masses [B,H,E]) of what is merged, 0 where not accepted.

    Eqs. 11-12 are a convex combination: e for the slot itself, exp(u) for the others. The released rule adds ``u_ij x_i`` and
    divides by ``1 + n_j``; its weights sum to less than 1.
    """
    if merge == "weighted":
        weight = torch.where(accept, match.exp(), 0.0)
        return float(torch.e), weight, weight
    return 1.0, torch.where(accept, match, 0.0), accept.expand_as(match).float()


def _blend(kept: Tensor, dropped: Tensor, target: Tensor, weight: Tensor, mass: Tensor, own: float) -> Tensor:
    """``(own * x_j + sum weight_i x_i) / (own + sum mass_i)`` in float32; slots that absorb nothing stay bit for bit."""
    if target.shape[-1] == 1:  # as in every decode step: one slot of `kept` changes, and `kept` is a copy already
        own_row = slot_rows(kept, target)
        mixed = (own * own_row.float() + dropped.float() * weight.unsqueeze(-1)) / (own + mass).unsqueeze(-1)
        mixed = torch.where(mass.unsqueeze(-1) > 0, mixed.to(kept.dtype), own_row)
        return kept.scatter_(2, target.unsqueeze(-1).expand_as(mixed), mixed)
    total = torch.zeros(kept.shape[:-1], device=kept.device).scatter_add_(2, target, mass)
    wide = target.unsqueeze(-1).expand(-1, -1, -1, kept.shape[-1])
    added = torch.zeros(kept.shape, device=kept.device).scatter_add_(2, wide, dropped.float() * weight.unsqueeze(-1))
    mixed = (own * kept.float() + added) / (own + total).unsqueeze(-1)
    return torch.where(total.unsqueeze(-1) > 0, mixed.to(kept.dtype), kept)
