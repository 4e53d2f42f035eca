"""What a listener would notice in speech, measured by two small real models: words (Whisper) and voice (GE2E).

Word error rates name what they compare with: `word_error_rate` the words that are known to be said, `d_wer` what the same
recogniser heard in the reference audio. The recogniser knows English only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.audio.metrics import resample
from tokenry.codecs.audio.metrics.pair import check_wave
from tokenry.core.checks import check_choice, check_finite, check_int
from tokenry.errors import optional
from tokenry.lab.sources.audio.speaker_encoder import SpeakerEncoder
from tokenry.lab.sources.audio.speech import Recogniser, speaker_encoder, whisper
from tokenry.lab.sources.audio.word_errors import word_error_rate, word_errors

__all__ = ["d_wer", "speaker_embeddings", "speaker_similarity", "transcribe", "word_error_rate", "word_errors"]

RATE = 16_000
LONGEST = 30.0  # seconds that the recogniser hears at once
TOKENS_PER_SECOND = 8  # more than fast speech has; a decoder that loops is stopped there


@lru_cache(maxsize=1)
def _recogniser() -> Recogniser:
    return whisper()


@lru_cache(maxsize=1)
def _encoder() -> SpeakerEncoder:
    return speaker_encoder()


def transcribe(
    waves: Sequence[Tensor], sample_rate: int, *, beams: int = 1, batch: int = 8, recogniser: Recogniser | None = None
) -> list[str]:
    """English words of each waveform [T] of at most 30 s, by Whisper tiny.en; deterministic (greedy, or `beams` > 1).

    The published figures of audio codecs use beam 5, which takes about twice as long.
    """
    check_int("beams", beams, 1)
    check_int("batch", batch, 1)
    model, tokenizer, features = recogniser or _recogniser()
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))  # clips of a batch stop at about the same time
    clips = [_mono(f"waves[{i}]", wave, sample_rate) for i, wave in enumerate(waves)]
    texts = [""] * len(clips)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = features([clips[i].numpy() for i in part], sampling_rate=RATE, return_tensors="np").input_features
        limit = 8 + math.ceil(TOKENS_PER_SECOND * max(len(clips[i]) for i in part) / RATE)
        found = _generate(model, inputs, beams, min(limit, 440))
        for i, ids in zip(part, found, strict=True):
            texts[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return texts


def _generate(model: Any, inputs: NDArray[np.float32], beams: int, limit: int) -> list[list[int]]:
    """At most `limit` ids per clip, without time stamps."""
    library: Any = optional("ctranslate2", "speech")
    prompts = [["<|startoftranscript|>", "<|notimestamps|>"]] * len(inputs)
    view = library.StorageView.from_array(np.ascontiguousarray(inputs))
    found = model.generate(view, prompts, beam_size=beams, max_length=len(prompts[0]) + limit, suppress_tokens=[])
    return [one.sequences_ids[0] for one in found]


def d_wer(
    references: Sequence[Tensor], estimates: Sequence[Tensor], sample_rate: int, *, beams: int = 1, batch: int = 8
) -> float:
    """Word error rate of the recogniser on `estimates` against its own transcripts of `references`; 0 when nothing changed."""
    if len(references) != len(estimates):
        raise ValueError(f"estimates must be as many as references, {len(references)}, got {len(estimates)}")
    heard = [transcribe(waves, sample_rate, beams=beams, batch=batch) for waves in (references, estimates)]
    return word_error_rate(heard[0], heard[1])


def speaker_embeddings(waves: Sequence[Tensor], sample_rate: int, *, encoder: SpeakerEncoder | None = None) -> Tensor:
    """Voices of waveforms [T] as unit vectors [N, 256]; ValueError for silence."""
    model = encoder or _encoder()
    if not waves:
        raise ValueError("waves must hold at least one waveform, got none")
    return torch.stack([model.embed(_checked(f"waves[{i}]", wave), sample_rate) for i, wave in enumerate(waves)])


def speaker_similarity(
    references: Sequence[Tensor],
    estimates: Sequence[Tensor],
    sample_rate: int,
    *,
    encoder: SpeakerEncoder | None = None,
    silent: str = "raise",
) -> Tensor:
    """Cosine of the voices of each pair, [N]; these vectors are not negative, so unrelated voices are near 0.7, not 0.

    `silent`: "raise" refuses an estimate without sound, "zero" gives it 0 (a codec may well return silence).
    """
    check_choice("silent", silent, ("raise", "zero"))
    if len(references) != len(estimates):
        raise ValueError(f"estimates must be as many as references, {len(references)}, got {len(estimates)}")
    values = []
    for number, (first, second) in enumerate(zip(references, estimates, strict=True)):
        if silent == "zero" and not bool(_checked(f"estimates[{number}]", second).any()):
            values.append(torch.zeros(()))
        else:
            values.append(F.cosine_similarity(*speaker_embeddings([first, second], sample_rate, encoder=encoder), dim=0))
    return torch.stack(values)


def _checked(name: str, wave: Tensor) -> Tensor:
    check_wave(name, wave)
    if wave.dim() != 1:
        raise ValueError(f"{name} must have shape [T], got {list(wave.shape)}")
    return check_finite(name, wave)


def _mono(name: str, wave: Tensor, sample_rate: int) -> Tensor:
    check_int("sample_rate", sample_rate, 1)
    _checked(name, wave)
    if len(wave) > LONGEST * sample_rate:
        raise ValueError(f"{name} must last at most {LONGEST:g} s, got {len(wave) / sample_rate:.1f} s (cut it first)")
    return resample(wave.detach().float().cpu(), sample_rate, RATE)
