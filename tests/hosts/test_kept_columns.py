"""Masks over kept columns: who sees whom after tokens are taken out, padding included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.hosts.vlm import KeptColumns


def seen(mask):
    """[B,q,k] bool of a layer mask of either kind."""
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0]


REAL = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
KEEP = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]]).bool()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_prefill_mask_by_hand(implementation):
    """Row 0 has one padding slot: it sees itself and nothing else, and nobody sees it."""
    columns = KeptColumns.of(REAL, KEEP)
    mask = columns.prefill_mask(None, implementation, torch.float32)
    assert mask.dtype == (torch.bool if implementation == "sdpa" else torch.float32)
    assert seen(mask).int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 4), width=st.integers(1, 9),
    implementation=st.sampled_from(["sdpa", "eager"]), given_mask=st.booleans(),
)  # fmt: skip
def test_padding_sees_itself_and_is_seen_by_none(seed, rows, width, implementation, given_mask):
    generator = torch.Generator().manual_seed(seed)
    real, keep = (torch.rand(rows, width, generator=generator) < 0.7 for _ in range(2))
    real[0, -1] = keep[0, -1] = True
    columns = KeptColumns.of(real, keep)
    causal = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    mask = columns.prefill_mask(causal & real[:, None, None, :] if given_mask else None, implementation, torch.float32)
    if mask is None:
        assert not columns.padded
        return
    n = columns.width
    for row in range(rows):
        for query in range(n):
            before = [slot <= query and bool(columns.mask[row, slot]) for slot in range(n)]
            if columns.mask[row, query]:
                assert seen(mask)[row, query].tolist() == before
            else:
                assert bool(seen(mask)[row, query, query])


def test_attention_over_padding_is_finite():
    """A query that saw nothing would be NaN and poison the values that later blocks read."""
    columns = KeptColumns.of(REAL, KEEP)
    mask = columns.prefill_mask(None, "sdpa", torch.float32)
    x = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    out = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    torch.testing.assert_close(out[0, 0, 0], x[0, 0, 0])
    assert bool(out.isfinite().all())


def test_flash_attention_takes_the_padding_mask():
    columns = KeptColumns.of(REAL, KEEP)
    assert columns.prefill_mask(None, "flash_attention_2", torch.float16).tolist() == [[0, 1, 1], [1, 1, 1]]
    whole = KeptColumns.of(REAL[1:], KEEP[1:])
    for implementation in ("flash_attention_2", "sdpa", "eager"):
        assert whole.prefill_mask(None, implementation, torch.float32) is None
