"""Speech with exact phones: eSpeak NG reports at which sample each phone begins.

The library and its data come as an asset and run from the cache; nothing is installed. A phone lasts until the next one
or a pause begins. These are the synthesiser's own marks, not an alignment; formant synthesis moves smoothly between
phones, so that a mark lies inside a transition of some tens of milliseconds.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_int
from tokenry.errors import AssetDamagedError, AssetMissingError
from tokenry.lab.assets.folders import fetch

PAUSE = ""
_STRESS = str.maketrans("", "", "\u02c8\u02cc")  # primary and secondary stress


@dataclass(frozen=True)
class Phone:
    """One phone in IPA without stress marks ("" = pause), and its samples [start, end)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What to say: text, voice ("en-us", with a variant "en-us+f3"), words per minute 80-450, pitch 0-99."""

    text: str
    voice: str = "en-us"
    rate: int = 160
    pitch: int = 50

    def __post_init__(self) -> None:
        if not self.text.strip() or "\0" in self.text:
            raise ValueError(f"text must hold something to say, got {self.text!r}")
        check_int("rate", self.rate, 80, 450)
        check_int("pitch", self.pitch, 0, 99)


@dataclass(frozen=True, eq=False)
class Spoken:
    """wave float32 [T] in -1..1 at `sample_rate`, the phones in order without gaps, and what was asked for."""

    wave: Tensor
    sample_rate: int
    phones: tuple[Phone, ...] = field(repr=False)
    utterance: Utterance

    @property
    def transcription(self) -> str:
        """The phones in a row, pauses left out."""
        return " ".join(phone.name for phone in self.phones if phone.name != PAUSE)


def espeak(text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Spoken:
    """Speak one text; the same arguments give the same samples. Raises ValueError for an unknown voice."""
    return espeak_all([Utterance(text=text, voice=voice, rate=rate, pitch=pitch)])[0]


def espeak_all(utterances: Sequence[Utterance], *, offline: bool | None = None) -> list[Spoken]:
    """Speak several texts in one helper process, each independent of the others.

    Raises ValueError for an unknown voice and AssetMissingError where the library cannot run (other than Linux on x86-64).
    """
    if not utterances:
        return []
    if not sys.platform.startswith("linux"):
        raise AssetMissingError(f"asset 'espeak' holds a library for Linux on x86-64, this is {sys.platform}")
    folder = fetch("espeak", offline=offline) / "espeakng_loader"
    for utterance in utterances:
        variant = utterance.voice.partition("+")[2]
        if variant and not (folder / "espeak-ng-data/voices/!v" / Path(variant).name).is_file():  # the library would ignore it
            raise ValueError(f"voice={utterance.voice!r} names the variant {variant!r}, which there is not")
    jobs = [{"text": u.text, "voice": u.voice, "rate": u.rate, "pitch": u.pitch} for u in utterances]
    worker = Path(__file__).with_name("espeak_worker.py")
    command = [sys.executable, "-I", "-S", str(worker), str(folder / "libespeak-ng.so"), str(folder)]
    done = subprocess.run(command, input=(json.dumps(jobs) + "\n").encode(), capture_output=True, timeout=60 + len(jobs))
    stream = io.BytesIO(done.stdout)
    try:
        return [_answer(stream, utterance) for utterance in utterances]
    except EOFError:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise AssetDamagedError(
            f"the library of asset 'espeak' does not run here {message}; run: tokenry assets get espeak --repair"
        ) from None


def _answer(stream: BinaryIO, utterance: Utterance) -> Spoken:
    line = stream.readline()
    if not line:
        raise EOFError
    header = json.loads(line)
    if "error" in header:
        raise ValueError(f"voice={utterance.voice!r}, text={utterance.text!r}: {header['error']}")
    samples = np.frombuffer(stream.read(2 * header["samples"]), "<i2")
    if len(samples) != header["samples"]:
        raise EOFError
    wave = torch.from_numpy(samples.astype(np.float32) / 32768)
    return Spoken(wave, header["rate"], _phones(header["phones"], len(samples)), utterance)


def _phones(marks: list[tuple[str, int]], size: int) -> tuple[Phone, ...]:
    """Phones that cover the wave: from each mark to the next; pauses in a row become one."""
    merged: list[tuple[str, int]] = []
    for name, start in [(PAUSE, 0), *marks]:
        name, start = name.translate(_STRESS), min(start, size)
        if merged and merged[-1][1] == start:
            merged.pop()
        if not (merged and merged[-1][0] == name == PAUSE) and start < size:
            merged.append((name, start))
    ends = [start for _, start in merged[1:]] + [size]
    return tuple(Phone(name, start, end) for (name, start), end in zip(merged, ends, strict=True))
