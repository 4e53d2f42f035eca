"""GLSim: similarity, boxes, crops, importance source, picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.pruning.draws import FAST, SEEDS, draw, images
from tokenry import UnsupportedModelError
from tokenry.hosts.vision import cls_attention, final_tokens
from tokenry.pruning.glsim import (
    GLSim,
    crop_boxes,
    crop_images,
    global_local_similarity,
    overlay,
    saliency_map,
)
from tokenry.testing import PRUNER_CHECKS, tiny

# Similarity ---------------------------------------------------------------------------------------------------------------


def test_values_by_hand():
    tokens = torch.tensor([[[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [4.0, -3.0], [0.0, 0.0]]])
    assert torch.allclose(global_local_similarity(tokens), torch.tensor([[1.0, -1.0, 0.0, 0.0]]), atol=1e-6)
    assert global_local_similarity(tokens, "l1").tolist() == [[3.5, 7.0, 4.0, 3.5]]
    assert global_local_similarity(tokens, "l2").tolist() == [[12.5, 50.0, 25.0, 12.5]]


@FAST
@given(seed=SEEDS, scale=st.floats(0.01, 100.0))
def test_positive_scaling_leaves_cosine_alone(seed, scale):
    tokens = draw(seed, 2, 10, 8)
    scaled = tokens.clone()
    scaled[:, 0] *= scale
    scaled[:, 3] *= scale
    assert torch.allclose(global_local_similarity(tokens), global_local_similarity(scaled), atol=1e-5)
    if abs(scale - 1) > 0.1:
        assert not torch.allclose(global_local_similarity(tokens, "l1"), global_local_similarity(scaled, "l1"), rtol=1e-3)


@FAST
@given(seed=SEEDS)
def test_l2_order_on_unit_features_is_cosine_order(seed):
    tokens = F.normalize(draw(seed, 2, 12, 8).double(), dim=-1)
    by_cosine = global_local_similarity(tokens).argsort(dim=1, descending=True)
    assert torch.equal(by_cosine, global_local_similarity(tokens, "l2").argsort(dim=1))


def test_zero_vectors_ties_and_half_precision():
    assert global_local_similarity(torch.zeros(1, 5, 4)).tolist() == [[0.0] * 4]
    assert crop_boxes(torch.zeros(1, 36), 4, 6, 4, 24).tolist() == [[0, 0, 4, 12]]
    big = draw(0, 1, 5, 64).half() * 1000
    similarity = global_local_similarity(big)
    assert similarity.dtype == torch.float32
    assert torch.isfinite(similarity).all()


def test_no_gradient_through_the_similarity():
    assert not global_local_similarity(draw(0, 1, 5, 4).requires_grad_()).requires_grad


def test_bad_tokens():
    with pytest.raises(ValueError, match="tokens must be finite"):
        global_local_similarity(torch.full((1, 3, 2), float("nan")))
    with pytest.raises(ValueError, match="at least one patch"):
        global_local_similarity(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="metric must be one of"):
        global_local_similarity(torch.zeros(1, 3, 4), "cos")  # type: ignore[arg-type]


# Boxes --------------------------------------------------------------------------------------------------------------------


def scores_at(cells: list[tuple[int, int]], rows: int = 6, columns: int = 6) -> torch.Tensor:
    scores = torch.zeros(rows, columns)
    for cell in cells:
        scores[cell] = 1.0
    return scores.flatten()[None]


def test_the_released_rule_leaves_out_the_last_row_and_column():
    scores = scores_at([(1, 2), (3, 4)])
    assert crop_boxes(scores, 2, 6, 4, 24).tolist() == [[4, 8, 12, 16]]
    assert crop_boxes(scores, 2, 6, 4, 24, inclusive=True).tolist() == [[4, 8, 16, 20]]


def test_one_patch_and_one_row():
    assert crop_boxes(scores_at([(5, 5)]), 1, 6, 4, 24).tolist() == [[20, 20, 24, 24]]
    assert crop_boxes(scores_at([(2, 1), (2, 4)]), 2, 6, 4, 24).tolist() == [[8, 4, 12, 16]]
    assert crop_boxes(scores_at([(5, 5)]), 1, 6, 4, 24, min_size=10).tolist() == [[14, 14, 24, 24]]


def test_metric_says_which_end_is_best():
    distance = 1.0 - scores_at([(1, 2), (3, 4)])
    assert crop_boxes(distance, 2, 6, 4, 24, metric="l1").tolist() == [[4, 8, 12, 16]]


GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))


@FAST
@given(seed=SEEDS, grid=GRIDS, patch=st.tuples(st.integers(1, 5), st.integers(1, 5)), data=st.data())
def test_boxes_hold_what_they_should(seed, grid, patch, data):
    rows, columns = grid
    n, size = rows * columns, (rows * patch[0], columns * patch[1])
    top = data.draw(st.integers(1, n))
    similarity = draw(seed, 3, n)
    legacy = crop_boxes(similarity, top, grid, patch, size)
    whole = crop_boxes(similarity, top, grid, patch, size, inclusive=True)
    chosen = similarity.topk(top, dim=1).indices
    y, x = (chosen // columns) * patch[0], (chosen % columns) * patch[1]
    for boxes in (legacy, whole):
        t, left, b, r = boxes.unbind(1)
        assert bool(((t >= 0) & (left >= 0) & (b <= size[0]) & (r <= size[1])).all())
        assert bool(((b - t >= patch[0]) & (r - left >= patch[1])).all())
        assert bool((y >= t[:, None]).all())
        assert bool((x >= left[:, None]).all())
    assert bool((y + patch[0] <= whole[:, 2:3]).all())
    assert bool((x + patch[1] <= whole[:, 3:4]).all())
    if top < n:
        larger = crop_boxes(similarity, top + 1, grid, patch, size, inclusive=True)
        assert bool((larger[:, :2] <= whole[:, :2]).all())
        assert bool((larger[:, 2:] >= whole[:, 2:]).all())


@FAST
@given(seed=SEEDS, top=st.integers(2, 8))
def test_mirroring_mirrors_the_inclusive_box(seed, top):
    similarity = draw(seed, 1, 36)
    mirrored = similarity.view(1, 6, 6).flip(2).reshape(1, 36)
    t, left, b, r = crop_boxes(similarity, top, 6, 4, 24, inclusive=True)[0].tolist()
    assert crop_boxes(mirrored, top, 6, 4, 24, inclusive=True).tolist() == [[t, 24 - r, b, 24 - left]]


def test_mirroring_does_not_mirror_the_released_box():
    scores = scores_at([(0, 0), (0, 2)])
    assert crop_boxes(scores, 2, 6, 4, 24).tolist() == [[0, 0, 4, 8]]
    assert crop_boxes(scores.view(6, 6).flip(1).reshape(1, 36), 2, 6, 4, 24).tolist() == [[0, 12, 4, 20]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": 0}, "top must be"),
        ({"top": 37}, "top must be"),
        ({"top": 2.0}, "top must be an int"),
        ({"grid": 5}, "grid must hold the 36 patches"),
        ({"image_size": 30}, "does not make a grid"),
        ({"min_size": 25}, "min_size must be at most"),
        ({"metric": "cos"}, "metric"),
    ],
)
def test_bad_boxes(change, message):
    arguments = {"similarity": torch.zeros(1, 36), "top": 4, "grid": 6, "patch": 4, "image_size": 24, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        crop_boxes(**arguments)


# Crops --------------------------------------------------------------------------------------------------------------------


@FAST
@given(seed=SEEDS, data=st.data())
def test_crops_are_interpolate_with_aligned_corners(seed, data):
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    batch = draw(seed, 2, 3, *size)
    boxes = []
    for _ in range(2):
        t, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
        boxes.append([t, left, data.draw(st.integers(t + 1, size[0])), data.draw(st.integers(left + 1, size[1]))])
    crops = crop_images(batch, torch.tensor(boxes))
    for image, (t, left, b, r), crop in zip(batch, boxes, crops, strict=True):
        expected = F.interpolate(image[None, :, t:b, left:r], size=size, mode="bilinear", align_corners=True)[0]
        assert torch.allclose(crop, expected, atol=1e-5)


def test_the_whole_image_comes_back_unchanged():
    batch = images()
    boxes = crop_boxes(draw(0, 3, 36), 36, 6, 4, 24, inclusive=True)
    assert torch.equal(crop_images(batch, boxes), batch)


def test_crops_in_half_precision_and_their_gradient():
    boxes = torch.tensor([[4, 4, 12, 16]]).expand(3, -1)
    half = crop_images(images().half(), boxes)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), crop_images(images(), boxes), atol=5e-3)
    batch = images().requires_grad_()
    crop_images(batch, boxes).sum().backward()
    assert float(batch.grad[:, :, 12:].abs().max()) == 0.0
    assert float(batch.grad[:, :, 4:12, 4:16].abs().min()) > 0.0


def test_bad_crops():
    box = torch.tensor([[0, 0, 4, 4]])
    with pytest.raises(TypeError, match="images must be a floating-point"):
        crop_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), box)
    with pytest.raises(ValueError, match="outside the 3 x 8 image"):
        crop_images(torch.zeros(1, 3, 3, 8), box)
    with pytest.raises(ValueError, match="empty"):
        crop_images(torch.zeros(1, 3, 8, 8), torch.tensor([[4, 0, 4, 4]]))
    with pytest.raises(TypeError, match="integer pixels"):
        crop_images(torch.zeros(1, 3, 8, 8), box.float())


# Planted features: the mechanism ------------------------------------------------------------------------------------------


def planted(seed: int, inside: float, outside: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B,1+36,64] whose patches in a 3 x 3 box have cosine `inside` to the global one, the others `outside`."""
    generator = torch.Generator().manual_seed(seed)
    whole = F.normalize(torch.randn(64, 1, 64, generator=generator), dim=-1)
    other = torch.randn(64, 36, 64, generator=generator)
    other = F.normalize(other - (other * whole).sum(-1, keepdim=True) * whole, dim=-1)
    place = torch.randint(0, 4, (64, 2), generator=generator)
    row, column = torch.arange(36) // 6, torch.arange(36) % 6
    box = (row >= place[:, :1]) & (row < place[:, :1] + 3) & (column >= place[:, 1:]) & (column < place[:, 1:] + 3)
    level = torch.where(box, inside, outside) + 0.02 * torch.randn(64, 36, generator=generator)
    patches = level[..., None] * whole + (1 - level**2).sqrt()[..., None] * other
    return torch.cat([whole, patches], dim=1), place


