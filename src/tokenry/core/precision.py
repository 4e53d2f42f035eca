"""Numeric cores outside autocast: what chooses tokens computes in the precision of its own tensors, never in autocast's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def no_autocast() -> Any:
    """The block runs outside ``torch.autocast``, on whatever device it is on.

    A difference of two nearly equal projections, a softmax mask at the lowest float32 or a cosine near 1 means something
    else in bfloat16, so a method would silently choose other tokens under autocast than without it.
    """
    active = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    entered = [torch.autocast(device, enabled=False) for device in active]
    for context in entered:
        context.__enter__()
    try:
        yield
    finally:
        for context in reversed(entered):
            context.__exit__(None, None, None)


def outside_autocast(function: _Function) -> _Function:
    """A function whose body runs in `no_autocast`."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(torch.is_autocast_enabled(device) for device in _DEVICES):
            return function(*args, **kwargs)
        with no_autocast():
            return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]
