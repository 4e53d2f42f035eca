"""Audio codecs x domains on real recordings: bit rate, fidelity, intelligibility, voice, use of the codes, time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs.audio.codec import AudioCodec, bitrate
from tokenry.codecs.audio.metrics import mel_distance, multi_resolution_stft_distance, resample, sdr, si_snr, stoi
from tokenry.core.checks import check_choice, check_int
from tokenry.core.progress import Progress
from tokenry.errors import AssetMissingError
from tokenry.lab.compare.audio_codecs import DEFAULT, check_codec_name, named_codec
from tokenry.lab.compare.engine import run
from tokenry.lab.evidence.intervals import bootstrap_difference
from tokenry.lab.sources.audio.folder import folder_corpus, unusable
from tokenry.lab.sources.audio.recordings import DOMAINS, Clip, audio_corpus, speech_corpus

LONGEST = 10.0  # seconds of a clip that are compared
BATCH = 4
MEASURES = ("si_snr", "sdr", "mel", "stft", "stoi", "speaker")


@dataclass(frozen=True)
class AudioSettings:
    """What to compare. `data` None = the test splits of the corpora; all clips are brought to `rate` Hz first."""

    codecs: tuple[str, ...] = DEFAULT
    data: Path | None = None
    domains: tuple[str, ...] = DOMAINS
    limit: int = 12
    rate: int = 16_000
    seed: int = 0
    device: str = "cpu"
    words: bool = True
    examples: int = 3

    def __post_init__(self) -> None:
        if not self.codecs or len(set(self.codecs)) != len(self.codecs):
            raise ValueError(f"--codecs must name different codecs, at least one, got {','.join(self.codecs)!r}")
        for name in self.codecs:
            check_codec_name(name)
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise ValueError(f"--domain must name different domains, got {','.join(self.domains)!r}")
        for name in self.domains:
            check_choice("--domain", name, DOMAINS)
        check_int("--limit", self.limit, 1)
        check_int("--rate", self.rate, 8000, 48_000)
        if self.data is not None and len(self.domains) != 1:
            raise ValueError(f"--data needs one --domain that says what its files are, got {','.join(self.domains)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "codecs": list(self.codecs),
            "domains": list(self.domains),
            "data": self.data and str(self.data),
        }


def compare_audio(settings: AudioSettings, out: Path, progress: Progress, *, fresh: bool = False) -> dict[str, Any]:
    """Measure every codec in every domain; writes ``compare.json``, ``index.html`` and ``audio/`` under `out`.

    A row is written as soon as it is measured; a run with the same settings continues where the last one stopped.
    """
    from tokenry.lab.pages.audio import write_page, write_reference

    progress("loading", 0.0)
    excluded: dict[str, dict[str, str]] = {domain: {} for domain in settings.domains}
    clips = {domain: load_clips(settings, domain, excluded[domain]) for domain in settings.domains}
    names = {domain: [clip.name for clip in found] for domain, found in clips.items()}
    examples = {d: write_reference(found[: settings.examples], out, d) for d, found in clips.items()}
    head = {
        "settings": settings.to_dict(), "clips": names, "examples": examples, "excluded": excluded,
        "data": str(settings.data) if settings.data else "test recordings of the audio corpora",
    }  # fmt: skip
    heard: dict[str, list[str]] = {}
    loaded: dict[str, AudioCodec] = {}

    def measured(job: tuple[str, str], so_far: dict[str, Any], told: Progress) -> dict[str, Any]:
        name, domain = job
        if name not in loaded:
            loaded.clear()
            loaded[name] = named_codec(name, settings.rate).to(settings.device)
        row, made = measure(loaded[name], clips[domain], settings, heard)
        played = [_with_wave(c, w) for c, w in zip(clips[domain], made, strict=True)][: settings.examples]
        return {**row, "examples": write_reference(played, out, domain, name)}

    def valid(row: dict[str, Any], earlier: dict[str, Any]) -> bool:
        known = row["codec"] in settings.codecs and row["domain"] in names
        return known and earlier["clips"].get(row["domain"]) == names[row["domain"]]

    result = run(
        [(codec, domain) for codec in settings.codecs for domain in settings.domains], measured, out,
        keys=("codec", "domain"), head=head, free=("codecs", "domains"), device=settings.device, progress=progress, fresh=fresh,
        valid=valid,
    )  # fmt: skip
    write_page(result, out, notes_of(result))
    return result


def load_clips(settings: AudioSettings, domain: str, excluded: dict[str, str] | None = None) -> list[Clip]:
    """Clips of one domain at the common rate, at most ten seconds each; half of the speech is English with known words.

    What nothing can be measured on (silent, empty, damaged, shorter than 0.1 s) is left out, and entered in `excluded`,
    name -> reason. Raises ValueError when nothing is left.
    """
    left_out: dict[str, str] = {} if excluded is None else excluded
    if settings.data is not None:
        found = folder_corpus(
            settings.data, domain=domain, sample_rate=settings.rate, limit=settings.limit, longest=LONGEST, excluded=left_out
        )
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
            raise ValueError(f"--data: {settings.data} holds no sound that can be measured ({len(left_out)} files: {reasons})")
        return found
    if domain == "speech":
        half = math.ceil(settings.limit / 2)
        options: dict[str, Any] = {"sample_rate": settings.rate, "seconds": (1.5, LONGEST), "seed": settings.seed}
        found = [c for c in speech_corpus("test", sources=["prompts-en"], **options) if c.text][:half]
        if settings.limit > half:
            others = ["prompts-es", "prompts-fr", "prompts-it", "prompts-it2", "prompts-ru"]
            found += speech_corpus("test", sources=others, limit=settings.limit - half, **options)
    else:
        found = audio_corpus(domain, "test", sample_rate=settings.rate, limit=settings.limit)
    longest = int(LONGEST * settings.rate)
    # words of a clip that is cut are not known any more
    found = [c if len(c.wave) <= longest else _with_wave(c, c.wave[:longest], text="") for c in found]
    left_out.update({c.name: reason for c in found if (reason := unusable(c))})
    return [c for c in found if c.name not in left_out]


def _with_wave(clip: Clip, wave: Tensor, **changes: Any) -> Clip:
    from dataclasses import replace

    return replace(clip, wave=wave, **changes)


def measure(
    codec: AudioCodec, clips: Sequence[Clip], settings: AudioSettings, heard: dict[str, list[str]]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Row of one codec in one domain, and what it made of the clips; `heard` keeps transcripts of the originals."""
    made, codes, seconds = reconstruct(codec, clips, settings)
    originals = [clip.wave for clip in clips]
    outcomes = {name: [] for name in MEASURES}
    silent = [clip.name for clip, estimate in zip(clips, made, strict=True) if unusable(_with_wave(clip, estimate))]
    for clip, estimate in zip(clips, made, strict=True):
        reference, heard_of = clip.wave, clip.name not in silent  # a ratio to silence, -300 dB, would be all of the mean
        outcomes["si_snr"].append(float(si_snr(reference, estimate)) if heard_of else None)
        outcomes["sdr"].append(float(sdr(reference, estimate)) if heard_of and len(reference) >= 512 else None)
        outcomes["mel"].append(float(mel_distance(reference, estimate, settings.rate)))
        outcomes["stft"].append(float(multi_resolution_stft_distance(reference, estimate)))
    row: dict[str, Any] = {
        "clips": len(clips), "seconds": sum(c.seconds for c in clips), "bitrate": bitrate(codec),
        "sample_rate": codec.sample_rate, "frame_rate": float(codec.frame_rate), "books": codec.n_codebooks,
        "bits": codec.bits_per_frame, **use_of_codes(codec, codes), "time": seconds / sum(c.seconds for c in clips),
        "wer": None, "d_wer": None, "silent": silent,
    }  # fmt: skip
    if clips[0].domain == "speech":
        outcomes["stoi"] = [_stoi(r, e, settings.rate) for r, e in zip(originals, made, strict=True)]
        if settings.words:
            row.update(_speech(clips, made, settings, outcomes, heard))
    for name in MEASURES:
        row[name], row[f"{name}_interval"] = _mean(outcomes[name])
    return {**row, "outcomes": outcomes}, made


