"""DAC behind the common layout."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenry.hosts.audio.base import AudioHost
from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.stages import Chain, Convolution, Elementwise, Residual, Stage


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


def _dac_unit(unit: Any) -> Stage:
    inner = [Elementwise(unit.snake1), _same(unit.conv1), Elementwise(unit.snake2), _same(unit.conv2)]
    return Residual(Chain(inner), Chain([]))


def _same(conv: nn.Conv1d) -> Convolution:
    """A torch convolution that pads both sides by its own `padding`."""
    side = int(conv.padding[0])
    return Convolution(conv, side, side)
