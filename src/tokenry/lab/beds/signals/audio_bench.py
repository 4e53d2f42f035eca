"""The controlled comparison of quantizers in one small codec: data, arms, probes and token models of one seed.

All codecs share one backbone and start from one warmed-up autoencoder (so that no quantizer meets an untrained encoder); every
look-up book starts by k-means on its latents, FSQ's maps by their principal axes. Same data, steps and order of batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.codecs import FSQ, Quantizer, ResidualVQ, VectorQuantizer, usage
from tokenry.codecs.audio.codec import bitrate
from tokenry.codecs.audio.metrics import mel_distance, sdr, si_snr, stoi
from tokenry.codecs.audio.probes import ProbeTraining, TokenProbe, probe_accuracy, train_probe
from tokenry.codecs.audio.small_codec import ConvAutoencoder, ConvCodec, ConvCodecConfig
from tokenry.codecs.audio.token_lm import LMTraining, TokenLM, bits_per_frame, train_token_lm
from tokenry.codecs.audio.training import CodecTraining, posthoc_kmeans, start_quantizer, train_codec
from tokenry.core.progress import Progress, within
from tokenry.lab.beds.signals.synthetic_audio import DOMAINS, PHONES, SAMPLE_RATE, SPEAKERS, AudioClips, synthetic_audio

QUANTIZERS = ("rvq24", "fsq24", "rvq12", "fsq12", "svq12")
RECORDED = ("speech", "music", "sound")
_CONTEXT = 4  # frames on either side that a probe's vector is averaged over: 90 ms


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
    semantic_weight: float = 1.0


@dataclass
class BenchData:
    """Synthetic speech with exact phones for training and testing, frames of `hop` samples."""

    train: AudioClips
    test: AudioClips
    hop: int

    def phones(self, split: str) -> Tensor:
        """Phones of the clips per frame, int64 [N,T]."""
        return (self.train if split == "train" else self.test).phones_at(self.hop)


def bench_data(sizes: BenchSizes, seed: int, device: str = "cpu") -> BenchData:
    """Clips of one seed on `device`; train and test clips are drawn apart."""
    train = synthetic_audio("speech", sizes.clips, 2 * seed, seconds=sizes.seconds)
    test = synthetic_audio("speech", sizes.test_clips, 2 * seed + 1, seconds=sizes.seconds)
    train, test = (AudioClips(*(x.to(device) for x in clips)) for clips in (train, test))
    return BenchData(train, test, math.prod(sizes.strides))


def domain_waves(sizes: BenchSizes, seed: int, *, real: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clips [N,S] of speech, music and other sounds for training, and of speech and music for testing.

    Real ones are excerpts of recordings at 8 kHz (telephone prompts and read sentences, music, sounds), at an RMS of 0.1.

    Raises:
        AssetMissingError: the recordings are not at hand.
    """
    if not real:
        train = {d: synthetic_audio(d, sizes.clips, 2 * seed, seconds=sizes.seconds).wave for d in DOMAINS}
        test = {d: synthetic_audio(d, sizes.test_clips, 2 * seed + 1, seconds=sizes.seconds).wave for d in DOMAINS[:2]}
        return train, test
    from tokenry.lab.sources.audio.recordings import audio_corpus

    train = {d: _excerpts(audio_corpus(d, "train", sample_rate=SAMPLE_RATE), sizes.clips, sizes, seed) for d in RECORDED}
    test = {d: _excerpts(audio_corpus(d, sample_rate=SAMPLE_RATE), sizes.test_clips, sizes, seed) for d in RECORDED[:2]}
    return train, test


def _excerpts(clips: Sequence[Any], count: int, sizes: BenchSizes, seed: int) -> Tensor:
    """`count` excerpts of clips that are long enough, drawn from the seed; quiet ones (RMS below 0.005) are drawn again."""
    size = round(sizes.seconds * SAMPLE_RATE)
    waves = [clip.wave for clip in clips if len(clip.wave) >= size]
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < count:
        wave = waves[int(torch.randint(0, len(waves), (), generator=generator))]
        begin = int(torch.randint(0, len(wave) - size + 1, (), generator=generator))
        level = wave[begin : begin + size].square().mean().sqrt()
        if level > 0.005:
            found.append(0.1 * wave[begin : begin + size] / level)
    return torch.stack(found)


