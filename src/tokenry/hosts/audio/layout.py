"""Arithmetic of an audio codec: rates, books, bits, and how many frames a clip of some length has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from tokenry.core.checks import check_choice, check_int

DOMAINS = ("speech", "music", "audio")


@dataclass(frozen=True)
class CodecLayout:
    """What an audio codec's codes mean in time and in bits; every rate is computed from these numbers.

    Attributes:
        sample_rate: samples per second of the wave that the codec reads and writes.
        hop_length: samples per frame.
        codebook_sizes: codes in every book, coarse first; all the books the codec has.
        channels: of the wave.
        min_codebooks: fewest books that a frame can have.
        streaming: a frame depends on no sample after it (up to a fixed start-up), so codes can be made while audio arrives.
        domain: what it was made for, of ``speech``, ``music``, ``audio``; empty if unknown.
        chunk_length: samples of a chunk for codecs that code chunks one by one; None = the clip as a whole.
        chunk_stride: samples from chunk to chunk; less than `chunk_length` where chunks overlap.

    Raises:
        TypeError, ValueError: a value is out of range; the message names it.
    """

    sample_rate: int
    hop_length: int
    codebook_sizes: tuple[int, ...]
    channels: int = 1
    min_codebooks: int = 1
    streaming: bool = False
    domain: tuple[str, ...] = ()
    chunk_length: int | None = None
    chunk_stride: int | None = None

    def __post_init__(self) -> None:
        check_int("sample_rate", self.sample_rate, 1)
        check_int("hop_length", self.hop_length, 1)
        if not self.codebook_sizes:
            raise ValueError("codebook_sizes must name at least one book, got ()")
        for size in self.codebook_sizes:
            check_int("codebook_sizes", size, 2)
        check_int("channels", self.channels, 1)
        check_int("min_codebooks", self.min_codebooks, 1, len(self.codebook_sizes))
        for name in self.domain:
            check_choice("domain", name, DOMAINS)
        if self.chunk_length is not None:
            check_int("chunk_length", self.chunk_length, self.hop_length)
            check_int("chunk_stride", self.chunk_stride, 1, self.chunk_length)

    @property
    def max_codebooks(self) -> int:
        """How many books the codec has."""
        return len(self.codebook_sizes)

    @property
    def chunk_frames(self) -> int:
        """Frames of one chunk (chunked codecs only)."""
        if self.chunk_length is None:
            raise ValueError("chunk_frames is defined for chunked codecs only")
        return -(-self.chunk_length // self.hop_length)

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second. Overlapping chunks spend frames on the overlap, and the rate counts them."""
        if self.chunk_stride is not None:
            return Fraction(self.chunk_frames * self.sample_rate, self.chunk_stride)
        return Fraction(self.sample_rate, self.hop_length)

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples` samples; a started frame (or chunk) counts as a whole one."""
        if self.chunk_stride is not None:
            return self.chunk_frames * -(-samples // self.chunk_stride)
        return -(-samples // self.hop_length)

    def samples(self, frames: int) -> int:
        """Samples that `frames` frames decode to.

        Raises:
            ValueError: the frames are not whole chunks.
        """
        if self.chunk_length is None or self.chunk_stride is None:
            return frames * self.hop_length
        chunks, rest = divmod(frames, self.chunk_frames)
        if rest:
            raise ValueError(f"codes must hold whole chunks of {self.chunk_frames} frames, got {frames} frames")
        return (chunks - 1) * self.chunk_stride + self.chunk_length if chunks else 0

    def bits(self, n_codebooks: int) -> float:
        """Bits of a frame with that many books: the sum of log2 K."""
        return math.fsum(math.log2(size) for size in self.codebook_sizes[:n_codebooks])
