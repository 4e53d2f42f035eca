"""The recall testbed: items, scoring through a shared prefill, and the smoke scale of D2O's claim."""

from __future__ import annotations

import argparse
import inspect
import math
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tokenry.hosts.cache import Budget, Slots, compress_cache
from tokenry.hosts.release import as_argument, cache_of
from tokenry.lab.beds.language.merging import OtherMerging, rotated, rotation_of
from tokenry.lab.beds.language.recall import Host, Item, byte_host, continuation_items, score_item, score_items, shared_items
from tokenry.lab.claims.pruning.d2o import methods as claim_arms
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM
from tokenry.testing.zoo import tiny

TEXT = inspect.getsource(argparse)


@pytest.fixture(scope="module")
def host():
    return byte_host(TEXT, steps=2, width=32, layers=4)


def test_items_are_real_text_and_repeatable(host):
    items = continuation_items(host, TEXT, prompt=60, follow=9, count=3, seed=4)
    assert [(len(i.prompt), len(i.follow)) for i in items] == [(60, 9)] * 3
    for item in items:
        assert bytes([*item.prompt.tolist(), *item.follow.tolist()]).decode() in TEXT
    again = continuation_items(host, TEXT, prompt=60, follow=9, count=3, seed=4)
    assert all(torch.equal(a.prompt, b.prompt) for a, b in zip(items, again, strict=True))


def test_a_prompt_is_continued_and_recalled_at_depths_spread_evenly(host):
    groups = shared_items(host, TEXT, prompt=400, follow=9, cue=5, answer=7, count=10, seed=4)
    starts = []
    for continuation, recall, asked in groups:
        prompt, passage = bytes(recall.prompt.tolist()), bytes(recall.follow.tolist())
        assert torch.equal(continuation.prompt, recall.prompt)
        assert len(prompt) == 400
        assert passage.startswith(b"\n\n")
        assert recall.scored_from == 2 + 5
        assert bytes(asked.prompt.tolist()) == prompt + passage[:7]
        assert bytes(asked.follow.tolist()) == passage[7:]
        assert asked.scored_from == 0
        at = prompt.find(passage + b"\n\n")
        around = prompt[:at] + prompt[at + len(passage) + 2 :] + bytes(continuation.follow.tolist())
        assert around.decode() in TEXT
        assert len(continuation.follow) == 9
        starts.append(at / (400 - 16))
    for place, depth in enumerate(starts):  # the middle 80 % of the prompt in ten parts, one item in each
        assert 0.1 + 0.08 * place - 0.003 <= depth <= 0.1 + 0.08 * (place + 1)


def test_a_forked_cache_scores_as_a_prompt_of_its_own(host):
    item = continuation_items(host, TEXT, prompt=70, follow=8, count=1, seed=0)[0]
    methods = [FullCache(), D2O(0.3), H2O(0.3), SnapKV(0.4, window=8), StreamingLLM(0.3), D2O(0.3, score="window", window=16)]
    shared = score_item(host, item, methods)
    for method, outcome in zip(methods, shared, strict=True):
        with torch.no_grad(), compress_cache(host.model, method):
            first = host.model(item.prompt[None], use_cache=True)
            rest = host.model(item.follow[None, :-1], **as_argument(cache_of(first))).logits
        logits = torch.cat((first.logits[:, -1:], rest), 1)[0]
        expected = -torch.nn.functional.cross_entropy(logits, item.follow).item()
        assert outcome.log_likelihood == pytest.approx(expected, abs=1e-4), method
    assert shared[0].cache_bytes == shared[0].cache_bytes_full
    assert shared[2].cache_bytes < 0.5 * shared[2].cache_bytes_full


def test_short_texts_are_refused(host):
    with pytest.raises(ValueError, match="windows of 500 tokens"):
        continuation_items(host, "short", prompt=400, follow=100, count=1, seed=0)
    with pytest.raises(ValueError, match="room for text"):
        shared_items(host, TEXT, prompt=20, follow=4, cue=8, answer=8, count=1, seed=0)
    one = Item(torch.tensor([1, 2, 3]), torch.tensor([4]))
    assert math.isfinite(score_item(host, one, [FullCache()])[0].log_likelihood)
    with pytest.raises(ValueError, match="share one prompt"):
        score_items(host, [one, Item(torch.tensor([1, 2]), torch.tensor([4]))], [FullCache()])


