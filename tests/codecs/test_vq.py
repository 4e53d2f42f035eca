"""VQ: nearest codes, EMA, losses, estimators, remedies; the statistics of indices."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.codecs.books import randn, with_book
from tokenry.codecs import FSQ, ResidualVQ, SimVQ, VectorQuantizer, usage
from tokenry.codecs.vq.lookup import LookupOptions, LookupQuantizer
from tokenry.core.codebooks import codebooks
from tokenry.core.codebooks.codebooks import kmeans, nearest_codes, squared_distances
from tokenry.core.codebooks.estimators import (
    annealed_temperature,
    chosen_rows,
    gumbel_softmax,
    index_backprop,
    pull_together,
    rotation_trick,
    rounded_tanh,
    straight_through,
)


@given(st.integers(1, 60), st.integers(2, 40), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_nearest_row_by_brute_force(n, k, d, seed):
    # integer coordinates: distances are exact, ties are real and go to the lowest index
    x = torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    book = torch.randint(-3, 4, (k, d), generator=torch.Generator().manual_seed(seed + 1)).float()
    distances = (x[:, None] - book).square().sum(-1)
    expected = torch.tensor([row.index(min(row)) for row in distances.tolist()])
    assert torch.equal(nearest_codes(x, book), expected)
    torch.testing.assert_close(squared_distances(x, book), distances)
    dots = x @ book.t()
    assert torch.equal(nearest_codes(x, book, dot=True), torch.tensor([row.index(max(row)) for row in dots.tolist()]))


def test_blocks_of_codes_give_the_same_answer(monkeypatch):
    # small integers: sums are exact, so that the second half of the book ties with the first
    x, book = (randn(70, 5) * 4).round(), (randn(50, 5, seed=1) * 4).round().repeat(2, 1)
    whole = nearest_codes(x, book)
    monkeypatch.setattr(codebooks, "_CODES_BLOCK", 7)
    monkeypatch.setattr(codebooks, "_CPU_BLOCK", 40)
    monkeypatch.setattr(codebooks, "_LEAST_ROWS", 3)
    assert torch.equal(nearest_codes(x, book), whole)
    monkeypatch.setattr(codebooks, "_GROUP", 2)  # 7 codes at a time are no multiple, 10 are
    assert torch.equal(nearest_codes(x, book), whole)
    monkeypatch.setattr(codebooks, "_CODES_BLOCK", 10)
    assert torch.equal(nearest_codes(x, book), whole)
    assert int(whole.max()) < 50


@pytest.mark.parametrize("smoothing", ["laplace", "clamp"])
def test_ema_follows_its_equations(smoothing):
    book, g, eps = randn(4, 3), 0.8, 1e-5
    quantizer = with_book(VectorQuantizer(3, 4, smoothing=smoothing), book)
    n, m = torch.ones(4), book.clone()
    for step in range(4):
        x = randn(20, 3, seed=10 + step)
        index = (x[:, None] - book).square().sum(-1).argmin(1)
        out = quantizer(x)
        assert torch.equal(out.indices, index)
        torch.testing.assert_close(out.codes, book[index])  # the book before its update
        torch.testing.assert_close(out.loss, F.mse_loss(x, book[index]))
        hot = F.one_hot(index, 4).float()
        n, m = g * n + (1 - g) * hot.sum(0), g * m + (1 - g) * hot.t() @ x
        smooth = (n + eps) / (n.sum() + 4 * eps) * n.sum() if smoothing == "laplace" else n.clamp(min=eps)
        book = m / smooth[:, None]
        torch.testing.assert_close(quantizer.codebook, book)
        torch.testing.assert_close(quantizer.counts, n)


def test_cosine_ema_keeps_the_length_of_the_running_sum():
    book = F.normalize(randn(4, 3), dim=-1)
    quantizer = with_book(VectorQuantizer(3, 4, distance="cosine"), book)
    m = book.clone()
    for step in range(3):
        x = randn(20, 3, seed=10 + step)
        unit = F.normalize(x, dim=-1)
        index = (unit @ book.t()).argmax(1)
        out = quantizer(x)
        torch.testing.assert_close(out.codes, book[index])
        torch.testing.assert_close(out.loss, F.mse_loss(unit, book[index]))
        m = 0.8 * m + 0.2 * F.one_hot(index, 4).float().t() @ unit
        book = F.normalize(m, dim=-1)
        torch.testing.assert_close(quantizer.codebook, book)


def test_a_book_of_cluster_means_is_a_fixed_point_of_ema():
    book = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    offsets = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x = (book[:, None] + offsets).flatten(0, 1)
    quantizer = with_book(VectorQuantizer(2, 3), book)
    for _ in range(5):
        quantizer(x)
    torch.testing.assert_close(quantizer.codebook, book, atol=1e-5, rtol=0)


def test_the_gradient_book_learns_by_its_loss_alone():
    x = randn(30, 3).requires_grad_()
    quantizer = VectorQuantizer(3, 4, ema=False, commitment=0.25)
    out = quantizer(x)
    rows = quantizer.codebook.detach()[out.indices]
    torch.testing.assert_close(out.loss, 1.25 * F.mse_loss(x, rows))
    out.codes.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x)), "straight-through is the identity"
    assert quantizer.codebook.grad is None
    quantizer(x).loss.backward()
    assert bool((quantizer.codebook.grad != 0).any())


def test_dac_variant_compares_directions_and_gives_out_rows():
    book = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    quantizer = with_book(VectorQuantizer(2, 2, distance="cosine", ema=False, emit="row"), book)
    out = quantizer(torch.tensor([[0.1, 0.09], [3.0, 4.0]]))
    assert out.indices.tolist() == [0, 1]
    torch.testing.assert_close(out.codes, book)


# -- estimators --------------------------------------------------------------------------------------------------------


def test_rotation_trick_against_the_rotation_matrix():
    z, q, g = randn(5), randn(5, seed=1), randn(5, seed=2)
    leaf = z.clone().requires_grad_()
    out = rotation_trick(leaf[None], q[None])
    assert torch.equal(out[0], q)
    out[0].dot(g).backward()
    e, u = F.normalize(z, dim=0), F.normalize(q, dim=0)
    w = F.normalize(e + u, dim=0)
    rotation = torch.eye(5) - 2 * torch.outer(w, w) + 2 * torch.outer(u, e)
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(5))
    torch.testing.assert_close(rotation @ e, u)
    torch.testing.assert_close(leaf.grad, q.norm() / z.norm() * rotation.t() @ g)


@pytest.mark.parametrize(
    ("z", "q"), [([0.0, 0.0], [1.0, 0.0]), ([1e-12, 0.0], [1.0, 1.0]), ([1.0, 0.0], [0.0, 0.0]), ([1.0, 0.0], [-2.0, 0.0])]
)
def test_rotation_trick_is_straight_through_where_it_is_undefined(z, q):
    leaf = torch.tensor([z], requires_grad=True)
    out = rotation_trick(leaf, torch.tensor([q]))
    assert out.tolist() == [q]
    out.sum().backward()
    assert leaf.grad.tolist() == [[1.0, 1.0]]


def test_straight_through_is_exact_for_distant_values():
    z, q = torch.tensor([1e8]), torch.tensor([0.1])
    assert straight_through(z, q).item() == q.item()


def test_nodes_of_ones_own_have_the_gradients_of_their_formulas():
    z, q = (randn(6, 4, seed=seed).double().requires_grad_() for seed in (0, 1))
    shift, half, lift, unit = (torch.rand(4, generator=torch.Generator().manual_seed(seed)).double() + 1 for seed in range(4))
    found, rounded = rounded_tanh(z, shift, half, lift, unit)
    smooth = torch.tanh(z + shift) * half + lift
    assert torch.equal(rounded, smooth.round())
    assert torch.equal(found, rounded / unit)
    book, indices = randn(3, 4, seed=2).double().requires_grad_(), torch.tensor([2, 0, 0, 1, 2, 0])
    rows = book[indices]
    codes, loss = chosen_rows(z, book, indices, 0.3, 1.7)
    torch.testing.assert_close(codes, rows)
    pull = 0.3 * F.mse_loss(z, rows.detach()) + 1.7 * F.mse_loss(z.detach(), rows)
    torch.testing.assert_close(*(torch.autograd.grad(y, book, retain_graph=True)[0] for y in (loss, pull)))
    pairs = [
        (codes.sum() * loss, (rows.detach() + z - z.detach()).sum() * pull),
        (found, (smooth + (rounded - smooth).detach()) / unit),
        (pull_together(z, q, 0.3, 1.7), 0.3 * F.mse_loss(z, q.detach()) + 1.7 * F.mse_loss(z.detach(), q)),
        (straight_through(z, q), q.detach() + z - z.detach()),
    ]
    for ours, formula in pairs:
        torch.testing.assert_close(ours, formula)
        first = [torch.autograd.grad((y**2).sum(), [z, q], allow_unused=True, create_graph=True) for y in (ours, formula)]
        torch.testing.assert_close([g for g in first[0] if g is not None], [g for g in first[1] if g is not None])
        second = [
            torch.autograd.grad(sum((g**2).sum() for g in pair if g is not None), z, retain_graph=True)[0] for pair in first
        ]
        torch.testing.assert_close(*second)
        again = torch.autograd.grad((ours**2).sum(), z, retain_graph=True)[0]  # without a second derivative
        torch.testing.assert_close(again, first[1][0])


def test_soft_estimators_reach_every_code():
    logits = randn(6, 5).requires_grad_()
    for weights, index in (index_backprop(logits, 0.7), gumbel_softmax(logits, 0.7, torch.Generator().manual_seed(0))):
        torch.testing.assert_close(weights.detach(), F.one_hot(index, 5).float())
        (grad,) = torch.autograd.grad((weights * randn(6, 5, seed=3)).sum(), logits)
        assert bool((grad != 0).all())
    assert torch.equal(index_backprop(logits)[1], logits.argmax(-1))
    y = (logits / 0.7).softmax(-1)
    direct = torch.autograd.grad((y * randn(6, 5, seed=3)).sum(), logits)[0]
    (grad,) = torch.autograd.grad((index_backprop(logits, 0.7)[0] * randn(6, 5, seed=3)).sum(), logits)
    torch.testing.assert_close(grad, direct)


def test_gumbel_draws_follow_the_softmax():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(20_000, 3)
    index = gumbel_softmax(logits, 1.0, torch.Generator().manual_seed(0))[1]
    torch.testing.assert_close(torch.bincount(index) / 20_000, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    assert annealed_temperature(0) == 2.0
    assert annealed_temperature(10**7) == 0.5
    assert annealed_temperature(1000) == pytest.approx(2 * 0.999995**1000)


def test_gumbel_is_random_in_training_and_nearest_in_evaluation():
    x = randn(200, 3)
    quantizer = VectorQuantizer(3, 8, estimator="gumbel", temperature=5.0, distance="cosine")
    first, second = quantizer(x).indices, quantizer(x).indices
    assert not torch.equal(first, second)
    quantizer.eval()
    assert torch.equal(quantizer(x).indices, nearest_codes(F.normalize(x, dim=-1), quantizer.codebook, dot=True))


# -- remedies ----------------------------------------------------------------------------------------------------------


def test_kmeans_finds_separated_clusters_and_start_is_kept_on_load():
    centres = torch.eye(4) * 50
    x = (centres[:, None] + randn(4, 30, 4)).flatten(0, 1)
    quantizer = VectorQuantizer(4, 4, kmeans_init=True, kmeans_iterations=20, seed=1)
    quantizer(x)
    again = VectorQuantizer(4, 4, kmeans_init=True)
    again.load_state_dict(quantizer.state_dict())
    again(x * 0 + 1)  # k-means of this batch would put every code at one place
    assert bool(again.initialised)
    assert len(again.codebook.unique(dim=0)) == 4
    fitted = VectorQuantizer(4, 16).fit(x).eval()
    out = fitted(x)
    assert (out.codes - x).square().sum(-1).max() < 50
    assert out.stats.dead == 0


def test_gradient_books_start_from_rows_of_the_first_batch():
    x = randn(40, 3) + 5
    quantizer = VectorQuantizer(3, 8, ema=False)
    out = quantizer(x)
    # every code lies halfway between the mean of the drawn rows and one of them, so that twice its way is that row
    rows = 2 * (quantizer.codebook - quantizer.codebook.mean(dim=0)) + quantizer.codebook.mean(dim=0)
    assert bool((torch.cdist(rows.detach(), x).min(dim=1).values < 1e-4).all())
    assert len(out.indices.unique()) > 4
    before = quantizer.codebook.clone()
    quantizer(x * 3)
    assert torch.equal(quantizer.codebook, before), "once"
    few = VectorQuantizer(3, 64, ema=False)
    few(x)
    assert len(few.codebook.unique(dim=0)) == 64, "rows that come again differ"
    own = with_book(VectorQuantizer(3, 8, ema=False), randn(8, 3))
    own(x)
    assert torch.equal(own.codebook, randn(8, 3)), "a book that was put in stays"
    assert bool(own.initialised)
    assert VectorQuantizer(3, 8).start == "uniform"
    for start, bound in (("uniform", 1 / 64), ("kaiming", (6 / (64 * 30)) ** 0.5)):
        book = VectorQuantizer(30, 64, ema=False, start=start).codebook
        assert float(book.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert bool((VectorQuantizer(3, 8, ema=False).eval()(x).indices >= 0).all())
    levels = ResidualVQ(3, 2, 16, ema=False, seed=1)
    losses = levels(x).stats.losses
    assert losses[1] < losses[0], "the second level starts from what the first leaves"


def test_lloyd_equals_a_plain_implementation():
    x, k = randn(60, 3), 5
    generator = torch.Generator().manual_seed(7)
    rows = x[torch.randperm(60, generator=torch.Generator().manual_seed(7))[:k]]
    centres = 0.25 * rows + 0.75 * rows.mean(dim=0)
    for _ in range(6):
        index = torch.cdist(x, centres).argmin(1)
        centres = torch.stack([x[index == j].mean(0) if bool((index == j).any()) else centres[j] for j in range(k)])
    found, counts = kmeans(x, k, iterations=6, generator=generator)
    torch.testing.assert_close(found, centres)
    assert counts.tolist() == torch.bincount(index, minlength=k).tolist()


def test_many_dimensions_do_not_end_in_clusters_of_one():
    x = randn(2000, 256) * randn(2000, 1, seed=1).mul(0.3).exp()  # rows of different lengths, as residuals are
    counts = kmeans(x, 16, iterations=15, generator=torch.Generator().manual_seed(0))[1]
    assert (counts <= 1).sum() <= 2  # 11 of 16 from a start at the rows themselves
    assert counts.max() < 1000


def test_dead_codes_become_vectors_of_the_batch():
    book = torch.cat([torch.zeros(1, 3), torch.full((5, 3), 100.0)])
    quantizer = with_book(VectorQuantizer(3, 6, reset_threshold=0.9), book)
    x = randn(40, 3)
    quantizer(x)  # codes 1 ... 5 fall to 0.8 < 0.9
    for row in quantizer.codebook[1:]:
        assert bool((x == row).all(dim=1).any())
    assert len(quantizer.codebook[1:].unique(dim=0)) == 5, "drawn without replacement"
    torch.testing.assert_close(quantizer.counts[1:], torch.full((5,), 0.9))
    # a reset code weighs 0.9 vectors: m <- 0.8 * 0.9 c + 0.2 * sum
    code, count = quantizer.codebook[1].clone(), 0.9
    quantizer.reset_threshold = 0.0
    quantizer(code.expand(2, 3) + torch.tensor([[1e-3], [-1e-3]]))
    torch.testing.assert_close(quantizer.counts[1], torch.tensor(0.8 * count + 0.4))
    torch.testing.assert_close(quantizer.codebook[1], (0.8 * count + 0.4) * code / quantizer.mass[1], atol=1e-4, rtol=1e-3)


def test_entropy_and_orthogonality_terms():
    x, book = randn(20, 3), randn(4, 3, seed=1)
    plain = with_book(VectorQuantizer(3, 4, ema=False), book)(x).loss
    p = (-torch.cdist(x, book).square() / 0.5).softmax(-1)
    h = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    term = with_book(VectorQuantizer(3, 4, ema=False, entropy_weight=0.3, diversity=2.0, temperature=0.5), book)(x).loss - plain
    torch.testing.assert_close(term, 0.3 * (h(p).mean() - 2 * h(p.mean(0))), atol=1e-5, rtol=1e-4)
    unit = F.normalize(book, dim=-1)
    term = with_book(VectorQuantizer(3, 4, ema=False, orthogonality=2.0), book)(x).loss - plain
    torch.testing.assert_close(term, 2 * ((unit @ unit.t()).square().mean() - 1 / 4))


def test_simvq_compares_with_the_mapped_frozen_book():
    quantizer, x = SimVQ(4, 8, frozen_dim=3), randn(50, 4)
    book = quantizer.codebook @ quantizer.transform.weight.t()
    out = quantizer(x)
    assert torch.equal(out.indices, torch.cdist(x, book).argmin(1))
    q = book[out.indices]
    torch.testing.assert_close(out.loss, 1.25 * F.mse_loss(q, x))
    out.loss.backward()
    assert quantizer.transform.weight.grad is not None
    assert not quantizer.codebook.requires_grad
    assert abs(float(SimVQ(256, 1000).codebook.std()) - 256**-0.5) < 1e-3


# -- layouts, numbers, errors ------------------------------------------------------------------------------------------


def test_channels_first_is_the_same_map():
    x = randn(2, 5, 6, 7)
    last, first = VectorQuantizer(5, 9).eval(), VectorQuantizer(5, 9, channels_first=True).eval()
    a, b = last(x.movedim(1, -1)), first(x)
    assert b.indices.shape == (2, 6, 7)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.codes.movedim(-1, 1), b.codes)
    assert torch.equal(first.decode(b.indices), b.codes)


def test_stats_by_hand():
    stats = usage(torch.tensor([[0, 0, 1, -1], [1, 3, -1, 0]]), 5)
    p = torch.tensor([3 / 6, 2 / 6, 1 / 6])
    perplexity, used, dead = stats
    torch.testing.assert_close(perplexity, torch.exp(-(p * p.log()).sum()))
    assert used.item() == pytest.approx(3 / 5)
    assert dead.item() == 2
    assert stats.vectors.item() == 6
    assert stats.counts.tolist() == [3, 2, 0, 1, 0]
    torch.testing.assert_close(stats.normalized_entropy, stats.entropy / math.log(5))
    books = usage(torch.tensor([[0, 1], [1, 1], [0, -1]]), 2, books=True)
    assert books.dead.tolist() == [0, 1]
    assert books.vectors.tolist() == [3, 2]
    assert books.joint_usage() == (2, 2)
    assert set(books.to_dict()) == {"perplexity", "usage", "dead", "vectors"}
    assert usage(torch.full((3,), -1), 4).perplexity.isnan()


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=50), st.randoms())
@settings(max_examples=40, deadline=None)
def test_stats_of_huge_books_and_of_permutations(values, random):
    indices = torch.tensor(values)
    small, huge = usage(indices, 10), usage(indices, 2**40)
    torch.testing.assert_close(small.perplexity, huge.perplexity, equal_nan=True)
    assert 10 - small.dead.item() == 2**40 - huge.dead.item()
    shuffled = list(values)
    random.shuffle(shuffled)
    torch.testing.assert_close(usage(torch.tensor(shuffled), 10).entropy, small.entropy, equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"codebook_size": 1}, ValueError, "codebook_size"),
        ({"codebook_size": 2.0}, TypeError, "codebook_size"),
        ({"dim": 0}, ValueError, "dim"),
        ({"decay": 1.0}, ValueError, "decay"),
        ({"decay": True}, TypeError, "decay"),
        ({"distance": "l1"}, ValueError, "distance"),
        ({"estimator": "magic"}, ValueError, "estimator"),
        ({"reset_threshold": -1.0}, ValueError, "reset_threshold"),
        ({"orthogonality": 1.0}, ValueError, "ema=False"),
        ({"emit": "row"}, ValueError, "emit"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"start": "rows"}, ValueError, "start"),
        ({"statistics": "later"}, ValueError, "statistics"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        VectorQuantizer(**({"dim": 4, "codebook_size": 8} | arguments))


def test_bad_input():
    with pytest.raises(ValueError, match="at least codebook_size=64 vectors"):
        VectorQuantizer(4, 64, kmeans_init=True)(randn(10, 4))
    with pytest.raises(ValueError, match="at least codebook_size=64 vectors"):
        VectorQuantizer(4, 64).fit(randn(10, 4))
    with pytest.raises(ValueError, match="shape"):
        VectorQuantizer(4, 8, channels_first=True)(randn(4))
    with pytest.raises(ValueError, match="got 8"):
        usage(torch.tensor([8]), 8)
    with pytest.raises(TypeError, match="integer"):
        usage(torch.tensor([0.5]), 8)


def test_numbers_of_numpy_build_and_save(tmp_path):
    quantizer = VectorQuantizer(np.int64(4), np.int32(8), decay=np.float32(0.5), code_dim=np.int64(3))
    quantizer.save_pretrained(tmp_path / "vq")
    loaded = VectorQuantizer.from_pretrained(tmp_path / "vq").eval()
    assert torch.equal(loaded(randn(9, 4)).indices, quantizer.eval()(randn(9, 4)).indices)
    for quantizer in (FSQ(np.array([8, 5])), ResidualVQ(4, np.int64(2), 8, allowed_levels=np.array([1, 2]))):
        quantizer.save_pretrained(tmp_path / "other")
        assert type(quantizer).from_pretrained(tmp_path / "other").codebook_size == quantizer.codebook_size


def test_loading_another_class_is_refused(tmp_path):
    VectorQuantizer(4, 8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'VectorQuantizer', not a SimVQ"):
        SimVQ.from_pretrained(tmp_path)


def test_a_large_finite_batch_is_not_taken_for_infinite():
    x = torch.full((64, 4), 3e38)
    assert FSQ([8, 5, 5, 5])(x).indices.tolist() == [999] * 64
    with pytest.raises(ValueError, match=r"sum of squares that float32 holds, got entries up to 3e.38"):
        VectorQuantizer(4, 8).eval()(x)
    with pytest.raises(ValueError, match=r"float32 holds, got entries up to 1e.300"):
        VectorQuantizer(4, 8)(torch.full((1, 4), 1e300, dtype=torch.float64))
    assert VectorQuantizer(4, 8)(x / 1e23).loss.isfinite()


@pytest.mark.parametrize("make", [lambda: VectorQuantizer(4, 8, reset_threshold=0.5), lambda: ResidualVQ(4, 2, 8)])
def test_a_compiled_book_learns_the_same_and_refuses_nan(make):
    torch.compiler.reset()
    quantizer, plain = make(), make()
    compiled = torch.compile(quantizer, backend="eager")
    for step in range(3):
        x = randn(30, 4, seed=step)
        assert torch.equal(compiled(x).indices, plain(x).indices)
    before = quantizer.codebook.clone()
    torch.testing.assert_close(before, plain.codebook)
    with pytest.raises(ValueError, match="finite"):
        compiled(torch.full((30, 4), float("nan")))
    assert torch.equal(quantizer.codebook, before)


def test_look_up_options_are_named_once():
    """The names that type checkers know are those of the constructor behind them."""
    parameters = inspect.signature(LookupQuantizer.__init__).parameters
    assert set(LookupOptions.__annotations__) == set(parameters) - {
        "self",
        "dim",
        "codebook_size",
        "books",
        "book_dim",
        "shared",
    }


def test_arguments_survive_copies():
    quantizer = VectorQuantizer(4, 8, decay=0.9)
    assert quantizer.arguments == {"dim": 4, "codebook_size": 8, "emit": "unit", "decay": 0.9}
    assert copy.deepcopy(quantizer).arguments == quantizer.arguments
    assert pickle.loads(pickle.dumps(quantizer)).arguments == quantizer.arguments
