"""Contract of KV-cache methods: ``check_cache_method(MyMethod(budget=0.3))``."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning.kv_method import CacheMethod
from tokenry.testing.clients import LikePeft, one_way
from tokenry.testing.verdict import fail, refuses
from tokenry.testing.zoo import tiny

_LENGTH, _NEAR = 48, 1e-4


def _model() -> Any:
    """Four blocks with grouped heads, weights large enough that attention chooses, and no token that ends a text."""
    return tiny("llama", vocab_size=97, num_hidden_layers=4, eos_token_id=None, initializer_range=0.3)


def _prompts(rows: int = 1) -> Tensor:
    return torch.randint(2, 97, (rows, _LENGTH), generator=torch.Generator().manual_seed(3))


def _padded() -> tuple[Tensor, Tensor]:
    """Two prompts, nine tokens shorter in the first row, and their mask."""
    ids, mask = _prompts(2), torch.ones(2, _LENGTH, dtype=torch.long)
    ids[0, :9], mask[0, :9] = 0, 0
    return ids, mask


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
    ids, mask = _padded()
    together = _ids(cut, model, input_ids=ids, attention_mask=mask)[0]
    alone = _ids(cut, model, input_ids=ids[:1, 9:], attention_mask=mask[:1, 9:])[0]
    if not torch.equal(together[:1], alone):
        fail("padding", method, f"a padded row is continued with {together[0].tolist()}, alone with {alone[0].tolist()}")


@torch.no_grad()
def _another_turn(method: CacheMethod) -> None:
    """The whole chat given back on the cache is read like its new tokens; the share follows the longer sequence."""
    model, cut = _model(), replace(method, budget=0.3)
    start, turn = _prompts()[:, :10], _prompts()[:, 10:]
    with cut.attach(model):
        cache = cache_of(model(start, use_cache=True))
        again = copy.deepcopy(cache)
        whole = model.generate(
            torch.cat((start, turn), dim=1), max_new_tokens=1, do_sample=False, return_dict_in_generate=True,
            output_logits=True, **as_argument(cache),
        )  # fmt: skip
        rest = model(turn, **as_argument(again)).logits[:, -1]
    if not torch.allclose(whole.logits[0], rest, atol=_NEAR):
        fail("another turn", method, "the whole chat on the cache is read otherwise than its new tokens")
    held = max(layer.keys.shape[-2] for layer in cache.layers)
    if cache.get_seq_length() != _LENGTH or not cut.plan(_LENGTH) <= held < _LENGTH:
        fail("another turn", method, f"{held} slots after {_LENGTH} tokens, {cut.plan(_LENGTH)} planned; the first turn had 10")


@torch.no_grad()
def _turn_in_chunks(method: CacheMethod) -> None:
    """A later turn is one turn in however many chunks it comes, also where the last one is short."""
    model, cut = _model(), replace(method, budget=0.3)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    runs, held = [], []
    for chunks in ({}, {"prefill_chunk_size": 37}, {"prefill_chunk_size": 8}):
        with cut.attach(model):
            cache = cache_of(model(_prompts()[:, :10], use_cache=True))
            runs.append(torch.stack(model.generate(_prompts(), **options, **chunks, **as_argument(cache)).logits))
            held.append([layer.keys.shape[-2] for layer in cache.layers])
    if held != held[:1] * 3:
        fail("a turn in chunks", method, f"in one piece the layers hold {held[0]} slots, in chunks {held[1:]}")
    if not all(torch.allclose(run, runs[0], atol=_NEAR) for run in runs):
        fail("a turn in chunks", method, "in chunks the turn is read otherwise than in one piece")


@torch.no_grad()
def _switched(method: CacheMethod) -> None:
    """The attention implementation may be set to another one inside the block."""
    model, cut = _model(), replace(method, budget=0.3)
    ids, mask = _padded()
    wanted = _ids(cut, model, input_ids=ids, attention_mask=mask)[0]
    for before, inside in (("eager", "sdpa"), ("sdpa", "eager")):
        model.set_attn_implementation(before)
        with cut.attach(model):
            model.set_attn_implementation(inside)
            found = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, _LENGTH:]
        if not torch.equal(found, wanted):
            fail(
                "another attention implementation",
                method,
                f"set from {before} to {inside} inside the block, it writes otherwise",
            )


@torch.no_grad()
def _short_first_turn(method: CacheMethod) -> None:
    """A prompt too short to take a share of keeps `min_slots`, with a warning."""
    model = _model()
    with warnings.catch_warnings(record=True) as heard, replace(method, budget=0.3).attach(model):
        warnings.simplefilter("always")
        held = [layer.keys.shape[-2] for layer in cache_of(model(_prompts()[:, :5], use_cache=True)).layers]
    if min(held) < min(method.min_slots, 5) or not any("min_slots" in str(w.message) for w in heard):
        fail("a short first turn", method, f"5 tokens left {held} slots, warned of {[str(w.message) for w in heard]}")
    with warnings.catch_warnings(), replace(method, budget=0.3).attach(model):
        warnings.simplefilter("ignore")
        cache = cache_of(model.generate(_prompts()[:, :1], max_new_tokens=12, do_sample=False, return_dict_in_generate=True))
    if min(held := [layer.keys.shape[-2] for layer in cache.layers]) < method.min_slots:
        fail("a short first turn", method, f"12 tokens behind a prompt of one are left {held} slots")


@torch.no_grad()
def _rows_and_outside(method: CacheMethod) -> None:
    """Rows of a compressed cache can be repeated; what transformers would mask wrongly is refused outside the block."""
    model, cut = _model(), replace(method, budget=0.3)
    ids, mask = _padded()
    token = torch.full((2, 1), 9)
    with cut.attach(model):
        cache = cache_of(model(ids, attention_mask=mask, use_cache=True))
        more, outside = copy.deepcopy(cache), copy.deepcopy(cache)
        once = model(token, **as_argument(cache)).logits
        more.batch_repeat_interleave(2)
        twice = model(token.repeat_interleave(2, dim=0), **as_argument(more)).logits
    if not torch.allclose(twice[::2], once, atol=_NEAR) or not torch.allclose(twice[1::2], once, atol=_NEAR):
        fail("rows of a cache", method, "repeated rows are continued otherwise than the row itself")
    try:
        model(token, **as_argument(outside))
    except RuntimeError as error:
        if type(method).__name__ not in str(error):
            fail("outside the block", method, f"the message must name the method, got: {error}")
    else:
        fail("outside the block", method, "a padded, compressed cache is continued with a wrong mask")


@torch.no_grad()
def _autocast(method: CacheMethod) -> None:
    model, cut = _model(), replace(method, budget=0.3)
    with torch.autocast("cpu", torch.bfloat16), cut.attach(model):
        out = model.generate(
            _prompts(2), max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
        )  # fmt: skip
    held = max(layer.keys.shape[-2] for layer in cache_of(out).layers)
    if held == _LENGTH + 5 or not all(bool(torch.isfinite(row).all()) for row in out.logits):
        fail("autocast", method, f"{held} slots held of {_LENGTH + 5}, or logits that are not finite")


@torch.no_grad()
def _compiled(method: CacheMethod) -> None:
    cut, prompt = replace(method, budget=0.3), _prompts()
    how, compile_ = one_way(method)
    model = compile_(_model())
    plain = model(prompt, use_cache=True).logits
    with cut.attach(model):
        held = max(layer.keys.shape[-2] for layer in cache_of(model(prompt, use_cache=True)).layers)
    if held > _LENGTH // 2:
        fail("compiled before", method, f"{how}, run once and then attached to, the cache holds {held} of {_LENGTH} slots")
    after = model(prompt, use_cache=True)
    if cache_of(after).layers[0].keys.shape[-2] != _LENGTH or not torch.allclose(after.logits, plain, atol=_NEAR):
        fail("compiled before", method, f"{how}, the model is not plain after the block")


@torch.no_grad()
def _wrapped(method: CacheMethod) -> None:
    """Chunks of one prompt stay one prompt, whatever is around the model."""
    model, cut = _model(), replace(method, budget=0.3)
    wanted = _ids(cut, model, input_ids=_prompts())[0]
    for wrapper in (LikePeft(model), LikePeft(LikePeft(model))):
        with cut.attach(wrapper) as trace:
            found = wrapper.generate(_prompts(), max_new_tokens=6, do_sample=False, prefill_chunk_size=9)
        if not torch.equal(found[:, _LENGTH:], wanted) or {entry.total for entry in trace.kept} != {_LENGTH}:
            fail(
                "wrappers", method, f"attached to {type(wrapper).__name__} around the model, in chunks, it writes other tokens"
            )


@torch.no_grad()
def _copies(method: CacheMethod) -> None:
    model, cut = _model(), replace(method, budget=0.3)
    with cut.attach(model) as trace:
        for part in (model, model.model):
            twin = copy.deepcopy(part)
            if cache_of(twin(_prompts(), use_cache=True)).layers[1].keys.shape[-2] != _LENGTH or trace.kept:
                fail("copies", method, f"a deep copy of {type(part).__name__} made inside the block is compressed too")
        model(_prompts(), use_cache=True)
    if not trace.kept:
        fail("copies", method, "after a deep copy, the cache is not compressed inside the block")


def _bad_values(method: CacheMethod) -> None:
    for budget in (0, 0.0, -1, 1.5, float("nan"), True, "0.5", None):
        refuses(method, "budget", partial(replace, method, budget=budget), given=f"budget={budget!r}")


CACHE_METHOD_CHECKS = (
    _everything, _smaller, _deterministic, _padding, _another_turn, _turn_in_chunks, _switched, _short_first_turn,
    _rows_and_outside, _autocast, _compiled, _wrapped, _copies, _bad_values,
)  # fmt: skip


def check_cache_method(method: CacheMethod) -> None:
    """Run every contract check of a KV-cache method.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in CACHE_METHOD_CHECKS:
        check(method)
