"""Token side of the audio bench: embedding and attention over books, orders, probes, error rate, token language model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts import random_state_kept
from tokenry.codecs.audio import (
    BookAttention,
    BookEmbedding,
    LMTraining,
    ProbeTraining,
    TokenLM,
    TokenProbe,
    bits_per_frame,
    deduplicate,
    delay_books,
    equal_error_rate,
    flatten_books,
    probe_accuracy,
    reduplicate,
    train_probe,
    train_token_lm,
    undelay_books,
    unflatten_books,
)


def random_codes(batch, frames, sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, k, (batch, frames), generator=generator) for k in sizes], dim=-1)


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 9), st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 99)
)


# Embedding and attention --------------------------------------------------------------------------------------------------


def test_book_m_token_k_uses_row_m_times_k_plus_k():
    table = BookEmbedding((5, 5, 5), 2, weights=torch.arange(30.0).view(15, 2))
    codes = torch.tensor([[[3, 0, 4]]])
    assert table.rows(codes).tolist() == [[[3, 5, 14]]]
    assert table(codes)[0, 0].tolist() == [[6.0, 7.0], [10.0, 11.0], [28.0, 29.0]]


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_unequal_books_padding_and_the_callers_codes(case):
    batch, frames, sizes, seed = case
    codes = random_codes(batch, frames, sizes, seed)
    codes[0, -1] = -1
    before = codes.clone()
    table = BookEmbedding(sizes, 4)
    vectors = table(codes)
    assert torch.equal(codes, before)
    assert not bool(vectors[0, -1].any())
    for book in range(len(sizes)):
        row = sum(sizes[:book]) + codes[0, 0, book]
        if codes[0, 0, book] >= 0:
            assert torch.equal(vectors[0, 0, book], table.weight[row])
    assert torch.equal(table(codes[..., :1]), vectors[..., :1, :])  # a prefix of the books


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_attention_weights_sum_to_one_over_the_real_books(case):
    batch, frames, sizes, seed = case
    codes = random_codes(batch, frames, sizes, seed)
    codes[0, -1] = -1
    codes[-1, 0, 1:] = -1  # a frame with its first book alone
    mask = codes >= 0
    vectors = BookEmbedding(sizes, 6)(codes)
    attention = BookAttention(6)
    weights = attention.weights(vectors, mask)
    sums = weights.sum(-1)
    assert torch.allclose(sums, mask.any(-1).float(), atol=1e-5)
    assert not bool(weights[~mask].any())
    assert torch.allclose(attention(vectors, mask), (weights[..., None] * vectors).sum(-2), atol=1e-6)


def test_a_frozen_table_gets_no_gradient():
    table = BookEmbedding((4, 4), 3, frozen=True)
    assert not table.weight.requires_grad
    assert BookEmbedding((4, 4), 3).weight.requires_grad


def test_embedding_refuses():
    table = BookEmbedding((4, 8), 3)
    with pytest.raises(ValueError, match=r"K = \(4, 8\)"):
        table(torch.tensor([[[4, 0]]]))
    with pytest.raises(ValueError, match="-1 for padding"):
        table(torch.tensor([[[-2, 0]]]))
    with pytest.raises(TypeError, match="codes must be integers"):
        table(torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="1 to 2 books"):
        table(torch.zeros(1, 1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="weights must have shape"):
        BookEmbedding((4, 8), 3, weights=torch.zeros(11, 3))


# Orders -------------------------------------------------------------------------------------------------------------------


def test_delay_of_three_books():
    delayed = delay_books(torch.tensor([[[1, 2, 3], [4, 5, 6]]]))
    assert delayed[0].tolist() == [[1, -1, -1], [4, 2, -1], [-1, 5, 3], [-1, -1, 6]]


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_the_inverses_are_exact(case):
    batch, frames, sizes, seed = case
    codes = random_codes(batch, frames, sizes, seed)
    codes[0, frames // 2 :] = -1
    assert torch.equal(undelay_books(delay_books(codes)), codes)
    assert torch.equal(unflatten_books(flatten_books(codes), len(sizes)), codes)
    flat = flatten_books(codes, sizes)
    assert torch.equal(unflatten_books(flat, len(sizes), sizes), codes)
    assert int(flat.max()) < sum(sizes)


def test_runs_as_one():
    codes = torch.tensor([[3, 3, 3, 1, 1, 3], [2, 2, 5, -1, -1, -1]])[..., None]
    runs, durations = deduplicate(codes)
    assert runs[..., 0].tolist() == [[3, 1, 3], [2, 5, -1]]
    assert durations.tolist() == [[3, 2, 1], [2, 1, 0]]
    assert torch.equal(reduplicate(runs, durations), codes)
    with pytest.raises(ValueError, match="durations"):
        reduplicate(runs, durations[:, :2])


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_runs_have_an_exact_inverse(case):
    batch, frames, sizes, seed = case
    codes = random_codes(batch, frames, sizes[:2], seed) // 3
    codes[1:, max(1, frames // 2) :] = -1
    runs, durations = deduplicate(codes)
    assert torch.equal(reduplicate(runs, durations), codes)
    assert durations.sum(1).tolist() == (codes >= 0).any(-1).sum(1).tolist()


def test_orders_refuse():
    with pytest.raises(ValueError, match="at least 3 frames"):
        undelay_books(torch.zeros(1, 2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[B, T \* 3\]"):
        unflatten_books(torch.zeros(1, 4, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="every place"):
        unflatten_books(torch.tensor([[5, 5]]), 2, (4, 4))
    with pytest.raises(ValueError, match="integers"):
        delay_books(torch.zeros(1, 2, 3))


# Probes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [True, False])
def test_a_frame_probe_finds_what_a_book_holds(attention):
    codes = random_codes(48, 20, (6, 6))
    labels = codes[..., 0].clone()
    labels[0] = -1
    probe = TokenProbe(6, codebook_sizes=(6, 6), dim=16, attention=attention)
    losses = train_probe(probe, codes[:32], labels[:32], ProbeTraining(steps=120, batch=16))
    assert losses[-1] < losses[0]
    assert float(probe_accuracy(probe, codes[32:], labels[32:]).mean()) > 0.95
    assert math.isnan(float(probe_accuracy(probe, codes[:1], labels[:1])))


def test_an_utterance_probe_counts_real_frames_only():
    codes = random_codes(64, 12, (8,))
    speaker = torch.arange(64) % 2
    codes = codes // 2 * 2 + speaker[:, None, None]  # the parity of every code
    codes[:, 9:] = -1
    probe = TokenProbe(2, codebook_sizes=(8,), dim=8, level="utterance")
    train_probe(probe, codes[:40], speaker[:40], ProbeTraining(steps=80))
    assert float(probe_accuracy(probe, codes[40:], speaker[40:]).mean()) == 1.0
    assert torch.allclose(probe(codes), probe(codes[:, :9]), atol=1e-6)


def test_context_is_a_mean_over_real_neighbours():
    probe = TokenProbe(3, codebook_sizes=(4,), dim=5, attention=False, context=2)
    codes = random_codes(2, 9, (4,))
    codes[1, 6:] = -1
    plain = probe.embedding(codes)[..., 0, :]
    found = probe.frames(codes)
    assert torch.allclose(found[0, 4], plain[0, 2:7].mean(0), atol=1e-6)
    assert torch.allclose(found[0, 0], plain[0, :3].mean(0), atol=1e-6)
    assert torch.allclose(found[1, 5], plain[1, 3:6].mean(0), atol=1e-6)
    assert not bool(found[1, 6:].any())


def test_the_same_probe_on_features():
    x = 7 + 100 * torch.randn(40, 10, 5, generator=torch.Generator().manual_seed(0))  # any offset and scale
    labels = (x[..., 0] > 7).long()
    probe = TokenProbe(2, features=5)
    train_probe(probe, x[:30], labels[:30], ProbeTraining(steps=80))
    assert float(probe_accuracy(probe, x[30:], labels[30:]).mean()) > 0.88


def test_probes_are_seeded_and_leave_the_global_generator_alone():
    codes = random_codes(8, 6, (4,))
    with random_state_kept():
        probes = [TokenProbe(4, codebook_sizes=(4,), dim=4, seed=3) for _ in range(2)]
        one, two = (train_probe(probe, codes, codes[..., 0], ProbeTraining(steps=5)) for probe in probes)
    assert one == two


def test_probes_refuse():
    with pytest.raises(ValueError, match="exactly one"):
        TokenProbe(3)
    probe = TokenProbe(3, codebook_sizes=(4,))
    codes = random_codes(2, 5, (4,))
    with pytest.raises(ValueError, match="labels must be integers"):
        train_probe(probe, codes, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        train_probe(probe, codes, torch.full((2, 5), 3))


# Equal error rate ---------------------------------------------------------------------------------------------------------


def test_equal_error_rate_worked():
    scores = torch.tensor([0.9, 0.8, 0.4, 0.3, 0.2, 0.1])
    assert equal_error_rate(scores, torch.tensor([True, True, True, False, False, False])) == 0.0
    assert equal_error_rate(scores, torch.tensor([False, False, False, True, True, True])) == 1.0
    assert equal_error_rate(scores, torch.tensor([True, True, False, True, False, False])) == pytest.approx(1 / 3)
    assert equal_error_rate(torch.zeros(4), torch.tensor([True, True, False, False])) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_equal_error_rate_is_in_range_and_blind_to_monotone_transforms(pairs):
    same = torch.tensor([flag for _, flag in pairs])
    scores = torch.tensor([float(value) for value, _ in pairs])
    if bool(same.any()) and not bool(same.all()):
        rate = equal_error_rate(scores, same)
        assert 0.0 <= rate <= 1.0
        assert equal_error_rate((scores / 10).exp() * 3 - 5, same) == pytest.approx(rate, abs=1e-9)
        assert equal_error_rate(-scores, ~same) == pytest.approx(rate, abs=1e-9)


def test_equal_error_rate_refuses():
    with pytest.raises(ValueError, match="each kind"):
        equal_error_rate(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="finite"):
        equal_error_rate(torch.tensor([0.0, torch.nan]), torch.tensor([True, False]))


# Token language model -----------------------------------------------------------------------------------------------------


def test_bits_of_uniform_and_of_periodic_tokens():
    sizes = (8, 4)
    noise = random_codes(64, 16, sizes)
    lm = TokenLM(sizes, dim=16)
    train_token_lm(lm, noise, LMTraining(steps=40, learning_rate=3e-3))
    assert float(bits_per_frame(lm, random_codes(32, 16, sizes, 1)).mean()) == pytest.approx(5.0, abs=0.4)
    ramp = (torch.arange(16)[None] + torch.arange(64)[:, None]) % 8
    codes = torch.stack([ramp, ramp % 4], dim=-1)  # the second book follows from the first of the same frame
    lm = TokenLM(sizes, dim=32)
    losses = train_token_lm(lm, codes, LMTraining(steps=150))
    bits = bits_per_frame(lm, codes)
    assert losses[-1] < losses[0]
    assert float(bits.mean()) < 3 / 16 + 0.35  # three bits for the first frame, then nearly none


def test_padding_costs_nothing_and_a_row_is_scored_alone():
    codes = random_codes(3, 9, (6, 6))
    lm = TokenLM((6, 6), dim=8)
    padded = torch.nn.functional.pad(codes, (0, 0, 0, 4), value=-1)
    padded[1, 5:] = -1
    bits = bits_per_frame(lm, padded)
    assert torch.allclose(bits[0], bits_per_frame(lm, codes[:1])[0], atol=1e-5)
    assert torch.allclose(bits[1], bits_per_frame(lm, codes[1:2, :5])[0], atol=1e-5)
    with pytest.raises(ValueError, match="at least one frame"):
        bits_per_frame(lm, torch.full((1, 3, 2), -1))
    with pytest.raises(ValueError, match=r"\[B, T, 2\]"):
        lm(codes[..., :1])


def test_the_likelihood_is_causal():
    codes = random_codes(2, 9, (6, 6))
    changed = codes.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 6
    lm = TokenLM((6, 6), dim=8)
    assert torch.equal(lm.nats(codes)[:, :5], lm.nats(changed)[:, :5])
