"""Contract of an audio codec: ``check_audio_codec(codec)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs.audio.codec import AudioCodec, bitrate, encode_in_chunks
from tokenry.codecs.audio.codes import PADDING
from tokenry.core.seeding import seeded
from tokenry.testing.verdict import fail, refuses


def _clips(codec: AudioCodec) -> tuple[Tensor, list[int]]:
    """Three clips of noise with a slope, about 12, 7 and 1 frames (or chunks) long."""
    step = codec.layout.chunk_stride or codec.layout.hop_length
    lengths = [12 * step - 3 % step, 7 * step, max(step, codec.layout.hop_length)]
    generator = torch.Generator().manual_seed(0)
    wave = 0.2 * torch.randn(3, codec.channels, lengths[0], generator=generator)
    wave = wave * torch.linspace(0.2, 1.5, lengths[0])
    first = next(codec.parameters(), None)
    return wave if first is None else wave.to(first.device), lengths


def _same_codes(check: str, codec: AudioCodec, a: Tensor, b: Tensor, tolerance: float) -> None:
    if a.shape != b.shape:
        fail(check, codec, f"codes have shapes {list(a.shape)} and {list(b.shape)}")
    differ = float((a != b).float().mean()) if a.numel() else 0.0
    if differ > tolerance:
        fail(check, codec, f"{differ:.2%} of the codes differ (allowed {tolerance:.2%})")


def _shapes(codec: AudioCodec, tolerance: float) -> None:
    """Codes int64 [B,T,M] in 0..K-1, -1 after a row's frames; the wave has the input's samples, zero after a row's own."""
    wave, lengths = _clips(codec)
    found = codec.encode(wave, codec.sample_rate, lengths)
    codes, frames = found
    wanted = [codec.layout.frames(n) for n in lengths]
    if frames.tolist() != wanted or list(codes.shape) != [3, max(wanted), codec.n_codebooks] or codes.dtype != torch.int64:
        fail("shapes", codec, f"codes are {codes.dtype} {list(codes.shape)} with {frames.tolist()} frames, wanted {wanted}")
    real = found.mask[..., None].expand_as(codes)
    sizes = torch.tensor(codec.codebook_sizes, device=codes.device).expand_as(codes)
    if bool((codes[~real] != PADDING).any()) or bool(((codes < 0) | (codes >= sizes))[real].any()):
        fail("codes in range", codec, "codes must be 0..K-1, and -1 after a row's frames")
    made = codec.decode(found)
    expected = [3, lengths[0]] if codec.channels == 1 else [3, codec.channels, lengths[0]]
    if list(made.shape) != expected or not bool(torch.isfinite(made).all()):
        fail("same length", codec, f"decode gives {list(made.shape)}, wanted finite {expected}")
    if any(bool(made[row, ..., n:].any()) for row, n in enumerate(lengths)):
        fail("same length", codec, "the wave is not zero after a row's samples")
    latents = codec.embed(found)
    if list(latents.shape[:2]) != list(codes.shape[:2]) or bool(latents[~found.mask].any()):
        fail("embed", codec, f"embed gives {list(latents.shape)}; it must be [B, T, D], zero at padding")


def _rates(codec: AudioCodec, tolerance: float) -> None:
    """Bits are computed: frame rate x sum of log2 K."""
    before = codec.n_codebooks
    try:
        for books in (codec.min_codebooks, codec.max_codebooks):
            codec.n_codebooks = books
            bits = sum(math.log2(size) for size in codec.codebook_sizes)
            if len(codec.codebook_sizes) != books or abs(codec.bits_per_frame - bits) > 1e-9:
                fail("rates", codec, f"bits_per_frame is {codec.bits_per_frame} with {books} books, wanted {bits}")
            if abs(bitrate(codec) - float(codec.frame_rate) * bits) > 1e-6 * bits:
                fail("rates", codec, f"bitrate is {bitrate(codec)}, wanted {float(codec.frame_rate) * bits}")
    finally:
        codec.n_codebooks = before


def _rows_alone(codec: AudioCodec, tolerance: float) -> None:
    """A padded row has the codes and the wave of the row alone, whatever the padding holds; order of rows does not matter."""
    wave, lengths = _clips(codec)
    together = codec.encode(wave, codec.sample_rate, lengths)
    made = codec.decode(together)
    noisy = wave.clone()
    for row, n in enumerate(lengths):
        noisy[row, :, n:] = 9.0
    _same_codes("padding", codec, codec.encode(noisy, codec.sample_rate, lengths).codes, together.codes, 0.0)
    for row, n in enumerate(lengths):
        alone = codec.encode(wave[row : row + 1, :, :n], codec.sample_rate)
        mine = together.codes[row : row + 1, : int(together.lengths[row])]
        _same_codes("batch equals loop", codec, alone.codes, mine, tolerance)
        gap = float((codec.decode(alone)[0] - made[row, ..., :n]).detach().abs().max())
        if torch.equal(alone.codes, mine) and gap > 1e-4 * max(1.0, float(made.detach().abs().max())):
            fail("batch equals loop", codec, f"row {row} decodes to another wave (largest difference {gap:.2g})")
    turned = codec.encode(wave.flip(0), codec.sample_rate, lengths[::-1])
    _same_codes("order of rows", codec, turned.codes.flip(0), together.codes, tolerance)