@torch.no_grad()
def reconstruct(codec: AudioCodec, clips: Sequence[Clip], settings: AudioSettings) -> tuple[list[Tensor], list[Tensor], float]:
    """Every clip through the codec and back at its own rate and length; codes [T, M]; seconds that coding took.

    Resampling is not counted in the time. A clip that the codec refuses as shorter than one frame is an error.
    """
    made: list[Tensor] = []
    codes: list[Tensor] = []
    seconds = 0.0
    for start in range(0, len(clips), BATCH):
        part = [resample(c.wave, c.sample_rate, codec.sample_rate) for c in clips[start : start + BATCH]]
        lengths = torch.tensor([len(w) for w in part])
        padded = torch.nn.utils.rnn.pad_sequence(part, batch_first=True).to(settings.device)
        padded = padded[:, None].expand(-1, codec.channels, -1) if codec.channels > 1 else padded
        begin = time.perf_counter()
        encoded = codec.encode(padded, codec.sample_rate, lengths)
        waves = codec.decode(encoded).cpu()
        seconds += time.perf_counter() - begin
        waves = waves.mean(1) if waves.dim() == 3 else waves
        for row, clip in enumerate(clips[start : start + BATCH]):
            back = resample(waves[row, : int(lengths[row])].float(), codec.sample_rate, clip.sample_rate)[: len(clip.wave)]
            made.append(torch.nn.functional.pad(back, (0, len(clip.wave) - len(back))))
            codes.append(encoded.codes[row, : int(encoded.lengths[row])].cpu())
    return made, codes, seconds


