"""The controlled comparison of quantizers in one small codec: data, arms, probes and token models of one seed.

All codecs share one backbone and start from one warmed-up autoencoder (so that no quantizer meets an untrained encoder); every
look-up book starts by k-means on its latents, FSQ's maps by their principal axes. Same data, steps and order of batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.codecs import FSQ, Quantizer, ResidualVQ, VectorQuantizer
from tokenry.codecs.audio.metrics import si_snr
from tokenry.codecs.audio.probes import ProbeTraining, TokenProbe, probe_accuracy, train_probe
from tokenry.codecs.audio.small_codec import ConvAutoencoder, ConvCodec, ConvCodecConfig
from tokenry.codecs.audio.token_lm import LMTraining, TokenLM, bits_per_frame, train_token_lm
from tokenry.codecs.audio.training import CodecTraining, posthoc_kmeans, start_quantizer, train_codec
from tokenry.lab.testbeds.synthetic_audio import DOMAINS, PHONES, SAMPLE_RATE, SPEAKERS, AudioClips, synthetic_audio

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of a run: clips, network, steps before and with a quantizer, and of the probes and token models."""

    clips: int
    test_clips: int
    warm_steps: int
    steps: int
    probe_steps: int
    channels: int = 32
    max_channels: int = 128
    dim: int = 32
    strides: tuple[int, ...] = (5, 4, 4)
    batch: int = 8
    seconds: float = 1.0


@dataclass
class BenchData:
    """Training clips of the domains, test clips of the domains, frames of `hop` samples."""

    train: dict[str, AudioClips]
    test: dict[str, AudioClips]
    hop: int

    @property
    def mixed(self) -> Tensor:
        """As many clips as the speech set has, a third of each domain."""
        share = len(self.train["speech"].wave) // len(DOMAINS)
        return torch.cat([self.train[d].wave[:share] for d in DOMAINS])

    def phones(self, split: str) -> Tensor:
        """Phones of the speech clips per frame, int64 [N,T]."""
        return (self.train if split == "train" else self.test)["speech"].phones_at(self.hop)


def bench_data(sizes: BenchSizes, seed: int) -> BenchData:
    """Clips of one seed; train and test clips are drawn apart."""
    hop = 1
    for stride in sizes.strides:
        hop *= stride
    make = partial(synthetic_audio, seconds=sizes.seconds)
    train = {d: make(d, sizes.clips, 2 * seed) for d in DOMAINS}
    test = {d: make(d, sizes.test_clips, 2 * seed + 1) for d in DOMAINS}
    return BenchData(train, test, hop)


def quantizers(dim: int, seed: int) -> dict[str, Callable[[], Quantizer]]:
    """The quantizers of the bench by arm; `24` and `12` are bits per frame."""
    look_up: dict[str, Any] = {"decay": 0.95, "commitment": 0.25, "seed": seed}
    return {
        "rvq24": lambda: ResidualVQ(dim, 4, 64, reset_threshold=1.0, **look_up),
        "fsq24": lambda: FSQ((8,) * 8, dim=dim, seed=seed),
        "rvq12": lambda: ResidualVQ(dim, 2, 64, reset_threshold=1.0, **look_up),
        "fsq12": lambda: FSQ((8,) * 4, dim=dim, seed=seed),
        "svq12": lambda: VectorQuantizer(dim, 4096, reset_threshold=0.02, **look_up),
    }


