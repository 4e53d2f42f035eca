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
    return int(info.frames), int(info.samplerate)


def read_audio(path: str | Path, start: int = 0, samples: int = -1) -> tuple[Tensor, int]:
    """A sound file, or a part of it, as mono float32 [T] in -1..1 and its sample rate; channels are averaged.

    Raises FileNotFoundError, MissingDependencyError (no soundfile) or ValueError (not a sound file, or nothing in it).
    """
    found, rate = _soundfile(path, lambda library: library.read(path, samples, start, dtype="float32", always_2d=True))
    if not len(found):
        raise ValueError(f"{path} holds no samples")
    return torch.from_numpy(found).mean(1), int(rate)


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
