"""Options of learned books: DiVeQ, drawn codes, one book for all levels, frozen books, top codes, given codes, terms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.codecs.books import randn, with_book
from tokenry.codecs import (
    BSQ,
    FSQ,
    LFQ,
    AdditiveVQ,
    Grouped,
    ProductVQ,
    QINCo,
    ResidualStack,
    ResidualVQ,
    SharedHeads,
    SimVQ,
    VectorQuantizer,
)
from tokenry.core.codebooks.codebooks import nearest_few
from tokenry.core.codebooks.estimators import directional


def with_scale(quantizer, scale):
    return with_book(quantizer, quantizer.codebook.detach() * scale)


# -- DiVeQ -------------------------------------------------------------------------------------------------------------


def test_directional_without_noise_is_the_code_and_pulls_both_along_the_error():
    z, q = randn(20, 6).requires_grad_(), randn(20, 6, seed=1).requires_grad_()
    out = directional(z, q)
    assert torch.equal(out, q)
    wanted = randn(20, 6, seed=2)
    (out * wanted).sum().backward()
    unit = F.normalize((q - z).detach(), dim=-1)
    along = (wanted * unit).sum(-1, keepdim=True) * unit
    torch.testing.assert_close(q.grad, along)
    torch.testing.assert_close(z.grad, wanted - along)


def test_directional_noise_keeps_the_distance_and_turns_more_the_more_there_is():
    z, q, turned = randn(500, 6), randn(500, 6, seed=1), []
    for variance in (1e-4, 1e-2, 1.0):
        out = directional(z, q, variance, torch.Generator().manual_seed(0))
        torch.testing.assert_close((out - z).norm(dim=-1), (q - z).norm(dim=-1))
        turned.append(float(F.cosine_similarity(out - z, q - z).mean()))
    assert 0.999 < turned[0]
    assert turned[0] > turned[1] > turned[2]
    zero = torch.zeros(3, 6, requires_grad=True)
    directional(zero, zero.detach(), 1e-3, torch.Generator().manual_seed(0)).sum().backward()
    assert bool(torch.isfinite(zero.grad).all())


@pytest.mark.parametrize("make", [VectorQuantizer, lambda d, k, **o: ResidualVQ(d, 2, k, **o)], ids=["vq", "rvq"])
def test_diveq_learns_its_books_from_the_task_alone(make):
    quantizer, x = with_scale(make(4, 16, estimator="diveq", ema=False), 32.0), randn(200, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        out = quantizer(x)
        assert float(out.loss.detach()) == 0
        loss = F.mse_loss(out.codes, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    means = make(4, 16).fit(x).eval()
    assert losses[-1] < 1.1 * float(F.mse_loss(means(x).codes, x))
    assert losses[-1] < 0.75 * losses[0]
    out = quantizer.eval()(x)
    torch.testing.assert_close(quantizer.decode(out.indices), out.codes)
    with pytest.raises(ValueError, match="ema=False"):
        make(4, 16, estimator="diveq")


# -- drawn codes -------------------------------------------------------------------------------------------------------


def test_codes_are_drawn_by_their_softmax_and_not_in_evaluation():
    book, x = randn(5, 3), randn(1, 3, seed=1).expand(20_000, 3)
    quantizer = with_book(VectorQuantizer(3, 5, sample_temperature=2.0, decay=0.0, commitment=0.0), book)
    expected = (-torch.cdist(x[:1], book).square() / 2.0).softmax(-1)[0]
    counts = quantizer(x).stats.counts
    chi = ((counts - 20_000 * expected).square() / (20_000 * expected)).sum()
    assert float(chi) < 18.47  # 0.999 of chi-squared with four degrees of freedom
    quantizer = with_book(quantizer, book).eval()
    assert bool((quantizer(x).indices == torch.cdist(x[:1], book).argmin()).all())
    cold = with_book(VectorQuantizer(3, 5, sample_temperature=1e-6), book)
    assert torch.equal(cold(randn(50, 3)).indices, with_book(VectorQuantizer(3, 5), book)(randn(50, 3)).indices)
    with pytest.raises(ValueError, match="sample_temperature"):
        VectorQuantizer(3, 5, sample_temperature=1.0, estimator="gumbel", ema=False)


# -- one book for all levels -------------------------------------------------------------------------------------------


def test_a_shared_book_learns_once_a_step_from_all_levels():
    book, x = randn(8, 4), randn(60, 4, seed=1)
    quantizer = with_book(ResidualVQ(4, 3, 8, shared=True), book[None])
    out, left, seen, chosen = quantizer(x), x, [], []
    for m in range(3):
        index = torch.cdist(left, book).argmin(1)
        assert torch.equal(out.indices[:, m], index), "every level sees the book before the step"
        seen.append(left)
        chosen.append(index)
        left = left - book[index]
    torch.testing.assert_close(out.codes, x - left)
    single = with_book(VectorQuantizer(4, 8), book)
    single._learn(torch.cat(seen), torch.cat(chosen), 0, 1)
    torch.testing.assert_close(quantizer.codebook[0], single.codebook)
    quantizer.eval()
    assert torch.equal(quantizer.encode(x), quantizer(x).indices)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(x)), quantizer(x).codes)
    distances, positions = quantizer.search(x[:5], quantizer.encode(x), 3)
    true = torch.cdist(x[:5], quantizer(x).codes).square()
    torch.testing.assert_close(true.gather(1, positions), distances, rtol=1e-3, atol=1e-3)


def test_a_shared_book_is_fitted_to_what_all_levels_see():
    x = randn(2000, 4)
    error = lambda q: float((q.eval()(x).codes - x).square().mean())  # noqa: E731
    shared = ResidualVQ(4, 3, 32, shared=True).fit(x)
    first = with_book(ResidualVQ(4, 3, 32, shared=True), VectorQuantizer(4, 32).fit(x).codebook[None])
    assert error(shared) < 0.5 * error(first)
    assert shared.codebook.shape == (1, 32, 4)


# -- frozen books ------------------------------------------------------------------------------------------------------

FROZEN = {
    "vq": lambda: VectorQuantizer(6, 8, reset_threshold=5.0, code_dim=4),
    "vq gradient": lambda: VectorQuantizer(6, 8, ema=False),
    "vq start": lambda: VectorQuantizer(6, 8, kmeans_init=True),
    "vq manual": lambda: VectorQuantizer(6, 8, statistics="manual"),
    "rvq shared": lambda: ResidualVQ(6, 3, 8, shared=True),
    "rvq": lambda: ResidualVQ(6, 3, 8, kmeans_init=True),
    "pq": lambda: ProductVQ(6, 2, 8),
    "aq": lambda: AdditiveVQ(6, 2, 8, kmeans_init=True, reset_threshold=5.0),
    "simvq": lambda: SimVQ(6, 8),
    "qinco": lambda: QINCo(6, 2, 8, kmeans_init=True),
    "stack": lambda: ResidualStack([VectorQuantizer(6, 8, reset_threshold=5.0), SimVQ(6, 8), FSQ([5, 5], dim=6)]),
    "groups": lambda: Grouped([ResidualVQ(3, 2, 8), SharedHeads(VectorQuantizer(1, 4, ema=False), 3)], dim=8),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_books_stay_while_maps_and_inputs_learn(name):
    quantizer = FROZEN[name]().train().freeze()
    x = randn(40, quantizer.dim).requires_grad_()
    maps = {n for n, _ in quantizer.named_parameters() if "project_" in n}
    state = {n: v.clone() for n, v in quantizer.state_dict().items() if n not in maps and "steps" not in n}
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*parameters, x], lr=0.1)
    before = x.detach().clone()
    for _ in range(2):
        out = quantizer(x)
        (out.codes.square().sum() + out.loss).backward()
        optimizer.step()
        if getattr(quantizer, "statistics", "") == "manual":
            quantizer.update_books()
    for n, value in state.items():
        assert torch.equal(quantizer.state_dict()[n], value), n
    assert not torch.equal(x, before)
    assert all(p.grad is not None for p in parameters)
    assert not list(p for p in quantizer.book_parameters() if p.requires_grad)
    quantizer.freeze(False)
    quantizer(x).loss.sum()
    learned = [p for p in quantizer.book_parameters() if p.requires_grad]
    moved = any(not torch.equal(quantizer.state_dict()[n], value) for n, value in state.items())
    assert learned or moved or name == "vq manual"


def test_books_have_an_optimizer_of_their_own():
    quantizer = Grouped([VectorQuantizer(3, 8, ema=False), SimVQ(3, 8)], dim=8)
    books = list(quantizer.book_parameters())
    rest = [p for p in quantizer.parameters() if all(p is not book for book in books)]
    assert {tuple(p.shape) for p in books} == {(8, 3), (3, 3)}
    assert len(rest) == 4
    fast, slow = torch.optim.SGD(books, lr=1.0), torch.optim.SGD(rest, lr=0.0)
    before = [p.detach().clone() for p in quantizer.parameters()]
    quantizer(randn(50, 8)).loss.backward()
    fast.step()
    slow.step()
    for old, new in zip(before, quantizer.parameters(), strict=True):
        assert torch.equal(old, new) == any(new is p for p in rest)


# -- top codes and given codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_top_codes_are_the_nearest_few(distance):
    quantizer, x = VectorQuantizer(6, 20, distance=distance).eval(), randn(3, 7, 6)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    indices, distances = quantizer.top_codes(x, 4, mask)
    points = F.normalize(x, dim=-1) if distance == "cosine" else x
    full = torch.cdist(points[mask], quantizer.codebook).square().sort(dim=-1)
    assert torch.equal(indices[mask], full.indices[:, :4])
    torch.testing.assert_close(distances[mask], full.values[:, :4], atol=1e-4, rtol=1e-4)
    assert bool((indices[~mask] == -1).all())
    assert torch.equal(indices[mask][:, 0], quantizer.encode(x)[mask])
    torch.testing.assert_close(quantizer.decode(indices)[mask], quantizer.codebook[indices[mask]])
    with pytest.raises(ValueError, match="k must be"):
        quantizer.top_codes(x, 21)
    with pytest.raises(ValueError, match="beam"):
        ResidualVQ(6, 2, 8).top_codes(x, 2)
    blocks = nearest_few(x[0], quantizer.codebook, 20)[0]
    assert torch.equal(blocks.sort(dim=1).values, torch.arange(20).expand(7, 20))


def test_the_loss_of_given_codes_is_a_cross_entropy_and_falls_by_training():
    book, x = randn(8, 4), randn(6, 5, 4, seed=1)
    given = torch.randint(8, (6, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[0, 2:] = False
    quantizer = with_book(VectorQuantizer(4, 8, temperature=0.5), book)
    state = {n: v.clone() for n, v in quantizer.state_dict().items()}
    found = quantizer.code_loss(x, given, mask)
    logits = -torch.cdist(x, book).square() / 0.5
    torch.testing.assert_close(found, F.cross_entropy(logits[mask], given[mask]))
    assert all(torch.equal(v, quantizer.state_dict()[n]) for n, v in state.items()), "nothing learns"
    free = x.clone().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(quantizer.code_loss(free, given), free)
        free = (free - gradient * 5).detach().requires_grad_()
    assert float((quantizer.eval().encode(free) == given).float().mean()) > 0.9


def test_given_codes_of_several_books_are_followed():
    x = randn(20, 6)
    given = torch.randint(8, (20, 3), generator=torch.Generator().manual_seed(2))
    rvq = with_book(ResidualVQ(6, 3, 8), randn(3, 8, 6)).eval()
    left, losses = x, []
    for m in range(3):
        losses.append(F.cross_entropy(-torch.cdist(left, rvq.codebook[m]).square(), given[:, m]))
        left = left - rvq.codebook[m][given[:, m]]
    torch.testing.assert_close(rvq.code_loss(x, given), torch.stack(losses).mean())
    torch.testing.assert_close(rvq.code_loss(x, given[:, :2]), torch.stack(losses[:2]).mean())
    dropped = given.clone()
    dropped[:, 2] = -1
    torch.testing.assert_close(rvq.code_loss(x, dropped), torch.stack(losses[:2]).mean())
    pq = with_book(ProductVQ(6, 3, 8), randn(3, 8, 2)).eval()
    each = [F.cross_entropy(-torch.cdist(b, pq.codebook[m]).square(), given[:, m]) for m, b in enumerate(x.chunk(3, dim=1))]
    torch.testing.assert_close(pq.code_loss(x, given), torch.stack(each).mean())
    aq = with_book(AdditiveVQ(6, 3, 8), randn(3, 8, 6)).eval()
    rows = torch.stack([aq.codebook[m][given[:, m]] for m in range(3)])
    seen = [x - rows.sum(0) + rows[m] for m in range(3)]
    each = [F.cross_entropy(-torch.cdist(seen[m], aq.codebook[m]).square(), given[:, m]) for m in range(3)]
    torch.testing.assert_close(aq.code_loss(x, given), torch.stack(each).mean())
    for wrong in (given[:, :1], given[:10], given.float(), given + 8, torch.full_like(given, -1)):
        with pytest.raises((ValueError, TypeError), match="indices"):
            pq.code_loss(x, wrong)


# -- entropies of some rows, terms -------------------------------------------------------------------------------------


def test_entropies_of_some_rows_estimate_those_of_all():
    x = randn(4000, 4)
    full = VectorQuantizer(4, 32, entropy_weight=1.0, ema=False, kmeans_init=True)(x).stats.terms
    some = VectorQuantizer(4, 32, entropy_weight=1.0, entropy_rows=500, ema=False, kmeans_init=True)
    terms = some(x).stats.terms
    for name in ("sample_entropy", "batch_entropy"):
        assert terms[name] != full[name]
        torch.testing.assert_close(terms[name], full[name], rtol=0.05, atol=0.0)
    everything = VectorQuantizer(4, 32, entropy_weight=1.0, entropy_rows=4000, ema=False, kmeans_init=True)(x)
    torch.testing.assert_close(everything.stats.terms["sample_entropy"], full["sample_entropy"])


def test_entropies_of_some_rows_bound_the_memory():
    quantizer, x = VectorQuantizer(4, 1 << 15, entropy_weight=1.0, entropy_rows=16, ema=False), randn(4096, 4)
    sizes = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **options or {})
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Seen():
        quantizer(x)
    assert max(sizes) < 4096 * (1 << 15) / 16


NAMED = {
    "vq": (lambda: VectorQuantizer(8, 16), {"commitment"}),
    "vq gradient": (
        lambda: VectorQuantizer(8, 16, ema=False, entropy_weight=0.1, orthogonality=1.0),
        {"commitment", "codebook", "sample_entropy", "batch_entropy", "orthogonality"},
    ),
    "rvq": (lambda: ResidualVQ(8, 3, 16, ema=False, orthogonality=1.0), {"commitment", "codebook", "orthogonality"}),
    "pq": (lambda: ProductVQ(8, 2, 16, ema=False), {"commitment", "codebook"}),
    "aq": (lambda: AdditiveVQ(8, 2, 8), {"commitment", "codebook"}),
    "simvq": (lambda: SimVQ(8, 16), {"commitment", "codebook"}),
    "qinco": (lambda: QINCo(8, 2, 16), {"commitment", "codebook"}),
    "lfq": (lambda: LFQ(8, commitment=0.25), {"commitment", "sample_entropy", "batch_entropy"}),
    "bsq": (lambda: BSQ(8), {"sample_entropy", "batch_entropy"}),
    "stack": (lambda: ResidualStack([VectorQuantizer(8, 16), SimVQ(8, 16)]), {"commitment", "codebook"}),
    "groups": (lambda: Grouped([VectorQuantizer(4, 16), LFQ(4)]), {"commitment", "sample_entropy", "batch_entropy"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_loss_terms_have_names_and_add_up(name):
    make, names = NAMED[name]
    out = make()(randn(64, 8))
    assert set(out.stats.terms) == names
    torch.testing.assert_close(torch.stack(list(out.stats.terms.values())).sum(), out.loss.detach())
    assert {k: v for k, v in out.stats.to_dict().items() if k in names} == {k: float(v) for k, v in out.stats.terms.items()}
    assert math.isfinite(float(out.loss.detach()))


def test_a_quantizer_without_a_book_has_no_terms_and_nothing_to_freeze():
    quantizer = FSQ([5, 5], dim=4)
    assert quantizer(randn(3, 4)).stats.terms is None
    assert not list(quantizer.book_parameters())
    assert all(p.requires_grad for p in quantizer.freeze().parameters())
    assert isinstance(quantizer.project_in, nn.Linear)
