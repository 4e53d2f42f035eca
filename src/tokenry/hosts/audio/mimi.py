"""Mimi behind the common layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.audio.base import SUPPORTED, AudioHost
from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.stages import Stage
from tokenry.hosts.release import as_argument, cache_of


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