def test_items_of_one_prompt_score_as_each_alone(host):
    group = shared_items(host, TEXT, prompt=90, follow=6, cue=5, answer=7, count=1, seed=0)[0]
    arms = [D2O(0.3), D2O(0.3, merge=None), StreamingLLM(0.2)]
    together = score_items(host, group, arms)
    for item, row in zip(group, together, strict=True):
        for method, outcome in zip(arms, row, strict=True):
            alone = score_item(host, item, [method])[0]
            assert outcome.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-5)
            assert (outcome.accuracy, outcome.cache_bytes) == (alone.accuracy, alone.cache_bytes)


def test_a_fork_keeps_sliding_layers_as_they_are():
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny("gemma3", num_hidden_layers=4, layer_types=kinds, sliding_window=16).eval()
    host = Host(model, lambda text: list(text.encode()))
    generator = torch.Generator().manual_seed(0)
    prompt, follow = (torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in (40, 6))
    for method, outcome in zip(
        methods := [D2O(0.3, skip_layers=()), H2O(0.3)], score_item(host, Item(prompt, follow), methods), strict=True
    ):
        with torch.no_grad(), compress_cache(model, method):
            first = model(prompt[None], use_cache=True)
            rest = model(follow[None, :-1], **as_argument(cache_of(first))).logits
        logits = torch.cat((first.logits[:, -1:], rest), 1)[0]
        assert outcome.log_likelihood == pytest.approx(-torch.nn.functional.cross_entropy(logits, follow).item(), abs=1e-5)
        assert outcome.cache_bytes < outcome.cache_bytes_full


def test_arms_of_a_budget_hold_the_same_bytes():
    model = tiny("llama").eval()
    host = Host(model, lambda text: list(text.encode()))
    arms = claim_arms(host, 400)
    prompt = torch.randint(0, model.config.vocab_size, (400,), generator=torch.Generator().manual_seed(0))
    outcomes = score_item(host, Item(prompt, torch.tensor([1, 2])), list(arms.values()))
    shares = {name: o.cache_bytes / o.cache_bytes_full for name, o in zip(arms, outcomes, strict=True)}
    for name, share in shares.items():
        _, _, budget = name.partition("@")
        assert share == pytest.approx(float(budget or 1.0), rel=0.03), name


def test_rotation_is_taken_out_and_put_back():
    model = tiny("llama").eval()
    rotation = rotation_of(model, 50)
    flat = torch.randn(1, 2, 50, rotation[0].shape[-1], generator=torch.Generator().manual_seed(0))
    cos, sin = (x[None] for x in rotation)
    _, there = apply_rotary_pos_emb(flat, flat, cos, sin)
    places = torch.arange(50)
    torch.testing.assert_close(rotated(flat, rotation, places), there)
    torch.testing.assert_close(rotated(there, rotation, places, back=True), flat)


def test_other_merging_merges_what_it_says():
    model = tiny("llama").eval()
    rotation = rotation_of(model, 60)
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 2, 1, rotation[0].shape[-1], generator=generator)
    keys = rotated(one.expand(-1, -1, 60, -1), rotation, torch.arange(60))  # one key, cached at 60 positions
    values, scores = torch.randn(1, 2, 60, 5, generator=generator), torch.rand(1, 2, 60, generator=generator)
    budget = Budget((6,), (6,))

    def evicted(**options):
        method = OtherMerging(0.2, skip_layers=(), **options)
        return method.evict(Slots(keys, values, scores, None), budget, {})

    dropped, index = replace(D2O(0.2), merge=None).evict(Slots(keys, values, scores, None), budget, {})
    turned, same = evicted(rotation=rotation)
    assert torch.equal(index, same)
    torch.testing.assert_close(turned.keys, dropped.keys)  # without their rotation all keys agree: nothing to average away
    assert not torch.allclose(turned.values, dropped.values)
    cached, _ = evicted()
    assert not torch.allclose(cached.keys, dropped.keys, atol=1e-2)
    for kept, _ in (evicted(merges_keys=False), evicted(merges_keys=False, rotation=rotation)):
        assert torch.equal(kept.keys, dropped.keys)
        assert not torch.allclose(kept.values, dropped.values)
