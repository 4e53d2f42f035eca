"""Contract of KV-cache methods: ``check_cache_method(MyMethod(budget=0.3))``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.hosts.release import cache_of
from tokenry.pruning.kv_method import CacheMethod
from tokenry.testing.verdict import fail, refuses
from tokenry.testing.zoo import tiny

_LENGTH = 48


def _model() -> Any:
    """Four blocks with grouped heads, weights large enough that attention chooses, and no token that ends a text."""
    return tiny("llama", vocab_size=97, num_hidden_layers=4, eos_token_id=None, initializer_range=0.3)


def _prompts(rows: int = 1) -> Tensor:
    return torch.randint(2, 97, (rows, _LENGTH), generator=torch.Generator().manual_seed(3))


def _ids(method: CacheMethod | None, model: Any, **inputs: Tensor) -> tuple[Tensor, Any]:
    """Six greedy tokens [B,6] and the trace."""
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, **inputs}
    start = inputs["input_ids"].shape[1]
    if method is None:
        return model.generate(**options)[:, start:], None
    with method.attach(model) as trace:
        return model.generate(**options)[:, start:], trace


def _everything(method: CacheMethod) -> None:
    model = _model()
    plain = _ids(None, model, input_ids=_prompts())[0]
    found, trace = _ids(replace(method, budget=1.0), model, input_ids=_prompts())
    if not torch.equal(found, plain) or trace.facts["cache_bytes"] != trace.facts["cache_bytes_full"]:
        fail("budget=1.0 is the identity", method, "tokens or cache differ from those of the plain model")
    _ids(replace(method, budget=0.3), model, input_ids=_prompts())
    if not torch.equal(_ids(None, model, input_ids=_prompts())[0], plain):
        fail("no trace", method, "the model writes other tokens after the block than before it")


@torch.no_grad()
def _smaller(method: CacheMethod) -> None:
    model, cut = _model(), replace(method, budget=12)
    with cut.attach(model) as trace:
        held = [layer.keys.shape[-2] for layer in cache_of(model(_prompts(), use_cache=True)).layers]
    if not trace.facts["cache_bytes"] < trace.facts["cache_bytes_full"] or min(held) > _LENGTH // 2:
        fail("smaller cache", method, f"budget=12 of {_LENGTH} left {held} slots")
    if cut.plan(_LENGTH) != 12 or replace(method, budget=0.25).plan(_LENGTH) != 12:
        fail("plan", method, f"12 slots and a quarter of {_LENGTH} must both be planned as 12")


def _deterministic(method: CacheMethod) -> None:
    model, cut = _model(), replace(method, budget=0.3)
    (first, one), (second, two) = (_ids(cut, model, input_ids=_prompts(2)) for _ in range(2))
    same = all(torch.equal(a.indices, b.indices) for a, b in zip(one.kept, two.kept, strict=True))
    if not torch.equal(first, second) or not same:
        fail("determinism", method, "two runs differ")


@torch.no_grad()
def _padding(method: CacheMethod) -> None:
    """A left-padded row of a batch is continued as the same row alone."""
    model, cut = _model(), replace(method, budget=0.3)
    ids, mask = _prompts(2), torch.ones(2, _LENGTH, dtype=torch.long)
    ids[0, :9], mask[0, :9] = 0, 0
    together = _ids(cut, model, input_ids=ids, attention_mask=mask)[0]
    alone = _ids(cut, model, input_ids=ids[:1, 9:], attention_mask=mask[:1, 9:])[0]
    if not torch.equal(together[:1], alone):
        fail("padding", method, f"a padded row is continued with {together[0].tolist()}, alone with {alone[0].tolist()}")


def _bad_values(method: CacheMethod) -> None:
    for budget in (0, 0.0, -1, 1.5, float("nan"), True, "0.5", None):
        refuses(method, "budget", partial(replace, method, budget=budget), given=f"budget={budget!r}")


CACHE_METHOD_CHECKS = (_everything, _smaller, _deterministic, _padding, _bad_values)


def check_cache_method(method: CacheMethod) -> None:
    """Run every contract check of a KV-cache method.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in CACHE_METHOD_CHECKS:
        check(method)
