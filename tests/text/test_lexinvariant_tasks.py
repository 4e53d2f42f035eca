"""The permutation-averaged model against brute force, ciphers and their keys, in-context tasks."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.seeding import seeded
from tokenry.text.lexinvariant import (
    CipherProbe,
    LexinvariantConfig,
    LexinvariantForCausalLM,
    MarkovChain,
    all_keys,
    frequency_key,
    hill_climb_key,
    key_recovery,
    lookup_task,
    permutation_mixture,
    permutation_task,
    random_keys,
    recover_key,
    relabel,
    symbol_evidence,
    train_cipher_probe,
)


def brute_force(chain, x):
    """p'(x) by its definition: the mean over keys of the probability of the relabelled sequence."""
    total = 0.0
    keys = list(itertools.permutations(range(len(chain.initial))))
    for s in keys:
        p = float(chain.initial[s[x[0]]]) if len(x) else 1.0
        for a, b in itertools.pairwise(x):
            p *= float(chain.transition[s[a], s[b]])
        total += p
    return total / len(keys)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 5), length=st.integers(1, 6))
def test_the_mixture_is_the_mean_over_keys(seed, size, length):
    chain = MarkovChain.random(size, seed=seed)
    x = chain.sample(2, length, generator=torch.Generator().manual_seed(seed))
    mixture = permutation_mixture(chain, x)
    for row in range(2):
        expected = brute_force(chain, x[row].tolist())
        assert float(mixture.log_probs[row].sum()) == pytest.approx(math.log(expected), abs=1e-9)
        last = [brute_force(chain, [*x[row].tolist(), v]) / expected for v in range(size)]
        assert np.allclose(mixture.conditionals[row, -1].exp(), last, atol=1e-9)
    assert torch.allclose(mixture.conditionals.exp().sum(-1), torch.ones(2, length + 1, dtype=torch.float64))
    assert torch.allclose(mixture.posterior.exp().sum(-1), torch.ones(2, length + 1, dtype=torch.float64))
    assert torch.allclose(mixture.conditionals[:, 0].exp(), torch.full((2, size), 1 / size, dtype=torch.float64))
    assert mixture.keys.shape == (math.factorial(size), size)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 5))
def test_the_mixture_is_lexinvariant_and_its_source_is_not(seed, size):
    chain = MarkovChain.random(size, seed=seed)
    x = chain.sample(4, 12, generator=torch.Generator().manual_seed(seed))
    s = random_keys(1, size, generator=torch.Generator().manual_seed(seed))[0]
    a, b = permutation_mixture(chain, x), permutation_mixture(chain, relabel(x, s))
    assert torch.allclose(a.log_probs, b.log_probs, atol=1e-10)
    assert torch.allclose(a.conditionals, b.conditionals[..., s], atol=1e-10)
    # symbols that were not seen yet are equally likely
    first = a.conditionals[:, 1]
    for row in range(4):
        unseen = [v for v in range(size) if v != int(x[row, 0])]
        assert torch.allclose(first[row, unseen], first[row, unseen[0]].expand(len(unseen)), atol=1e-10)


def test_the_mixture_approaches_its_source_with_context():
    chain = MarkovChain.random(4, seed=0)
    x = chain.sample(200, 64, generator=torch.Generator().manual_seed(1))
    found = permutation_mixture(chain, x).conditionals.exp()
    apart = (found - chain.next_log_probs(x).exp()).abs().sum(-1).mean(0)
    early, middle, late = apart[1:4].mean(), apart[8:16].mean(), apart[48:].mean()
    assert early > middle > late
    assert late < 0.02


def test_sources_of_other_kinds_and_sampled_keys():
    chain = MarkovChain.random(4, seed=3)
    x = chain.sample(3, 10, generator=torch.Generator().manual_seed(0))
    exact = permutation_mixture(chain, x)
    calls = permutation_mixture(chain.next_log_probs, x, vocab_size=4)
    matrix = permutation_mixture(chain.transition, x, initial=chain.initial, chunk=30)
    assert torch.allclose(exact.log_probs, calls.log_probs)
    assert torch.allclose(exact.log_probs, matrix.log_probs)
    drawn = permutation_mixture(chain, x, samples=4000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.log_probs, exact.log_probs, atol=0.15)
    alone = permutation_mixture(chain, x[0])
    assert torch.allclose(alone.log_probs, exact.log_probs[:1])
    assert permutation_mixture(chain, x[:, :0]).conditionals.shape == (3, 1, 4)
    impossible = MarkovChain(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 0, 0]).double())
    assert torch.isfinite(permutation_mixture(impossible, torch.tensor([[0, 1, 0]])).posterior).all()


