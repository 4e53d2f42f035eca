"""audiotokens: the survey's controlled comparison of quantizers in one backbone, in small.

One small codec is warmed up and then trained on with each quantizer, on synthetic speech with exact phones. Two budgets, 24 and
12 bits per frame: a single book of 2^24 codes cannot exist, so it takes part at 12 bits alone. The domain contrast is measured
on real recordings (telephone prompts and read sentences, music, sounds; scale ``smoke``: synthetic ones).

The survey's own table compares quantizers at equal backbone, RVQ with all its books against one token per frame, that is, at
unequal bits. Here bits are equal, which is the sharper question: is it the structure or the bits?
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from tokenry.core.progress import Progress
from tokenry.lab.beds.signals import audio_bench as bench
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale

_HUB = ("facebook/encodec_24khz", "kyutai/mimi", "descript/dac_24khz")


class AudioTokensClaim(Claim):
    """Fidelity, readability and predictability of tokens by quantizer, and the cost of a foreign domain."""

    system = "audiotokens"
    statement = (
        "At equal bits per frame and equal backbone RVQ reconstructs better than FSQ, and FSQ better than a single book; "
        "distilling phones into the first level makes its tokens easier to read and to predict at about the same fidelity; "
        "k-means after training reconstructs worse than the same book trained along and is read about as well; "
        "a codec trained on speech alone loses on music"
    )
    metric = "SI-SNR in dB per clip (snr, music), share of frames read right (phone), minus bits per frame (lm)"
    contrasts = (
        Contrast("RVQ above FSQ at 24 bits", "rvq24_snr", "fsq24_snr"),
        Contrast("RVQ above FSQ at 12 bits", "rvq12_snr", "fsq12_snr"),
        Contrast("RVQ above a single book at 12 bits", "rvq12_snr", "svq12_snr"),
        Contrast("FSQ above a single book at 12 bits", "fsq12_snr", "svq12_snr"),
        Contrast("distilled first level is read better", "distilled_phone", "rvq24_phone", 0.02),
        Contrast("distilled first level is more predictable", "distilled_lm", "rvq24_lm"),
        Contrast("distillation costs less than 1 dB", "distilled_snr", "rvq24_snr", -1.0),
        Contrast("k-means after training reconstructs worse than the same book trained along", "svq12_snr", "kmeans_snr"),
        Contrast("k-means tokens are read about as well as the same book trained along", "kmeans_phone", "svq12_phone", -0.05),
        Contrast("speech alone costs over 1 dB on real music", "all_domains_music", "speech_only_music", 1.0),
        Contrast("probes read continuous features", "continuous_phone", "chance_phone", 0.3),
    )
    competence = Competence("continuous_snr", 5.0)
    assets = ()

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Clips, steps and network of a scale, and where the domains come from."""
        sizes = {
            "smoke": bench.BenchSizes(90, 6, 6, 6, 6, channels=8, max_channels=16, dim=16, seconds=0.5),
            "small": bench.BenchSizes(400, 64, 250, 220, 120),
            "paper": bench.BenchSizes(20_000, 500, 5_000, 50_000, 2_000, channels=64, max_channels=512, dim=128, batch=64),
        }[scale]
        return {**asdict(sizes), "strides": list(sizes.strides), "domains": "synthetic" if scale == "smoke" else "recordings"}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Train every arm once and read its codes."""
        settings = self.settings(scale)
        real = settings.pop("domains") == "recordings"
        sizes = bench.BenchSizes(**{**settings, "strides": tuple(settings["strides"])})
        data = bench.bench_data(sizes, seed, device)
        models = bench.train_arms(sizes, data, seed, lambda m, f: progress(m, 0.65 * f))
        arms, facts = _speech_arms(models, sizes, data, seed)
        progress("domains", 0.75)
        train, test = (
            {name: wave.to(device) for name, wave in waves.items()} for waves in bench.domain_waves(sizes, seed, real=real)
        )
        warm = models["warm"]
        assert isinstance(warm, bench.ConvAutoencoder)
        for name, codec in bench.domain_arms(sizes, warm, train, seed, lambda m, f: progress(m, 0.75 + 0.25 * f)).items():
            arms[f"{name}_music"] = _list(bench.clip_si_snr(codec, test["music"]))
            facts[f"{name}_speech_snr"] = float(bench.clip_si_snr(codec, test["speech"]).mean())
        if scale == "paper":
            facts |= _hub_facts(test, device)
        progress("done", 1.0)
        return Measurement(arms, facts)


def _speech_arms(
    models: dict[str, nn.Module], sizes: bench.BenchSizes, data: bench.BenchData, seed: int
) -> tuple[dict[str, list[float]], dict[str, float | str]]:
    """Fidelity of all arms; phones from the first book (one token of 64 codes) of those that have one, and from all books."""
    arms: dict[str, list[float]] = {}
    facts: dict[str, float | str] = {}
    quality = {name: bench.clip_si_snr(model, data.test.wave) for name, model in models.items() if name != "warm"}
    arms |= {f"{name}_snr": _list(value) for name, value in quality.items()}
    arms["chance_phone"] = [1 / bench.PHONES] * sizes.test_clips
    for name in ("continuous", "rvq24", "distilled", "kmeans", "fsq12", "svq12"):
        model = models[name]
        one = 1 if isinstance(model, bench.ConvCodec) else None
        arms[f"{name}_phone"] = _list(bench.phone_accuracy(model, data, sizes, seed, one))
        if name in ("continuous", "rvq24", "distilled"):
            facts[f"{name}_speaker"] = float(bench.speaker_accuracy(model, data, sizes, seed, one).mean())
        if name in ("rvq24", "distilled"):
            assert isinstance(model, bench.ConvCodec)
            facts[f"{name}_phone_all_books"] = float(bench.phone_accuracy(model, data, sizes, seed).mean())
            arms[f"{name}_lm"] = _list(-bench.first_book_bits(model, data, sizes, seed))
    for name, model in models.items():
        if isinstance(model, bench.ConvCodec):
            facts |= bench.health(name, model, data)
    for metric, values in bench.more_metrics(models, data).items():
        facts[metric] = values
    return arms, facts


def _hub_facts(test: dict[str, Tensor], device: str) -> dict[str, float | str]:
    """Bit rates and SI-SNR of published codecs on the same recordings (scale ``paper``)."""
    from tokenry.codecs.audio import bitrate, load_audio_codec, si_snr

    facts: dict[str, float | str] = {}
    for source in _HUB:
        codec = load_audio_codec(source, n_codebooks=8).to(device)
        facts[f"{source} kbps"] = bitrate(codec) / 1000
        for domain, wave in test.items():
            made = codec.reconstruct(wave, bench.SAMPLE_RATE, resample=True)
            facts[f"{source} {domain} SI-SNR"] = float(si_snr(wave, made).mean())
    return facts


def _list(values: Tensor) -> list[float]:
    return [float(v) for v in values]


CLAIM = AudioTokensClaim()
