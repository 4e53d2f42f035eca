"""Attention statistics without storing attention maps: column sums, rows, masses, the CLS row.

Shapes: B batch, Hq query heads, Hkv key heads (Hq is a multiple of Hkv), Q queries, T key slots, d head size. Query i of a
call sits at key slot ``offset + i`` and sees the slots up to its own. Logits, softmax and sums are float32. Keys are never
repeated for grouped heads. Time O(Q T d), memory O(chunk x T) per block of heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_device, check_float, check_int, check_mask, check_range, check_shape
from tokenry.core.precision import outside_autocast

Reduce = Literal["mean", "sum"]
_BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}  # one block of logits: about a last-level cache, or a small part of a GPU


@dataclass(frozen=True)
class _Problem:
    """Checked inputs; `query` is [B,Hkv,G,Q,d] and already carries the scale.

    `first_real` holds the first visible slot of every row; `mask` stays only where rows have holes beyond left padding.
    """

    query: Tensor
    key: Tensor
    offset: int
    mask: Tensor | None
    window: int | None
    soft_cap: float | None
    first_real: list[int] | None = None
    positions: Tensor | None = None
    sinks: Tensor | None = None

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.query.shape[0], self.key.shape[1], self.query.shape[2]


@torch.no_grad()
@outside_autocast
def column_sums(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    causal_offset: int | None = None,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    chunk: int = 128,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Causal attention received by every key slot, summed over the queries: [B,Hq,T] float32, exact.

    Args:
        query: [B,Hq,Q,d], rotated as the model rotates them.
        key: [B,Hkv,T,d].
        scale: factor of the logits, default ``d ** -0.5``.
        causal_offset: key slot of query 0, default ``T - Q`` (the queries are the latest slots).
        mask: [B,T] bool, False = slot that nobody may see (padding).
        query_mask: [B,Q] bool, False = query that does not count. Default: the queries' own slots in `mask`.
        chunk: queries per block.
        window: a query sees only its own slot and the ``window - 1`` before it (sliding-window layers).
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)``.
        sinks: [Hq], a logit per head that takes part in the softmax and belongs to no slot.
        reduce: over the query heads of one key head: ``"mean"`` or ``"sum"`` give [B,Hkv,T].

    Raises:
        ValueError, TypeError: shapes, devices or options that do not fit, with the argument's name.
    """
    problem = _checked(query, key, scale, causal_offset, mask, window, soft_cap, sinks)
    check_int("chunk", chunk, 1)
    batch, kv_heads, group = problem.heads
    count = query.shape[2]
    weight = _query_weight(problem, mask, query_mask, count)
    sums = torch.zeros(batch, kv_heads, group, key.shape[2], device=key.device)
    for b in range(batch):
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            row_weight = _ones(stop - start, key.device) if weight is None else weight[b, None, start:stop]
            for heads, members, low, probabilities in _blocks(problem, b, start, stop):
                seen = slice(low, low + probabilities.shape[-1])
                sums[b, heads, members, seen] += torch.matmul(row_weight, probabilities).squeeze(-2)
    return _reduced(sums, reduce)