def train_arms(sizes: BenchSizes, data: BenchData, seed: int, progress: Progress) -> dict[str, nn.Module]:
    """Train every arm; `continuous` is the autoencoder without a quantizer, `kmeans` its latents clustered afterwards."""
    config = ConvCodecConfig(
        SAMPLE_RATE, sizes.strides, sizes.channels, sizes.max_channels, sizes.dim, domain=("speech",), seed=seed
    )
    plan = CodecTraining(steps=sizes.steps, batch=sizes.batch, segment=int(0.5 * sizes.seconds * SAMPLE_RATE), seed=seed)
    plan = replace(plan, log_every=max(1, sizes.steps // 5))
    speech = data.train["speech"].wave
    count, done = 9, 0

    def told(name: str) -> Progress:
        return lambda message, fraction: progress(f"{name}: {message}", (done + fraction) / count)

    warm = ConvAutoencoder(config)
    train_codec(warm, speech, replace(plan, steps=sizes.warm_steps), progress=told("warm-up"))
    made: dict[str, nn.Module] = {}
    done += 1
    reference = copy.deepcopy(warm)
    train_codec(reference, speech, plan, progress=told("continuous"))
    made["continuous"] = reference
    makers = quantizers(sizes.dim, seed)
    for name in (*makers, "distilled", "all_domains"):
        done += 1
        own = replace(config, semantic_dim=PHONES) if name == "distilled" else config
        codec = ConvCodec(own, makers.get(name, makers["rvq24"])(), autoencoder=copy.deepcopy(warm))
        waves = data.mixed if name == "all_domains" else speech
        start_quantizer(codec, waves, seed=seed)
        features = nn.functional.one_hot(data.phones("train"), PHONES).float() if name == "distilled" else None
        train_codec(codec, waves, plan, features=features, progress=told(name))
        made[name] = codec
    made["kmeans"] = posthoc_kmeans(reference, speech, 64, iterations=10, seed=seed)
    return made


@torch.no_grad()
def clip_si_snr(model: nn.Module, wave: Tensor) -> Tensor:
    """SI-SNR of every clip [N] in dB, codes and back."""
    made = model.reconstruct(wave, model.sample_rate) if isinstance(model, ConvCodec) else model(wave)
    return si_snr(wave, made)


@torch.no_grad()
def tokens(codec: ConvCodec, clips: AudioClips, books: int | None = None) -> Tensor:
    """Codes of the clips [N,T,m]."""
    return codec.encode(clips.wave, codec.sample_rate).codes[..., :books]


def probe(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor], sizes: BenchSizes, seed: int, **options: Any) -> Tensor:
    """Accuracy of every test clip of a probe on codes or features; options: classes, codebook_sizes or features, level."""
    made = TokenProbe(seed=seed, **options)
    train_probe(made, train, labels[0], ProbeTraining(steps=sizes.probe_steps, seed=seed))
    return probe_accuracy(made, test, labels[1])


def phone_accuracy(model: nn.Module, data: BenchData, sizes: BenchSizes, seed: int, books: int | None = None) -> Tensor:
    """Frame accuracy of phones per test clip: a linear probe on the tokens, or on the latents of an autoencoder."""
    labels = (data.phones("train"), data.phones("test"))
    return probe(*_inputs(model, data, books), labels, sizes, seed, classes=PHONES, **_kind(model, books))


def speaker_accuracy(model: nn.Module, data: BenchData, sizes: BenchSizes, seed: int, books: int | None = None) -> Tensor:
    """Speaker of a test clip, 0 or 1 per clip: an utterance-level probe."""
    labels = (data.train["speech"].speaker, data.test["speech"].speaker)
    options = _kind(model, books) | {"level": "utterance"}
    return probe(*_inputs(model, data, books), labels, sizes, seed, classes=SPEAKERS, **options)


def first_book_bits(codec: ConvCodec, data: BenchData, sizes: BenchSizes, seed: int) -> Tensor:
    """Bits per frame that a small language model needs for the first book, per test clip."""
    lm = TokenLM(codec.layout.codebook_sizes[:1], seed=seed)
    train_token_lm(lm, tokens(codec, data.train["speech"], 1), LMTraining(steps=sizes.probe_steps, seed=seed))
    return bits_per_frame(lm, tokens(codec, data.test["speech"], 1))


@torch.no_grad()
def _inputs(model: nn.Module, data: BenchData, books: int | None) -> tuple[Tensor, Tensor]:
    clips = data.train["speech"], data.test["speech"]
    if isinstance(model, ConvCodec):
        return tokens(model, clips[0], books), tokens(model, clips[1], books)
    assert isinstance(model, ConvAutoencoder)
    return model.encode(clips[0].wave), model.encode(clips[1].wave)


def _kind(model: nn.Module, books: int | None) -> dict[str, Any]:
    if isinstance(model, ConvCodec):
        return {"codebook_sizes": model.layout.codebook_sizes[:books], "attention": False}
    assert isinstance(model, ConvAutoencoder)
    return {"features": model.config.dim}
