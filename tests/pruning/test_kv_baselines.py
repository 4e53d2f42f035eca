"""KV-cache baselines: which slots they keep, and that all read a budget alike."""

from __future__ import annotations

import pytest
import torch

from tokenry.hosts.cache import Budget, Slots
from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning import H2O, FullCache, SnapKV, StreamingLLM
from tokenry.pruning.kv_method import choose_slots, take_slots
from tokenry.testing import tiny

IDS = torch.randint(2, 97, (1, 60), generator=torch.Generator().manual_seed(3))


def llama():
    return tiny("llama", vocab_size=97, eos_token_id=None, initializer_range=0.3)


def slots(total=20, batch=1):
    g = torch.Generator().manual_seed(1)
    keys = torch.randn(batch, 2, total, 4, generator=g)
    return Slots(keys, keys + 1, torch.rand(batch, 2, total, generator=g), None)


def test_streaming_keeps_sinks_and_window():
    _, index = StreamingLLM(budget=10).evict(slots(), Budget((4,), (6,)), {})
    assert index[0, 0].tolist() == [0, 1, 2, 3, 14, 15, 16, 17, 18, 19]


def test_h2o_keeps_the_best_scores_and_the_window():
    given = slots()
    after, index = H2O(budget=10).evict(given, Budget((5,), (5,)), {})
    for h in range(2):
        best = given.scores[0, h, :15].topk(5).indices.sort().values.tolist()
        assert index[0, h].tolist() == [*best, 15, 16, 17, 18, 19]
        assert torch.equal(after.keys[0, h], given.keys[0, h, index[0, h]])
        assert torch.equal(after.scores[0, h], given.scores[0, h, index[0, h]])


def test_snapkv_pools_votes_before_the_window():
    method = SnapKV(budget=10, window=4, kernel=3)
    scores = torch.zeros(1, 1, 12)
    scores[..., 5] = 2.0
    scores[..., 9] = 9.0  # inside the window: no vote
    assert method.votes(scores)[0, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0]
    average = SnapKV(budget=10, window=4, kernel=3, pooling="avg").votes(scores)
    torch.testing.assert_close(average[0, 0, 4:7], torch.full((3,), 2 / 3))
    given = Slots(torch.randn(1, 1, 12, 2), torch.randn(1, 1, 12, 2), scores, None)
    assert method.evict(given, Budget((3,), (4,)), {})[1][0, 0].tolist() == [4, 5, 6, 8, 9, 10, 11]


@pytest.mark.parametrize("heavy", [0, 3, 7])
@pytest.mark.parametrize("sinks", [0, 2, 9])
def test_one_slot_at_a_time_equals_the_sorted_choice(heavy, sinks):
    scores = torch.randint(0, 3, (2, 3, heavy + 5), generator=torch.Generator().manual_seed(heavy)).float()
    fast = choose_slots(scores, (heavy, heavy), (4, 4), sinks=sinks)
    general = choose_slots(scores, (heavy, heavy), (4, 4), sinks=sinks, real=torch.ones(2, heavy + 5, dtype=torch.bool))
    assert torch.equal(fast, general)


def test_padding_goes_first_and_rows_may_differ():
    scores = torch.rand(2, 2, 10)
    real = torch.ones(2, 10, dtype=torch.bool)
    real[0, :6] = False
    index = choose_slots(scores, (3, 4), (2, 2), sinks=1, real=real)
    assert index.shape == (2, 2, 6)
    assert index[0, :, :2].tolist() == [[-1, -1], [-1, -1]]
    assert index[0, 0, 2:].tolist() == [6, 7, 8, 9]
    assert (index[1, :, 0] == 0).all()
    given = Slots(torch.randn(2, 2, 10, 4), torch.randn(2, 2, 10, 4), scores, real)
    after = take_slots(given, index, uniform=False)
    assert after.real is not None
    assert after.real[0].tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    "method", [H2O(budget=0.5), SnapKV(budget=0.5, window=8), StreamingLLM(budget=0.5), H2O(budget=30), StreamingLLM(budget=30)]
)
def test_all_read_the_budget_alike(method):
    model = llama()
    assert method.plan(60) == 30
    with torch.no_grad(), method.attach(model) as trace:
        cache = cache_of(model(IDS, use_cache=True))
        held = [layer.keys.shape[-2] for layer in cache.layers]
        assert held == [30, 30]
        assert trace.counts() == {0: 30}
        model(IDS[:, :1], **as_argument(cache))
        assert [layer.keys.shape[-2] for layer in cache.layers] == ([31, 31] if isinstance(method, SnapKV) else [30, 30])


def test_full_cache_is_the_plain_model():
    model = llama()
    plain = model.generate(IDS, max_new_tokens=5, do_sample=False)
    for method in (FullCache(), H2O(budget=1.0), SnapKV(budget=1.0), StreamingLLM(budget=1.0)):
        with method.attach(model) as trace:
            assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), plain)
        assert trace.facts["cache_bytes"] == trace.facts["cache_bytes_full"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullCache(budget=0.5), "budget of FullCache"),
        (lambda: SnapKV(kernel=4), "kernel must be odd"),
        (lambda: SnapKV(pooling="sum"), "pooling must be one of"),
        (lambda: H2O(heavy_share=-0.1), "heavy_share"),
        (lambda: StreamingLLM(sinks=-1), "sinks"),
        (lambda: H2O(budget=2.0), "budget as a ratio"),
        (lambda: H2O(on_sliding="maybe"), "on_sliding"),
        (lambda: H2O(skip_layers=(1.0,)), "skip_layers"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