def make_quantizer(name: str, dim: int, seed: int) -> Quantizer:
    """The quantizer of an arm; the number in its name is its bits per frame."""
    look_up: dict[str, Any] = {"decay": 0.95, "commitment": 0.25, "seed": seed}
    if name.startswith("fsq"):
        return FSQ((8,) * (int(name[3:]) // 3), dim=dim, seed=seed)
    if name == "svq12":
        return VectorQuantizer(dim, 4096, reset_threshold=0.02, **look_up)
    return ResidualVQ(dim, 2 if name == "rvq12" else 4, 64, reset_threshold=1.0, **look_up)


def train_arms(sizes: BenchSizes, data: BenchData, seed: int, progress: Progress) -> dict[str, nn.Module]:
    """Train every arm on synthetic speech.

    `warm` is the autoencoder that all start from, `continuous` the same trained on without a quantizer, `kmeans` its latents
    clustered afterwards, `distilled` RVQ whose first level is taught the phones.
    """
    config = ConvCodecConfig(
        SAMPLE_RATE, sizes.strides, sizes.channels, sizes.max_channels, sizes.dim, domain=("speech",), seed=seed
    )
    plan = _plan(sizes, seed)
    speech = data.train.wave
    names = ("warm-up", "continuous", *QUANTIZERS, "distilled")
    told = {n: within(progress, i / len(names), (i + 1) / len(names), f"{n}:") for i, n in enumerate(names)}
    warm = ConvAutoencoder(config).to(speech.device)
    train_codec(warm, speech, replace(plan, steps=sizes.warm_steps), progress=told["warm-up"])
    reference = copy.deepcopy(warm)
    train_codec(reference, speech, plan, progress=told["continuous"])
    made: dict[str, nn.Module] = {"warm": warm, "continuous": reference}
    for name in (*QUANTIZERS, "distilled"):
        own = replace(config, semantic_dim=PHONES) if name == "distilled" else config
        features = nn.functional.one_hot(data.phones("train"), PHONES).float() if name == "distilled" else None
        codec = ConvCodec(own, make_quantizer(name, sizes.dim, seed), autoencoder=copy.deepcopy(warm)).to(speech.device)
        start_quantizer(codec, speech, seed=seed)
        train_codec(codec, speech, plan, features=features, progress=told[name])
        made[name] = codec
    made["kmeans"] = posthoc_kmeans(reference, speech, 4096, iterations=10, seed=seed)
    return made


def domain_arms(
    sizes: BenchSizes, warm: ConvAutoencoder, waves: dict[str, Tensor], seed: int, progress: Progress
) -> dict[str, ConvCodec]:
    """The RVQ codec trained on speech alone, and on as many clips of all domains together."""
    share = len(waves["speech"]) // len(waves)
    sets = {"speech_only": waves["speech"], "all_domains": torch.cat([x[:share] for x in waves.values()])}
    made = {}
    for number, (name, clips) in enumerate(sets.items()):
        codec = ConvCodec(warm.config, make_quantizer("rvq24", sizes.dim, seed), autoencoder=copy.deepcopy(warm))
        codec.to(clips.device)
        start_quantizer(codec, clips, seed=seed)
        train_codec(
            codec,
            clips,
            _plan(sizes, seed),
            progress=within(progress, number / len(sets), (number + 1) / len(sets), f"{name}:"),
        )
        made[name] = codec
    return made


def _plan(sizes: BenchSizes, seed: int) -> CodecTraining:
    return CodecTraining(
        steps=sizes.steps, batch=sizes.batch, segment=int(0.5 * sizes.seconds * SAMPLE_RATE), seed=seed,
        log_every=max(1, sizes.steps // 5), semantic_weight=sizes.semantic_weight,
    )  # fmt: skip


@torch.no_grad()
def clip_si_snr(model: nn.Module, wave: Tensor) -> Tensor:
    """SI-SNR of every clip [N] in dB, codes and back."""
    made = model.reconstruct(wave, model.sample_rate) if isinstance(model, ConvCodec) else model(wave)
    return si_snr(wave, made)


@torch.no_grad()
def tokens(codec: ConvCodec, clips: AudioClips, books: int | None = None) -> Tensor:
    """Codes of the clips [N,T,m]."""
    return codec.encode(clips.wave, codec.sample_rate).codes[..., :books]


@torch.no_grad()
def more_metrics(models: dict[str, nn.Module], data: BenchData) -> dict[str, float]:
    """SDR, mel distance and STOI of every arm, means over the test clips; recorded, not judged."""
    facts: dict[str, float] = {}
    wave = data.test.wave[:32]
    for name, model in models.items():
        made = model.reconstruct(wave, SAMPLE_RATE) if isinstance(model, ConvCodec) else model(wave)
        facts[f"{name}_sdr"] = float(sdr(wave, made).mean())
        facts[f"{name}_mel_distance"] = float(mel_distance(wave, made, SAMPLE_RATE).mean())
        facts[f"{name}_stoi"] = float(stoi(wave, made, SAMPLE_RATE).mean())
    return facts


def health(name: str, codec: ConvCodec, data: BenchData) -> dict[str, float | str]:
    """Bits a second, and used share and perplexity of every book over the test clips."""
    facts: dict[str, float | str] = {f"{name}_bits_per_second": bitrate(codec)}
    codes = tokens(codec, data.test)
    for book, size in enumerate(codec.codebook_sizes):
        _, used, _ = stats = usage(codes[..., book], size)
        facts[f"{name}_book{book}_usage"] = float(used)
        facts[f"{name}_book{book}_perplexity"] = float(stats.perplexity)
    return facts


def probe(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor], sizes: BenchSizes, seed: int, **options: Any) -> Tensor:
    """Accuracy of every test clip of a probe on codes or features; options: classes, codebook_sizes or features, level."""
    made = TokenProbe(seed=seed, context=_CONTEXT, **options).to(train.device)
    train_probe(made, train, labels[0], ProbeTraining(steps=sizes.probe_steps, batch=32, seed=seed))
    return probe_accuracy(made, test, labels[1])


def phone_accuracy(model: nn.Module, data: BenchData, sizes: BenchSizes, seed: int, books: int | None = None) -> Tensor:
    """Frame accuracy of phones per test clip: a linear probe on the tokens, or on the latents of an autoencoder."""
    labels = (data.phones("train"), data.phones("test"))
    return probe(*_inputs(model, data, books), labels, sizes, seed, classes=PHONES, **_kind(model, books))


def speaker_accuracy(model: nn.Module, data: BenchData, sizes: BenchSizes, seed: int, books: int | None = None) -> Tensor:
    """Speaker of a test clip, 0 or 1 per clip: an utterance-level probe."""
    labels = (data.train.speaker, data.test.speaker)
    options = _kind(model, books) | {"level": "utterance"}
    return probe(*_inputs(model, data, books), labels, sizes, seed, classes=SPEAKERS, **options)


def first_book_bits(codec: ConvCodec, data: BenchData, sizes: BenchSizes, seed: int) -> Tensor:
    """Bits per frame that a small language model needs for the first book, per test clip."""
    lm = TokenLM(codec.layout.codebook_sizes[:1], seed=seed).to(data.train.wave.device)
    train_token_lm(lm, tokens(codec, data.train, 1), LMTraining(steps=sizes.probe_steps, seed=seed))
    return bits_per_frame(lm, tokens(codec, data.test, 1))


@torch.no_grad()
def _inputs(model: nn.Module, data: BenchData, books: int | None) -> tuple[Tensor, Tensor]:
    clips = data.train, data.test
    if isinstance(model, ConvCodec):
        return tokens(model, clips[0], books), tokens(model, clips[1], books)
    assert isinstance(model, ConvAutoencoder)
    return model.encode(clips[0].wave), model.encode(clips[1].wave)


def _kind(model: nn.Module, books: int | None) -> dict[str, Any]:
    if isinstance(model, ConvCodec):
        return {"codebook_sizes": model.layout.codebook_sizes[:books], "attention": False}
    assert isinstance(model, ConvAutoencoder)
    return {"features": model.config.dim}
