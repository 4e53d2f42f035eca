"""The recall testbed: items, scoring through a shared prefill, and the smoke scale of D2O's claim."""

from __future__ import annotations

import argparse
import inspect
import math

import pytest
import torch

from tokenry.hosts.cache import compress_cache
from tokenry.hosts.release import as_argument, cache_of
from tokenry.lab.beds.language.recall import Item, byte_host, continuation_items, recall_items, score_item
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM

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
    for item in recall_items(host, TEXT, prompt=80, cue=5, answer=7, count=3, seed=4):
        assert len(item.prompt) == 80
        assert bytes(item.follow.tolist()) in bytes(item.prompt.tolist())
        assert item.scored_from == 2 + 5
        assert bytes(item.follow.tolist()).startswith(b"\n\n")


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
        recall_items(host, TEXT, prompt=20, cue=8, answer=8, count=1, seed=0)
    one = Item(torch.tensor([1, 2, 3]), torch.tensor([4]))
    assert math.isfinite(score_item(host, one, [FullCache()])[0].log_likelihood)
