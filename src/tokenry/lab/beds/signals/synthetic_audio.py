"""Synthetic audio at 8 kHz with exact labels: formant speech (phones, speakers), music, and bursts of noise.

Speech: 12 vowel-like sources of three formants each, 8 speakers that differ in formant scale and pitch (60-300 Hz), 4 to 6
phones a second in the order of a fixed sparse grammar (every phone has four successors). Music: chords of decaying partials.
Noise: one to four band-passed bursts. Everything is drawn from a seed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_int, check_range

SAMPLE_RATE = 8000
PHONES, SPEAKERS = 12, 8
DOMAINS = ("speech", "music", "noise")
_CONTROL = 80  # samples between two points of the control tracks (10 ms)
# Hz of the first three formants of English vowels: adult male averages in the manner of Peterson and Barney (1952).
_FORMANTS = (
    (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440), (570, 840, 2410),
    (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690), (400, 2250, 2800), (450, 800, 2700),
)  # fmt: skip
_BANDWIDTHS = (80.0, 110.0, 160.0)
_SUCCESSORS = 4


class AudioClips(NamedTuple):
    """wave float32 [n,S] at 8 kHz; phones int64 [n, S/80] (every 10 ms; -1 where there is none); speaker int64 [n] or -1."""

    wave: Tensor
    phones: Tensor
    speaker: Tensor

    def phones_at(self, hop_length: int) -> Tensor:
        """Phone in the middle of every frame of `hop_length` samples, int64 [n, S/hop]."""
        middles = torch.arange(self.wave.shape[1] // hop_length) * hop_length + hop_length // 2
        return self.phones[:, middles // _CONTROL]


def synthetic_audio(domain: str, count: int, seed: int, *, seconds: float = 1.0) -> AudioClips:
    """`count` clips of one domain (``speech``, ``music`` or ``noise``), each at an RMS of 0.1.

    Raises:
        TypeError, ValueError: unknown domain, count < 1, or seconds that are not a multiple of 0.01.
    """
    check_choice("domain", domain, DOMAINS)
    check_int("count", count, 1)
    check_range("seconds", seconds, 0.1)
    size = round(seconds * SAMPLE_RATE)
    if size % _CONTROL:
        raise ValueError(f"seconds must be a multiple of 0.01, got {seconds}")
    generator = torch.Generator().manual_seed(seed * len(DOMAINS) + DOMAINS.index(domain))
    make = {"speech": _speech, "music": _music, "noise": _noise}[domain]
    parts = [make(min(32, count - start), size, generator) for start in range(0, count, 32)]
    wave, phones, speaker = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return AudioClips(0.1 * wave / wave.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6), phones, speaker)


def grammar() -> Tensor:
    """Successors of every phone, int64 [12, 4]; the same for every seed."""
    generator = torch.Generator().manual_seed(12)
    rows = []
    for phone in range(PHONES):
        others = torch.tensor([p for p in range(PHONES) if p != phone])
        rows.append(others[torch.randperm(PHONES - 1, generator=generator)[:_SUCCESSORS]])
    return torch.stack(rows)


def speakers() -> tuple[Tensor, Tensor]:
    """Formant scale and mean pitch in Hz of the 8 speakers, [8] each."""
    scale = torch.tensor([0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2])
    pitch = torch.tensor([70.0, 140.0, 100.0, 190.0, 85.0, 230.0, 160.0, 265.0])
    return scale, pitch


def _speech(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    points = size // _CONTROL
    speaker = torch.randint(0, SPEAKERS, (count,), generator=generator)
    phones = torch.stack([_phones(points, generator) for _ in range(count)])
    scale, pitch = speakers()
    # Pitch: the speaker's mean, +-12 % by a slow random contour, inside 60-300 Hz.
    f0 = pitch[speaker, None] * (1 + 0.12 * _contour(count, points, 3, generator))
    f0 = f0.clamp(60.0, 300.0)
    formants = torch.tensor(_FORMANTS, dtype=torch.float32)[phones] * scale[speaker, None, None]  # [n, P, 3]
    formants = _smooth(formants.transpose(1, 2), 5).transpose(1, 2)  # 50 ms of coarticulation
    harmonics = torch.arange(1, int(3800 / 60) + 1)
    at = f0[..., None] * harmonics  # [n, P, H] Hz
    gain = torch.zeros_like(at)
    for number, bandwidth in enumerate(_BANDWIDTHS):
        gain += 1.0 / (1 + ((at - formants[..., number, None]) / bandwidth).square()) / (1 + number)
    gain = gain * (at < 3800) / harmonics.sqrt()
    loud = (1 + 0.4 * _contour(count, points, 6, generator)).clamp_min(0.2)
    wave = torch.zeros(count, size)
    phase = 2 * math.pi * torch.cumsum(_samples(f0, size) / SAMPLE_RATE, dim=1)
    for harmonic in range(len(harmonics)):
        if bool((gain[..., harmonic] > 0).any()):
            wave += _samples(gain[..., harmonic] * loud, size) * torch.sin((harmonic + 1) * phase)
    return wave + 0.01 * torch.randn(count, size, generator=generator), phones, speaker


def _phones(points: int, generator: torch.Generator) -> Tensor:
    """One phone per control point: 4 to 6 phones a second, durations uneven, order by the grammar."""
    number = max(1, round(points / 100 * int(torch.randint(4, 7, (), generator=generator))))
    shares = 0.6 + 0.8 * torch.rand(number, generator=generator)
    ends = (torch.cumsum(shares, 0) / shares.sum() * points).round().long()
    table = grammar()
    order = [int(torch.randint(0, PHONES, (), generator=generator))]
    for _ in range(number - 1):
        order.append(int(table[order[-1], torch.randint(0, _SUCCESSORS, (), generator=generator)]))
    place = torch.searchsorted(ends, torch.arange(points), right=True).clamp_max(number - 1)
    return torch.tensor(order)[place]


def _music(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One to four chords a second: triads on a root of 110-440 Hz, six decaying partials each."""
    time = torch.arange(size) / SAMPLE_RATE
    wave = torch.zeros(count, size)
    for row in range(count):
        chords = max(1, round(size / SAMPLE_RATE * int(torch.randint(1, 5, (), generator=generator))))
        for chord in range(chords):
            onset = chord * size // chords
            root = 24 * torch.rand((), generator=generator).item()
            third = 3 + int(torch.randint(0, 2, (), generator=generator))
            for step in (0, third, 7):
                f0 = 110 * 2 ** ((root + step) / 12)
                decay = 2 + 4 * torch.rand((), generator=generator).item()
                t = time[: size - onset]
                for partial in range(1, 7):
                    if partial * f0 < 3800:
                        tone = torch.sin(2 * math.pi * partial * f0 * t) * torch.exp(-decay * math.sqrt(partial) * t)
                        wave[row, onset:] += tone * (1 - torch.exp(-200 * t)) / partial
    return wave, torch.full((count, size // _CONTROL), -1), torch.full((count,), -1)


def _noise(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One to four bursts of noise, each in its own band and with its own attack and decay."""
    time = torch.arange(size) / SAMPLE_RATE
    frequency = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    wave = torch.zeros(count, size)
    for row in range(count):
        for _ in range(int(torch.randint(1, 5, (), generator=generator))):
            centre, width, start, decay = torch.rand(4, generator=generator).tolist()
            centre, width = 200 * 17.5**centre, 100 + 600 * width
            band = torch.exp(-(((frequency - centre) / width) ** 2))
            burst = torch.fft.irfft(torch.fft.rfft(torch.randn(size, generator=generator)) * band, size)
            since = time - start * 0.8 * time[-1]
            envelope = torch.where(since >= 0, (1 - torch.exp(-300 * since)) * torch.exp(-(3 + 20 * decay) * since), 0.0)
            wave[row] += burst / burst.square().mean().sqrt() * envelope.nan_to_num()
    return wave, torch.full((count, size // _CONTROL), -1), torch.full((count,), -1)


def _contour(count: int, points: int, knots: int, generator: torch.Generator) -> Tensor:
    """Smooth random tracks in -1..1, [count, points]."""
    values = 2 * torch.rand(count, 1, knots, generator=generator) - 1
    return torch.nn.functional.interpolate(values, size=points, mode="linear", align_corners=True)[:, 0]


def _smooth(tracks: Tensor, width: int) -> Tensor:
    """Moving average of [n, C, P] with edges repeated."""
    padded = torch.nn.functional.pad(tracks, (width // 2, width // 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, width, stride=1)


def _samples(track: Tensor, size: int) -> Tensor:
    """Control track [n, P] -> samples [n, S], linear between the points."""
    return torch.nn.functional.interpolate(track[:, None], size=size, mode="linear", align_corners=False)[:, 0]
