"""The codecs of an audio comparison by name: trained small ones, sample-wise baselines, and those of hub ids and folders."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenry.codecs.audio.codec import AudioCodec
from tokenry.codecs.audio.hosted import load_audio_codec
from tokenry.hosts.audio import CodecLayout
from tokenry.lab.beds.signals.small_codecs import SMALL_CODECS, small_codec
from tokenry.lazy import suggest

BASELINES = ("pcm16", "mulaw")
DEFAULT = ("pcm16", "mulaw", "rvq", "rvq@2", "fsq", "svq", "kmeans")


class SampleCodec(AudioCodec):
    """One code per sample: 16-bit PCM (the ceiling) or 8-bit mu-law (G.711's companding, at any rate)."""

    def __init__(self, sample_rate: int, law: str) -> None:
        self.levels, self.mu = (65536, None) if law == "pcm16" else (256, 255.0)
        layout = CodecLayout(sample_rate, 1, (self.levels,), streaming=True, domain=("speech", "music", "audio"))
        super().__init__(layout)

    def encode_rows(self, wave: Tensor, n_codebooks: int) -> tuple[Tensor, None]:
        """Codes of samples in -1..1; louder samples get the outermost code."""
        x = wave[:, 0].clamp(-1, 1)
        if self.mu is not None:
            x = x.sign() * torch.log1p(self.mu * x.abs()) / math.log1p(self.mu)
        return ((x + 1) / 2 * (self.levels - 1)).round().long()[..., None], None

    def decode_rows(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Samples at the codes' values."""
        return self.embed_rows(codes).transpose(1, 2)

    def embed_rows(self, codes: Tensor) -> Tensor:
        """The sample itself."""
        x = codes.float() / (self.levels - 1) * 2 - 1
        return x if self.mu is None else x.sign() * torch.expm1(x.abs() * math.log1p(self.mu)) / self.mu

    def pads_exactly(self, frames: int) -> bool:
        """Samples do not know each other."""
        return True


def check_codec_name(name: str) -> None:
    """Refuse what is neither a known name nor can be a folder or hub id, before anything is loaded."""
    base, _, books = name.partition("@")
    if books and not books.isdigit():
        raise ValueError(f"--codecs: {name!r} must end in a number of books after @, such as rvq@2, got {books!r}")
    known = (*SMALL_CODECS, *BASELINES)
    if base not in known and "/" not in base and "\\" not in base and "." not in base:
        hint = suggest(base, known) or f"; known: {', '.join(known)}"
        raise ValueError(f"--codecs: {base!r} is neither a known codec nor a folder or hub id (./NAME, OWNER/NAME){hint}")


def named_codec(name: str, sample_rate: int) -> AudioCodec:
    """A codec by name, NAME@BOOKS for its first books; the baselines work at `sample_rate`."""
    check_codec_name(name)
    base, _, books = name.partition("@")
    if base in BASELINES:
        codec: AudioCodec = SampleCodec(sample_rate, base)
    elif base in SMALL_CODECS:
        codec = small_codec(base)
    else:
        codec = load_audio_codec(base)
    if books:
        codec.n_codebooks = int(books)
    return codec.eval()