def use_of_codes(codec: AudioCodec, codes: Sequence[Tensor]) -> dict[str, float]:
    """usage: share of a book's codes that occur at all; used_bits: entropy of the codes per frame, summed over the books.

    Both are bounded by how many frames were seen, which matters for large books.
    """
    every = torch.cat(list(codes))
    usage, used = [], 0.0
    for book, size in enumerate(codec.codebook_sizes):
        counts = every[:, book].unique(return_counts=True)[1].double()
        share = counts / counts.sum()
        usage.append(len(counts) / size)
        used -= float((share * share.log2()).sum())
    return {"usage": sum(usage) / len(usage), "used_bits": abs(used), "frames": float(len(every))}


def _stoi(reference: Tensor, estimate: Tensor, rate: int) -> float | None:
    try:
        return float(stoi(reference, estimate, rate))
    except ValueError:  # less than 0.4 s of sound
        return None


def _speech(
    clips: Sequence[Clip],
    made: Sequence[Tensor],
    settings: AudioSettings,
    outcomes: dict[str, list],
    heard: dict[str, list[str]],
) -> dict[str, Any]:
    """Word error rates of English clips and the similarity of voices; without the models a note says so."""
    from tokenry.lab.sources.audio.speech_models import speaker_similarity, transcribe, word_errors

    spoken = [i for i, c in enumerate(clips) if c.language in ("en", "")]
    try:
        originals = [c.wave for c in clips]
        outcomes["speaker"] = speaker_similarity(originals, list(made), settings.rate, silent="zero").tolist()
        if spoken and "originals" not in heard:
            heard["originals"] = transcribe([clips[i].wave for i in spoken], settings.rate)
        texts = transcribe([made[i] for i in spoken], settings.rate) if spoken else []
    except AssetMissingError as error:
        return {"note": str(error)}
    known = [(clips[i].text, text) for i, text in zip(spoken, texts, strict=True) if clips[i].text]
    found = {
        "wer": _rate(word_errors([k for k, _ in known], [t for _, t in known])),
        "d_wer": _rate(word_errors(heard.get("originals", []), texts)),
    }
    return {**found, "wer_clips": len(known), "transcripts": dict(zip((clips[i].name for i in spoken), texts, strict=True))}


def _rate(pairs: Sequence[tuple[int, int]]) -> float | None:
    words = sum(count for _, count in pairs)
    return sum(edits for edits, _ in pairs) / words if words else None


def _mean(values: Sequence[float | None]) -> tuple[float | None, list[float] | None]:
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    mean, low, high = bootstrap_difference([known], [[0.0] * len(known)])
    return mean, [low, high]


def notes_of(result: dict[str, Any]) -> list[str]:
    """What was left out of a comparison, counted and named, and what its rows say."""
    notes = sorted({row["note"] for row in result["rows"] if "note" in row})
    for domain, excluded in result["excluded"].items():
        if excluded:
            total = len(excluded) + len(result["clips"][domain])
            notes.append(f"{domain}: {len(excluded)} of {total} clips left out: {_listed(excluded)}")
    for row in result["rows"]:
        if row.get("silent"):
            named = _listed(dict.fromkeys(row["silent"], ""))
            head = f"{row['codec']}, {row['domain']}: {len(row['silent'])} of {row['clips']} clips came back silent"
            notes.append(f"{head} and are not in its SI-SNR and SDR: {named}")
    return notes


def _listed(reasons: dict[str, str], most: int = 20) -> str:
    parts = [f"{name} ({reason})" if reason else name for name, reason in reasons.items()]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")
