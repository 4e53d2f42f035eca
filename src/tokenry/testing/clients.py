"""What clients put around a model before a method is attached to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import nn


def _in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


COMPILED: dict[str, Callable[[Any], Any]] = {
    "torch.compile(model)": partial(torch.compile, backend="eager"),
    "model.compile()": _in_place,
    "model.forward = torch.compile(model.forward)": _forward,
}
"""The ways to compile a model, by how they are written."""


def one_way(subject: object) -> tuple[str, Callable[[Any], Any]]:
    """One of `COMPILED`, by the subject's own text: compiling takes long, and many subjects together take every way."""
    how = sorted(COMPILED)[crc32(repr(subject).encode()) % len(COMPILED)]
    return how, COMPILED[how]


class LikePeft(nn.Module):
    """What PEFT puts around a model, without PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def get_base_model(self) -> Any:
        """The model inside."""
        return self.base_model["model"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        return self.get_base_model()(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own generate."""
        return self.get_base_model().generate(*args, **kwargs)
