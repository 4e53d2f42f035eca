"""Sequences whose symbols mean nothing by themselves: Markov chains, LookUp and Permutation (synthetic tasks of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import check_finite, check_int, check_range, check_shape


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """A first-order chain: a source language model whose probabilities are known.

    Attributes:
        transition: [V,V] rows of next-symbol probabilities.
        initial: [V] law of the first symbol.

    Raises:
        ValueError: rows that are not distributions.
    """

    transition: Tensor
    initial: Tensor

    def __post_init__(self) -> None:
        size = check_shape("transition", self.transition, "V V")
        check_shape("initial", self.initial, "V", **size)
        for name, rows in (("transition", self.transition), ("initial", self.initial)):
            check_finite(name, rows)
            if bool((rows < 0).any()) or not torch.allclose(rows.sum(-1), torch.ones((), dtype=rows.dtype), atol=1e-5):
                raise ValueError(f"{name} must hold probabilities that sum to 1")

    @classmethod
    def random(cls, vocab_size: int, *, sharpness: float = 2.0, seed: int = 0) -> MarkovChain:
        """Rows softmax(sharpness * N(0, 1)); the first symbol has the stationary law. Float64."""
        check_int("vocab_size", vocab_size, 2)
        check_range("sharpness", sharpness, 0.0)
        generator = torch.Generator().manual_seed(seed)
        rows = (sharpness * torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)).softmax(-1)
        return cls(rows, stationary(rows))

    @property
    def entropy_rate(self) -> float:
        """Nats per symbol once the chain is known, under the stationary law."""
        rows = -(self.transition * self.transition.clamp(min=1e-300).log()).sum(-1)
        return float(stationary(self.transition) @ rows)

    @property
    def unigram_entropy(self) -> float:
        """Nats per symbol of the stationary law."""
        law = stationary(self.transition)
        return float(-(law * law.clamp(min=1e-300).log()).sum())

    def sample(self, count: int, length: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Sequences [count, length] of the chain."""
        check_int("count", count, 1)
        check_int("length", length, 1)
        current = torch.multinomial(self.initial.float(), count, replacement=True, generator=generator)
        out = [current]
        rows = self.transition.float()
        for _ in range(length - 1):
            current = torch.multinomial(rows[current], 1, generator=generator)[:, 0]
            out.append(current)
        return torch.stack(out, dim=1)

    def next_log_probs(self, tokens: Tensor) -> Tensor:
        """Tokens [N,T] -> [N,T+1,V]: row t is the log law of token t given the tokens before it."""
        start = self.initial.clamp(min=1e-300).log().expand(len(tokens), 1, -1)
        return torch.cat([start, self.transition.clamp(min=1e-300).log()[tokens]], dim=1)


def stationary(transition: Tensor) -> Tensor:
    """Stationary law of the chain [V,V]: [V] (squared transitions until they settle)."""
    power = transition.double()
    for _ in range(40):
        power = power @ power
        power = power / power.sum(-1, keepdim=True)
    return power.mean(0).to(transition.dtype)


def random_keys(count: int, vocab_size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Substitution keys [count, V]: token v is written as ``key[v]``."""
    return torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(count)])


def relabel(tokens: Tensor, key: Tensor) -> Tensor:
    """Write tokens [B,T] with a key [V], or with one of [B,V] each; -100 stays."""
    marked = tokens < 0
    keys = key.expand(len(tokens), -1)
    return keys.gather(1, tokens.clamp(min=0)).masked_fill(marked, -100)


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Sequences and what to predict: tokens [B,T]; labels [B,T], -100 where nothing is asked; first answer position."""

    tokens: Tensor
    labels: Tensor
    answer_from: int

    def exact(self, logits: Tensor) -> Tensor:
        """Whether arg-max gives every asked token of the answer, from logits [B,T,V] of the whole sequence: bool [B]."""
        target = self.labels[:, self.answer_from :]
        guess = logits[:, self.answer_from - 1 : -1].argmax(-1)
        return ((guess == target) | (target == -100)).all(dim=1)


def _distinct(rows: int, count: int, symbols: Tensor, generator: torch.Generator | None) -> Tensor:
    """Distinct symbols for each row: [rows, count]."""
    return symbols[torch.rand(rows, len(symbols), generator=generator).argsort(dim=1)[:, :count]]


def lookup_task(
    batch: int,
    pairs: int,
    symbols: Sequence[int] | Tensor,
    *,
    queries: int = 1,
    generator: torch.Generator | None = None,
) -> TaskBatch:
    """LookUp: `pairs` key-value pairs ``k1 v1 k2 v2 ...``, then keys again; each must be answered with its value.

    The keys of a sequence are distinct, its values are drawn with repetition from the same symbols. Only answers are labelled.
    With ``queries=1`` this is the task of the paper; more of them (distinct keys) give more signal per sequence in training.

    Raises:
        ValueError: fewer symbols than pairs, or more queries than pairs.
    """
    pool = torch.as_tensor(symbols, dtype=torch.long)
    check_int("batch", batch, 1)
    check_int("pairs", pairs, 1, len(pool))
    check_int("queries", queries, 1, pairs)
    keys = _distinct(batch, pairs, pool, generator)
    values = pool[torch.randint(len(pool), (batch, pairs), generator=generator)]
    asked = torch.rand(batch, pairs, generator=generator).argsort(dim=1)[:, :queries]
    shown = torch.stack([keys, values], dim=2).flatten(1)
    again = torch.stack([keys.gather(1, asked), values.gather(1, asked)], dim=2).flatten(1)
    tokens = torch.cat([shown, again], dim=1)
    labels = torch.full_like(tokens, -100)
    labels[:, 2 * pairs + 1 :: 2] = tokens[:, 2 * pairs + 1 :: 2]
    return TaskBatch(tokens, labels, 2 * pairs + 1)


def permutation_task(
    batch: int,
    examples: int,
    width: int,
    symbols: Sequence[int] | Tensor,
    *,
    generator: torch.Generator | None = None,
) -> TaskBatch:
    """Permutation: `examples` tuples of `width` symbols, each followed by itself in a fixed order; then one more tuple.

    The order is drawn anew for every sequence and is never the identity; the answer is the last tuple in that order.

    Raises:
        ValueError: fewer symbols than `width`, or `width` below 2.
    """
    pool = torch.as_tensor(symbols, dtype=torch.long)
    check_int("batch", batch, 1)
    check_int("examples", examples, 0)
    check_int("width", width, 2, len(pool))
    order = torch.rand(batch, width, generator=generator).argsort(dim=1)
    identity = (order == torch.arange(width)).all(dim=1, keepdim=True)
    order = torch.where(identity, order.roll(1, dims=1), order)
    tuples = [_distinct(batch, width, pool, generator) for _ in range(examples + 1)]
    tokens = torch.cat([part for t in tuples for part in (t, t.gather(1, order))], dim=1)
    labels = torch.full_like(tokens, -100)
    labels[:, -width:] = tokens[:, -width:]
    return TaskBatch(tokens, labels, tokens.shape[1] - width)
