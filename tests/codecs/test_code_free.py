"""FSQ, LFQ, BSQ: levels, bits, indices, entropies, compiled graphs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.codecs.books import randn
from tokenry.codecs import BSQ, FSQ, LFQ, VectorQuantizer
from tokenry.core.codebooks.entropy import batch_entropy, bernoulli_entropy, joint_mean, sample_entropy

levels = st.lists(st.integers(3, 9), min_size=1, max_size=4)


@given(levels, st.booleans())
@settings(max_examples=25, deadline=None)
def test_fsq_indices_are_a_bijection(sizes, symmetric):
    quantizer = FSQ(sizes, symmetric=symmetric)
    every = torch.arange(math.prod(sizes))
    codes = quantizer.decode(every)
    assert len(codes.unique(dim=0)) == len(every)
    assert codes.abs().max() <= 1
    digits = torch.stack(
        [every // math.prod(sizes[:i]) % n for i, n in enumerate(sizes)], dim=-1
    )  # first channel least significant
    for i, n in enumerate(sizes):
        expected = 2 * digits[:, i] / (n - 1) - 1 if symmetric else (digits[:, i] - n // 2) / (n // 2)
        torch.testing.assert_close(codes[:, i], expected)


def test_fsq_worked_numbers():
    quantizer = FSQ([8, 5])
    out = quantizer(torch.tensor([[0.0, 0.0], [100.0, 100.0], [-100.0, -100.0]]))
    assert out.codes.tolist() == [[0.0, 0.0], [0.75, 1.0], [-1.0, -1.0]]
    assert out.indices.tolist() == [4 + 8 * 2, 7 + 8 * 4, 0]
    assert out.loss.item() == 0
    assert quantizer.bits == pytest.approx(math.log2(40))
    assert quantizer.codebook_size == 40
    z = torch.linspace(-3, 3, 101)[:, None]
    half, offset = 7 * 1.001 / 2, 0.5
    expected = (torch.tanh(z + math.atanh(offset / half)) * half - offset).round() / 4
    torch.testing.assert_close(FSQ([8])(z).codes, expected)
    symmetric = 2 / 3 * (3 * (torch.tanh(z) + 1) / 2 + 0.5).floor() - 1
    torch.testing.assert_close(FSQ([4], symmetric=True)(z).codes, symmetric)


def test_fsq_gradient_is_that_of_the_bound():
    z = randn(20, 1).requires_grad_()
    FSQ([5])(z).codes.sum().backward()
    torch.testing.assert_close(z.grad, (1 - torch.tanh(z.detach()) ** 2) * 4 * 1.001 / 2 / 2)


@pytest.mark.parametrize(
    ("sizes", "words"), [([2, 5], "symmetric"), ([1], "levels"), ([], "at least one"), ([2**16] * 4, "2\\^62")]
)
def test_fsq_bad_levels(sizes, words):
    with pytest.raises(ValueError, match=words):
        FSQ(sizes)
    with pytest.raises(TypeError, match="levels must list the levels of each channel"):
        FSQ(5)  # pyright: ignore[reportArgumentType]
    assert FSQ([2, 2], symmetric=True).codebook_size == 4
    assert FSQ([1024] * 6).codebook_size == 2**60  # beyond int32


@pytest.mark.parametrize("make", [LFQ, BSQ])
def test_bits_are_signs_with_the_first_feature_most_significant(make):
    bits = 5
    quantizer = make(bits)
    every = torch.arange(2**bits)
    codes = quantizer.decode(every)
    size = 1.0 if make is LFQ else bits**-0.5
    signs = torch.tensor([[size if (k >> (bits - 1 - i)) & 1 else -size for i in range(bits)] for k in range(2**bits)])
    torch.testing.assert_close(codes, signs)
    assert torch.equal(quantizer.encode(codes), every), "idempotent"
    assert quantizer.encode(torch.zeros(1, bits)).item() == 0, "zero maps to minus"
    big = make(62, groups=7)
    x = randn(50, 62)
    assert torch.equal(big.encode(big.decode(big.encode(x))), big.encode(x))
    parts = make(10, groups=2)
    assert parts.group_indices(torch.tensor([0b1010100111, -1])).tolist() == [[0b10101, 0b00111], [-1, -1]]


def entropies(z, codes, tau):
    p = (2 * tau * z @ codes.t()).softmax(-1)
    h = lambda p: -torch.special.xlogy(p, p).sum(-1)  # noqa: E731
    return h(p).mean(), h(p.mean(0))


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_lfq_loss_is_that_of_the_full_softmax(bits):
    z = (randn(40, bits) * 0.05).requires_grad_()
    codes = torch.tensor(list(itertools.product([-1.5, 1.5], repeat=bits)))
    sample, batch = entropies(z, codes, 20.0)
    q = torch.where(z > 0, 1.5, -1.5)
    expected = 0.3 * (sample - 2 * batch) + 0.25 * F.mse_loss(z, q)
    loss = LFQ(bits, 1.5, temperature=0.05, entropy_weight=0.3, diversity=2.0, commitment=0.25)(z).loss
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(v, z) for v in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_bsq_loss_and_bound():
    bits, z = 6, randn(50, 6)
    u = F.normalize(z, dim=-1)
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits))) / bits**0.5
    sample, batch = entropies(u, codes, 4.0)
    out = BSQ(bits, groups=1, temperature=0.25, entropy_weight=0.2, sample_weight=0.5, diversity=3.0, commitment=2.0)(z)
    torch.testing.assert_close(out.loss, 0.2 * (0.5 * sample - 3 * batch) / 4 + 2 * F.mse_loss(u, out.codes))
    torch.testing.assert_close(out.codes.norm(dim=-1), torch.ones(50))
    assert bool(((u - out.codes).square().sum(-1) <= 2 - 2 / bits**0.5 + 1e-5).all())
    assert BSQ(18).groups == (9, 9)
    assert BSQ(10).groups == (5, 5)
    assert BSQ(8).groups == (8,)
    zero = BSQ(bits)(torch.zeros(1, bits))
    assert zero.indices.item() == 0
    assert bool(torch.isfinite(zero.loss))


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_factorised_entropies(bits, seed):
    logits = randn(15, bits, seed=seed) * 3
    ones = torch.sigmoid(logits)
    joint = torch.stack([
        torch.stack([ones[:, i] if (k >> (bits - 1 - i)) & 1 else 1 - ones[:, i] for i in range(bits)]).prod(0)
        for k in range(2**bits)
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(joint_mean(logits), joint.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sample_entropy(logits), -torch.special.xlogy(joint, joint).sum(1).mean(), rtol=1e-4, atol=1e-5)
    whole = batch_entropy(logits, [bits])
    for groups in ([1] * bits, [bits // 2, bits - bits // 2]):
        assert batch_entropy(logits, [g for g in groups if g]) >= whole - 1e-4, "subadditivity"
    weights = torch.rand(15, generator=torch.Generator().manual_seed(seed)) > 0.3
    if weights.any():
        kept = batch_entropy(logits[weights], [bits])
        torch.testing.assert_close(batch_entropy(logits, [bits], weights.float()), kept, rtol=1e-4, atol=1e-5)


def test_entropy_of_certain_bits_is_zero_with_finite_gradient():
    logits = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    entropy = bernoulli_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([[0.0, math.log(2), 0.0]]))
    (entropy.sum() + batch_entropy(logits, [3])).backward()
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("make", [LFQ, BSQ])
def test_the_loss_is_left_out_where_nobody_asks_for_it(make):
    quantizer, x = make(5, commitment=0.5), randn(20, 5).requires_grad_()
    expected = quantizer(x).loss
    for out, found in (
        (quantizer(x, with_loss=False), False),
        (quantizer.eval()(x), True),  # a gradient may be wanted
        (torch.no_grad()(quantizer)(x), False),
        (torch.no_grad()(quantizer)(x, with_loss=True), True),
        (torch.no_grad()(quantizer.train())(x), True),
    ):
        assert out.loss.isfinite() == found
        if found:
            torch.testing.assert_close(out.loss, expected)
    with torch.no_grad():
        assert VectorQuantizer(5, 8).eval()(x).loss.isfinite(), "a loss that costs little is always there"


def test_bad_bits():
    for make in (LFQ, BSQ):
        with pytest.raises(ValueError, match="bits"):
            make(0)
        with pytest.raises(ValueError, match="bits"):
            make(63)
        with pytest.raises(ValueError, match="at most 18"):
            make(20, groups=1)
        with pytest.raises(ValueError, match="groups"):
            make(8, groups=9)
    with pytest.raises(ValueError, match="at most 18"):
        LFQ(19)
    with pytest.raises(ValueError, match="scale"):
        LFQ(8, scale=0.0)
    assert LFQ(18).codebook_size == 2**18


@pytest.mark.parametrize(
    "make", [lambda: FSQ([8, 5, 5]), lambda: FSQ([8, 5, 5], dim=6), lambda: LFQ(6), lambda: BSQ(6, groups=2)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_breaks(make, masked):
    torch.compiler.reset()
    quantizer = make()
    x = randn(2, 9, quantizer.dim)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.3 if masked else None
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    expected, leaf = quantizer(x, mask), x.clone().requires_grad_()
    out = compiled(leaf, mask)
    assert torch.equal(out.indices, expected.indices)
    torch.testing.assert_close(out.codes, expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.stats.perplexity, expected.stats.perplexity)
    (out.codes.sum() + out.loss).backward()
    assert bool(torch.isfinite(leaf.grad).all())
    if mask is None:
        bad = x.clone()
        bad[1, 3, 0] = float("nan")
        seen = compiled(bad)
        assert bool(seen.codes[1, 3].isnan().any()), "NaN shows in a graph that cannot raise"
        assert seen.indices[1, 3] == -1
