"""Attention statistics equal those of a full map, and no full map is ever built."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenry.core import attention as core


def full_map(query: Tensor, key: Tensor, scale: float, *, offset=None, mask=None, window=None, soft_cap=None) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    offset = key.shape[2] - query.shape[2] if offset is None else offset
    logits = query.double() @ key.double().transpose(-1, -2) * scale
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    own = torch.arange(query.shape[2])[:, None] + offset
    slot = torch.arange(key.shape[2])[None, :]
    visible = slot <= own
    if window is not None:
        visible = visible & (slot > own - window)
    visible = visible[None, None]
    if mask is not None:
        visible = visible & mask[:, None, None, :]
    return torch.softmax(logits.masked_fill(~visible, -1e30), dim=-1)


def inputs(batch=2, heads=4, kv_heads=2, queries=13, slots=13, size=8, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, heads, queries, size, generator=g).to(dtype),
        torch.randn(batch, kv_heads, slots, size, generator=g).to(dtype),
    )


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 20),
    earlier=st.integers(0, 9),
    groups=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    chunk=st.integers(1, 21),
    window=st.sampled_from([None, 1, 4]),
    padding=st.integers(0, 6),
    holes=st.booleans(),
    soft_cap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
def test_column_sums_equal_the_full_map(queries, earlier, groups, chunk, window, padding, holes, soft_cap, seed):
    slots = queries + earlier
    query, key = inputs(2, groups[0], groups[1], queries, slots, seed=seed)
    mask = torch.ones(2, slots, dtype=torch.bool)
    mask[1, : min(padding, slots - 1)] = False
    if holes and slots > 3:
        mask[0, slots // 2] = False
    maps = full_map(query, key, 0.3, mask=mask, window=window, soft_cap=soft_cap)
    real = mask[:, earlier:].double()
    expected = (maps * real[:, None, :, None]).sum(dim=2)
    got = core.column_sums(query, key, scale=0.3, mask=mask, chunk=chunk, window=window, soft_cap=soft_cap)
    if window is None:  # with a window a hidden own slot can leave a query nothing to look at
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.sum(-1), real.sum(1)[:, None].expand(-1, groups[0]).float(), atol=1e-4, rtol=1e-4)


def test_scores_are_shares_of_the_queries_seen():
    query, key = inputs(queries=31, slots=31)
    sums = core.column_sums(query, key, chunk=7)
    assert (sums >= 0).all()
    torch.testing.assert_close(sums.sum(-1), torch.full((2, 4), 31.0))


def test_chunks_of_a_prompt_add_up():
    query, key = inputs(queries=24, slots=24)
    whole = core.column_sums(query, key)
    first = core.column_sums(query[:, :, :10], key[:, :, :10])
    rest = core.column_sums(query[:, :, 10:], key)
    torch.testing.assert_close(torch.nn.functional.pad(first, (0, 14)) + rest, whole)
    torch.testing.assert_close(core.column_sums(query[:, :, :10], key, causal_offset=0)[..., :10], first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    query, key = inputs(1, 2, 1, 300, 300, seed=3, dtype=dtype)
    got = core.column_sums(query, key)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), full_map(query, key, 8**-0.5).sum(2), atol=2e-2, rtol=2e-2)


def test_padded_batch_equals_single_rows():
    query, key = inputs(2, 4, 2, 20, 20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :8] = False
    got = core.column_sums(query, key, mask=mask)
    torch.testing.assert_close(got[:1, :, 8:], core.column_sums(query[:1, :, 8:], key[:1, :, 8:]))
    assert (got[0, :, :8] == 0).all()
    torch.testing.assert_close(got[1:], core.column_sums(query[1:], key[1:]))


def test_window_rows_and_reduction():
    query, key = inputs(queries=20, slots=20)
    maps = full_map(query, key, 8**-0.5)
    torch.testing.assert_close(
        core.last_window_scores(query, key, window=5).double(), maps[:, :, -5:].sum(2), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(core.attention_rows(query[:, :, -3:], key).double(), maps[:, :, -3:], atol=1e-5, rtol=1e-5)
    row = core.decode_row(query[:, :, -1:], key, scale=8**-0.5)
    torch.testing.assert_close(row.flatten(1, 2).double(), maps[:, :, -1], atol=1e-5, rtol=1e-5)
    mean = core.column_sums(query, key, reduce="mean")
    torch.testing.assert_close(mean.double(), maps.sum(2).unflatten(1, (2, 2)).mean(2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(core.group_heads(maps.sum(2), 2, "sum"), maps.sum(2).unflatten(1, (2, 2)).sum(2))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), chunk=st.integers(1, 12))
def test_mass_between_rows_and_columns(seed, chunk):
    query, key = inputs(3, 4, 2, 12, 12, seed=seed)
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.rand(3, 12, generator=g) > 0.5, torch.rand(3, 12, generator=g) > 0.5
    rows[2] = False
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, :4] = False
    maps = full_map(query, key, 8**-0.5, mask=mask)
    live = (rows & mask).double()
    mass = (maps * live[:, None, :, None] * columns[:, None, None, :]).sum((2, 3))
    expected = mass / live.sum(1).clamp(min=1)[:, None]
    got = core.mass_between(query, key, rows, columns, mask=mask, chunk=chunk)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    assert (got[2] == 0).all()


def test_cls_row_is_a_plain_softmax_row():
    query, key = inputs(2, 3, 3, 1, 9)
    expected = torch.softmax(query.double() @ key.double().transpose(-1, -2) * 0.5, dim=-1).squeeze(2)
    torch.testing.assert_close(core.cls_row(query, key, scale=0.5).double(), expected, atol=1e-6, rtol=1e-6)


class Largest(TorchDispatchMode):
    """Largest tensor that any operation inside returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_map_of_all_queries_is_built():
    query, key = inputs(1, 2, 1, 1024, 1024, size=4)
    with Largest() as seen:
        core.column_sums(query, key, chunk=32)
    assert seen.elements <= 2 * 32 * 1024
    with Largest() as seen:  # 32k slots: the latest 64 queries only, to keep the test short
        core.column_sums(query[:, :, :64], key.repeat(1, 1, 32, 1), chunk=16)
    assert seen.elements <= 2 * 16 * 32768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 4, 13)}, "query must have shape"),
        ({"key": torch.zeros(2, 3, 13, 8)}, "multiple of the 3 key heads"),
        ({"key": torch.zeros(2, 2, 5, 8)}, "causal_offset"),
        ({"mask": torch.ones(2, 13)}, "mask must be a bool tensor"),
        ({"mask": torch.ones(2, 9, dtype=torch.bool)}, "mask must have shape"),
        ({"chunk": 0}, "chunk must be >= 1"),
        ({"window": 0}, "window must be >= 1"),
        ({"scale": float("nan")}, "scale must be"),
        ({"reduce": "max"}, "reduce must be one of"),
        ({"causal_offset": 4}, "causal_offset must be"),
        ({"soft_cap": 0.0}, "soft_cap must be"),
    ],
)
def test_bad_inputs_are_named(change, message):
    query, key = inputs()
    arguments = {"query": query, "key": key, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        core.column_sums(**arguments)
