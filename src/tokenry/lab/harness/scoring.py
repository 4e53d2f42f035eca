"""Log-likelihood of continuations after a compressed context: it is run once, each continuation on a copy of its cache."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.hosts.cache import compress_cache
from tokenry.hosts.decoder import text_model
from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning.kv_method import CacheMethod


class Scored(NamedTuple):
    """Log-likelihood of one continuation in nats (the sum over its tokens), and whether greedy decoding would give it."""

    log_likelihood: float
    greedy: bool


class ScoredBatch(NamedTuple):
    """Per context the `Scored` of its continuations; bytes of the cache after compression, and without it."""

    scores: list[list[Scored]]
    cache_bytes: int
    cache_bytes_full: int


@torch.no_grad()
def score_continuations(
    model: nn.Module,
    method: CacheMethod,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    dtype: torch.dtype = torch.float32,
) -> ScoredBatch:
    """Score the `continuations[i]` of every `contexts[i]` under `method`, all contexts in one left-padded batch.

    The logits of a prompt come before its cache is compressed. The last token of each context is therefore kept back and run
    with the continuation, so that every scored token reads the compressed cache. A continuation of several tokens is run in
    one pass: it sees itself whole, and nothing is evicted within it.

    Args:
        model: a causal language model that `method` can be attached to, with nothing attached.
        method: a KV-cache method.
        contexts: token ids, at least two each.
        continuations: per context the token ids of its continuations, at least one token each.
        dtype: of the softmax over the vocabulary.

    Raises:
        ValueError: a context or continuation that is too short, or not as many lists of continuations as contexts.
        UnsupportedModelError: see ``method.attach``.
    """
    _check(contexts, continuations)
    device = next(model.parameters()).device
    ids, real = _left_padded([context[:-1] for context in contexts], device)
    stems = [_by_stem(own) for own in continuations]
    scores = [[Scored(0.0, True)] * len(own) for own in continuations]
    with method.attach(model) as trace:
        out = text_model(model)(input_ids=ids, attention_mask=real, position_ids=_positions(real), use_cache=True)
    cache, rounds = cache_of(out), max(map(len, stems))
    with compress_cache(model, method, on_sliding=method.on_sliding) as session, session.hold():  # read, never cut further
        for number, row in enumerate(zip_longest(*stems, fillvalue=((), ()))):
            own = deepcopy(cache) if number + 1 < rounds else cache
            tokens = [[context[-1], *stem] for context, (stem, _) in zip(contexts, row, strict=True)]
            odds = torch.log_softmax(_logits(model, own, tokens, real), dim=-1, dtype=dtype)
            for i, (stem, members) in enumerate(row):
                for place in members:
                    scores[i][place] = _score(odds[i, : len(stem) + 1], continuations[i][place])
    return ScoredBatch(scores, trace.facts["cache_bytes"], trace.facts["cache_bytes_full"])


def _check(contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]) -> None:
    if len(contexts) != len(continuations) or not contexts:
        raise ValueError(
            f"contexts and continuations must be as many, at least 1, got {len(contexts)} and {len(continuations)}"
        )
    for i, (context, own) in enumerate(zip(contexts, continuations, strict=True)):
        if len(context) < 2:
            raise ValueError(f"contexts must have at least 2 tokens each, got {len(context)} in context {i}")
        if not own or min(map(len, own)) < 1:
            raise ValueError(f"continuations must be at least 1 per context, of at least 1 token, got {own} for context {i}")


def _by_stem(continuations: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """(all tokens but the last, places) of the continuations: one pass serves those that differ in the last token only."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, own in enumerate(continuations):
        groups.setdefault(tuple(own[:-1]), []).append(place)
    return list(groups.items())


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [B,T] of left-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    missing = torch.tensor([width - len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) >= missing[:, None]).long()


def _positions(real: Tensor) -> Tensor:
    return (real.cumsum(dim=1) - 1).clamp(min=0)


def _logits(model: nn.Module, cache: Any, rows: Sequence[Sequence[int]], real: Tensor) -> Tensor:
    """Logits [B,L,V] of `rows` after `cache`; right-padded: what comes later in a row is seen by nothing before it."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=real.device)
    mask = nn.functional.pad(real, (0, width), value=1)
    places = real.sum(dim=1, keepdim=True) + torch.arange(width, device=real.device)
    return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **as_argument(cache)).logits


def _score(odds: Tensor, continuation: Sequence[int]) -> Scored:
    target = torch.tensor(continuation, device=odds.device)
    total = odds.gather(1, target[:, None]).sum()
    return Scored(float(total), bool((odds.argmax(dim=-1) == target).all()))
