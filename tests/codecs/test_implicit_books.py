"""QINCo: its equations, its start as RVQ, what it gains by training."""

import pytest
import torch
from torch.nn import functional as F

from tests.codecs.books import randn
from tokenry.codecs import QINCo, ResidualVQ
from tokenry.lab.beds.signals.feature_banks import feature_bank


def moved(quantizer, seed=7):
    """With maps that are not zero any more."""
    state = {name: value + 0.2 * randn(*value.shape, seed=seed) for name, value in quantizer.named_parameters()}
    quantizer.load_state_dict(quantizer.state_dict() | state)
    return quantizer.eval()


@pytest.mark.parametrize("rank", [None, 2])
def test_follows_its_equations(rank):
    quantizer, x = moved(QINCo(6, 3, 8, hidden=5, blocks=2, rank=rank, commitment=0.25)), randn(20, 6, seed=1)
    out, partial, losses = quantizer(x), torch.zeros(20, 6), []
    for m in range(3):
        codes = quantizer.codebook[m].detach().expand(20, 8, 6)
        if m:
            book = quantizer.books_of[m - 1]
            both = torch.cat([codes, partial[:, None].expand_as(codes)], dim=-1)
            joined = (
                both @ book.last.weight.T + book.last.bias if rank is None else both @ (book.last.weight @ book.first.weight).T
            )
            codes = codes + joined
            for into, last in zip(book.into, book.out, strict=True):
                codes = codes + (codes @ into.weight.T).clamp(min=0) @ last.weight.T
        index = (x[:, None] - partial[:, None] - codes).square().sum(-1).argmin(1)
        assert torch.equal(out.indices[:, m], index)
        partial = partial + codes[torch.arange(20), index]
        losses.append(1.25 * F.mse_loss(partial, x))
    torch.testing.assert_close(out.codes, partial)
    torch.testing.assert_close(out.stats.losses, torch.stack(losses))


def test_starts_as_rvq():
    x = randn(300, 6)
    rvq = ResidualVQ(6, 3, 8, kmeans_init=True, kmeans_iterations=10)
    quantizer = QINCo(6, 3, 8, kmeans_init=True)
    a, b = rvq(x), quantizer(x)
    assert float(b.codes.sub(x).square().mean()) == pytest.approx(float(a.codes.sub(x).square().mean()), rel=0.1)
    for book in quantizer.books_of:
        assert torch.equal(book(x, x.flip(0)), x)


def test_prefixes_nest_and_every_part_learns():
    quantizer, x = moved(QINCo(6, 3, 8)), randn(2, 10, 6)
    full = quantizer.encode(x)
    for levels in (1, 2, 3):
        out = quantizer(x, levels=levels)
        assert torch.equal(quantizer.encode(x, levels=levels), full[..., :levels])
        torch.testing.assert_close(quantizer.decode(full[..., :levels]), out.codes)
    quantizer.train()(x).loss.backward()
    assert all(bool((p.grad != 0).any()) for p in quantizer.parameters())


def test_the_loss_of_a_level_reaches_the_levels_before():
    quantizer, x = moved(QINCo(6, 3, 8, commitment=0.0)), randn(40, 6)
    quantizer(x, levels=1).loss.backward()
    alone = quantizer.codebook.grad[0].clone()
    quantizer.zero_grad()
    quantizer(x, levels=3).loss.backward()
    assert not torch.allclose(quantizer.codebook.grad[0], alone)
    assert bool((quantizer.books_of[0].last.weight.grad != 0).any())


def test_fit_explains_more_than_rvq_of_vectors_it_has_not_seen():
    bank = feature_bank("mixture", 4000, 1000, seed=0)
    error = lambda q: float((q.eval()(bank.test).codes - bank.test).square().mean())  # noqa: E731
    rvq = ResidualVQ(bank.dim, 3, 16).fit(bank.train)
    quantizer = QINCo(bank.dim, 3, 16, hidden=64, blocks=1).fit(bank.train, steps=300)
    assert error(quantizer) < 0.8 * error(rvq)
    codes = quantizer.encode(bank.test)
    torch.testing.assert_close(quantizer.decode(codes), quantizer(bank.test).codes, rtol=1e-4, atol=1e-4)
    distances, positions = quantizer.search(bank.train[:7], codes, 9)
    true = torch.cdist(bank.train[:7], quantizer.decode(codes)).square()
    torch.testing.assert_close(distances, true.sort(dim=1).values[:, :9], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(true.gather(1, positions), distances, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="k must be"):
        quantizer.search(bank.train[:7], codes, len(codes) + 1)


def test_arguments_are_named():
    for wrong in ({"levels": 0}, {"blocks": -1}, {"rank": 0}, {"hidden": 0}, {"estimator": "gumbel"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            QINCo(**({"dim": 4, "levels": 2, "codebook_size": 8} | wrong))
    with pytest.raises(ValueError, match="codebook_size=64"):
        QINCo(4, 2, 64, kmeans_init=True)(randn(20, 4))
    with pytest.raises(ValueError, match="codebook_size=64"):
        QINCo(4, 2, 64).fit(randn(20, 4))
