"""Argument checks with one style of message: the argument, its value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_int(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int if it is an integer (numpy's too, not a bool) within the closed range, else raise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    number = int(value)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be {_interval(minimum, maximum, False, False)}, got {value}")
    return number


def check_range(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return `value` as a float if it is a finite number (not a bool) inside the range, else raise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    number = float(value)
    below = low is not None and (number < low or (low_open and number == low))
    above = high is not None and (number > high or (high_open and number == high))
    if not math.isfinite(number) or below or above:
        raise ValueError(f"{name} must be {_interval(low, high, low_open, high_open)}, got {value}")
    return number


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return `value` if it is one of `choices`, else raise."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(repr(c) for c in choices)}, got {value!r}")
    return value


def check_tensor(name: str, value: Any) -> Tensor:
    """Return `value` if it is a tensor, else raise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def check_shape(name: str, x: Any, pattern: str, **sizes: int) -> dict[str, int]:
    """Match the shape of `x` against names such as ``"B N D"`` and return their sizes.

    A name given in `sizes` must have that size; a number in the pattern must match; a name that appears twice must agree.
    """
    check_tensor(name, x)
    axes = pattern.split()
    if x.dim() != len(axes):
        raise ValueError(f"{name} must have shape [{', '.join(axes)}], got {list(x.shape)}")
    found = dict(sizes)
    for axis, size in zip(axes, x.shape, strict=True):
        expected = int(axis) if axis.isdigit() else found.setdefault(axis, size)
        if expected != size:
            wanted = ", ".join(str(found.get(a, a)) for a in axes)
            raise ValueError(f"{name} must have shape [{', '.join(axes)}] = [{wanted}], got {list(x.shape)}")
    return found


def check_finite(name: str, x: Tensor) -> Tensor:
    """Return `x` if every entry is finite, else raise with the first bad position."""
    if not x.is_floating_point():
        return x
    # A finite sum proves finite entries and costs no copy; only an infinite one (or an overflow) is looked into.
    total = x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(total)) and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).nonzero()
        position = tuple(bad[0].tolist())
        raise ValueError(f"{name} must be finite, got {x[position].item()} at {list(position)} ({len(bad)} in all)")
    return x


def check_float(name: str, x: Any) -> Tensor:
    """Return `x` if it is a floating-point tensor, else raise."""
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")
    return x


def check_mask(name: str, mask: Any, shape: Sequence[int]) -> Tensor:
    """Return `mask` if it is a bool tensor of exactly `shape`, else raise."""
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor (True = real token), got {mask.dtype}")
    if list(mask.shape) != list(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(mask.shape)}")
    return mask


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise if the two tensors are on different devices."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name} ({other.device}), got {x.device}")


def _interval(low: float | None, high: float | None, low_open: bool, high_open: bool) -> str:
    if low is None and high is None:
        return "a finite number"
    if high is None:
        return f"{'>' if low_open else '>='} {low}"
    if low is None:
        return f"{'<' if high_open else '<='} {high}"
    return f"in {'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
