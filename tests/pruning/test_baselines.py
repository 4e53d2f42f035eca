"""Baselines of visual tokens: worked numbers, invariants, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.pruning import Compose, DivPrune, FastV, IDPruner, NoPruning, RandomPruner, TopK, UniformGrid
from tokenry.pruning.baselines import SELECTORS
from tokenry.testing import llava_inputs, qwen_inputs, tiny_llava, tiny_qwen
from tokenry.testing.zoo import IMAGE_TOKEN

PROPERTY = settings(max_examples=30, deadline=None)
EVERY = [RandomPruner, UniformGrid, TopK, DivPrune, FastV, *(lambda k, s=s: Compose(k, "norm", s) for s in SELECTORS)]


def tokens(n, seed=0, batch=1, width=6):
    """Features [batch,n,width] and importance [batch,n], double so that nothing ties."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, n, width, generator=generator, dtype=torch.float64)
    return features, torch.rand(batch, n, generator=generator, dtype=torch.float64)


def circle(*degrees):
    """Unit vectors [1,n,2] at these angles."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


@pytest.mark.parametrize("build", EVERY, ids=lambda b: getattr(b, "__name__", "Compose"))
@PROPERTY
@given(data=st.data())
def test_k_different_tokens_and_never_a_masked_one(build, data):
    n = data.draw(st.integers(2, 40))
    k = data.draw(st.integers(1, n))
    left = data.draw(st.integers(k, n))
    features, importance = tokens(n, data.draw(st.integers(0, 10_000)), batch=2)
    mask = torch.zeros(2, n, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(n, generator=torch.Generator().manual_seed(left))[:left]] = True
    for given_mask in (None, mask):
        chosen = build(k).select(features, importance=importance, mask=given_mask)
        assert chosen.shape == (2, k)
        for row, allowed in zip(chosen, torch.ones_like(mask) if given_mask is None else mask, strict=True):
            assert len(set(row.tolist())) == k
            assert bool(allowed[row].all())


@pytest.mark.parametrize("build", EVERY, ids=lambda b: getattr(b, "__name__", "Compose"))
def test_keeping_everything_keeps_the_order(build):
    features, importance = tokens(9, batch=2)
    assert build(1.0).select(features, importance=importance).tolist() == [list(range(9))] * 2


# Nothing, at random, evenly ---------------------------------------------------------------------------------------------------


def test_no_pruning_is_the_reference():
    features, _ = tokens(5, batch=2)
    assert NoPruning().select(features).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert NoPruning().plan(7) == 7
    for keep in (0.5, 1, True):
        with pytest.raises((ValueError, TypeError), match=r"keep must be 1\.0 for NoPruning"):
            NoPruning(keep)


@PROPERTY
@given(seed=st.integers(0, 10_000), n=st.integers(10, 60))
def test_random_tokens_depend_on_the_seed_alone(seed, n):
    features, _ = tokens(n, seed=1, batch=3)
    chosen = RandomPruner(0.5, seed=seed).select(features)
    assert torch.equal(chosen, RandomPruner(0.5, seed=seed).select(-3.0 * features.flip(1)))
    assert bool((chosen == chosen[0]).all())
    assert torch.equal(chosen[:1], RandomPruner(0.5, seed=seed).select(features[:1]))


def test_random_tokens_are_all_equally_likely():
    features, _ = tokens(8)
    counts = torch.zeros(8)
    for seed in range(400):
        counts[RandomPruner(2, seed=seed).select(features)[0]] += 1
    assert counts.sum() == 800
    assert ((counts - 100.0).abs() < 4 * math.sqrt(400 * 0.25 * 0.75)).all()


def test_images_of_an_attachment_draw_one_after_the_other():
    model, inputs = tiny_llava(), llava_inputs((2,))
    kept = []
    for seed in (3, 3, 4):
        with RandomPruner(9, seed=seed).attach(model) as trace, torch.no_grad():
            model(**inputs)
            model(**inputs)
        kept.append([entry.indices.tolist() for entry in trace.kept])
    assert kept[0] == kept[1]
    assert len({tuple(indices) for indices in kept[0] + kept[2]}) == 8


@pytest.mark.parametrize("seed", [-1, 1.0, True])
def test_a_bad_seed_is_named(seed):
    with pytest.raises((ValueError, TypeError), match="seed"):
        RandomPruner(0.5, seed=seed)


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (10, 3, [1, 5, 8]),  # middles of thirds: 10/6, 30/6, 50/6
        (10, 1, [5]),
        (9, 4, [0, 2, 6, 8]),  # 3 x 3: rows 0 and 2, columns 0 and 2
        (16, 4, [5, 7, 13, 15]),  # 4 x 4
        (16, 3, [6, 13, 15]),  # 4 x 4: one token in row 1, two in row 3
    ],
)
def test_even_spacing_by_hand(n, k, expected):
    assert UniformGrid(k).select(tokens(n)[0]).tolist() == [expected]


def test_a_mask_is_spaced_over_what_it_leaves():
    mask = torch.tensor([[True] * 10, [False] * 4 + [True] * 6])
    assert UniformGrid(3).select(tokens(10, batch=2)[0], mask=mask).tolist() == [[1, 5, 8], [5, 7, 9]]
    with pytest.raises(ValueError, match="mask must leave at least k = 7 tokens in every row, got a row with 6"):
        UniformGrid(7).select(tokens(10, batch=2)[0], mask=mask)


@PROPERTY
@given(n=st.integers(2, 120), data=st.data())
def test_a_sequence_is_cut_into_equal_parts(n, data):
    """Ascending, gaps differ by at most one, and as far from the start as from the end."""
    k = data.draw(st.integers(1, n))
    mask = torch.ones(1, n, dtype=torch.bool)  # a mask is read as a sequence, also for a square n
    chosen = UniformGrid(k).select(tokens(n)[0], mask=mask)[0]
    gaps = chosen.diff()
    assert bool((gaps >= 1).all())
    assert k < 3 or int(gaps.max() - gaps.min()) <= 1
    assert abs(int(chosen[0]) - (n - 1 - int(chosen[-1]))) <= 1


@PROPERTY
@given(side=st.integers(2, 12), data=st.data())
def test_a_square_is_covered_in_both_directions(side, data):
    used = data.draw(st.integers(1, side))
    chosen = UniformGrid(used * used).select(tokens(side * side)[0])[0]
    rows, columns = (chosen // side).unique(), (chosen % side).unique()
    assert len(rows) == len(columns) == used
    assert torch.equal(rows, columns)


def test_images_of_equal_size_and_other_shape_are_spaced_by_their_own_grid():
    """4 x 4 and 2 x 8 tokens in one prompt: as many tokens, another lattice; never one selection for both."""
    model = tiny_qwen()
    both, wide_first = qwen_inputs((((8, 8), (4, 16)),)), qwen_inputs((((4, 16), (8, 8)),))
    square, wide = [5, 7, 13, 15], [9, 11, 13, 15]
    for inputs, expected in ((both, [square, wide]), (wide_first, [wide, square])):
        with UniformGrid(4).attach(model) as trace, torch.no_grad():
            model(**inputs)
        assert [entry.grid for entry in trace.kept] == [(4, 4) if e is square else (2, 8) for e in expected]
        assert [entry.indices.tolist() for entry in trace.kept] == expected


def test_a_flat_image_uses_as_many_rows_as_its_tokens_need():
    """Ten of 2 x 9: the aspect ratio asks for one row, which holds nine."""
    model = tiny_qwen()
    with UniformGrid(10).attach(model) as trace, torch.no_grad():
        model(**qwen_inputs((((4, 18),),)))
    assert trace.kept[0].indices.tolist() == [0, 2, 4, 6, 8, 9, 11, 13, 15, 17]


# By importance ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", [TopK(3), FastV(3), Compose(3, "norm", "top_k")], ids=repr)
def test_top_k_by_hand(pruner):
    features, _ = tokens(5)
    importance = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.5]])
    assert pruner.select(features, importance=importance).tolist() == [[1, 3, 2]]  # the lowest index wins ties
    mask = torch.tensor([[True, False, True, True, True]])
    assert pruner.select(features, importance=importance, mask=mask).tolist() == [[3, 2, 4]]


@PROPERTY
@given(seed=st.integers(0, 10_000), n=st.integers(2, 40), data=st.data())
def test_nothing_left_is_more_important_than_what_is_kept(seed, n, data):
    k = data.draw(st.integers(1, n - 1))
    features, importance = tokens(n, seed)
    chosen = TopK(k).select(features, importance=importance)[0]
    left = torch.ones(n, dtype=torch.bool).index_fill(0, chosen, False)
    assert importance[0, chosen].min() > importance[0, left].max()
    assert importance[0, chosen].diff().le(0).all()


@pytest.mark.parametrize("pruner", [TopK(0.5), FastV(0.5), Compose(0.5)], ids=repr)
def test_importance_is_required_and_checked(pruner):
    features, importance = tokens(6)
    with pytest.raises(ValueError, match="importance must be given"):
        pruner.select(features)
    with pytest.raises(ValueError, match="importance"):
        pruner.select(features, importance=importance[:, :5])
    with pytest.raises(ValueError, match="importance must be finite"):
        pruner.select(features, importance=importance * float("nan"))


@pytest.mark.parametrize("build", [TopK, lambda keep, importance: Compose(keep, importance)])
def test_an_unknown_source_is_named(build):
    with pytest.raises(ValueError, match="importance must be one of"):
        build(0.5, importance="attention")


def test_attached_top_k_ranks_by_the_source():
    model, inputs = tiny_llava(), llava_inputs((1,))
    for source in ("norm", "cls_attention"):
        with TopK(5, importance=source).attach(model) as trace, torch.no_grad():
            model(**inputs)
        (entry,) = trace.kept
        assert entry.indices.tolist() == sorted(entry.scores.topk(5).indices.tolist())


# Compositions -----------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(seed=st.integers(0, 10_000), balance=st.floats(0.0, 1.0))
def test_compositions_of_our_parts_are_the_pruners_made_of_them(seed, balance):
    features, importance = tokens(24, seed)
    mmr = Compose(6, "norm", "mmr", balance).select(features, importance=importance)
    assert torch.equal(mmr, IDPruner(6, balance=balance).select(features, importance=importance))
    ranked = Compose(6, "norm", "top_k", balance).select(features, importance=importance)
    assert torch.equal(ranked, TopK(6).select(features, importance=importance))


def test_names_are_read_from_both_sides_of_the_plus():
    assert Compose.named("sensitivity+max_min", 0.25) == Compose(0.25, "sensitivity", "max_min")
    for name, word in (
        ("norm", "name must be 'SOURCE"),
        ("norms+mmr", "importance must be one of"),
        ("norm+best", "selector must be one of"),
        ("norm+mmr+mmr", "selector must be one of"),
    ):
        with pytest.raises(ValueError, match=word):
            Compose.named(name, 0.25)


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan")])
def test_a_bad_balance_is_named(balance):
    with pytest.raises(ValueError, match="balance"):
        Compose(0.5, balance=balance)


# Farthest points --------------------------------------------------------------------------------------------------------------


def test_farthest_points_by_hand():
    """The loner at 180 degrees first, its opposite next, then the token that is 20 degrees from what is kept, not 10."""
    assert DivPrune(3).select(circle(0.0, 10.0, 20.0, 180.0)).tolist() == [[3, 0, 2]]
    mask = torch.tensor([[True, True, True, False]])
    assert DivPrune(2).select(circle(0.0, 10.0, 25.0, 24.0), mask=mask).tolist() == [[2, 0]]  # hidden: no neighbour either


@PROPERTY
@given(seed=st.integers(0, 10_000), n=st.integers(3, 30), data=st.data())
def test_every_next_token_is_the_farthest_from_those_before(seed, n, data):
    k = data.draw(st.integers(2, n - 1))
    features, importance = tokens(n, seed)
    chosen = DivPrune(k).select(features)[0].tolist()
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    cosine = (unit @ unit.T).fill_diagonal_(-2.0)
    assert cosine[chosen[0]].max() == cosine.max(dim=1).values.min()
    for i in range(1, k):
        nearest = cosine[:, chosen[:i]].max(dim=1).values
        nearest[chosen[:i]] = 2.0
        assert nearest[chosen[i]] <= nearest.min() + 1e-9
    assert chosen == DivPrune(k).select(5.0 * features, importance=importance)[0].tolist()


def test_the_first_token_is_right_over_more_than_one_block():
    features = tokens(1100, seed=4, width=3)[0]
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-2.0).max(dim=1).values
    assert DivPrune(2).select(features)[0, 0] == nearest.argmin()


# Inside the decoder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_fastv_drops_what_the_last_token_attends_to_least(layer):
    """Against the attention maps that the plain model returns: block `layer`, last row, mean over heads, visual columns."""
    model, inputs = tiny_llava(attention="eager"), llava_inputs((1,))
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    received = maps[layer - 1][0, :, -1].mean(dim=0)[visual]
    with FastV(9, layer=layer).attach(model) as trace, torch.no_grad():
        model(**inputs)
    before, after = trace.kept
    assert (before.layer, len(before.indices)) == (None, 36)
    assert (after.layer, after.total) == (layer - 1, 36)
    assert after.indices.tolist() == sorted(received.topk(9).indices.tolist())


def test_fastv_leaves_text_alone_and_budgets_each_prompt():
    model, inputs = tiny_llava(), llava_inputs((1, 2, 0), words=(4, 3, 6))
    with FastV(0.25).attach(model) as trace, torch.no_grad():
        model(**inputs)
    kept = {entry.image: len(entry.indices) for entry in trace.kept if entry.layer is not None}
    assert kept[0] == 9
    assert kept[1] + kept[2] == 18
    with torch.no_grad():
        plain = model(**inputs).logits
        with FastV(1.0, layer=1).attach(model):
            torch.testing.assert_close(model(**inputs).logits, plain, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, -1, 1.5, True])
def test_a_bad_layer_is_named(layer):
    with pytest.raises((ValueError, TypeError), match="layer"):
        FastV(0.5, layer=layer)


@pytest.mark.parametrize("build", EVERY, ids=lambda b: getattr(b, "__name__", "Compose"))
@pytest.mark.parametrize("keep", [0.0, 1.5, 75.0, 0, -2, True, "half"])
def test_a_bad_budget_is_named(build, keep):
    with pytest.raises((ValueError, TypeError), match="keep"):
        build(keep)