@torch.no_grad()
@outside_autocast
def last_window_scores(
    query: Tensor,
    key: Tensor,
    *,
    window: int,
    scale: float | None = None,
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Attention that the last `window` queries give to every slot, summed over them: [B,Hq,T] ([B,Hkv,T] if reduced).

    The cheap stand-in for `column_sums`, O(window x T), known from SnapKV; `query` holds at least the last queries.
    """
    check_int("window", window, 1)
    check_shape("query", query, "B Hq Q d")
    recent = query[:, :, -window:]
    return column_sums(recent, key, scale=scale, mask=mask, soft_cap=soft_cap, sinks=sinks, reduce=reduce)


@torch.no_grad()
@outside_autocast
def attention_rows(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    causal_offset: int | None = None,
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax rows of a few queries: [B,Hq,Q,T] float32. Memory O(Q T): for decode steps and small sets of rows only."""
    problem = _checked(query, key, scale, causal_offset, mask, None, soft_cap, sinks)
    batch, kv_heads, group = problem.heads
    rows = torch.zeros(batch, kv_heads, group, query.shape[2], key.shape[2], device=key.device)
    for b in range(batch):
        for heads, members, low, probabilities in _blocks(problem, b, 0, query.shape[2]):
            rows[b, heads, members, :, low : low + probabilities.shape[-1]] = probabilities
    return rows.flatten(1, 2)


@torch.no_grad()
@outside_autocast
def decode_row(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax row of one new query over all slots, all batches at once: [B,Hkv,G,T] float32 (the step of a decode loop).

    `mask` [B,T] False = slot that may not be seen. Unchecked on purpose: it runs once per layer and generated token.
    """
    batch, query_heads, _, width = query.shape
    grouped = query.reshape(batch, key.shape[1], query_heads // key.shape[1], width)
    if grouped.dtype != key.dtype:  # autocast leaves them different
        grouped, key = grouped.float(), key.float()
    logits = torch.matmul(grouped, key.transpose(-1, -2)).float().mul_(scale)
    logits = _capped(logits, soft_cap)
    if mask is not None:
        logits.masked_fill_(~mask[:, None, None, :], torch.finfo(torch.float32).min)
    return _softmax(logits, None if sinks is None else sinks.float().view(1, key.shape[1], -1))


@torch.no_grad()
@outside_autocast
def mass_between(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    scale: float | None = None,
    causal_offset: int | None = None,
    mask: Tensor | None = None,
    chunk: int = 128,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Mean share of their attention that the queries `rows` give to the slots `columns`: [B,Hq] float32 in [0, 1].

    ``sum_{i in rows, j in columns} A_ij / sum_{i in rows, j} A_ij`` per head (ToDRE, text-to-vision and vision-to-text mass).
    Only the rows asked for are computed, `chunk` at a time. A batch row without any marked query gives 0.

    Args:
        query: [B,Hq,Q,d].
        key: [B,Hkv,T,d].
        rows: [B,Q] bool, the queries to look at; those that `mask` hides do not count.
        columns: [B,T] bool, the slots whose mass is wanted.
        scale: as in `column_sums`.
        causal_offset: as in `column_sums`.
        mask: [B,T] bool, False = slot that nobody may see.
        chunk: queries per block.
        soft_cap: as in `column_sums`.
        sinks: as in `column_sums`.
    """
    problem = _checked(query, key, scale, causal_offset, mask, None, soft_cap, sinks)
    check_int("chunk", chunk, 1)
    batch, kv_heads, group = problem.heads
    check_mask("rows", rows, (batch, query.shape[2]))
    check_mask("columns", columns, (batch, key.shape[2]))
    real = rows if mask is None else rows & _own_slots(problem, mask, query.shape[2])
    wanted = columns.float()
    mass = torch.zeros(batch, kv_heads, group, device=key.device)
    for b in range(batch):
        picked = real[b].nonzero().squeeze(1)
        for index in picked.split(chunk) if len(picked) else ():
            part = replace(problem, query=problem.query[:, :, :, index], positions=index + problem.offset)
            for heads, members, low, probabilities in _blocks(part, b, 0, len(index)):
                share = torch.matmul(probabilities, wanted[b, low : low + probabilities.shape[-1]])
                mass[b, heads, members] += share.sum(dim=-1)
        mass[b] /= max(len(picked), 1)
    return mass.flatten(1)


@torch.no_grad()
@outside_autocast
def cls_row(query: Tensor, key: Tensor, *, scale: float | None = None) -> Tensor:
    """Attention row of one unmasked query, such as a ViT's class token: [B,H,1,d], [B,H,N,d] -> [B,H,N] float32."""
    sizes = check_shape("query", check_float("query", query), "B H 1 d")
    check_shape("key", check_float("key", key), "B H N d", B=sizes["B"], H=sizes["H"], d=sizes["d"])
    check_device("key", key, "query", query)
    factor = sizes["d"] ** -0.5 if scale is None else check_range("scale", scale, 0.0, low_open=True)
    logits = torch.matmul(query.float(), key.float().transpose(-1, -2)) * factor
    return torch.softmax(logits, dim=-1).squeeze(-2)


def group_heads(scores: Tensor, kv_heads: int, reduce: Reduce = "mean") -> Tensor:
    """Scores per query head [B,Hq,...] -> per key head [B,Hkv,...]: mean or sum over the query heads that share a key head."""
    check_choice("reduce", reduce, ("mean", "sum"))
    if kv_heads < 1 or scores.shape[1] % kv_heads:
        raise ValueError(f"kv_heads must divide the {scores.shape[1]} query heads, got {kv_heads}")
    return _reduced(scores.unflatten(1, (kv_heads, -1)), reduce)


def _reduced(scores: Tensor, reduce: Reduce | None) -> Tensor:
    if reduce is None:
        return scores.flatten(1, 2)
    check_choice("reduce", reduce, ("mean", "sum"))
    return scores.mean(dim=2) if reduce == "mean" else scores.sum(dim=2)


def _checked(
    query: Tensor,
    key: Tensor,
    scale: float | None,
    offset: int | None,
    mask: Tensor | None,
    window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> _Problem:
    sizes = check_shape("query", check_float("query", query), "B Hq Q d")
    slots = check_shape("key", check_float("key", key), "B Hkv T d", B=sizes["B"], d=sizes["d"])
    check_device("key", key, "query", query)
    if slots["Hkv"] < 1 or sizes["Hq"] % slots["Hkv"]:
        raise ValueError(f"query heads must be a multiple of the {slots['Hkv']} key heads, got {sizes['Hq']}")
    start = slots["T"] - sizes["Q"] if offset is None else offset
    check_int("causal_offset", start, 0, slots["T"] - sizes["Q"] if sizes["Q"] <= slots["T"] else None)
    if start + sizes["Q"] > slots["T"]:
        raise ValueError(f"query must have at most the {slots['T']} slots of key, got {sizes['Q']} queries")
    if mask is not None:
        check_mask("mask", mask, (sizes["B"], slots["T"]))
        check_device("mask", mask, "key", key)
    if window is not None:
        check_int("window", window, 1)
    if soft_cap is not None:
        check_range("soft_cap", soft_cap, 0.0, low_open=True)
    if sinks is not None:
        check_shape("sinks", check_float("sinks", sinks), "Hq", Hq=sizes["Hq"])
        sinks = sinks.float().unflatten(0, (slots["Hkv"], -1))
    factor = sizes["d"] ** -0.5 if scale is None else check_range("scale", scale, 0.0, low_open=True)
    grouped = query.unflatten(1, (slots["Hkv"], -1))
    first_real, holes = _padding(mask)
    return _Problem(
        grouped if factor == 1.0 else grouped * factor, key, start, holes, window, soft_cap, first_real, sinks=sinks
    )


def _padding(mask: Tensor | None) -> tuple[list[int] | None, Tensor | None]:
    """First real slot per row, and the mask itself only if some row has holes after it (left padding needs no mask)."""
    if mask is None:
        return None, None
    counts = mask.sum(dim=1)
    first = torch.where(counts > 0, mask.to(torch.uint8).argmax(dim=1), mask.shape[1])
    holes = mask if bool((first + counts != mask.shape[1]).any()) else None
    return first.tolist(), holes


def _query_weight(problem: _Problem, mask: Tensor | None, query_mask: Tensor | None, count: int) -> Tensor | None:
    """[B,Q] float weights of the queries, or None when all count."""
    if query_mask is None:
        if mask is None:
            return None
        query_mask = _own_slots(problem, mask, count)
    else:
        check_mask("query_mask", query_mask, (problem.query.shape[0], count))
    return query_mask.float()


def _own_slots(problem: _Problem, mask: Tensor, count: int) -> Tensor:
    return mask[:, problem.offset : problem.offset + count]


def _ones(count: int, device: torch.device) -> Tensor:
    return torch.ones(1, count, device=device)


def _blocks(problem: _Problem, b: int, start: int, stop: int) -> Iterator[tuple[slice, slice, int, Tensor]]:
    """Yield (key heads, members of their groups, first slot, probabilities [h,g,C,t] float32) for queries start..stop."""
    positions = problem.positions
    first = problem.offset + start if positions is None else int(positions[start])
    last = problem.offset + stop if positions is None else int(positions[stop - 1]) + 1
    low = 0 if problem.first_real is None else problem.first_real[b]
    if problem.window is not None:
        low = max(low, first - problem.window + 1)
    if low >= last:  # padding queries only
        return
    hidden = _hidden(problem, b, first, last, low, start, stop)
    for heads, members in _head_blocks(problem, 4 * (stop - start) * (last - low)):
        logits = _logits(problem.query[b, heads, members, start:stop], problem.key[b, heads, low:last])
        logits = _capped(logits, problem.soft_cap)
        if hidden is not None:
            offset, block = hidden
            logits[..., offset:].masked_fill_(block, torch.finfo(torch.float32).min)
        sinks = None if problem.sinks is None else problem.sinks[heads, members, None]
        yield heads, members, low, _softmax(logits, sinks)


def _head_blocks(problem: _Problem, bytes_per_head: int) -> Iterator[tuple[slice, slice]]:
    """Cut the query heads into blocks whose logits fit the block size: whole groups, or parts of one group."""
    _, kv_heads, group = problem.heads
    fitting = max(1, _BLOCK_BYTES.get(problem.key.device.type, _BLOCK_BYTES["cpu"]) // bytes_per_head)
    if fitting >= group:
        step = fitting // group
        for head in range(0, kv_heads, step):
            yield slice(head, head + step), slice(0, group)
        return
    for head in range(kv_heads):
        for member in range(0, group, fitting):
            yield slice(head, head + 1), slice(member, member + fitting)


def _hidden(problem: _Problem, b: int, first: int, last: int, low: int, start: int, stop: int) -> tuple[int, Tensor] | None:
    """Slots that a query of the block may not see: (first slot concerned - low, bool [C, t]); None when all are visible."""
    device = problem.key.device
    has_holes = problem.mask is not None or problem.window is not None
    # Without padding or window, only the block's own slots need the causal triangle: the earlier ones are visible to all.
    begin = low if has_holes else max(first, low)
    if stop - start == 1 and not has_holes:
        return None
    own = torch.arange(first, last, device=device) if problem.positions is None else problem.positions[start:stop].to(device)
    slots = torch.arange(begin, last, device=device)
    hidden = slots[None, :] > own[:, None]
    if problem.window is not None:
        hidden |= slots[None, :] <= own[:, None] - problem.window
    if problem.mask is not None:
        hidden |= ~problem.mask[b, None, begin:last]
    return begin - low, hidden


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """[h,G,C,d] x [h,t,d] -> [h,G,C,t] float32; the group is folded into the rows, so keys are read once per key head."""
    heads, group, count, width = query.shape
    rows = query.reshape(heads, group * count, width)
    columns = key.transpose(-1, -2)
    if query.dtype == key.dtype and query.dtype in (torch.float16, torch.bfloat16) and query.is_cuda:
        product = torch.bmm(rows, columns, out_dtype=torch.float32)  # tensor cores, float32 result
    else:
        product = torch.bmm(rows.float(), columns.float())
    return product.view(heads, group, count, key.shape[1])


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Probabilities over the slots; a sink logit takes its share of the mass first."""
    probabilities = torch.softmax(logits, dim=-1)
    if sinks is None:
        return probabilities
    return probabilities * torch.sigmoid(torch.logsumexp(logits, dim=-1) - sinks).unsqueeze(-1)


def _capped(logits: Tensor, soft_cap: float | None) -> Tensor:
    return logits if soft_cap is None else logits.div_(soft_cap).tanh_().mul_(soft_cap)
