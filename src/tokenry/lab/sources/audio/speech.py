"""Loaders of the audio assets: the speech recogniser, the speaker encoder, and recordings as tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenry.errors import optional
from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources.audio.speaker_encoder import SpeakerEncoder
from tokenry.lab.sources.raw_weights import load_raw_weights

RATES = (1000, 1_000_000)  # Hz; another rate in a header is taken for damage
_BLOCK = 1 << 20  # samples read at once: a header may announce more than there is
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff")


class Recogniser(NamedTuple):
    """A Whisper model of CTranslate2, its tokenizer, its feature extractor (16 kHz)."""

    model: Any
    tokenizer: Any
    features: Any


def whisper(device: str | torch.device = "cpu", *, offline: bool | None = None) -> Recogniser:
    """Whisper tiny.en (4 + 4 layers, 384 wide, English only) in float32, on "cpu" or "cuda".

    Raises:
        MissingDependencyError: ctranslate2 is not installed.
        AssetMissingError: the model is not here and cannot be fetched.
    """
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    library: Any = optional("ctranslate2", "speech")
    folder = next(fetch("whisper", offline=offline).glob("**/model.bin")).parent
    place = torch.device(device)
    model = library.models.Whisper(
        str(folder), device=place.type, device_index=place.index or 0, compute_type="float32",
        intra_threads=torch.get_num_threads(),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return Recogniser(model, tokenizer, WhisperFeatureExtractor(feature_size=80))


def speaker_encoder(device: str | torch.device = "cpu", *, offline: bool | None = None) -> SpeakerEncoder:
    """The GE2E speaker encoder with Resemblyzer's weights, in evaluation mode."""
    return load_raw_weights("resemblyzer", SpeakerEncoder(), offline=offline).to(device)


def audio_length(path: str | Path) -> tuple[int, int]:
    """Samples per channel and sample rate of a sound file, without reading it; errors as of `read_audio`."""
    info = _soundfile(path, lambda library: library.info(path))
    return int(info.frames), _checked_rate(path, info.samplerate)


def read_audio(path: str | Path, start: int = 0, samples: int = -1) -> tuple[Tensor, int]:
    """A sound file, or a part of it, as mono float32 [T] in -1..1 and its sample rate; channels are averaged.

    It takes the memory of what the file holds, not of what its header announces. Raises FileNotFoundError,
    MissingDependencyError (no soundfile) or ValueError (not a sound file, nothing in it, or a rate outside `RATES`).
    """

    def read(library: Any) -> tuple[list[Tensor], int]:
        with library.SoundFile(path) as file:
            rate = _checked_rate(path, file.samplerate)
            file.seek(min(start, file.frames))
            found: list[Tensor] = []
            size = _BLOCK // file.channels + 1
            while samples < 0 or sum(map(len, found)) < samples:
                wanted = size if samples < 0 else min(size, samples - sum(map(len, found)))
                block = file.read(wanted, dtype="float32", always_2d=True)
                if not len(block):
                    break
                found.append(torch.from_numpy(block).mean(1))
            return found, rate

    found, rate = _soundfile(path, read)
    if not found:
        raise ValueError(f"{path} holds no samples")
    return torch.cat(found), rate


def _checked_rate(path: str | Path, rate: int) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{path} announces a sample rate of {rate} Hz, outside {RATES[0]} to {RATES[1]}; it is damaged")
    return int(rate)


def _soundfile(path: str | Path, call: Callable[[Any], Any]) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no sound file at {path}")
    library: Any = optional("soundfile", "audio")
    try:
        return call(library)
    except library.LibsndfileError as error:
        raise ValueError(f"{path} is not a sound file that can be read ({error}); known: {', '.join(SUFFIXES)}") from error


def write_audio(path: str | Path, wave: Tensor, sample_rate: int) -> None:
    """Mono float [T] as a 16-bit wav file, by the standard library; samples outside -1..1 are clipped as wav files are."""
    import wave as library

    values = (wave.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)
    with library.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(values.numpy().astype("<i2").tobytes())
