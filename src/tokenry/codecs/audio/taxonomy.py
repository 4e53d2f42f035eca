"""The survey's taxonomy of discrete audio tokenizers as data: a schema, its rows, filters. Loads no torch.

Token rate and bit rate are computed from frame rate, books and codes. Empty fields are those the survey's pages leave out or
that could not be read; nothing is filled in from elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from tokenry.lazy import suggest

QUANTIZERS = ("RVQ", "SVQ", "GVQ", "MSRVQ", "CSRVQ", "PQ", "FSQ", "K-means")
ARCHITECTURES = ("CNN", "CNN+RNN", "CNN+T", "T", "RNN")
OBJECTIVES = ("GAN", "Feat", "Rec", "VQ", "Diff", "MP")
AUXILIARY = ("Dis", "SD", "SST")
DOMAINS = ("speech", "music", "audio")
_ALL = DOMAINS


@dataclass(frozen=True)
class AudioTokenizer:
    """One tokenizer of the taxonomy, or one of its benchmarked versions.

    Attributes:
        name: as the literature writes it.
        encoder, decoder: CNN, CNN+RNN, CNN+T (transformer), T, RNN; decoder empty for tokenizers that do not resynthesize.
        representation: ``time`` or ``time-frequency``.
        quantizer: RVQ, SVQ (one book), GVQ (grouped), MSRVQ (multi-scale), CSRVQ (cross-scale), PQ, FSQ, K-means.
        objectives: GAN, Feat (feature matching), Rec (reconstruction), VQ (commitment), Diff (diffusion), MP (masked
            prediction).
        auxiliary: Dis (disentanglement), SD (semantic distillation), SST (supervised semantic tokenization).
        joint: the quantizer is trained with the rest; False = afterwards.
        domain: target domains.
        streaming: None = not known.
        version: name in the benchmark (tokenizer-domains-kHz); empty for a row of the taxonomy alone.
        sample_rate, frame_rate, codebook_size: Hz, frames per second, codes per book.
        parameters, macs: millions of parameters; G multiply-accumulates.
        checkpoints: hub ids.
        listed_kbps: bit rate as the benchmark's pages print it, where it differs from the computed one: (books, kbps).
        note: inconsistencies of the source.
    """

    name: str
    encoder: str = ""
    decoder: str = ""
    representation: str = ""
    quantizer: str = ""
    objectives: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    joint: bool | None = None
    domain: tuple[str, ...] = ()
    streaming: bool | None = None
    version: str = ""
    sample_rate: int | None = None
    frame_rate: float | None = None
    codebook_size: int | None = None
    parameters: float | None = None
    macs: float | None = None
    checkpoints: tuple[str, ...] = ()
    listed_kbps: tuple[int, float] | None = None
    note: str = ""

    def token_rate(self, n_codebooks: int) -> float | None:
        """Tokens per second with that many books; None where the frame rate is unknown."""
        return None if self.frame_rate is None else self.frame_rate * _books(n_codebooks)

    def bitrate(self, n_codebooks: int) -> float | None:
        """Bits per second: tokens per second x log2 of the codes; None where either is unknown."""
        rate = self.token_rate(n_codebooks)
        return None if rate is None or self.codebook_size is None else rate * math.log2(self.codebook_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the rates of one book."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return row | {"token_rate_per_book": self.token_rate(1), "bits_per_second_per_book": self.bitrate(1)}


_CODEC = ("GAN", "Feat", "Rec", "VQ")
_ENCODEC = {"encoder": "CNN+RNN", "decoder": "CNN", "representation": "time", "quantizer": "RVQ", "objectives": _CODEC,
            "joint": True, "streaming": True}  # fmt: skip
_DAC = {"encoder": "CNN", "decoder": "CNN", "representation": "time", "quantizer": "RVQ", "objectives": _CODEC,
        "joint": True, "streaming": False}  # fmt: skip
_WAV = {"encoder": "CNN+T", "decoder": "CNN+T", "representation": "time", "quantizer": "SVQ", "objectives": _CODEC,
        "joint": True, "streaming": False}  # fmt: skip
_MIMI = {"encoder": "CNN+T", "decoder": "CNN+T", "representation": "time", "quantizer": "RVQ", "objectives": _CODEC,
         "auxiliary": ("SD",), "joint": True, "domain": ("speech",), "streaming": True}  # fmt: skip
_ST = {"encoder": "CNN+RNN", "decoder": "CNN", "representation": "time", "quantizer": "RVQ", "objectives": _CODEC,
       "auxiliary": ("SD",), "joint": True, "domain": ("speech",), "streaming": False}  # fmt: skip
_SQ = {"encoder": "CNN", "decoder": "CNN", "representation": "time", "quantizer": "FSQ", "objectives": ("GAN", "Rec"),
       "joint": True, "streaming": False}  # fmt: skip
_SSL = {"encoder": "CNN+T", "decoder": "T", "representation": "time", "quantizer": "K-means",
        "objectives": ("GAN", "Feat", "Rec", "MP"), "joint": False, "domain": ("speech",), "streaming": False}  # fmt: skip
_SQ_NOTE = "the taxonomy lists the domain speech alone, the benchmark speech, music and audio"
_WT_NOTE = "the benchmark prints a bit rate that its own frame rate and codes do not give"

_TAXONOMY: tuple[AudioTokenizer, ...] = (
    AudioTokenizer("EnCodec", domain=_ALL, **_ENCODEC),
    AudioTokenizer("DAC", domain=_ALL, **_DAC),
    AudioTokenizer("Mimi", **_MIMI),
    AudioTokenizer("SpeechTokenizer", **_ST),
    AudioTokenizer("WavTokenizer", domain=_ALL, **_WAV),
    AudioTokenizer("SQ-Codec", domain=("speech",), note=_SQ_NOTE, **_SQ),
    AudioTokenizer("Discrete SSL", **_SSL),
    AudioTokenizer("SemantiCodec", encoder="CNN+T", decoder="T", representation="time", quantizer="RVQ",
                   objectives=("Diff", "VQ"), auxiliary=("SD",), joint=True, domain=_ALL, streaming=False),
    AudioTokenizer("SNAC", quantizer="MSRVQ"),
    AudioTokenizer("FACodec", quantizer="GVQ", auxiliary=("Dis",)),
    AudioTokenizer("S3 (CosyVoice)", quantizer="SVQ", objectives=("Diff",), auxiliary=("SST",)),
    AudioTokenizer("BigCodec", quantizer="SVQ", frame_rate=80),
    AudioTokenizer("X-Codec", quantizer="RVQ", auxiliary=("SD",)),
    AudioTokenizer("TAAE", quantizer="FSQ", frame_rate=25),
    AudioTokenizer("Best-RQ", quantizer="PQ", objectives=("MP",), note="the quantizer is of PQ type; no decoder"),
    AudioTokenizer("USM", quantizer="PQ", objectives=("MP",), note="the quantizer is of PQ type; no decoder"),
    AudioTokenizer("w2v-BERT", quantizer="PQ", objectives=("MP",), note="the quantizer is of PQ type; no decoder"),
    AudioTokenizer("RepCodec", quantizer="SVQ"),
)  # fmt: skip


def _row(
    name: str, version: str, facts: dict[str, Any], domain: tuple[str, ...], khz: float, rate: float, codes: int,
    parameters: float, macs: float, hub: str = "", **more: Any,
) -> AudioTokenizer:  # fmt: skip
    return AudioTokenizer(
        name, version=version, sample_rate=round(1000 * khz), frame_rate=rate, codebook_size=codes, parameters=parameters,
        macs=macs, checkpoints=(hub,) if hub else (), **{**facts, "domain": domain, **more},
    )  # fmt: skip


_S, _M, _A = ("speech",), ("music",), ("audio",)
_BENCHMARK: tuple[AudioTokenizer, ...] = (
    _row("EnCodec", "Enc-SMA-24", _ENCODEC, _ALL, 24, 75, 1024, 14.9, 6.1, "facebook/encodec_24khz"),
    _row("EnCodec", "Enc-M-32", _ENCODEC, _M, 32, 50, 2048, 56.9, 14.4, "facebook/encodec_32khz"),
    _row("EnCodec", "Enc-A-16", _ENCODEC, _A, 16, 50, 2048, 56.8, 14.0, "facebook/audiogen-medium"),
    _row("DAC", "DAC-SMA-44", _DAC, _ALL, 44.1, 86, 1024, 76.7, 147.0,
         note="86 frames a second is the benchmark's rounding of 44100 / 512"),
    _row("DAC", "DAC-SMA-24", _DAC, _ALL, 24, 75, 1024, 74.7, 83.4),
    _row("DAC", "DAC-SMA-16", _DAC, _ALL, 16, 50, 1024, 74.1, 55.6),
    _row("SpeechTokenizer", "ST-S-16", _ST, _S, 16, 50, 1024, 103.7, 17.1, "fnlp/SpeechTokenizer"),
    _row("Mimi", "Mimi-S-24", _MIMI, _S, 24, 12.5, 2048, 79.3, 8.1, "kyutai/mimi"),
    _row("Discrete SSL", "DWavL-S-16", _SSL, _S, 16, 50, 1000, 331.9, 21.1, "speechbrain/hifigan-wavlm-k1000-LibriTTS"),
    _row("SQ-Codec", "SQ-SMA-16", _SQ, _ALL, 16, 50, 3**9, 23.5, 14.7, "Dongchao/UniAudio", note=_SQ_NOTE),
    _row("WavTokenizer", "WT-SMA-24", _WAV, _ALL, 24, 75, 4096, 80.6, 6.3, listed_kbps=(1, 0.98), note=_WT_NOTE),
    _row("WavTokenizer", "WT-S-24", _WAV, _S, 24, 40, 4096, 80.9, 3.4, listed_kbps=(1, 0.52), note=_WT_NOTE),
)  # fmt: skip


def audio_tokenizers(
    *,
    benchmarked: bool | None = None,
    quantizer: str | None = None,
    domain: str | None = None,
    streaming: bool | None = None,
    objective: str | None = None,
    auxiliary: str | None = None,
    name: str | None = None,
) -> tuple[AudioTokenizer, ...]:
    """Rows that pass every filter given: the taxonomy first, then the benchmarked versions.

    `domain` asks for rows that include it; `streaming` leaves out rows where it is not known.

    Raises:
        ValueError: a value that the schema does not have; the message lists the nearest.
    """
    for argument, value, known in (
        ("quantizer", quantizer, QUANTIZERS), ("domain", domain, DOMAINS), ("objective", objective, OBJECTIVES),
        ("auxiliary", auxiliary, AUXILIARY), ("name", name, tuple(dict.fromkeys(r.name for r in _TAXONOMY + _BENCHMARK))),
    ):  # fmt: skip
        if value is not None and value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}{suggest(value, known)}")
    return tuple(
        row
        for row in _TAXONOMY + _BENCHMARK
        if (benchmarked is None or bool(row.version) == benchmarked)
        and (quantizer is None or row.quantizer == quantizer)
        and (domain is None or domain in row.domain)
        and (streaming is None or row.streaming is streaming)
        and (objective is None or objective in row.objectives)
        and (auxiliary is None or auxiliary in row.auxiliary)
        and (name is None or row.name == name)
    )


def _books(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"n_codebooks must be an int >= 1, got {value!r}")
    return value