def _prefix(codec: AudioCodec, tolerance: float) -> None:
    """Fewer books are a prefix of all books, and decode."""
    wave, lengths = _clips(codec)
    full = codec.encode(wave, codec.sample_rate, lengths, n_codebooks=codec.max_codebooks)
    part = codec.encode(wave, codec.sample_rate, lengths, n_codebooks=codec.min_codebooks)
    _same_codes("prefix", codec, part.codes, full.codes[..., : codec.min_codebooks], tolerance)
    if codec.decode(full.prefix(codec.min_codebooks)).shape != codec.decode(full).shape:
        fail("prefix", codec, "a prefix decodes to another shape")


def _chunks(codec: AudioCodec, tolerance: float) -> None:
    """Piece by piece gives the codes of one pass, for pieces of any size."""
    wave, lengths = _clips(codec)
    try:
        codec.stream()
    except ValueError:
        if codec.streaming:
            fail("streaming", codec, "streaming is True and stream() is refused")
        return
    once = codec.encode(wave, codec.sample_rate, lengths)
    for piece in (1 + codec.layout.hop_length // 3, 4 * codec.layout.hop_length + 1):
        pieces = encode_in_chunks(codec, wave, codec.sample_rate, lengths, chunk=piece)
        _same_codes(f"streaming in pieces of {piece}", codec, pieces.codes, once.codes, tolerance)


def _no_trace(codec: AudioCodec, tolerance: float) -> None:
    """Calls change neither weights, mode, input nor the next call, and draw nothing from the global generator."""
    wave, lengths = _clips(codec)
    kept, weights = wave.clone(), {name: x.clone() for name, x in codec.state_dict().items()}
    mode = codec.training
    try:
        codec.train()
        first = codec.encode(wave, codec.sample_rate, lengths)
        with seeded(99):
            second = codec.encode(wave, codec.sample_rate, lengths)
        codec.decode(first)
        if not codec.training:
            fail("no trace", codec, "encode or decode changed the mode")
    finally:
        codec.train(mode)
    _same_codes("determinism", codec, second.codes, first.codes, 0.0)
    changed = [name for name, x in codec.state_dict().items() if not torch.equal(x, weights[name])]
    if changed or not torch.equal(wave, kept):
        fail("no trace", codec, f"changed: {changed or 'the input wave'}")


def _bad_input(codec: AudioCodec, tolerance: float) -> None:
    wave, lengths = _clips(codec)
    rate, found = codec.sample_rate, codec.encode(wave, codec.sample_rate, lengths)
    high = found.codes.clone()
    high[0, 0, 0] = codec.codebook_sizes[0]
    hole = found.codes.clone()
    hole[0, 0] = PADDING
    nan = wave.clone()
    nan[0, 0, 1] = torch.nan
    wide = wave.repeat(1, 2, 1)
    calls: dict[str, tuple[str, Callable[[], Any]]] = {
        "another sample rate": ("sample_rate", lambda: codec.encode(wave, rate + 1)),
        "integer samples": ("wave", lambda: codec.encode((wave * 32767).to(torch.int16), rate)),
        "twice the channels": ("wave", lambda: codec.encode(wide, rate)),
        "NaN": ("wave", lambda: codec.encode(nan, rate)),
        "less than a frame": ("frame", lambda: codec.encode(wave[..., : codec.layout.hop_length - 1], rate)),
        "lengths beyond the clip": ("lengths", lambda: codec.encode(wave, rate, [lengths[0] + 1, 1, 1])),
        "too many books": ("n_codebooks", lambda: codec.encode(wave, rate, n_codebooks=codec.max_codebooks + 1)),
        "codes out of range": ("codes", lambda: codec.decode(high)),
        "codes with a hole": ("codes", lambda: codec.decode(hole)),
        "float codes": ("codes", lambda: codec.decode(found.codes.double())),
    }
    for name, (word, call) in calls.items():
        refuses(codec, word, call, given=name)


AUDIO_CODEC_CHECKS = (_shapes, _rates, _rows_alone, _prefix, _chunks, _no_trace, _bad_input)


def check_audio_codec(codec: AudioCodec, *, tolerance: float = 0.0) -> None:
    """Run every contract check of an audio codec.

    Args:
        codec: any `AudioCodec`.
        tolerance: share of the codes that may differ between two orders of the same sums (batch or alone, pieces or whole):
            codes that are equally near within float rounding. 0 for float32 on a CPU as a rule.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    if not isinstance(codec, AudioCodec):
        raise TypeError(f"codec must be a tokenry.codecs.audio.AudioCodec, got {type(codec).__name__}")
    for check in AUDIO_CODEC_CHECKS:
        check(codec, tolerance)
