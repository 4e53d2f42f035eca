"""EnCodec, DAC and Mimi of transformers as `AudioCodec`, and codecs by hub id or folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokenry.codecs.audio.codec import AudioCodec
from tokenry.codecs.audio.streaming import CodeStream
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.audio.base import SUPPORTED
from tokenry.hosts.audio.registry import host_of


class HostedCodec(AudioCodec):
    """A transformers codec behind the protocol. The model is not changed, and keeps no state of a call.

    Args:
        model: an EncodecModel, DacModel or MimiModel.
        n_codebooks: books in use; None = all.
        domain: what it was made for, of ``speech``, ``music``, ``audio``.

    Raises:
        UnsupportedModelError: another class. TypeError, ValueError: books or domain out of range.
    """

    def __init__(self, model: nn.Module, *, n_codebooks: int | None = None, domain: tuple[str, ...] = ()) -> None:
        host = host_of(model, domain=domain)
        super().__init__(host.layout, n_codebooks=n_codebooks)
        self.model = model
        self._host = host

    def encode_rows(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, Tensor | None]:
        """Codes of rows without padding."""
        return self._host.encode(wave, n_codebooks)

    def decode_rows(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Wave of rows without padding."""
        return self._host.decode(codes, scales)

    def embed_rows(self, codes: Tensor) -> Tensor:
        """The sum of the books as the decoder reads it."""
        return self._host.embed(codes).transpose(1, 2)

    def pads_exactly(self, frames: int) -> bool:
        """Causal models, once a reflecting padding at the start cannot reach the end."""
        return self._host.settle is not None and frames >= self._host.settle

    def stream(self, n_codebooks: int | None = None) -> CodeStream:
        """Codes while audio arrives: with state for causal models, with look-ahead for the others, chunk by chunk if chunked.

        Raises:
            ValueError: the model normalises over the whole clip.
        """
        books = self.n_codebooks if n_codebooks is None else self._checked_books(n_codebooks)
        return CodeStream(self, self._host.stages(), self._quantize, books, start=self._host.start)

    def _quantize(self, latents: Tensor, n_codebooks: int) -> Tensor:
        return self._host.quantize(latents.transpose(1, 2), n_codebooks)


def load_audio_codec(
    source: str | Path | nn.Module, *, n_codebooks: int | None = None, revision: str | None = None
) -> AudioCodec:
    """A codec from a hub id, a folder, a transformers model, or an `AudioCodec` itself; in evaluation mode.

    Weights are read from safetensors alone.

    Raises:
        UnsupportedModelError: a model that is none of EnCodec, DAC, Mimi or ConvCodec.
        OSError: the source is neither a folder nor a reachable hub id.
    """
    if isinstance(source, AudioCodec):
        codec = source
    elif isinstance(source, nn.Module):
        codec = HostedCodec(source)
    else:
        codec = _from_files(str(source), revision)
    if n_codebooks is not None:
        codec.n_codebooks = n_codebooks
    return codec.eval()


def _from_files(source: str, revision: str | None) -> AudioCodec:
    import transformers as tf

    from tokenry.codecs.audio.taxonomy import audio_tokenizers

    config = Path(source) / "config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "tokenry_conv_codec":
        from tokenry.codecs.audio.small_codec import ConvCodec

        return ConvCodec.from_pretrained(source)
    described = tf.AutoConfig.from_pretrained(source, revision=revision)
    classes: dict[str, Any] = {"encodec": tf.EncodecModel, "dac": tf.DacModel, "mimi": tf.MimiModel}
    found = classes.get(described.model_type)
    if found is None:
        raise UnsupportedModelError.of(described, SUPPORTED, reason=f"{source} holds a {described.model_type!r} model")
    model = found.from_pretrained(source, revision=revision, use_safetensors=True)
    domain = next((row.domain for row in audio_tokenizers() if source in row.checkpoints), ())
    return HostedCodec(model, domain=domain)
