"""Codes of a batch of clips, and what every part of a codec asks of its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_int
from tokenry.hosts.audio import CodecLayout

PADDING = -1


@dataclass(frozen=True, eq=False)
class AudioCodes:
    """Codes of a batch of clips; unpacks as ``(codes, lengths)``.

    Attributes:
        codes: int64 [B,T,M], -1 beyond the frames of a row.
        lengths: int64 [B], frames of every row.
        samples: int64 [B], samples of every row at the codec's rate: what `decode` trims to.
        scales: loudness per chunk [B,chunks] of codecs that normalise it, else None (side information that the bits leave out).
    """

    codes: Tensor
    lengths: Tensor
    samples: Tensor
    scales: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.codes, self.lengths))

    @property
    def mask(self) -> Tensor:
        """Which frames are real, bool [B,T]."""
        return torch.arange(self.codes.shape[1], device=self.codes.device) < self.lengths[:, None]

    def prefix(self, n_codebooks: int) -> AudioCodes:
        """The first books only: a coarser version of the same clips."""
        check_int("n_codebooks", n_codebooks, 1, self.codes.shape[2])
        return replace(self, codes=self.codes[..., :n_codebooks])


class RowEncoder(nn.Module, ABC):
    """A module with a codec's layout that encodes rows of equal length: what a stream needs of its codec."""

    layout: CodecLayout

    @abstractmethod
    def encode_rows(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, Tensor | None]:
        """Wave [B,C,S] of whole frames without padding -> codes int64 [B,T,n_codebooks], loudness [B,chunks] or None."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode is put back after it."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def float_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the module's floating-point parameters, the default dtype where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())


def check_floating(wave: Tensor) -> None:
    """Raises TypeError: `wave` holds integers."""
    if not wave.is_floating_point():
        raise TypeError(f"wave must be floating point in -1..1, got {wave.dtype}; divide int16 samples by 32768")


def checked_lengths(name: str, lengths: Tensor | Sequence[int], batch: int, low: int, high: int) -> list[int]:
    """One whole number in [low, high] per row."""
    values = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    if isinstance(lengths, Tensor) and (lengths.dim() != 1 or lengths.is_floating_point()):
        raise TypeError(f"{name} must be whole numbers [B], got {lengths.dtype} {list(lengths.shape)}")
    if len(values) != batch:
        raise ValueError(f"{name} must have one entry per row ({batch}), got {len(values)}")
    return [check_int(f"{name}[{row}]", value, low, high) for row, value in enumerate(values)]