def test_bad_mixtures_are_refused():
    chain = MarkovChain.random(3)
    x = torch.tensor([[0, 1]])
    cases = [
        ("vocab_size must be at most 7", lambda: permutation_mixture(MarkovChain.random(8), x)),
        ("tokens must be in", lambda: permutation_mixture(chain, torch.tensor([[3]]))),
        ("integer", lambda: permutation_mixture(chain, x.float())),
        ("vocab_size must be given", lambda: permutation_mixture(chain.next_log_probs, x)),
        ("source must return", lambda: permutation_mixture(lambda t: torch.zeros(len(t), 1, 3), x, vocab_size=3)),
        ("source must be", lambda: permutation_mixture("text", x)),
        ("samples", lambda: permutation_mixture(chain, x, samples=0)),
        ("sum to 1", lambda: MarkovChain(torch.ones(2, 2), torch.ones(2) / 2)),
    ]
    for message, call in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    assert len(all_keys(4)) == 24


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), pairs=st.integers(1, 6), queries=st.integers(1, 6))
def test_lookup_answers_are_in_the_context(seed, pairs, queries):
    queries = min(queries, pairs)
    task = lookup_task(5, pairs, range(10, 22), queries=queries, generator=torch.Generator().manual_seed(seed))
    for row, labels in zip(task.tokens.tolist(), task.labels.tolist(), strict=True):
        known = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(known) == pairs
        for at in range(2 * pairs, len(row), 2):
            assert row[at + 1] == known[row[at]] == labels[at + 1]
        assert sum(label != -100 for label in labels) == queries
        assert all(10 <= t < 22 for t in row)
    logits = torch.nn.functional.one_hot(task.tokens.roll(-1, dims=1), 22).float()
    assert task.exact(logits).all()
    logits[0, task.answer_from - 1] = 0
    assert task.exact(logits).tolist() == [False, True, True, True, True]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), examples=st.integers(0, 4), width=st.integers(2, 5))
def test_permutation_uses_one_order_in_a_sequence(seed, examples, width):
    task = permutation_task(6, examples, width, range(9), generator=torch.Generator().manual_seed(seed))
    for row in task.tokens.view(6, examples + 1, 2, width):
        orders = {tuple(shown.tolist().index(v) for v in moved.tolist()) for shown, moved in row}
        assert len(orders) == 1
        assert orders != {tuple(range(width))}
    assert (task.labels[:, -width:] == task.tokens[:, -width:]).all()


def test_keys_are_recovered_and_scored():
    generator = torch.Generator().manual_seed(0)
    true = random_keys(1, 5, generator=generator)[0]
    symbols = torch.randint(0, 5, (400,), generator=generator)
    log_probs = torch.randn(400, 5, generator=generator)
    log_probs[torch.arange(400), true[symbols]] += 2.0
    for soft, method in itertools.product((False, True), ("majority", "assignment")):
        found = recover_key(symbol_evidence(symbols, log_probs, 5, soft=soft), method)
        assert key_recovery(found, true, torch.bincount(symbols, minlength=5)) == 1.0
    # two symbols that want one identity: majority gives it twice, the assignment once
    votes = torch.tensor([[9.0, 8.0, 0.0], [10.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert recover_key(votes, "majority").tolist() == [0, 0, -1]
    assert recover_key(votes, "assignment").tolist() == [1, 0, 2]
    assert key_recovery(torch.tensor([0, 2, 1]), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])) == 0.75
    for message, call in (
        ("method", lambda: recover_key(votes, "best")),
        ("evidence", lambda: recover_key(votes[:2])),
        ("counts", lambda: key_recovery(true, true, torch.zeros(5))),
        ("finite", lambda: symbol_evidence(symbols, log_probs / 0, 5)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_classical_attacks_read_a_long_cipher():
    chain = MarkovChain.random(6, sharpness=2.0, seed=1)
    plain = chain.sample(1, 3000, generator=torch.Generator().manual_seed(0))[0]
    s = random_keys(1, 6, generator=torch.Generator().manual_seed(5))[0]
    cipher, counts = relabel(plain[None], s)[0], torch.bincount(plain, minlength=6)
    bigrams = torch.zeros(36).index_add_(0, plain[:-1] * 6 + plain[1:], torch.ones(2999)).view(6, 6)
    inverse = torch.argsort(s)
    weights = torch.bincount(cipher, minlength=6)
    assert key_recovery(frequency_key(cipher, counts), inverse, weights) == 1.0
    start = torch.arange(6)
    assert key_recovery(hill_climb_key(cipher, bigrams, start=start).key, inverse, weights) > 0.9
    assert hill_climb_key(cipher, bigrams, max_rounds=0, start=start).key.tolist() == start.tolist()


@seeded(0)
def test_a_probe_trains_without_touching_the_model():
    model = LexinvariantForCausalLM(
        LexinvariantConfig(vocab_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    )
    before = {n: p.clone() for n, p in model.state_dict().items()}
    chain = MarkovChain.random(4, seed=0)
    text = chain.sample(1, 500)[0]
    for hidden in (None, 8):
        probe = train_cipher_probe(model, text, length=32, skip=8, hidden=hidden, steps=5, seed=1)
        again = train_cipher_probe(model, text, length=32, skip=8, hidden=hidden, steps=5, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert model.training
    assert CipherProbe(16, 4)(torch.zeros(2, 3, 16)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="length"):
        train_cipher_probe(model, text, length=501)
    with pytest.raises(ValueError, match="skip"):
        train_cipher_probe(model, text, length=8, skip=8)
