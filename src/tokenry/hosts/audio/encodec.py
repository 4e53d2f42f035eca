"""EnCodec of transformers: causal or not, whole clips (24 kHz, 32 kHz) or overlapping chunks with loudness (48 kHz)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.hosts.audio.base import AudioHost, fit
from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.stages import Chain, Convolution, Elementwise, Recurrence, Residual, Stage


class EncodecHost(AudioHost):
    """SEANet with an LSTM and Euclidean residual books.

    A chunked model codes every chunk on its own; the last chunk is filled with zeros to its full length, as the model's feature
    extractor does. A normalising model divides every chunk (or the clip) by its loudness, which is needed to decode.
    """

    def __init__(self, model: nn.Module, domain: tuple[str, ...] = ()) -> None:
        config: Any = model.config
        quantizer: Any = model.quantizer
        chunk = config.chunk_length
        plain = config.norm_type == "weight_norm" and not config.normalize and chunk is None
        layout = CodecLayout(
            config.sampling_rate, int(config.hop_length), (config.codebook_size,) * len(quantizer.layers),
            channels=config.audio_channels, streaming=bool(config.use_causal_conv and plain), domain=domain,
            chunk_length=chunk, chunk_stride=None if chunk is None else config.chunk_stride or chunk,
        )  # fmt: skip
        super().__init__(model, layout)
        self.normalize = bool(config.normalize)
        reach = _reflection(self.model.encoder.layers, layout.hop_length, config.pad_mode)
        if layout.streaming:
            self.settle = max(reach, _reflection(self.model.decoder.layers, 0, config.pad_mode))
        self.start = max(1, reach * layout.hop_length)

    def latents(self, wave: Tensor) -> Tensor:
        """The encoder's output."""
        return self.model.encoder(wave)

    def quantize(self, latents: Tensor, n_codebooks: int) -> Tensor:
        """Nearest codes, level by level."""
        # The model picks its number of levels as floor(bandwidth / bandwidth of a level).
        level = math.log2(self.layout.codebook_sizes[0]) * self.model.quantizer.frame_rate / 1000
        return self.model.quantizer.encode(latents, (n_codebooks + 0.5) * level).permute(1, 2, 0)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the books' codes."""
        return self.model.quantizer.decode(codes.permute(2, 0, 1))

    def synthesize(self, embedded: Tensor) -> Tensor:
        """The decoder."""
        return self.model.decoder(embedded)

    def encode(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, Tensor | None]:
        """Codes of all chunks one after another [B,chunks * frames,m]; loudness [B,chunks] if the model takes it out."""
        layout = self.layout
        chunks = wave[:, None]
        if layout.chunk_length is not None and layout.chunk_stride is not None:
            chunks = wave.unfold(-1, layout.chunk_length, layout.chunk_stride).transpose(1, 2)  # [B,chunks,C,size]
        flat, scale = self._leveled(chunks.flatten(0, 1))
        codes = self.quantize(self.latents(flat), n_codebooks).unflatten(0, chunks.shape[:2]).flatten(1, 2)
        return codes, None if scale is None else scale.view(chunks.shape[:2])

    def decode(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Wave of the chunks, cross-faded where they overlap.

        Raises:
            ValueError: the model normalises loudness and there is none to put back.
        """
        if self.normalize and scales is None:
            raise ValueError("this codec takes out loudness: decode the AudioCodes of encode, or give AudioCodes with scales")
        layout = self.layout
        count = 1 if layout.chunk_length is None else codes.shape[1] // layout.chunk_frames
        parts = codes.unflatten(1, (count, -1))
        loud = None if scales is None else scales.to(next(self.model.parameters()).dtype)
        if layout.chunk_length is None or layout.chunk_stride == layout.chunk_length:
            made = self.synthesize(self.embed(parts.flatten(0, 1)))
            made = fit(made, layout.chunk_length or layout.samples(codes.shape[1]))
            made = made if loud is None else made * loud.reshape(-1, 1, 1)
            return made.unflatten(0, (len(codes), count)).transpose(1, 2).flatten(2)
        frames = parts.permute(1, 0, 3, 2)  # [chunks,B,M,frames], the model's own layout
        by_chunk = [None] * count if loud is None else list(loud.t()[..., None])
        return fit(self.model.decode(frames, by_chunk, return_dict=False)[0], layout.samples(codes.shape[1]))

    def stages(self) -> Stage:
        """Convolutions and the LSTM with their state; chunk by chunk for a chunked model."""
        config = self.model.config
        if self.layout.chunk_length is not None:
            return _ChunkStage(self)
        if config.norm_type != "weight_norm" or self.normalize:
            raise ValueError("this EnCodec cannot stream: it normalises over the whole clip")
        return Chain([_stage(layer) for layer in self.model.encoder.layers])

    def _leveled(self, wave: Tensor) -> tuple[Tensor, Tensor | None]:
        """Wave [N,C,S] over its loudness, the root mean square of its mono mix."""
        if not self.normalize:
            return wave, None
        scale = wave.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8
        return wave / scale, scale


class _ChunkStage(Stage):
    def __init__(self, host: EncodecHost) -> None:
        self.host = host
        self.kept: Tensor | None = None
        self.scales: Tensor | None = None

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Latents of the chunks that are whole by now."""
        layout = self.host.layout
        assert layout.chunk_length is not None
        assert layout.chunk_stride is not None
        data = x if self.kept is None else torch.cat([self.kept, x], dim=-1)
        made = [data.new_zeros(len(data), self.host.model.config.hidden_size, 0)]
        while data.shape[-1] >= layout.chunk_length:
            wave, scale = self.host._leveled(data[..., : layout.chunk_length])
            made.append(self.host.latents(wave))
            if scale is not None:
                row = scale.view(-1, 1)
                self.scales = row if self.scales is None else torch.cat([self.scales, row], dim=1)
            data = data[..., layout.chunk_stride :]
        self.kept = data
        return torch.cat(made, dim=-1)


def _stage(layer: Any) -> Stage:
    """A layer of transformers' SEANet encoder as a stage."""
    kind = type(layer).__name__
    if kind == "EncodecConv1d":
        total = int(layer.padding_total)
        left, right = (total, 0) if layer.causal else (total - total // 2, total // 2)
        mode = "constant" if layer.pad_mode == "zero" else layer.pad_mode
        return Convolution(layer.conv, left, right, mode)
    if kind == "EncodecResnetBlock":
        return Residual(Chain([_stage(part) for part in layer.block]), _stage(layer.shortcut))
    if kind == "EncodecLSTM":
        return Recurrence(layer.lstm)
    return Elementwise(layer)


def _reflection(layers: Any, hop: int, pad_mode: str) -> int:
    """Frames that a clip must have so that no reflecting padding at its start reads past its end (1 without reflection).

    `hop` samples lie in a frame for an encoder; 0 stands for a decoder, whose first layer runs at the frame rate.
    """
    if pad_mode != "reflect":
        return 1
    samples, scale = 0, 1  # scale: input samples of the stack per sample of the layer's input
    for layer in layers:
        convs = [m for m in layer.modules() if type(m).__name__ == "EncodecConv1d"]
        for conv in convs:
            samples = max(samples, (int(conv.padding_total) + 1) * scale)
        scale *= int(layer.conv.stride[0]) if hop and type(layer).__name__ == "EncodecConv1d" else 1
    return -(-samples // (hop or 1)) if hop else _decoder_reach(layers)


def _decoder_reach(layers: Any) -> int:
    """The widest padding of a decoder, counted at the frame rate (later layers run faster and reach less far)."""
    reach, faster = 1, 1
    for layer in layers:
        for conv in (m for m in layer.modules() if type(m).__name__ == "EncodecConv1d"):
            reach = max(reach, -(-(int(conv.padding_total) + 1) // faster))
        if type(layer).__name__ == "EncodecConvTranspose1d":
            faster *= int(layer.conv.stride[0])
    return reach
