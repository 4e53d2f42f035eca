"""One protocol for audio codecs: a wave in, codes [B,T,M] out, and back, whatever the layout inside.

encoder f_e: x -> z_t, quantizer: z_t -> (q_1 .. q_M), decoder f_d: codes -> wave (the survey's abstract tokenizer). A codec
of one's own implements three methods on rows of equal length; lengths, padding, resampling and checks are done here once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from tokenry.codecs.audio.codes import PADDING, AudioCodes, RowEncoder, check_floating, checked_lengths, evaluating, float_dtype
from tokenry.codecs.audio.streaming import CodeStream
from tokenry.core.checks import check_device, check_finite, check_float, check_int, check_tensor
from tokenry.hosts.audio import CodecLayout


class AudioCodec(RowEncoder):
    """Base of every codec. Subclasses implement `encode_rows`, `decode_rows` and `embed_rows`.

    Args:
        layout: rates, books and channels.
        n_codebooks: books in use; None = all. Also settable later (`codec.n_codebooks = 4`) and per call.
    """

    def __init__(self, layout: CodecLayout, *, n_codebooks: int | None = None) -> None:
        super().__init__()
        self.layout = layout
        self._n_codebooks = self._checked_books(n_codebooks if n_codebooks is not None else layout.max_codebooks)

    # What a subclass writes ------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode_rows(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Codes [B,T,m] without padding -> wave [B,C,layout.samples(T)]."""

    @abstractmethod
    def embed_rows(self, codes: Tensor) -> Tensor:
        """Codes [B,T,m] without padding -> the latents that the decoder reads, [B,T,D]."""

    def pads_exactly(self, frames: int) -> bool:
        """Whether a row of that many frames keeps its codes, and its wave, when others in the batch are longer.

        True for causal codecs; the base says no, and rows of different lengths are then run group by group.
        """
        return False

    def stream(self, n_codebooks: int | None = None) -> CodeStream:
        """A stream that makes the codes while audio arrives: ``push(wave)`` and ``finish()``.

        Raises:
            ValueError: the codec cannot stream.
        """
        raise ValueError(f"{type(self).__name__} cannot stream")

    # Facts -----------------------------------------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.layout.sample_rate

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second, exact."""
        return self.layout.frame_rate

    @property
    def channels(self) -> int:
        """Channels of the wave."""
        return self.layout.channels

    @property
    def n_codebooks(self) -> int:
        """Books in use."""
        return self._n_codebooks

    @n_codebooks.setter
    def n_codebooks(self, value: int) -> None:
        self._n_codebooks = self._checked_books(value)

    @property
    def min_codebooks(self) -> int:
        """Fewest books that can be used."""
        return self.layout.min_codebooks

    @property
    def max_codebooks(self) -> int:
        """Books that the codec has."""
        return self.layout.max_codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes in each book in use."""
        return self.layout.codebook_sizes[: self._n_codebooks]

    @property
    def bits_per_frame(self) -> float:
        """Sum of log2 K over the books in use."""
        return self.layout.bits(self._n_codebooks)

    @property
    def streaming(self) -> bool:
        """Whether codes can be made while audio arrives."""
        return self.layout.streaming

    @property
    def domain(self) -> tuple[str, ...]:
        """What the codec was made for."""
        return self.layout.domain

    # Wave to codes and back ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        wave: Tensor,
        sample_rate: int,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        n_codebooks: int | None = None,
        resample: bool = False,
    ) -> AudioCodes:
        """Codes of a batch of clips; each row's codes are those of the row alone.

        Args:
            wave: floating point [B,S] or [B,C,S], in -1..1 by custom; what lies beyond `lengths` is not read.
            sample_rate: of `wave`; another rate than the codec's is refused unless `resample`.
            lengths: samples of every row [B]; None = all of S.
            n_codebooks: books for this call; None = `self.n_codebooks`.
            resample: convert `wave` to the codec's rate first.

        Raises:
            TypeError, ValueError: wrong rate, channels, dtype, shape or lengths, samples that are not finite, clips shorter
                than one frame, or books that the codec does not have.
        """
        books = self._n_codebooks if n_codebooks is None else self._checked_books(n_codebooks)
        rows, samples = self._checked_wave(wave, sample_rate, lengths, resample)
        frames = [self.layout.frames(n) for n in samples]
        codes = torch.full((len(rows), max(frames), books), PADDING, dtype=torch.int64, device=wave.device)
        scales: Tensor | None = None
        with evaluating(self):
            for group, count in self._groups(frames):
                part = _batch([rows[i] for i in group], self.layout.samples(count)).to(float_dtype(self))
                found, loudness = self.encode_rows(part, books)
                for place, row in enumerate(group):
                    codes[row, : frames[row]] = found[place, : frames[row]]
                if loudness is not None:
                    scales = loudness.new_ones(len(rows), self._chunks(max(frames))) if scales is None else scales
                    scales[group, : loudness.shape[1]] = loudness
        return AudioCodes(codes, _longs(frames, wave), _longs(samples, wave), scales)

    def decode(self, codes: AudioCodes | Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Wave [B,S] ([B,C,S] for several channels) of codes, zero beyond a row's samples.

        A prefix of the books decodes to a coarser wave.

        Args:
            codes: what `encode` gave, or codes [B,T,M] with -1 beyond a row's frames.
            lengths: samples of every row to trim to; None = those of the encoded wave, or all that the frames hold.

        Raises:
            TypeError, ValueError: codes out of range or with holes, too many books, lengths that the frames cannot fill.
        """
        tensor, scales = (codes.codes, codes.scales) if isinstance(codes, AudioCodes) else (codes, None)
        if lengths is None and isinstance(codes, AudioCodes):
            lengths = codes.samples
        frames = self._checked_codes(tensor)
        full = [self.layout.samples(count) for count in frames]
        samples = full if lengths is None else checked_lengths("lengths", lengths, len(tensor), 0, max(full))
        for row, (wanted, held) in enumerate(zip(samples, full, strict=True)):
            if wanted > held:
                raise ValueError(
                    f"lengths[{row}] must be at most {held} (the samples of its {frames[row]} frames), got {wanted}"
                )
        wave: Tensor | None = None
        with evaluating(self):
            for group, count in self._groups(frames):
                if count == 0:
                    continue
                part = None if scales is None else scales[group, : self._chunks(count)]
                made = self.decode_rows(tensor[group, :count].clamp_min(0), part)
                if wave is None:
                    wave = made.new_zeros(len(tensor), self.channels, max(samples))
                for place, row in enumerate(group):
                    wave[row, :, : samples[row]] = made[place, :, : samples[row]]
        if wave is None:
            raise ValueError("codes must hold at least one frame")
        return wave[:, 0] if self.channels == 1 else wave

    def embed(self, codes: AudioCodes | Tensor) -> Tensor:
        """Latents [B,T,D] that the decoder reads, zero at padding.

        Raises:
            TypeError, ValueError: codes out of range or with holes, or too many books.
        """
        tensor = codes.codes if isinstance(codes, AudioCodes) else codes
        frames = self._checked_codes(tensor)
        real = torch.arange(tensor.shape[1], device=tensor.device) < _longs(frames, tensor)[:, None]
        with evaluating(self):
            return self.embed_rows(tensor.clamp_min(0)) * real[..., None]

    def reconstruct(
        self, wave: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None = None, *, resample: bool = False
    ) -> Tensor:
        """Encode and decode; with `resample`, to the codec's rate and back. Same number of samples as `wave`."""
        made = self.decode(self.encode(wave, sample_rate, lengths, resample=resample))
        if sample_rate != self.sample_rate:
            made = _resampled(made, self.sample_rate, sample_rate)[..., : wave.shape[-1]]
        return nn.functional.pad(made, (0, wave.shape[-1] - made.shape[-1]))

    # Checks ----------------------------------------------------------------------------------------------------------------

    def _checked_books(self, value: int) -> int:
        return check_int("n_codebooks", value, self.layout.min_codebooks, self.layout.max_codebooks)

    def _checked_wave(
        self, wave: Tensor, sample_rate: int, lengths: Tensor | Sequence[int] | None, resample: bool
    ) -> tuple[list[Tensor], list[int]]:
        """The rows, cut to their lengths, [C,samples] each, at the codec's rate."""
        check_tensor("wave", wave)
        check_floating(wave)
        if wave.dim() == 2 and self.channels == 1:
            wave = wave[:, None]
        if wave.dim() != 3 or wave.shape[1] != self.channels:
            allowed = "[B, S] or [B, 1, S]" if self.channels == 1 else f"[B, {self.channels}, S]"
            raise ValueError(f"wave must have shape {allowed} (mix other channels down first), got {list(wave.shape)}")
        if 0 in wave.shape:
            raise ValueError(f"wave must hold samples, got shape {list(wave.shape)}")
        check_int("sample_rate", sample_rate, 1)
        for other in self.parameters():
            check_device("wave", wave, "the codec", other)
            break
        count = [wave.shape[-1]] * len(wave)
        if lengths is not None:
            count = checked_lengths("lengths", lengths, len(wave), 1, wave.shape[-1])
        rows = [check_finite("wave", row[:, :n]) for row, n in zip(wave, count, strict=True)]
        if sample_rate != self.sample_rate:
            if not resample:
                raise ValueError(
                    f"sample_rate must be {self.sample_rate} (the codec's), got {sample_rate}; "
                    "resample the wave first or pass resample=True"
                )
            rows = [_resampled(row, sample_rate, self.sample_rate) for row in rows]
        count = [row.shape[-1] for row in rows]
        if min(count) < self.layout.hop_length:
            raise ValueError(
                f"every clip must have at least {self.layout.hop_length} samples (one frame at {self.sample_rate} Hz), "
                f"got {min(count)} in row {count.index(min(count))}"
            )
        return rows, count

    def _checked_codes(self, codes: Tensor) -> list[int]:
        """Frames of every row; refuses holes, codes out of range and books that do not exist."""
        check_tensor("codes", codes)
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be integers, got {codes.dtype}")
        if codes.dim() != 3 or 0 in codes.shape:
            raise ValueError(f"codes must have shape [B, T, M] without empty axes, got {list(codes.shape)}")
        books = check_int("books of codes", codes.shape[2], self.layout.min_codebooks, self.layout.max_codebooks)
        sizes = torch.tensor(self.layout.codebook_sizes[:books], device=codes.device)
        real = (codes != PADDING).any(dim=-1)
        frames = real.sum(dim=1)
        holes = real != (torch.arange(codes.shape[1], device=codes.device) < frames[:, None])
        bad = (((codes < 0) | (codes >= sizes)) & real[..., None]) | holes[..., None]
        if bool(bad.any()):
            row, frame, book = (int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"codes must be 0..K-1 with K = {tuple(sizes.tolist())} in the frames of a row and {PADDING} in every book "
                f"after them, got {int(codes[row, frame, book])} in row {row}, frame {frame}, book {book}"
            )
        return frames.tolist()

    # Groups of rows --------------------------------------------------------------------------------------------------------

    def _groups(self, frames: list[int]) -> list[tuple[list[int], int]]:
        """Rows that may share a batch, each group with its frames: all that pad exactly together, the others by length."""
        exact = [row for row, count in enumerate(frames) if count and self.pads_exactly(count)]
        groups: dict[int, list[int]] = {max((frames[row] for row in exact), default=0): exact} if exact else {}
        together = set(exact)
        for row, count in enumerate(frames):
            if row not in together:
                groups.setdefault(count, []).append(row)
        return [(sorted(rows), count) for count, rows in groups.items()]

    def _chunks(self, frames: int) -> int:
        return frames // self.layout.chunk_frames if self.layout.chunk_length is not None else 1


def bitrate(codec: AudioCodec, n_codebooks: int | None = None) -> float:
    """Bits per second: frame rate x sum of log2 K over the books in use (or over the first `n_codebooks`).

    Raises:
        TypeError, ValueError: not a codec, or more books than it has.
    """
    if not isinstance(codec, AudioCodec):
        raise TypeError(f"codec must be a tokenry.codecs.audio.AudioCodec, got {type(codec).__name__}")
    books = codec.n_codebooks if n_codebooks is None else n_codebooks
    check_int("n_codebooks", books, codec.min_codebooks, codec.max_codebooks)
    return float(codec.frame_rate) * codec.layout.bits(books)


def encode_in_chunks(
    codec: AudioCodec,
    wave: Tensor,
    sample_rate: int,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    chunk: int,
    n_codebooks: int | None = None,
) -> AudioCodes:
    """`codec.encode` in pieces of `chunk` samples, row by row: memory grows with the chunk, not with the recording.

    Works for every codec that has a stream, causal or not; codes as in one pass, but for rounding (see `CodeStream`).

    Raises:
        TypeError, ValueError: as `AudioCodec.encode` and `AudioCodec.stream`, or a chunk below 1.
    """
    check_int("chunk", chunk, 1)
    rows, samples = codec._checked_wave(wave, sample_rate, lengths, False)
    found: list[Tensor] = []
    scales: list[Tensor] = []
    for row in rows:
        stream = codec.stream(n_codebooks)
        pieces = [stream.push(piece[None]) for piece in row.split(chunk, dim=-1)]
        found.append(torch.cat([*pieces, stream.finish()], dim=1)[0])
        if stream.scales is not None:
            scales.append(stream.scales[0])
    frames = [len(codes) for codes in found]
    codes = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=PADDING)
    loud = nn.utils.rnn.pad_sequence(scales, batch_first=True, padding_value=1.0) if scales else None
    device = wave.device
    return AudioCodes(codes, torch.tensor(frames, device=device), torch.tensor(samples, device=device), loud)


def _batch(rows: list[Tensor], size: int) -> Tensor:
    return torch.stack([nn.functional.pad(row, (0, size - row.shape[-1])) for row in rows])


def _longs(values: list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _resampled(wave: Tensor, source: int, target: int) -> Tensor:
    from tokenry.codecs.audio.metrics import resample

    return resample(check_float("wave", wave), source, target)
