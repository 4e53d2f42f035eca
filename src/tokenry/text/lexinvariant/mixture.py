"""The permutation-averaged language model: exact Bayesian deciphering of a substitution cipher (sections 2 and 3 of the paper).

From a source p over V symbols, ``p'(x_1..x_n) = mean over keys s of p(s(x_1)..s(x_n))``. Then

    p'(x_{n+1} | x_1..x_n) = sum over s of posterior(s | x_1..x_n) * p(s(x_{n+1}) | s(x_1)..s(x_n)),
    posterior(s | x_1..x_n) proportional to p(s(x_1)..s(x_n)).

It is the best that a lexinvariant model can do on text whose symbols were permuted at random: a bound for trained models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_shape
from tokenry.text.lexinvariant.tasks import MarkovChain, random_keys, stationary

Source = Callable[[Tensor], Tensor]
EXACT_LIMIT = 7


@dataclass(frozen=True, eq=False)
class PermutationMixture:
    """The averaged model along given sequences; everything in float64.

    Attributes:
        log_probs: [B,T] log p'(x_t | x_<t) of the observed tokens; their sum is log p'(x).
        conditionals: [B,T+1,V] log p'(v | x_<t); row T is the prediction after the last token.
        posterior: [B,T+1,K] log posterior of each key after t tokens; row 0 is uniform.
        keys: [K,V]; key s maps symbol v to ``keys[k, v]``.
    """

    log_probs: Tensor
    conditionals: Tensor
    posterior: Tensor
    keys: Tensor


def all_keys(vocab_size: int) -> Tensor:
    """Every permutation of V symbols: [V!, V]; the identity is first.

    Raises:
        ValueError: V above 7 (5,040 keys).
    """
    check_int("vocab_size", vocab_size, 1)
    if vocab_size > EXACT_LIMIT:
        raise ValueError(
            f"vocab_size must be at most {EXACT_LIMIT} for all {vocab_size}! keys, got {vocab_size}; give samples to draw keys"
        )
    return torch.tensor(list(itertools.permutations(range(vocab_size))))


def permutation_mixture(
    source: Source | Tensor | MarkovChain,
    tokens: Tensor,
    *,
    vocab_size: int | None = None,
    initial: Tensor | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 65536,
) -> PermutationMixture:
    """Average a source language model over all keys (or over sampled ones), in log space.

    Args:
        source: a `MarkovChain`; a transition matrix [V,V]; or a callable that takes tokens [N,T] and returns log
            probabilities [N,T+1,V], row t the law of token t given the tokens before it.
        tokens: [B,T] or [T] long; T may be 0.
        vocab_size: V; needed when `source` is a callable.
        initial: [V] law of the first symbol for a transition matrix; default its stationary law.
        samples: draw that many keys uniformly (with repetition, the mean over them) in place of all V! of them.
        generator: source of the sampled keys.
        chunk: sequences times keys handed to the source at once.

    Raises:
        TypeError, ValueError: V above 7 without `samples`; tokens out of range; a source of another shape.
    """
    law, size = _source(source, vocab_size, initial)
    tokens = tokens[None] if tokens.dim() == 1 else tokens
    batch = check_shape("tokens", tokens, "B T")["B"]
    if tokens.is_floating_point():
        raise TypeError(f"tokens must be an integer tensor, got {tokens.dtype}")
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
        raise ValueError(f"tokens must be in 0..{size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    check_int("chunk", chunk, 1)
    tokens = tokens.long()
    drawn = 0 if samples is None else check_int("samples", samples, 1)
    keys = random_keys(drawn, size, generator=generator) if drawn else all_keys(size)
    rows = max(1, chunk // len(keys))
    parts = [_average(law, tokens[i : i + rows], keys, size) for i in range(0, batch, rows)]
    log_probs, conditionals, posterior = (torch.cat(part) for part in zip(*parts, strict=True))
    return PermutationMixture(log_probs, conditionals, posterior, keys)


def _source(source: Source | Tensor | MarkovChain, vocab_size: int | None, initial: Tensor | None) -> tuple[Source, int]:
    if isinstance(source, Tensor):
        check_shape("source", source, "V V")
        rows = source.double()
        source = MarkovChain(rows, stationary(rows) if initial is None else initial.double())
    if isinstance(source, MarkovChain):
        size = len(source.initial)
        if vocab_size not in (None, size):
            raise ValueError(f"vocab_size must be that of the source ({size}), got {vocab_size}")
        return MarkovChain(source.transition.double(), source.initial.double()).next_log_probs, size
    if not callable(source):
        raise TypeError(f"source must be a callable, a MarkovChain or a transition matrix, got {type(source).__name__}")
    if vocab_size is None:
        raise ValueError("vocab_size must be given when source is a callable")
    return source, check_int("vocab_size", vocab_size, 1)


def _average(law: Source, tokens: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = tokens.shape
    count = len(keys)
    written = keys[:, tokens]  # [K,B,T]: s(x)
    found = law(written.reshape(count * batch, length)).double()
    if list(found.shape) != [count * batch, length + 1, size]:
        raise ValueError(f"source must return [N, T+1, V] = {[count * batch, length + 1, size]}, got {list(found.shape)}")
    found = found.reshape(count, batch, length + 1, size)
    # log p(s(v) | s(x_<t)) of every original symbol v
    renamed = found.gather(-1, keys[:, None, None, :].expand(-1, batch, length + 1, -1))
    taken = renamed[:, :, :-1].gather(-1, tokens[None, :, :, None].expand(count, -1, -1, 1))[..., 0]
    prefix = torch.cat([taken.new_zeros(count, batch, 1), taken.cumsum(-1)], dim=-1) - math.log(count)
    # a prefix that no key allows has no posterior: it stays uniform there
    best = torch.logsumexp(prefix, dim=0)
    posterior = torch.where(torch.isfinite(best), prefix - best, torch.full_like(prefix, -math.log(count)))
    conditionals = torch.logsumexp(posterior[..., None] + renamed, dim=0)
    log_probs = conditionals[:, :-1].gather(-1, tokens[..., None])[..., 0]
    return log_probs, conditionals, posterior.permute(1, 2, 0)
