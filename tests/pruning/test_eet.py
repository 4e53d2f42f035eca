"""EET: importance, pruning inside a ViT, region guidance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pruning.draws import FAST, KEEP, SEEDS, draw, images, signals
from tokenry import UnsupportedModelError
from tokenry.core.selection import top_k
from tokenry.hosts.vision import final_tokens
from tokenry.pruning.eet import (
    EET,
    content_importance,
    hide_regions,
    region_mask,
    scaled_schedule,
)
from tokenry.pruning.vit_baselines import ClsRow
from tokenry.testing import tiny

# Importance ---------------------------------------------------------------------------------------------------------------


def test_importance_by_hand():
    row = torch.tensor([[[0.2], [0.6]]])
    content = torch.tensor([[[[3.0, 4.0]], [[0.0, 15.0]]]])
    assert content_importance(row, content).item() == pytest.approx(0.25 * 0.2 + 0.75 * 0.6)


@FAST
@given(seed=SEEDS)
def test_one_head_is_the_cls_row(seed):
    row, content = signals(seed, heads=1)
    assert torch.allclose(content_importance(row, content), row[:, 0], atol=1e-6)


@FAST
@given(seed=SEEDS, scale=st.floats(0.1, 50.0))
def test_importance_is_a_mean_over_heads_and_ignores_scale_and_order(seed, scale):
    row, content = signals(seed)
    importance = content_importance(row, content)
    assert bool((importance >= 0).all())
    assert bool((importance <= row.amax(1) + 1e-6).all())
    assert torch.allclose(content_importance(row, content * scale), importance, atol=1e-5)
    heads = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(content_importance(row[:, heads], content[:, heads]), importance, atol=1e-6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(content_importance(row[..., order], content[:, :, order]), importance[:, order], atol=1e-6)


def test_importance_of_empty_content_and_half_precision():
    row, content = signals(0)
    assert content_importance(row, torch.zeros_like(content)).tolist() == torch.zeros(2, 9).tolist()
    loud = (content * 3e4).half().clamp(-6e4, 6e4)
    assert torch.isfinite(content_importance(row.half(), loud)).all()


def test_bad_signals():
    row, content = signals(0)
    with pytest.raises(ValueError, match="content must have shape"):
        content_importance(row, content[:, :3])
    with pytest.raises(ValueError, match="content strength must be finite"):
        content_importance(row, content * float("nan"))


# Pruning ------------------------------------------------------------------------------------------------------------------


def test_the_papers_counts():
    assert EET().stages(196) == {3: 98, 7: 49, 9: 12}
    assert EET().plan(196) == 12
    assert scaled_schedule(12) == {3: 0.5, 7: 0.5, 9: 0.25}
    assert scaled_schedule(24) == {7: 0.5, 15: 0.5, 19: 0.25}


@FAST
@given(
    n=st.integers(1, 300),
    percent=st.dictionaries(st.integers(0, 11), st.integers(1, 100), min_size=1, max_size=4),
)
def test_counts_follow_the_floor_rule(n, percent):
    left, pruner = n, EET(keep={block: share / 100 for block, share in percent.items()})
    for block, count in pruner.stages(n).items():
        assert count == max(1, math.floor(left * (percent[block] / 100)))
        left = count
    assert pruner.plan(n) == left


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "dinov2_with_registers", "clip"])
def test_attach(family):
    model = tiny(family)
    dense = final_tokens(model, images())
    with EET(keep=KEEP).attach(model) as trace:
        model(images())
        pruned = final_tokens(model, images())
    assert pruned.patches.shape[1] == 9
    assert pruned.prefix.shape == dense.prefix.shape
    assert trace.counts() == dict.fromkeys(range(6), 9)
    for image in range(6):
        first, second = (set(entry.indices.tolist()) for entry in trace.of_image(image))
        assert len(first) == 18
        assert second < first <= set(range(36))
    entry = trace.of_image(0)[0]
    assert (entry.layer, entry.total, entry.grid) == (0, 36, (6, 6))
    assert sorted(top_k(entry.scores[None], 18)[0].tolist()) == entry.indices.tolist()
    with EET(keep={0: 1.0, 3: 1.0}).attach(model):
        assert torch.equal(final_tokens(model, images()).prefix, dense.prefix)
    assert torch.equal(final_tokens(model, images()).prefix, dense.prefix)


def test_one_head_prunes_like_the_cls_row():
    model = tiny("vit", num_attention_heads=1)
    kept = []
    for pruner in (EET(keep=KEEP), ClsRow(keep=KEEP)):
        with pruner.attach(model) as trace:
            model(images())
        kept.append([entry.indices.tolist() for entry in trace.kept])
    assert kept[0] == kept[1]


@FAST
@given(seed=SEEDS)
def test_permuting_patches_changes_nothing(seed):
    model = tiny("vit")
    embedded = model.embeddings(images())
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(36, generator=torch.Generator().manual_seed(seed))])
    results = []
    for rows in (torch.arange(37), order):
        handle = model.embeddings.register_forward_hook(lambda *_, rows=rows: embedded[:, rows])
        with torch.no_grad(), EET(keep=KEEP).attach(model) as trace:
            cls = model(images()).last_hidden_state[:, 0]
        handle.remove()
        kept = [sorted((rows[1:] - 1)[entry.indices].tolist()) for entry in trace.kept]
        results.append((cls, kept))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert results[0][1] == results[1][1]


def test_batch_equals_loop_and_half_precision():
    model = tiny("vit")
    with torch.no_grad(), EET(keep=KEEP).attach(model):
        together = model(images()).last_hidden_state
        alone = torch.cat([model(image[None]).last_hidden_state for image in images()])
        assert torch.allclose(together, alone, atol=1e-5)
        for dtype in (torch.bfloat16, torch.float16):
            model.to(dtype)
            assert torch.isfinite(model(images().to(dtype)).last_hidden_state).all()


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ({3: 0.0}, ValueError, r"keep\[3\]"),
        ({3: 1.5}, ValueError, r"keep\[3\]"),
        ({3: 75.0}, ValueError, r"did you mean 0.75|keep\[3\]"),
        ({3: True}, TypeError, r"keep\[3\]"),
        ({-1: 0.5}, ValueError, "block in keep"),
        ({0.5: 0.5}, TypeError, "block in keep"),
        ({}, ValueError, "at least one block"),
        (0.5, TypeError, "keep must map blocks"),
    ],
)
def test_bad_schedules(keep, error, message):
    with pytest.raises(error, match=message):
        EET(keep=keep)


def test_schedules_that_do_not_fit_the_model():
    model = tiny("vit")
    with (
        pytest.raises(ValueError, match="keep names block 4, but the model has blocks 0 to 3"),
        EET(keep={4: 0.5}).attach(model),
    ):
        pass
    with pytest.raises(ValueError, match=r"4 blocks.*\{0: 0.5, 2: 0.125\}"), EET().attach(model):
        pass
    with EET(keep={0: 0.5, 2: 30}).attach(model) as trace:  # a count is a cap
        model(images())
    assert [row["kept"] for row in trace.to_rows()] == [18] * 6
    with pytest.raises(UnsupportedModelError, match="no CLS token, which EET needs"), EET(keep=KEEP).attach(tiny("siglip")):
        pass


# Region guidance ----------------------------------------------------------------------------------------------------------


def test_the_intended_patch_is_hidden_and_the_released_one_on_request():
    importance = torch.zeros(1, 36)
    importance[0, 1 * 6 + 4] = 1.0
    hidden = (region_mask(importance, 1, 6, 4)[0, 0] == 0).nonzero()
    assert (hidden.amin(0).tolist(), hidden.amax(0).tolist()) == ([4, 16], [7, 19])
    released = (region_mask(importance, 1, 6, 4, transposed=True)[0, 0] == 0).nonzero()
    assert (released.amin(0).tolist(), released.amax(0).tolist()) == ([16, 4], [19, 7])


@FAST
@given(seed=SEEDS, grid=st.tuples(st.integers(1, 6), st.integers(1, 6)), patch=st.integers(1, 5), data=st.data())
def test_mask_hides_exactly_the_top_patches(seed, grid, patch, data):
    n = grid[0] * grid[1]
    count = data.draw(st.integers(1, n))
    importance = draw(seed, 2, n)
    mask = region_mask(importance, count, grid, patch)
    assert mask.shape == (2, 1, grid[0] * patch, grid[1] * patch)
    cells = mask[:, 0, ::patch, ::patch].reshape(2, n)
    assert torch.equal(cells == 0, torch.zeros(2, n).scatter(1, importance.topk(count).indices, 1.0) == 1)
    assert float(mask.sum()) == 2 * (n - count) * patch * patch


def test_bad_regions():
    importance = torch.zeros(1, 36)
    for arguments, message in (
        ((importance, 0, 6, 4), "count"),
        ((importance, 37, 6, 4), "count"),
        ((importance, 1, 5, 4), "grid must hold"),
        ((importance, 1, (4, 9), 4, True), "square grid"),
    ):
        with pytest.raises(ValueError, match=message):
            region_mask(*arguments)
    with pytest.raises(ValueError, match="not divided by the grid"):
        hide_regions(torch.zeros(1, 3, 25, 24), importance, 1, (6, 6))
