"""Train the small 16 kHz codecs whose weights are in the package, on real audio: one backbone, four quantizers.

    python tools/train_small_codecs.py --out DIR

Training data: the training splits of the speech, music and sound corpora, a third of each (speech: telephone prompts and
wide-band words). A shared autoencoder is trained first; then every quantizer is started on its latents and trained with it
for equally many steps, except k-means, which clusters the latents of the frozen autoencoder.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs import FSQ, Quantizer, ResidualVQ, VectorQuantizer
from tokenry.codecs.audio.codec import AudioCodec
from tokenry.codecs.audio.small_codec import ConvAutoencoder, ConvCodec, ConvCodecConfig
from tokenry.codecs.audio.training import CodecTraining, posthoc_kmeans, start_quantizer, train_codec
from tokenry.core.checks import check_int
from tokenry.core.progress import Progress, within
from tokenry.lab.sources.audio.recordings import Clip, music_corpus, sound_corpus, speech_corpus

RATE = 16_000
SECONDS = 1.5
DIM = 48
_WORDS = ("words-es", "words-fr", "words-ru", "words-bg")

QUANTIZERS: dict[str, Callable[[int], Quantizer]] = {
    # 250 frames a second: 32, 32, 12 and (kmeans) 10 bits each are 8, 8, 3 and 2.5 kbit/s
    "rvq": lambda seed: ResidualVQ(DIM, 4, 256, decay=0.95, commitment=0.25, reset_threshold=1.0, seed=seed),
    "fsq": lambda seed: FSQ((16,) * 8, dim=DIM, seed=seed),
    "svq": lambda seed: VectorQuantizer(DIM, 4096, decay=0.95, commitment=0.25, reset_threshold=0.02, seed=seed),
}
CONFIG = ConvCodecConfig(
    sample_rate=RATE, strides=(8, 8), channels=64, max_channels=96, dim=DIM, domain=("speech", "music", "audio"), seed=0
)  # fmt: skip


def training_waves(clips: int, *, seed: int = 0) -> Tensor:
    """Excerpts [clips, S] of the training splits at 16 kHz, a third of each domain, shuffled, each at an RMS of 0.1."""
    check_int("clips", clips, 3)
    third = clips // 3
    parts: list[list[Clip]] = [
        [
            *speech_corpus("train", sample_rate=RATE, limit=third // 2, seed=seed),
            *speech_corpus("train", sources=_WORDS, sample_rate=RATE, limit=third - third // 2, seed=seed),
        ],
        music_corpus("train", sample_rate=RATE, limit=third, every=10.0, seed=seed),
        sound_corpus("train", sample_rate=RATE, limit=third, seed=seed),
    ]
    generator = torch.Generator().manual_seed(seed)
    size = int(SECONDS * RATE)
    rows = []
    for part in parts:
        for number in range(third):  # a small corpus is passed through again, at other places
            wave = part[number % len(part)].wave
            start = int(torch.randint(0, max(1, len(wave) - size + 1), (1,), generator=generator))
            row = torch.nn.functional.pad(wave[start : start + size], (0, max(0, size - len(wave))))
            rows.append(row * (0.1 / row.square().mean().sqrt().clamp_min(1e-4)))
    return torch.stack(rows)[torch.randperm(len(rows), generator=generator)]


def train_small_codecs(
    out: Path,
    *,
    clips: int = 900,
    warm_steps: int = 1500,
    steps: int = 700,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train the shared autoencoder and the codecs, and write them to `out` with ``provenance.json``.

    Checkpoints go to ``out/work``; an interrupted run continues there.
    """
    waves = training_waves(clips, seed=seed)
    plan = CodecTraining(steps=steps, batch=batch, segment=6400, resolutions=((512, 128), (128, 32)), log_every=100, seed=seed)
    facts: dict[str, Any] = {"clips": clips, "warm_steps": warm_steps, "steps": steps, "batch": batch, "seed": seed}
    started = time.monotonic()
    warm = ConvAutoencoder(replace(CONFIG, seed=seed))
    facts["warm_history"] = train_codec(
        warm, waves, replace(plan, steps=warm_steps), folder=out / "work/warm",
        progress=within(progress, 0.0, 0.4, "autoencoder:"),
    )  # fmt: skip
    _save(posthoc_kmeans(warm, waves, 1024, iterations=15, seed=seed), out / "kmeans")
    for number, (name, make) in enumerate(QUANTIZERS.items()):
        codec = ConvCodec(replace(CONFIG, seed=seed), make(seed), autoencoder=copy.deepcopy(warm))
        start_quantizer(codec, waves, seed=seed)
        facts[f"{name}_history"] = train_codec(
            codec, waves, plan, folder=out / "work" / name,
            progress=within(progress, 0.4 + 0.2 * number, 0.6 + 0.2 * number, f"{name}:"),
        )  # fmt: skip
        _save(codec, out / name)
    facts["seconds"] = round(time.monotonic() - started, 1)
    (out / "provenance.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _save(codec: AudioCodec, folder: Path) -> None:
    assert isinstance(codec, ConvCodec)
    codec.save_pretrained(folder)


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("clips", 900), ("warm-steps", 900), ("steps", 800), ("batch", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())

    def say(message: str, fraction: float) -> None:
        sys.stderr.write(f"{fraction:4.0%} {message}\n")

    train_small_codecs(given.pop("out"), **given, progress=say)


if __name__ == "__main__":
    main()
