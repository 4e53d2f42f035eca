"""EnCodec, DAC and Mimi of transformers behind one layout: latents [B,D,T], codes [B,T,M], whole frames, no hidden state.

Waves come in as whole frames (the caller pads with zeros), so that no layer adds padding of its own at the end: a causal model
then gives a row the same codes whatever follows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.stages import Chain, Convolution, Elementwise, Residual, Stage
from tokenry.hosts.release import as_argument, cache_of

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


def host_of(model: nn.Module, *, domain: tuple[str, ...] = ()) -> AudioHost:
    """The host of a transformers codec.

    Raises:
        UnsupportedModelError: not one of EncodecModel, DacModel, MimiModel.
    """
    from transformers import DacModel, EncodecModel, MimiModel

    from tokenry.hosts.audio.encodec import EncodecHost

    kinds: tuple[tuple[type, Callable[..., AudioHost]], ...] = (
        (EncodecModel, EncodecHost),
        (DacModel, DacHost),
        (MimiModel, MimiHost),
    )
    for kind, host in kinds:
        if isinstance(model, kind):
            return host(model, domain)
    raise UnsupportedModelError.of(model, SUPPORTED)


class DacHost(AudioHost):
    """DAC: zero-padded convolutions that look ahead, residual books in a space of 8 dimensions."""

    def __init__(self, model: nn.Module, domain: tuple[str, ...] = ()) -> None:
        config: Any = model.config
        sizes = (config.codebook_size,) * config.n_codebooks
        super().__init__(model, CodecLayout(config.sampling_rate, int(config.hop_length), sizes, domain=domain))

    def latents(self, wave: Tensor) -> Tensor:
        """The encoder's output."""
        return self.model.encoder(wave)

    def quantize(self, latents: Tensor, n_codebooks: int) -> Tensor:
        """Nearest codes, level by level."""
        return self.model.quantizer(latents, n_codebooks)[1].transpose(1, 2)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the projected codes."""
        return self.model.quantizer.from_codes(codes.transpose(1, 2))[0]

    def synthesize(self, embedded: Tensor) -> Tensor:
        """The decoder. With an odd stride it makes a few samples less than the frames hold."""
        return self.model.decoder(embedded)

    def stages(self) -> Stage:
        """Every convolution with its own look-ahead."""
        encoder = self.model.encoder
        parts: list[Stage] = [_same(encoder.conv1)]
        for block in encoder.block:
            parts += [_dac_unit(unit) for unit in (block.res_unit1, block.res_unit2, block.res_unit3)]
            parts += [Elementwise(block.snake1), _same(block.conv1)]
        return Chain([*parts, Elementwise(encoder.snake1), _same(encoder.conv2)])


class MimiHost(AudioHost):
    """Mimi: causal convolutions, a causal transformer with a window, semantic and acoustic books in parallel."""

    settle = 1

    def __init__(self, model: nn.Module, domain: tuple[str, ...] = ()) -> None:
        config: Any = model.config
        if model.encoder is None or model.decoder is None:
            raise UnsupportedModelError.of(model, SUPPORTED, reason="its encoder or decoder was dropped")
        hop = 1
        for ratio in config.upsampling_ratios:
            hop *= int(ratio)
        encoder: Any = model.encoder
        layout = CodecLayout(
            config.sampling_rate, hop * int(encoder.downsample.stride), (config.codebook_size,) * config.num_quantizers,
            channels=config.audio_channels, min_codebooks=max(1, config.num_semantic_quantizers),
            streaming=bool(config.use_causal_conv), domain=domain,
        )  # fmt: skip
        super().__init__(model, layout)
        if not config.use_causal_conv:
            self.settle = None

    def latents(self, wave: Tensor) -> Tensor:
        """The encoder's output, after the transformer and the last down-sampling."""
        return self.model.encoder(wave, use_streaming=False).latents

    def quantize(self, latents: Tensor, n_codebooks: int) -> Tensor:
        """Semantic books first, then the acoustic ones."""
        return self.model.quantizer.encode(latents, n_codebooks).permute(1, 2, 0)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of both branches."""
        return self.model.quantizer.decode(codes.transpose(1, 2))

    def synthesize(self, embedded: Tensor) -> Tensor:
        """Up-sampling, transformer, decoder."""
        return self.model.decoder(embedded).audio_values

    def stages(self) -> Stage:
        """The model's own streaming mode, fed whole frames; its caches live here, not in the model."""
        if not self.layout.streaming or self.model.config.pad_mode not in ("constant", "replicate"):
            raise ValueError("this Mimi cannot stream: its convolutions are not causal or reflect at the start")
        return _MimiStage(self.model.encoder, self.layout.hop_length)


class _MimiStage(Stage):
    def __init__(self, encoder: Any, hop: int) -> None:
        self.encoder, self.hop = encoder, hop
        self.kept: Tensor | None = None
        self.past: Any = None
        self.padding: Any = None

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Latents of the frames that are whole by now."""
        data = x if self.kept is None else torch.cat([self.kept, x], dim=-1)
        size = data.shape[-1] // self.hop * self.hop
        self.kept = data[..., size:]
        if size == 0:
            return data.new_zeros(len(data), self.encoder.config.latent_dim, 0)
        past = as_argument(self.past)
        made = self.encoder(data[..., :size], padding_cache=self.padding, use_streaming=True, **past)
        self.past, self.padding = cache_of(made), made.padding_cache
        return made.latents


def fit(wave: Tensor, size: int) -> Tensor:
    """Wave cut, or filled with zeros, to `size` samples."""
    return F.pad(wave, (0, size - wave.shape[-1]))


def _dac_unit(unit: Any) -> Stage:
    inner = [Elementwise(unit.snake1), _same(unit.conv1), Elementwise(unit.snake2), _same(unit.conv2)]
    return Residual(Chain(inner), Chain([]))


def _same(conv: nn.Conv1d) -> Convolution:
    """A torch convolution that pads both sides by its own `padding`."""
    side = int(conv.padding[0])
    return Convolution(conv, side, side)
