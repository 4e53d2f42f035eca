"""A speaker encoder (GE2E, Wan, Wang, Papir and Lopez Moreno 2018): a voice as a unit vector of 256 numbers.

Three LSTM layers read mel energies (40 bands at 16 kHz, 25 ms windows every 10 ms); the last state passes a linear layer
and a rectifier and is scaled to length one. An utterance is cut into windows of 160 frames that overlap by about half;
their vectors are averaged and scaled again. The architecture is that of Resemblyzer's weights.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.codecs.audio.metrics import resample

RATE, WINDOW, HOP, MELS = 16_000, 400, 160, 40
FRAMES = 160  # frames of a window of an utterance
STEP = round(RATE / 1.3 / HOP)  # 1.3 windows a second
COVERAGE = 0.75  # of the last window that must hold audio
LEVEL_DB = -30.0  # quieter utterances are raised to this level


class SpeakerEncoder(nn.Module):
    """mel energies [N, frames, 40] -> unit vectors [N, 256]."""

    def __init__(self, mels: int = MELS, hidden: int = 256, layers: int = 3, size: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(mels, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, size)

    def forward(self, mels: Tensor) -> Tensor:
        """Vectors of windows; shape [N, size]."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=-1)

    @torch.inference_mode()
    def embed(self, wave: Tensor, sample_rate: int) -> Tensor:
        """The voice of one waveform [T] as a unit vector; ValueError for silence.

        Long pauses are not cut out: what is measured is this waveform.
        """
        x = resample(wave.detach().float(), sample_rate, RATE).to(self.linear.weight.device)
        power = x.square().mean()
        if not float(power) > 0:
            raise ValueError("wave must hold sound to have a speaker, got silence")
        x = x * max(1.0, 10 ** (LEVEL_DB / 20) / math.sqrt(float(power)))
        starts = list(range(0, max(1, math.ceil((len(x) + 1) / HOP) - FRAMES + STEP + 1), STEP))
        if len(starts) > 1 and (len(x) - starts[-1] * HOP) / (FRAMES * HOP) < COVERAGE:
            starts.pop()
        x = F.pad(x, (0, max(0, (starts[-1] + FRAMES) * HOP - len(x))))
        mels = mel_energies(x)
        windows = torch.stack([mels[start : start + FRAMES] for start in starts])
        return F.normalize(self(windows).mean(0), dim=0)


def mel_energies(wave: Tensor) -> Tensor:
    """Energies in 40 mel bands of a waveform [T] at 16 kHz, frames centred on every 10 ms: [1 + T // 160, 40]."""
    padded = F.pad(wave, (WINDOW // 2, WINDOW // 2))
    frames = padded.unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW, device=wave.device)
    return torch.fft.rfft(frames).abs().square() @ _mel_bank().to(wave)


@lru_cache(maxsize=1)
def _mel_bank() -> Tensor:
    """Triangles of unit area (in Hz) on the mel scale of Slaney's toolbox [201, 40]."""
    from transformers.audio_utils import mel_filter_bank

    return torch.from_numpy(mel_filter_bank(WINDOW // 2 + 1, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"))
