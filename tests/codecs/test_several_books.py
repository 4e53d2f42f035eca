"""RVQ, PQ and AQ: their equations, their orderings, their search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.codecs.books import randn, with_book
from tokenry.codecs import AdditiveVQ, ProductVQ, ResidualVQ, VectorQuantizer
from tokenry.codecs.vq.residual import beam_search
from tokenry.core.codebooks import additive as encoders

# -- RVQ ---------------------------------------------------------------------------------------------------------------


def test_rvq_follows_its_equations_and_books_learn_from_residuals():
    books, x = randn(3, 5, 4), randn(30, 4, seed=1)
    quantizer = with_book(ResidualVQ(4, 3, 5, commitment=0.25), books)
    out = quantizer(x)
    left, losses = x, []
    for m in range(3):
        index = torch.cdist(left, books[m]).argmin(1)
        assert torch.equal(out.indices[:, m], index)
        losses.append(0.25 * F.mse_loss(left, books[m][index]))
        single = with_book(VectorQuantizer(4, 5), books[m])
        single(left)
        torch.testing.assert_close(quantizer.codebook[m], single.codebook)
        left = left - books[m][index]
    torch.testing.assert_close(out.codes, x - left)
    torch.testing.assert_close(out.loss, sum(losses))
    torch.testing.assert_close(out.stats.losses, torch.stack(losses))


def test_rvq_passes_the_gradient_once():
    x = randn(30, 4).requires_grad_()
    ResidualVQ(4, 3, 5)(x).codes.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("estimator", ["straight_through", "rotation", "gumbel", "index_backprop"])
@pytest.mark.parametrize("ema", [True, False])
def test_one_level_is_vq(estimator, ema):
    book, x = randn(6, 4), randn(20, 4, seed=1)
    one = with_book(VectorQuantizer(4, 6, estimator=estimator, ema=ema), book)
    rvq = with_book(ResidualVQ(4, 1, 6, estimator=estimator, ema=ema), book[None])
    pq = with_book(ProductVQ(4, 1, 6, estimator=estimator, ema=ema), book[None])
    expected = one(x)
    for several in (rvq, pq):
        out = several(x)
        assert torch.equal(out.indices[:, 0], expected.indices)
        assert torch.equal(out.codes, expected.codes)
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(several.codebook[0], one.codebook)


def test_prefixes_nest_and_decode_to_partial_sums():
    quantizer, x = ResidualVQ(4, 4, 8).eval(), randn(2, 10, 4)
    full = quantizer.encode(x)
    for levels in (1, 2, 4):
        assert torch.equal(quantizer.encode(x, levels=levels), full[..., :levels])
        out = quantizer(x, levels=levels)
        assert out.indices.shape == (2, 10, 4)
        assert bool((out.indices[..., levels:] == -1).all())
        torch.testing.assert_close(quantizer.decode(full[..., :levels]), out.codes)
        torch.testing.assert_close(quantizer.codes_of(full)[..., :levels, :].sum(-2), out.codes)
    with pytest.raises(ValueError, match="levels"):
        quantizer.encode(x, levels=5)
    with pytest.raises(ValueError, match="4 books"):
        quantizer.decode(torch.zeros(2, 5, dtype=torch.long))


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_quantizer_dropout_keeps_prefixes(scope):
    quantizer = ResidualVQ(4, 4, 8, quantizer_dropout=1.0, dropout_scope=scope, allowed_levels=(1, 3), seed=3)
    x, seen = randn(16, 5, 4), set()
    for _ in range(8):
        before = quantizer.codebook.clone()
        out = quantizer(x)
        lengths = (out.indices >= 0).sum(-1)
        assert bool((lengths == lengths[:, :1]).all()), "all positions of a sample share their length"
        kept = torch.arange(4) < lengths[..., None]
        assert torch.equal(out.indices >= 0, kept), "what is kept is a prefix"
        torch.testing.assert_close(_decoded(before, out.indices), out.codes)
        seen |= set(lengths.flatten().tolist())
        assert torch.equal(quantizer.codebook[3], before[3]), "a level that was never used does not learn"
        if scope == "batch":
            assert len(lengths.unique()) == 1
    assert seen == {1, 3}
    assert bool((quantizer.eval()(x).indices >= 0).all())


def _decoded(books, indices):
    rows = torch.stack([books[m][indices[..., m].clamp(min=0)] for m in range(len(books))], dim=-2)
    return (rows * (indices >= 0)[..., None]).sum(-2)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_wider_beams_reach_the_exhaustive_optimum(seed):
    books, z = randn(3, 4, 3, seed=seed), randn(12, 3, seed=seed + 1)
    error = lambda k: encoders.errors(z, k, books)  # noqa: E731
    assert torch.equal(beam_search(z, books, 1), encoders.greedy(z, books))
    best = encoders.exhaustive(z, books)
    brute = torch.cartesian_prod(*[torch.arange(4)] * 3)
    sums = encoders.decode(brute, books)
    torch.testing.assert_close(error(best), torch.cdist(z, sums).square().min(1).values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(error(beam_search(z, books, 64)), error(best), atol=1e-5, rtol=1e-4)


def test_rvq_kmeans_starts_each_level_on_what_is_left():
    x = randn(400, 4)
    quantizer = ResidualVQ(4, 3, 16, kmeans_init=True)
    losses = quantizer(x).stats.losses
    assert bool((losses[1:] < losses[:-1]).all())
    assert bool(quantizer.initialised.all())
    with pytest.raises(ValueError, match="beam"):
        ResidualVQ(4, 3, 16, beam=4, estimator="gumbel")


# -- PQ ----------------------------------------------------------------------------------------------------------------


def test_pq_is_vq_block_by_block_and_packs_book_zero_first():
    quantizer, x = ProductVQ(6, 3, 5).eval(), randn(11, 6)
    out = quantizer(x)
    for i, block in enumerate(x.chunk(3, dim=1)):
        assert torch.equal(out.indices[:, i], torch.cdist(block, quantizer.codebook[i]).argmin(1))
    torch.testing.assert_close(out.codes, torch.cat([quantizer.codebook[i][out.indices[:, i]] for i in range(3)], dim=1))
    torch.testing.assert_close(out.loss, F.mse_loss(x, out.codes))
    packed = quantizer.pack(out.indices)
    assert torch.equal(packed, out.indices[:, 0] + 5 * out.indices[:, 1] + 25 * out.indices[:, 2])
    assert torch.equal(quantizer.unpack(packed), out.indices)
    every = torch.arange(125)
    assert torch.equal(quantizer.pack(quantizer.unpack(every)), every)
    assert quantizer.pack(torch.tensor([[0, -1, 2]])).tolist() == [-1]
    with pytest.raises(ValueError, match="divide"):
        ProductVQ(6, 4, 5)
    with pytest.raises(ValueError, match="63 bits"):
        ProductVQ(64, 8, 256).pack(torch.zeros(1, 8, dtype=torch.long))


def test_opq_turns_back_and_beats_pq_on_correlated_data():
    x = randn(800, 8) @ torch.diag(torch.tensor([5.0, 4, 3, 2, 0.5, 0.3, 0.2, 0.1])) @ torch.linalg.qr(randn(8, 8, seed=1))[0]
    plain, turned = ProductVQ(8, 4, 16).fit(x).eval(), ProductVQ(8, 4, 16, rotation=True).fit(x).eval()
    torch.testing.assert_close(turned.rotation @ turned.rotation.t(), torch.eye(8), atol=1e-5, rtol=0)
    error = lambda q: (q(x).codes - x).square().mean()  # noqa: E731
    assert error(turned) < 0.9 * error(plain)
    leaf = x.clone().requires_grad_()
    turned(leaf).codes.sum().backward()
    torch.testing.assert_close(leaf.grad, torch.ones_like(x), atol=1e-4, rtol=0)


# -- AQ ----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 5), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_encoders_are_ordered(seed, books, codes, width):
    book, z = randn(books, codes, 3, seed=seed), randn(20, 3, seed=seed + 1)
    error = lambda k: encoders.errors(z, k, book)  # noqa: E731
    greedy, beam = encoders.greedy(z, book), encoders.beam(z, book, width)
    best, modes = encoders.exhaustive(z, book), encoders.icm(z, book, greedy, 4)
    slack = 1e-4
    assert bool((error(best) <= error(beam) + slack).all())
    assert bool((error(beam) <= error(greedy) + slack).all())
    assert bool((error(best) <= error(modes) + slack).all())
    assert bool((error(modes) <= error(greedy) + slack).all())
    previous = error(greedy)
    for sweeps in range(1, 4):
        now = error(encoders.icm(z, book, greedy, sweeps))
        assert bool((now <= previous + 1e-5).all())
        previous = now


def test_a_beam_as_wide_as_all_sets_is_exhaustive():
    book, z = randn(3, 3, 4), randn(30, 4, seed=1)
    full = encoders.beam(z, book, 27)
    torch.testing.assert_close(encoders.errors(z, full, book), encoders.errors(z, encoders.exhaustive(z, book), book))


def test_aq_with_books_on_disjoint_blocks_is_pq():
    pq, x = ProductVQ(6, 3, 4).eval(), randn(50, 6)
    book = torch.zeros(3, 4, 6)
    for m in range(3):
        book[m, :, 2 * m : 2 * m + 2] = pq.codebook[m]
    for encoder in encoders.ENCODERS:
        aq = with_book(AdditiveVQ(6, 3, 4, encoder=encoder), book).eval()
        assert torch.equal(aq.encode(x), pq.encode(x)), encoder
        torch.testing.assert_close(aq(x).codes, pq(x).codes)


def test_ridge_least_squares_against_the_dense_design():
    x, indices = randn(60, 4), torch.randint(5, (60, 3), generator=torch.Generator().manual_seed(0))
    quantizer = AdditiveVQ(4, 3, 5, ridge=1e-2)
    quantizer.update(x, indices)
    design = F.one_hot(indices, 5).flatten(1).double()
    expected = torch.linalg.solve(design.t() @ design + 1e-2 * torch.eye(15).double(), design.t() @ x.double())
    torch.testing.assert_close(quantizer.codebook.detach(), expected.view(3, 5, 4).float())


def test_fit_orders_the_distortions_and_search_is_exact_over_codes():
    mix = randn(8, 8, seed=9)
    x = (randn(40, 8, seed=2).repeat_interleave(25, 0) * 2 + randn(1000, 8, seed=3) * 0.5) @ mix
    error = lambda q: (q(x).codes - x).square().mean().item()  # noqa: E731
    pq, rvq = ProductVQ(8, 2, 16).fit(x).eval(), ResidualVQ(8, 2, 16).fit(x).eval()
    aq = AdditiveVQ(8, 2, 16).fit(x).eval()
    assert error(aq) < error(rvq) < error(pq)
    queries = randn(7, 8, seed=5) @ mix
    for quantizer in (pq, rvq, aq, ProductVQ(8, 2, 16, rotation=True).fit(x).eval()):
        indices = quantizer.encode(x)
        distances, positions = quantizer.search(queries, indices, 9)
        true = (queries[:, None] - quantizer.decode(indices)).square().sum(-1)
        torch.testing.assert_close(distances, true.sort(dim=1).values[:, :9], rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(true.gather(1, positions), distances, rtol=1e-3, atol=1e-2)
        tables = quantizer.distance_tables(queries)
        assert tables.shape == (7, 2, 16)
        indices[3] = -1
        indices[5, 1] = -1  # a book without a code adds nothing
        distances, positions = quantizer.search(queries, indices, 9)
        true = (queries[:, None] - quantizer.decode(indices)).square().sum(-1)
        torch.testing.assert_close(distances, true.sort(dim=1).values[:, :9], rtol=1e-3, atol=1e-2)
        for wrong, error in ((indices + 16, ValueError), (indices - 1, ValueError), (indices.float(), TypeError)):
            with pytest.raises(error, match="indices must be"):
                quantizer.search(queries, wrong, 9)
    coarse = rvq.encode(x, levels=1)
    distances, _ = rvq.search(queries, coarse, 9)
    true = (queries[:, None] - rvq.decode(coarse)).square().sum(-1)
    torch.testing.assert_close(distances, true.sort(dim=1).values[:, :9], rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="2 books"):
        pq.search(queries, coarse, 9)
    indices = aq.encode(x)
    with pytest.raises(ValueError, match="k must be"):
        aq.search(queries, indices, 1001)
    with pytest.raises(ValueError, match="queries"):
        aq.search(queries[:, :3], indices, 3)


def test_exhaustive_refuses_what_it_cannot_try():
    with pytest.raises(ValueError, match="100000"):
        AdditiveVQ(4, 4, 256, encoder="exhaustive")
    with pytest.raises(ValueError, match="encoder"):
        AdditiveVQ(4, 4, 256, encoder="magic")


def test_local_search_beats_one_descent_and_codes_a_vector_alone_as_in_a_batch():
    book, z = randn(4, 16, 8), randn(200, 8, seed=1)
    start = encoders.greedy(z, book)
    error = lambda k: encoders.errors(z, k, book)  # noqa: E731
    search = lambda rows, restarts: encoders.perturbed_icm(  # noqa: E731
        rows, book, sweeps=3, restarts=restarts, seed=0
    )
    one, many = search(z, 0), search(z, 16)
    assert torch.equal(one, encoders.icm(z, book, start, 3))
    assert bool((error(one) <= error(start) + 1e-5).all())
    assert bool((error(many) <= error(one) + 1e-5).all())
    assert float(error(many).mean()) < 0.97 * float(error(one).mean())
    assert torch.equal(search(z[17:18], 16), many[17:18])
    # one descent ends where no single code can be changed for a better one
    still = encoders.icm(z, book, many, 50)
    for m in range(4):
        others = z - encoders.decode(still, book) + book[m][still[:, m]]
        assert bool((torch.cdist(others, book[m]).square().min(dim=1).values >= error(still) - 1e-4).all())


def test_the_estimated_ridge_is_that_of_the_codes_variance_and_helps_on_new_vectors():
    x, new = randn(400, 16), randn(400, 16, seed=1)
    fitted = [AdditiveVQ(16, 4, 16, encoder="icm", ridge=ridge).fit(x, iterations=3, rounds=6) for ridge in (1e-4, None)]
    errors = [float((q.eval()(new).codes - new).square().mean()) for q in fitted]
    assert errors[1] < errors[0]
    indices = torch.randint(16, (400, 4), generator=torch.Generator().manual_seed(0))
    estimated, plain = AdditiveVQ(16, 4, 16), AdditiveVQ(16, 4, 16, ridge=1e-4)
    plain.update(x, indices)
    explained = 1 - float(encoders.errors(x, indices, plain.codebook.detach()).sum() / x.square().sum())
    given = AdditiveVQ(16, 4, 16, ridge=4 * (1 - explained) / explained + 1e-4)
    estimated.update(x, indices)
    given.update(x, indices)
    torch.testing.assert_close(estimated.codebook, given.codebook, rtol=1e-3, atol=1e-5)
