"""Convolution stacks run piece by piece: every stage keeps the samples, or the state, that its next piece needs.

The pieces' outputs, joined, are those of one pass over the whole signal (up to the rounding of another summation order), for
causal stacks and for those that look ahead: these lag by their look-ahead. Nothing is recomputed and no module is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stage(Protocol):
    """One stage of a stack. x [B,C,n] with any n >= 0 -> what is final by now [B,C',m]; `last` flushes the rest."""

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Feed a piece and return what it completes."""
        ...


class Elementwise(Stage):
    """A module that treats time steps one by one: activations, 1 x 1 convolutions."""

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        self.module = module

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """The module on the piece."""
        return self.module(x) if x.shape[-1] else _empty_like_output(self.module, x)


class Convolution(Stage):
    """A strided, dilated convolution and its padding on both sides.

    Its weight is read once, when the stage is made: a weight norm would otherwise be worked out for every small piece.

    Args:
        conv: its weight, bias, stride, dilation and groups are used, its own padding is not.
        left: padding before the first sample.
        right: padding after the last sample.
        mode: ``constant`` (zeros), ``reflect`` or ``replicate``.
    """

    def __init__(self, conv: nn.Conv1d, left: int, right: int, mode: str = "constant") -> None:
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.stride, self.dilation, self.groups = conv.stride[0], conv.dilation[0], conv.groups
        self.span = (conv.kernel_size[0] - 1) * self.dilation + 1
        self.left, self.right, self.mode = left, right, mode
        self.kept: Tensor | None = None
        self.started = False

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Convolve what has all its inputs; keep the samples that later outputs read."""
        data = x if self.kept is None else torch.cat([self.kept, x], dim=-1)
        if not self.started:
            needed = self.left + 1 if self.mode == "reflect" else 1
            if data.shape[-1] < needed and not last:
                self.kept = data
                return self._nothing(data)
            data = self._pad(data, self.left, 0)
            self.started = True
        if last:
            data = self._pad(data, 0, self.right)
        count = max(0, (data.shape[-1] - self.span) // self.stride + 1)
        self.kept = data[..., count * self.stride :]
        if count == 0:
            return self._nothing(data)
        inputs = data[..., : (count - 1) * self.stride + self.span]
        return F.conv1d(inputs, self.weight, self.bias, stride=self.stride, dilation=self.dilation, groups=self.groups)

    def _pad(self, data: Tensor, left: int, right: int) -> Tensor:
        if left == right == 0:
            return data
        return F.pad(data, (left, right), mode=self.mode)

    def _nothing(self, data: Tensor) -> Tensor:
        return data.new_zeros(len(data), len(self.weight), 0)


class Recurrence(Stage):
    """An LSTM along time with a residual connection; keeps its state."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """The LSTM from where it stopped."""
        if x.shape[-1] == 0:
            return x
        steps = x.permute(2, 0, 1)
        out, self.state = self.lstm(steps, self.state)
        return (out + steps).permute(1, 2, 0)


class Chain(Stage):
    """Stages one after another."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = list(stages)

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Through every stage."""
        for stage in self.stages:
            x = stage.push(x, last)
        return x


class Residual(Stage):
    """The sum of two paths of equal rate; the one that is ahead waits for the other."""

    def __init__(self, main: Stage, skip: Stage) -> None:
        self.main, self.skip = main, skip
        self.waiting: list[Tensor | None] = [None, None]

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """What both paths have by now, added."""
        made = []
        for path, stage in enumerate((self.main, self.skip)):
            new, old = stage.push(x, last), self.waiting[path]
            made.append(new if old is None else torch.cat([old, new], dim=-1))
        ready = min(part.shape[-1] for part in made)
        self.waiting = [part[..., ready:] for part in made]
        return made[0][..., :ready] + made[1][..., :ready]


def _empty_like_output(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return module(x.new_zeros(*x.shape[:-1], 1))[..., :0]
