"""Quantizers made of quantizers: their equations, what they share with the plain ones, their gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.codecs.books import randn, with_book
from tokenry.codecs import (
    FSQ,
    LFQ,
    CodeTokens,
    Grouped,
    ProductVQ,
    Quantizer,
    ResidualStack,
    ResidualVQ,
    SharedHeads,
    SimVQ,
    VectorQuantizer,
)
from tokenry.codecs.vq import residual_fsq, residual_lfq
from tokenry.core.codebooks.stats import check_indices, usage

# -- in a row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["through", "once", "each"])
def test_a_row_of_vqs_is_rvq_but_for_the_gradient(gradient):
    books = randn(3, 8, 4)
    rvq = with_book(ResidualVQ(4, 3, 8, commitment=0.25), books)
    levels = [with_book(VectorQuantizer(4, 8, commitment=0.25), book) for book in books]
    stack = ResidualStack(levels, gradient=gradient)
    for seed in range(3):
        x, y = (randn(30, 4, seed=seed).requires_grad_() for _ in range(2))
        a, b = rvq(x), stack(y)
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.codes, b.codes)
        torch.testing.assert_close(a.stats.losses, b.stats.losses)
        a.codes.sum().backward()
        b.codes.sum().backward()
        passes = 3 if gradient == "each" else 1
        torch.testing.assert_close(y.grad, passes * x.grad)
    for book, level in zip(rvq.codebook, levels, strict=True):
        torch.testing.assert_close(level.codebook, book)


@pytest.mark.parametrize("gradient", ["once", "each", "through"])
def test_losses_pull_the_input_to_the_sums_of_levels_where_subtracting_is_a_constant(gradient):
    levels = [VectorQuantizer(4, 8, seed=m) for m in range(2)]
    first, second = (level.codebook.clone() for level in levels)
    x = randn(30, 4).requires_grad_()
    out = ResidualStack(levels, gradient=gradient)(x)
    out.loss.backward()
    left = x.detach() - first[out.indices[:, 0]]
    wanted = left + (left - second[out.indices[:, 1]] if gradient != "through" else 0)
    torch.testing.assert_close(x.grad, 2 * wanted / x.numel())


def test_levels_of_fsq_are_one_grid_of_the_power():
    stack = residual_fsq([5, 4], 3).eval()
    assert stack.bits == pytest.approx(3 * math.log2(20))
    x = randn(500, 2) * 2
    out = stack(x)
    limit = torch.tensor([5 / 4, 4 / 3])
    inside = limit * torch.tanh(x / limit)
    # 5^3 and 4^3 values, whose steps are the first level's over L^2; never more than half a step away
    half = torch.tensor([2 / 4 / 25, 2 / 3 / 16]) / 2
    assert bool(((out.codes - inside).abs() <= half + 1e-5).all())
    grid = stack.decode(torch.cartesian_prod(*[torch.arange(20)] * 3))
    for channel, size in enumerate((125, 64)):
        values = grid[:, channel].mul(1e5).round().unique()
        assert len(values) == size
        assert float(values.diff().max() - values.diff().min()) <= 3


def test_levels_of_lfq_halve():
    stack, x = residual_lfq(4, 3, entropy_weight=0.0).eval(), randn(20, 4)
    out, left, total = stack(x), x, torch.zeros_like(x)
    for m in range(3):
        step = torch.where(left > 0, 2.0**-m, -(2.0**-m))
        total, left = total + step, left - step
    torch.testing.assert_close(out.codes, total)
    assert bool(((out.codes - x).abs() <= 0.25 + 1e-6)[x.abs() <= 2].all())


def test_prefixes_of_a_row_nest_also_where_levels_have_several_books():
    stack = ResidualStack([VectorQuantizer(4, 8), ProductVQ(4, 2, 4), FSQ([5, 3], dim=4)]).eval()
    assert stack.codebook_sizes == (8, 4, 4, 15)
    x = randn(2, 10, 4)
    full = stack.encode(x)
    for levels, columns in ((1, 1), (2, 3), (3, 4)):
        out = stack(x, levels=levels)
        assert torch.equal(stack.encode(x, levels=levels), full[..., :columns])
        assert bool((out.indices[..., columns:] == -1).all())
        torch.testing.assert_close(stack.decode(full[..., :columns]), out.codes)
        torch.testing.assert_close(stack.codes_of(full)[..., :levels, :].sum(-2), out.codes)
    with pytest.raises(ValueError, match="4 books"):
        stack.decode(full[..., :2])
    with pytest.raises(ValueError, match="indices of book 1"):
        stack.decode(torch.tensor([0, 4, 0, 0]))


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_dropout_of_a_row_keeps_prefixes(scope):
    levels = [VectorQuantizer(4, 8, seed=m) for m in range(4)]
    stack = ResidualStack(levels, quantizer_dropout=1.0, dropout_scope=scope, allowed_levels=(1, 3), seed=3)
    x, mask, seen = randn(16, 5, 4), torch.ones(16, 5, dtype=torch.bool), set()
    mask[:, 4] = False
    for _ in range(8):
        before = levels[3].codebook.clone()
        lengths = (stack(x, mask).indices >= 0).sum(-1)
        assert bool((lengths[:, 4] == 0).all())
        assert bool((lengths[:, :4] == lengths[:, :1]).all())
        seen |= set(lengths[:, :4].flatten().tolist())
        assert torch.equal(levels[3].codebook, before), "a level that was never used does not learn"
    assert seen == {1, 3}
    assert bool((stack.eval()(x).indices >= 0).all())


def test_projected_levels_learn_their_maps_through_the_codes():
    levels = [VectorQuantizer(8, 16, distance="cosine", ema=False, code_dim=4, emit="row", seed=m) for m in range(2)]
    stack = ResidualStack(levels)
    stack(randn(50, 8)).codes.square().sum().backward()
    assert all(level.project_out.weight.grad.abs().sum() > 0 for level in levels)
    with pytest.raises(ValueError, match=r"levels\[0\]"):
        ResidualStack([VectorQuantizer(8, 16, code_dim=4)], gradient="once")


# -- side by side ------------------------------------------------------------------------------------------------------


def test_blocks_of_vq_are_pq():
    books, x = randn(3, 5, 2), randn(40, 6, seed=1)
    pq = with_book(ProductVQ(6, 3, 5), books)
    blocks = Grouped([with_book(VectorQuantizer(2, 5), book) for book in books])
    for _ in range(2):
        a, b = pq(x), blocks(x)
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.codes, b.codes)
        torch.testing.assert_close(a.loss, b.loss)
        torch.testing.assert_close(a.stats.losses, b.stats.losses)


def test_grouped_residual_vq_is_rvq_on_each_block():
    x = randn(4, 9, 8)
    groups = [ResidualVQ(4, 3, 8, seed=g) for g in range(2)]
    alone = [ResidualVQ(4, 3, 8, seed=g) for g in range(2)]
    out = Grouped(groups)(x)
    each = [rvq(block) for rvq, block in zip(alone, x.chunk(2, dim=-1), strict=True)]
    assert torch.equal(out.indices, torch.cat([e.indices for e in each], dim=-1))
    assert torch.equal(out.codes, torch.cat([e.codes for e in each], dim=-1))
    torch.testing.assert_close(out.loss, torch.stack([e.loss for e in each]).mean())


def test_unequal_blocks_count_by_their_width_and_stats_by_their_books():
    blocks = Grouped([VectorQuantizer(2, 4), FSQ([8, 5, 5])])
    x = randn(300, 5)
    out = blocks(x)
    assert blocks.codebook_sizes == (4, 200)
    torch.testing.assert_close(out.loss, out.stats.losses @ torch.tensor([0.4, 0.6]))
    one, other = usage(out.indices[:, 0], 4), usage(out.indices[:, 1], 200)
    for figure in ("usage", "dead", "perplexity", "normalized_perplexity", "normalized_entropy"):
        expected = torch.stack([getattr(one, figure), getattr(other, figure)])
        torch.testing.assert_close(getattr(out.stats, figure), expected)
    with pytest.raises(ValueError, match="indices of book 0"):
        check_indices("indices", torch.tensor([4, 4]), (4, 200))


def test_heads_share_one_book_which_learns_from_all_of_them():
    heads, single = SharedHeads(VectorQuantizer(4, 8, kmeans_init=True), 3), VectorQuantizer(4, 8, kmeans_init=True)
    x = randn(5, 20, 12)
    for _ in range(3):
        a, b = heads(x), single(x.unflatten(-1, (3, 4)))
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.codes, b.codes.flatten(-2))
        assert torch.equal(a.loss, b.loss)
    assert torch.equal(heads.members[0].codebook, single.codebook)
    assert heads.codebook_sizes == (8, 8, 8)


def test_several_books_of_lfq_have_entropies_of_their_own():
    x = randn(64, 12)
    out = Grouped([LFQ(4, commitment=0.25) for _ in range(3)])(x)
    alone = torch.stack([LFQ(4, commitment=0.25)(block).loss for block in x.chunk(3, dim=-1)])
    torch.testing.assert_close(out.stats.losses, alone)
    torch.testing.assert_close(out.loss, alone.mean())


def test_several_books_of_one_kind_are_heads_where_it_has_no_weights():
    x = randn(64, 6)
    books, heads = Grouped([FSQ([8, 5, 5]), FSQ([8, 5, 5])]), SharedHeads(FSQ([8, 5, 5]), 2)
    assert torch.equal(books(x).indices, heads(x).indices)
    assert torch.equal(books(x).codes, heads(x).codes)


# -- as a whole ----------------------------------------------------------------------------------------------------------


def nested():
    deep = [ResidualStack([SimVQ(4, 8, seed=m) for m in range(2)]), ResidualVQ(4, 2, 8)]
    return Grouped([*deep, SharedHeads(FSQ([5, 3]), 2)], dim=10, channels_first=True)


def test_stacks_hold_stacks_and_are_saved_by_their_descriptions(tmp_path):
    stack, x = nested().train(), randn(2, 10, 7)
    for _ in range(2):
        F.mse_loss(stack(x).codes, x).backward()
    stack.save_pretrained(tmp_path)
    loaded = Quantizer.from_pretrained(tmp_path)
    a, b = stack.eval()(x), loaded.eval()(x)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.codes, b.codes)
    assert a.indices.shape == (2, 7, 6)
    assert "class" not in repr(stack)


def test_a_description_is_enough():
    stack = ResidualStack([{"class": "SimVQ", "dim": 4, "codebook_size": 8}, {"class": "FSQ", "levels": [5, 5, 5, 5]}])
    assert stack(randn(3, 4)).indices.shape == (3, 2)


def test_members_that_do_not_fit_are_named():
    shared = VectorQuantizer(4, 8)
    with pytest.raises(ValueError, match="levels must be different objects"):
        ResidualStack([shared, shared])
    with pytest.raises(ValueError, match="levels must have one width"):
        ResidualStack([VectorQuantizer(4, 8), VectorQuantizer(5, 8)])
    with pytest.raises(ValueError, match="groups must take their channels last"):
        Grouped([FSQ([5, 5], channels_first=True)])
    with pytest.raises(ValueError, match="at least one"):
        Grouped([])
    with pytest.raises(TypeError, match="levels must hold quantizers"):
        ResidualStack([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="'Linear'"):
        ResidualStack([{"class": "Linear"}])
    with pytest.raises(ValueError, match="scales"):
        ResidualStack([VectorQuantizer(4, 8)], scales=[1.0, 0.5])
    with pytest.raises(ValueError, match="scales must be > 0"):
        ResidualStack([VectorQuantizer(4, 8)], scales=[0.0])
    with pytest.raises(ValueError, match="clamp"):
        ResidualStack([VectorQuantizer(4, 8)], clamp=[1.0, 1.0])
    with pytest.raises(ValueError, match="bound"):
        FSQ([5, 5], bound="clamp")


def test_codes_of_a_stack_are_tokens_with_an_offset_per_book():
    tokens = CodeTokens(100, (4, 200), True)
    indices = Grouped([VectorQuantizer(2, 4), FSQ([8, 5, 5])])(randn(7, 5)).indices
    assert torch.equal(tokens.ids(indices), indices + torch.tensor([100, 104]))
    assert torch.equal(tokens.indices(tokens.ids(indices)), indices)


def test_members_are_asked_for_their_losses_as_the_whole_is():
    stack, x = Grouped([ResidualStack([LFQ(4)]), SharedHeads(LFQ(2), 2)]).eval(), randn(20, 8)
    with torch.no_grad():
        assert math.isnan(float(stack(x).loss))
        asked = stack(x, with_loss=True).loss
    torch.testing.assert_close(asked, stack(x).loss.detach())
    assert math.isnan(float(stack(x, with_loss=False).loss))


def test_manual_statistics_reach_the_members_wherever_they_are():
    def make(statistics):
        heads = SharedHeads(VectorQuantizer(2, 8, statistics=statistics), 2)
        return Grouped([ResidualStack([VectorQuantizer(4, 8, statistics=statistics), FSQ([5, 5], dim=4)]), heads])

    joined, parts, x = make("forward"), make("manual"), randn(30, 8)
    parts.load_state_dict(joined.state_dict())
    joined(x)
    before = {name: value.clone() for name, value in parts.state_dict().items()}
    for part in x.split(10):
        parts(part)
    assert all(torch.equal(value, before[name]) for name, value in parts.state_dict().items())
    parts.update_books()
    for name, value in joined.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
    with pytest.raises(ValueError, match="statistics='manual'"):
        joined.update_books()


def test_the_graph_of_a_level_is_not_repeated_after_its_prefix_was_drawn():
    from torch.utils.checkpoint import checkpoint

    stack, x = residual_lfq(4, 3, quantizer_dropout=0.5), randn(20, 4).requires_grad_()
    loss = checkpoint(lambda x: (stack(x.tanh()).codes.tanh() * x).sum(), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"activation checkpointing repeats .* ResidualStack"):
        loss.backward()
