"""EnCodec, DAC and Mimi of transformers behind one layout: latents [B,D,T], codes [B,T,M], whole frames, no hidden state.

Waves come in as whole frames (the caller pads with zeros), so that no layer adds padding of its own at the end: a causal model
then gives a row the same codes whatever follows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.stages import Stage

SUPPORTED = ("EncodecModel", "DacModel", "MimiModel")


class AudioHost(ABC):
    """One model behind the common layout.

    Attributes:
        model: the transformers model; never changed.
        layout: its rates and books.
        settle: frames from which on a row is not touched by what follows it in a padded batch; None = it always is.
        start: samples that a stream must hold before its first piece goes in.
    """

    settle: int | None = None
    start: int = 1

    def __init__(self, model: nn.Module, layout: CodecLayout) -> None:
        self.model: Any = model
        self.layout = layout

    @abstractmethod
    def latents(self, wave: Tensor) -> Tensor:
        """Wave [B,C,S] of whole frames -> latents [B,D,T]."""

    @abstractmethod
    def quantize(self, latents: Tensor, n_codebooks: int) -> Tensor:
        """Latents [B,D,T] -> codes int64 [B,T,n_codebooks]."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B,T,m] -> what the decoder reads, [B,D,T]."""

    @abstractmethod
    def synthesize(self, embedded: Tensor) -> Tensor:
        """What `embed` gives, [B,D,T] -> wave [B,C,about T * hop]."""

    @abstractmethod
    def stages(self) -> Stage:
        """The encoder piece by piece: wave [B,C,n] -> latents [B,D,t].

        Raises:
            ValueError: the encoder cannot be cut in time.
        """

    def encode(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, Tensor | None]:
        """Codes [B,T,n_codebooks] of whole frames, and the loudness of its chunks where the model normalises it."""
        return self.quantize(self.latents(wave), n_codebooks), None

    def decode(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Wave [B,C,T * hop] of codes [B,T,m]."""
        made = self.synthesize(self.embed(codes))
        return fit(made, self.layout.samples(codes.shape[1]))


def fit(wave: Tensor, size: int) -> Tensor:
    """Wave cut, or filled with zeros, to `size` samples."""
    return F.pad(wave, (0, size - wave.shape[-1]))
