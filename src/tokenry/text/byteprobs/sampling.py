"""Drawing one symbol from a byte distribution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_range
from tokenry.hosts.path_runs import Steps, drive
from tokenry.hosts.paths import WindowFullError

_FLOOR = 1e-7
STOPPED = 2**31
"""A symbol behind all others: no more bytes can be made."""
_LEFT = 0.02  # share of the mass that may wait after a run
_GREEDY_BELOW = 0.1


def check_sampling(temperature: float, top_p: float) -> None:
    """Refuse a negative temperature and a nucleus outside (0, 1].

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    check_range("temperature", temperature, 0.0, float("inf"), high_open=True)
    check_range("top_p", top_p, 0.0, 1.0, low_open=True)


def is_greedy(temperature: float) -> bool:
    """Whether `temperature` is so low that the most probable symbol is always taken (released code)."""
    return temperature < _GREEDY_BELOW


def tempered(probs: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The distribution that is drawn from, [S]: p <- (p + 1e-7)^(1/T) renormalised, then the nucleus (released code).

    Temperature works on probabilities, below 0.1 everything goes to the first largest. The nucleus drops symbols whose
    cumulative mass before them exceeds `top_p`. A temperature of exactly 1 leaves the distribution as it is.

    Raises:
        ValueError: `temperature` is negative or `top_p` outside (0, 1].
    """
    check_sampling(temperature, top_p)
    probs = probs.double()
    if is_greedy(temperature):
        return torch.nn.functional.one_hot(probs.argmax(), len(probs)).to(probs)
    if temperature != 1.0:
        probs = (probs + _FLOOR) ** (1.0 / temperature)
        probs = probs / probs.sum()
    if top_p < 1.0:
        ordered, order = probs.sort(descending=True, stable=True)
        dropped = ordered.cumsum(0) - ordered > top_p
        probs = probs.index_fill(0, order[dropped], 0.0)
        probs = probs / probs.sum()
    return probs


def _possible(probs: Tensor, temperature: float, top_p: float) -> Tensor:
    """`tempered` without the impossible, which its floor lets through; not normalised again."""
    return tempered(probs, temperature, top_p) * (probs > 0)


def sample_symbol(
    probs: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> int:
    """Index of a symbol drawn from `probs` [S] after temperature and nucleus."""
    final = _possible(probs, temperature, top_p)
    if is_greedy(temperature):
        return int(final.argmax())
    return int(torch.multinomial(final.cpu(), 1, generator=generator))


def choose(state: Any, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None) -> Steps[int]:
    """The next symbol of a `ByteState`, distributed as `sample_symbol` of all of it would be, with as few runs as will do.

    Greedy: no tip is run while the lead of the best symbol exceeds all that waits. At temperature 1 a cover at hand or a tip is
    drawn by its mass, and a tip is run when it is drawn: rejection, so the draw is exact. At other settings the best symbol is
    taken when a uniform number falls below what is sure to be its share, and all is run otherwise.

    Raises:
        ValueError: the bytes so far have probability zero under the model.
    """
    if is_greedy(temperature):
        return (yield from _greedy(state))
    if temperature == 1.0 and top_p == 1.0:
        return (yield from draw(state, generator))
    known, unknown = state.known()
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    first = int(known.argmax())
    if len(unknown) and known[first] > 0:
        share = known[first] / (known.sum() + unknown.sum())
        if uniform < _least(share, len(known) - 1, temperature):
            return first
    yield from state.settle()
    final = _possible(state.next_probs(), temperature, top_p).numpy()
    final /= final.sum()
    if uniform < final[first]:
        return first
    left, final[first] = uniform - final[first], 0.0
    return _place(final, left)


def _least(share: float, others: int, temperature: float) -> float:
    """Least probability after temperature of a symbol of probability `share` or more, whatever the others are."""
    power, left = 1.0 / temperature, 1.0 - share
    if power >= 1.0:  # most when one of the others has all the rest
        against = (left + _FLOOR) ** power + (others - 1) * _FLOOR**power
    else:
        against = others * (left / others + _FLOOR) ** power
    own = (share + _FLOOR) ** power
    return own / (own + against)


def _place(weights: np.ndarray, at: float) -> int:
    """Index whose part of the cumulative `weights` holds `at`; the last one of positive weight for a number at the very end."""
    place = int(np.searchsorted(weights.cumsum(), at, side="right"))
    return place if place < len(weights) else int(np.flatnonzero(weights)[-1])


def _greedy(state: Any) -> Steps[int]:
    while True:
        known, unknown = state.known()
        second, best = np.partition(known, -2)[-2:]
        if not best and not len(unknown):
            raise state.impossible()
        if best - second > unknown.sum() or not len(unknown):
            return int(known.argmax())
        if not state.prune():
            yield from state.expand(needed(known, unknown))


def needed(known: np.ndarray, unknown: np.ndarray) -> list[int]:
    """Places of the tips to run: the heaviest, until what still waits is little beside the rest."""
    order = np.argsort(-unknown, kind="stable")
    left = unknown.sum() - unknown[order].cumsum()
    count = 1 + int(np.searchsorted(-left, -_LEFT * (known.sum() + unknown.sum())))
    return order[:count].tolist()


def draw(state: Any, generator: torch.Generator | None) -> Steps[int]:
    """A symbol drawn from the distribution of the next one, at temperature 1."""
    while True:
        known, unknown = state.known()
        total = known.sum() + unknown.sum()
        if not total > 0:
            raise state.impossible()
        at = float(torch.rand((), generator=generator, dtype=torch.float64)) * total
        if at < known.sum():
            return _place(known, at)
        place = _place(unknown, at - known.sum())
        if not state.alive(place):
            continue
        symbol = yield from _draw_behind(state, place, (at - known.sum() - unknown[:place].sum()) / unknown[place])
        if symbol is not None:
            return symbol


def _draw_behind(state: Any, place: int, at: float) -> Steps[int | None]:
    """The symbol at `at` (in [0, 1)) of the mass of a waiting tip; None where no cover has that part of it."""
    tip = state.waiting[place]
    ((adds, behind),) = yield from state.expand([place])
    if at < adds.sum():
        return _place(adds, at)
    at -= adds.sum()
    for next_tip in behind:
        mass = math.exp(next_tip.log_prob - tip.log_prob)
        if at < mass:
            where = next(i for i, waiting in enumerate(state.waiting) if waiting is next_tip)
            return (yield from _draw_behind(state, where, at / mass))
        at -= mass
    return None


def choose_or_stop(state: Any, made: int, **options: Any) -> Steps[int]:
    """The next symbol of any byte state, `STOPPED` with a warning where the model's window is full after `made` bytes.

    Raises:
        WindowFullError: the prompt alone fills it.
    """
    try:
        return (yield from state.choose(**options))
    except WindowFullError as full:
        if not made:
            raise
        warnings.warn(f"generation stopped after {made} bytes: the model's window of {full.limit} tokens is full", stacklevel=2)
        return STOPPED


def byte_stream(
    start: Callable[[], Any], max_bytes: int, temperature: float, top_p: float, generator: torch.Generator | None
) -> Iterator[int]:
    """Bytes drawn one at a time from the state that `start()` gives; ends at a special symbol or after `max_bytes`.

    Raises:
        ValueError: a negative `max_bytes` or `temperature`, `top_p` outside (0, 1]; raised before the model runs.
    """
    check_int("max_bytes", max_bytes, minimum=0)
    check_sampling(temperature, top_p)
    state = start()
    for count in range(max_bytes):
        (symbol,) = drive([choose_or_stop(state, count, temperature=temperature, top_p=top_p, generator=generator)])
        if symbol >= 256:
            return
        state.advance(symbol)
        yield symbol