def test_planted_features_are_found():
    tokens, place = planted(0, 0.6, 0.2)
    boxes = crop_boxes(global_local_similarity(tokens), 9, 6, 4, 24, inclusive=True)
    assert torch.equal(boxes, torch.cat([place * 4, place * 4 + 12], dim=1))
    tokens, place = planted(0, 0.3, 0.3)
    chosen = global_local_similarity(tokens).topk(9, dim=1).indices
    row, column = chosen // 6 - place[:, :1], chosen % 6 - place[:, 1:]
    hit = ((row >= 0) & (row < 3) & (column >= 0) & (column < 3)).float().mean()
    assert 0.18 < float(hit) < 0.32  # chance is 9 of 36


# Importance source and picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", PRUNER_CHECKS, ids=lambda c: c.__name__.strip("_"))
def test_contract(check):
    check(GLSim(0.25))


def test_both_scores_behind_one_interface():
    model = tiny("vit")
    gls = GLSim(0.25).importance(model, images())
    assert torch.equal(gls, global_local_similarity(model(images()).last_hidden_state))
    row = GLSim(0.25, score="cls_attention").importance(model, images())
    assert torch.equal(row, cls_attention(model, images()).mean(1))
    tokens = final_tokens(model, images())
    chosen = GLSim(0.25).select(tokens.patches, global_token=tokens.prefix[:, 0])
    assert torch.equal(chosen, GLSim(0.25).select(tokens.patches, importance=gls))
    pooled = GLSim(4, anchor="pooled").importance(tiny("siglip"), images())
    assert pooled.shape == (3, 36)
    with pytest.raises(ValueError, match="importance or global_token"):
        GLSim(4).select(tokens.patches)
    with pytest.raises(UnsupportedModelError, match="only after the last block"), GLSim(4).attach(model):
        pass


def test_picture():
    picture = saliency_map(scores_at([(2, 3)]), 6, 24)
    assert picture.shape == (1, 24, 24)
    assert float(picture.max()) <= 1.0
    assert picture[0].argmax() // 24 in range(8, 12)
    assert float(saliency_map(torch.ones(1, 36), 6, 24).abs().max()) == 0.0
    drawn = overlay(torch.full((1, 24, 24), 0.5), picture[0], box=torch.tensor([8, 12, 12, 16]))
    assert drawn.shape == (24, 24, 3)
    assert drawn.dtype.name == "uint8"
    assert drawn[8, 12].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="grid must hold"):
        saliency_map(torch.ones(1, 35), 6, 24)
