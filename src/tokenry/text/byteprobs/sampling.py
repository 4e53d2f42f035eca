"""Drawing one symbol from a byte distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_range

_FLOOR = 1e-7
_GREEDY_BELOW = 0.1


def check_sampling(temperature: float, top_p: float) -> None:
    """Refuse a negative temperature and a nucleus outside (0, 1].

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """
    check_range("temperature", temperature, 0.0, float("inf"), high_open=True)
    check_range("top_p", top_p, 0.0, 1.0, low_open=True)


def tempered(probs: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The distribution that is drawn from, [S]: p <- (p + 1e-7)^(1/T) renormalised, then the nucleus (released code).

    Temperature works on probabilities, below 0.1 everything goes to the first largest. The nucleus drops symbols whose
    cumulative mass before them exceeds `top_p`. A temperature of exactly 1 leaves the distribution as it is.

    Raises:
        ValueError: `temperature` is negative or `top_p` outside (0, 1].
    """
    check_sampling(temperature, top_p)
    probs = probs.double()
    if temperature < _GREEDY_BELOW:
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


def sample_symbol(
    probs: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> int:
    """Index of a symbol drawn from `probs` [S] after temperature and nucleus."""
    final = tempered(probs, temperature, top_p)
    if temperature < _GREEDY_BELOW:
        return int(final.argmax())
    return int(torch.multinomial(final.cpu(), 1, generator=generator))


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
    for _ in range(max_bytes):
        symbol = sample_symbol(state.next_probs(), temperature=temperature, top_p=top_p, generator=generator)
        if symbol >= 256:
            return
        state.advance(symbol)
        yield symbol
