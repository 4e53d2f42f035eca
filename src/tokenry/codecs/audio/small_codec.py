"""A small convolutional codec to train: encoder, any quantizer of ``tokenry.codecs``, decoder; causal, so that it can stream.

The encoder is a stack of strided convolutions with dilated residual blocks at every rate, the decoder its mirror image
(SEANet's plan at a fraction of the width). An optional linear head reads given frame features from the codes of the first
level: the semantic distillation of SpeechTokenizer and Mimi.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenry.codecs.audio.codec import AudioCodec
from tokenry.codecs.audio.codes import float_dtype
from tokenry.codecs.audio.streaming import CodeStream
from tokenry.codecs.vq import Quantized, Quantizer, ResidualVQ
from tokenry.core.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from tokenry.core.checks import check_float, check_int
from tokenry.core.seeding import seeded
from tokenry.hosts.audio import Chain, CodecLayout, Convolution, Elementwise, Residual, Stage


@dataclass(frozen=True)
class ConvCodecConfig:
    """Sizes of the encoder and its mirror image.

    Attributes:
        sample_rate: samples per second.
        strides: of the encoder's stages, first to last; their product is the hop length.
        channels: width of the first stage.
        max_channels: the width doubles from stage to stage up to this.
        dim: width of the latents, which is the quantizer's.
        dilations: of the residual blocks of a stage.
        causal: no frame reads a later sample, and no sample a later frame.
        semantic_dim: width of the frame features to distil into the first level; None = no head.
        domain: what the codec is trained for.
        seed: of the initial weights.

    Raises:
        TypeError, ValueError: a value is out of range; the message names it.
    """

    sample_rate: int = 8000
    strides: tuple[int, ...] = (5, 4, 4)
    channels: int = 32
    max_channels: int = 128
    dim: int = 64
    dilations: tuple[int, ...] = (1, 3)
    causal: bool = True
    semantic_dim: int | None = None
    domain: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strides:
            raise ValueError("strides must name at least one stage, got ()")
        for name, values in (("strides", self.strides), ("dilations", self.dilations)):
            for value in values:
                check_int(name, value, 1)
        for name in ("sample_rate", "channels", "dim"):
            check_int(name, getattr(self, name), 1)
        check_int("max_channels", self.max_channels, self.channels)
        check_int("seed", self.seed, 0)
        if self.semantic_dim is not None:
            check_int("semantic_dim", self.semantic_dim, 1)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(min(self.channels * 2**stage, self.max_channels) for stage in range(len(self.strides)))


class _Conv(nn.Conv1d):
    """Convolution that pads with zeros: on the left alone when causal, else on both sides."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, causal: bool) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, dilation=dilation)
        total = (kernel - 1) * dilation + 1 - stride
        self.sides = (total, 0) if causal else (total - total // 2, total // 2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, self.sides))


class _Upsample(nn.ConvTranspose1d):
    """Transposed convolution of kernel 2s and stride s; what it adds is cut off on the right, or on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, causal: bool) -> None:
        super().__init__(inputs, outputs, 2 * stride, stride=stride)
        self.cut = 0 if causal else stride // 2

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        made = super().forward(input, output_size)
        return made[..., self.cut : self.cut + input.shape[-1] * self.stride[0]]


class _Block(nn.Module):
    """x + conv1(elu(conv3(elu(x))))."""

    def __init__(self, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.wide = _Conv(width, width, 3, dilation=dilation, causal=causal)
        self.narrow = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.elu(self.wide(nn.functional.elu(x))))


class ConvAutoencoder(nn.Module):
    """The codec without a quantizer: the continuous reference. `encode` [B,S] -> latents [B,T,D], `decode` back."""

    def __init__(self, config: ConvCodecConfig) -> None:
        super().__init__()
        self.config = config
        with seeded(config.seed):
            self._build(config)

    def _build(self, config: ConvCodecConfig) -> None:
        causal, widths = config.causal, config.widths
        down: list[nn.Module] = []
        for number, (stride, width) in enumerate(zip(config.strides, widths, strict=True)):
            before = widths[number - 1] if number else 1
            down += [nn.ELU()] if number else []
            down += [_Conv(before, width, 2 * stride, stride=stride, causal=causal)]
            down += [_Block(width, dilation, causal) for dilation in config.dilations]
        self.encoder = nn.Sequential(*down, nn.ELU(), _Conv(widths[-1], config.dim, 3, causal=causal))
        up: list[nn.Module] = [_Conv(config.dim, widths[-1], 3, causal=causal)]
        for number, stride in reversed(list(enumerate(config.strides))):
            up += [_Block(widths[number], dilation, causal) for dilation in config.dilations]
            up += [nn.ELU(), _Upsample(widths[number], widths[number - 1] if number else 1, stride, causal=causal)]
        self.decoder = nn.Sequential(*up)

    def encode(self, wave: Tensor) -> Tensor:
        """Wave [B,S], S a whole number of frames -> latents [B,T,D]."""
        return self.encoder(wave[:, None]).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,T,D] -> wave [B,T * hop]."""
        return self.decoder(latents.transpose(1, 2))[:, 0]

    def forward(self, wave: Tensor) -> Tensor:
        """Wave [B,S] -> wave [B,S]."""
        return self.decode(self.encode(wave))


class CodecPass(NamedTuple):
    """wave [B,S]; latents [B,T,D] before the quantizer; what the quantizer returned; read features [B,T,F] or None."""

    wave: Tensor
    latents: Tensor
    quantized: Quantized
    semantic: Tensor | None


class ConvCodec(AudioCodec):
    """Convolutional codec around one quantizer.

    Args:
        config: sizes.
        quantizer: any quantizer of ``tokenry.codecs`` of width `config.dim`; residual ones decode any prefix of their books.
        autoencoder: encoder and decoder to take (and share) instead of new ones.

    Raises:
        TypeError, ValueError: the quantizer has another width, wants channels first, or is none.
    """

    def __init__(self, config: ConvCodecConfig, quantizer: Quantizer, *, autoencoder: ConvAutoencoder | None = None) -> None:
        if not isinstance(quantizer, Quantizer):
            raise TypeError(f"quantizer must be a tokenry.codecs quantizer, got {type(quantizer).__name__}")
        if quantizer.dim != config.dim or quantizer.channels_first:
            raise ValueError(
                f"quantizer must take [..., {config.dim}] (the config's dim), got dim={quantizer.dim}, "
                f"channels_first={quantizer.channels_first}"
            )
        books = quantizer.codebook_sizes
        nested = isinstance(quantizer, ResidualVQ)
        super().__init__(
            CodecLayout(
                config.sample_rate, config.hop_length, books, min_codebooks=1 if nested else len(books),
                streaming=config.causal, domain=config.domain,
            )
        )  # fmt: skip
        self.config = config
        self.autoencoder = ConvAutoencoder(config) if autoencoder is None else autoencoder
        self.quantizer = quantizer
        self.semantic_head = None if config.semantic_dim is None else _head(quantizer.code_dim, config)

    def forward(self, wave: Tensor) -> CodecPass:
        """One training pass over wave [B,S] of whole frames."""
        check_float("wave", wave)
        if wave.dim() != 2 or wave.shape[1] % self.config.hop_length or 0 in wave.shape:
            raise ValueError(f"wave must be [B, S] with S a multiple of {self.config.hop_length}, got {list(wave.shape)}")
        latents = self.autoencoder.encode(wave)
        quantized = self.quantizer(latents)
        made = self.autoencoder.decode(quantized.codes)
        return CodecPass(made, latents, quantized, self._semantic(latents, quantized.indices))

    def _semantic(self, latents: Tensor, indices: Tensor) -> Tensor | None:
        """The head on the first level's codes; the gradient passes straight through them to the encoder."""
        if self.semantic_head is None:
            return None
        codes = self.quantizer.codes_of(indices)
        first = codes[..., 0, :] if indices.dim() == latents.dim() else codes
        inner = self.quantizer.project_in(latents)
        return self.semantic_head(inner + (first - inner).detach())

    # The protocol ----------------------------------------------------------------------------------------------------------

    def encode_rows(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, None]:
        """Codes of rows without padding."""
        return self._codes(self.autoencoder.encode(wave[:, 0]), n_codebooks), None

    def decode_rows(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Wave of rows without padding."""
        return self.autoencoder.decode(self.embed_rows(codes))[:, None]

    def embed_rows(self, codes: Tensor) -> Tensor:
        """Sum of the books' codes as the decoder reads it."""
        if len(self.layout.codebook_sizes) == 1 and self.quantizer.books is None:
            return self.quantizer.decode(codes[..., 0]).to(float_dtype(self))
        missing = self.max_codebooks - codes.shape[-1]
        return self.quantizer.decode(nn.functional.pad(codes, (0, missing), value=-1)).to(float_dtype(self))

    def pads_exactly(self, frames: int) -> bool:
        """A causal codec reads nothing after a row's end."""
        return self.config.causal

    def stream(self, n_codebooks: int | None = None) -> CodeStream:
        """Codes while audio arrives; a codec that is not causal lags by its look-ahead."""
        books = self.n_codebooks if n_codebooks is None else self._checked_books(n_codebooks)
        return CodeStream(self, _stages(self.autoencoder.encoder), self._codes, books)

    def _codes(self, latents: Tensor, n_codebooks: int) -> Tensor:
        codes = self.quantizer.encode(latents)
        return (codes[..., None] if codes.dim() == 2 else codes)[..., :n_codebooks]

    # Files -----------------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write sizes (``config.json``), weights (``model.safetensors``) and the quantizer (folder ``quantizer``)."""
        self.quantizer.save_pretrained(Path(folder) / "quantizer")
        described = {"model_type": "tokenry_conv_codec", "config": asdict(self.config)}
        write_checkpoint(folder, self, described, without="quantizer")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ConvCodec:
        """Load what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: the folder holds no codec. ValueError: it holds something else.
        """
        described = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        if described.get("model_type") != "tokenry_conv_codec":
            raise ValueError(f"folder={str(folder)!r} holds no ConvCodec (model_type is {described.get('model_type')!r})")
        sizes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in described["config"].items()}
        codec = cls(ConvCodecConfig(**sizes), Quantizer.from_pretrained(Path(folder) / "quantizer"))
        own = {f"quantizer.{name}": x for name, x in codec.quantizer.state_dict().items()}
        codec.load_state_dict(load_file(Path(folder) / WEIGHTS) | own)
        return codec.eval()


def _head(width: int, config: ConvCodecConfig) -> nn.Linear:
    layer: Any = nn.utils.skip_init(nn.Linear, width, config.semantic_dim or 1)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return layer


def _stages(encoder: nn.Sequential) -> Stage:
    """The encoder as stages that keep what the next piece of audio needs."""

    def stage(module: nn.Module) -> Stage:
        if isinstance(module, _Conv):
            return Convolution(module, *module.sides)
        if isinstance(module, _Block):
            inner = [Elementwise(nn.ELU()), stage(module.wide), Elementwise(nn.ELU()), Elementwise(module.narrow)]
            return Residual(Chain(inner), Chain([]))
        return Elementwise(module)

    return Chain([stage(module) for module in encoder])
