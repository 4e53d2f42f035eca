"""The audio comparison as a page: tables, fidelity against bit rate, and players with spectrograms beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs.audio.metrics import log_mel
from tokenry.errors import optional
from tokenry.lab.pages.figure import svg_of
from tokenry.lab.pages.frame import render
from tokenry.lab.sources.audio.recordings import Clip
from tokenry.lab.sources.audio.speech import write_audio

COLUMNS = (
    # key, heading, digits, unit, what it says
    ("si_snr", "SI-SNR", 1, "dB", "scale-invariant signal-to-noise ratio; higher is better"),
    ("sdr", "SDR", 1, "dB", "signal-to-distortion ratio that forgives a filter of 512 taps; higher is better"),
    ("mel", "mel", 3, "", "mean difference of log10 mel magnitudes; lower is better, 0.1 is 2 dB"),
    ("stft", "STFT", 2, "", "spectral convergence plus log magnitudes at three resolutions; lower is better"),
    ("stoi", "STOI", 3, "", "intelligibility, at most 1; higher is better"),
    ("wer", "WER", 3, "", "word error rate of Whisper tiny.en against the words that were said; lower is better"),
    ("d_wer", "dWER", 3, "", "word error rate against what the same recogniser hears in the original; lower is better"),
    ("speaker", "voice", 3, "", "cosine of the voices before and after; 1 is the same, unrelated voices are near 0.7"),
)
_NEARLY_LOSSLESS = 100_000  # bit/s; left out of the figure
_RANGE = 4.0  # decades of mel magnitude that a picture shows (80 dB)


def write_reference(clips: Sequence[Clip], out: Path, domain: str, codec: str = "original") -> list[dict[str, str]]:
    """Write clips as wav files with their spectrograms under ``audio/``; returns their places relative to `out`.

    Files of the originals and of a codec's versions of them have the same names in folders of their own.
    """
    folder = Path("audio") / _folder(codec)
    (out / folder).mkdir(parents=True, exist_ok=True)
    places = []
    for number, clip in enumerate(clips):
        stem = folder / f"{domain}-{number}"
        write_audio(out / f"{stem}.wav", clip.wave, clip.sample_rate)
        spectrogram(clip.wave, clip.sample_rate, out / f"{stem}.png")
        places.append(
            {
                "name": clip.name, "text": clip.text, "seconds": f"{clip.seconds:.1f}",
                "wave": f"{stem.as_posix()}.wav", "picture": f"{stem.as_posix()}.png",
            }
        )  # fmt: skip
    return places


def _folder(codec: str) -> str:
    """A folder name that two codecs never share."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", codec).strip("-")
    return plain if plain == codec else f"{plain}-{hashlib.sha256(codec.encode()).hexdigest()[:6]}"


def spectrogram(wave: Tensor, sample_rate: int, path: Path) -> None:
    """Log-mel picture of a waveform as PNG: time to the right, low tones below, 80 dB under full scale black."""
    optional("matplotlib", "lab")
    from matplotlib import image

    mels = log_mel(wave, sample_rate, mels=64)
    level = (mels / _RANGE + 1).clamp(0, 1)  # one scale for all pictures keeps levels comparable
    # about 400 columns whatever the length: the mean of neighbours
    level = torch.nn.functional.adaptive_avg_pool1d(level.T[None], min(400, len(level)))[0]
    image.imsave(path, level.flip(0).numpy(), cmap="magma", vmin=0.0, vmax=1.0)


def fidelity_figure(result: dict[str, Any]) -> str:
    """SI-SNR and mel distance against bit rate, a panel per domain, as SVG text; "" when all are nearly lossless."""
    optional("matplotlib", "lab")
    from matplotlib.figure import Figure

    if all(row["bitrate"] >= _NEARLY_LOSSLESS for row in result["rows"]):
        return ""
    domains = list(dict.fromkeys(row["domain"] for row in result["rows"]))
    names = list(dict.fromkeys(row["codec"] for row in result["rows"]))
    figure = Figure(figsize=(3.4 * len(domains) + 1, 5.2), layout="constrained")
    panels = figure.subplots(2, len(domains), sharex=True, squeeze=False)
    for column, domain in enumerate(domains):
        for line, (key, heading) in enumerate((("si_snr", "SI-SNR (dB)"), ("mel", "mel distance"))):
            axes = panels[line][column]
            for row in result["rows"]:
                # what is nearly lossless would squeeze the others into a corner
                if row["domain"] == domain and row[key] is not None and row["bitrate"] < _NEARLY_LOSSLESS:
                    low, high = row[f"{key}_interval"]
                    bars = [[max(0.0, row[key] - low)], [max(0.0, high - row[key])]]
                    colour = f"C{names.index(row['codec']) % 10}"
                    label = row["codec"] if line == column == 0 else None
                    axes.errorbar([row["bitrate"] / 1000], [row[key]], bars, marker="o", capsize=3, color=colour, label=label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="x", which="both", labelsize=8)
            axes.grid(alpha=0.25)
            if line == 0:
                axes.set_title(domain)
            else:
                axes.set_xlabel("kbit/s")
            if column == 0:
                axes.set_ylabel(heading)
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return svg_of(figure)


def _cell(row: dict[str, Any], key: str, heading: str, digits: int, unit: str, meaning: str) -> dict[str, str]:
    """Text of a cell, and its interval as what the pointer shows."""
    if row[key] is None:
        return {"text": "", "title": ""}
    interval = row.get(f"{key}_interval")
    title = f"95 % interval {interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ""
    return {"text": f"{row[key]:.{digits}f}", "title": title}


def write_page(result: dict[str, Any], out: Path, notes: Sequence[str] = ()) -> Path:
    """Write ``index.html`` beside the sound files; it asks for nothing outside its folder. `notes` stand at its top."""
    domains = list(dict.fromkeys(row["domain"] for row in result["rows"]))
    tables = [{"domain": domain, "rows": [r for r in result["rows"] if r["domain"] == domain]} for domain in domains]
    for table in tables:
        table["columns"] = [c for c in COLUMNS if any(row[c[0]] is not None for row in table["rows"])]
        table["cells"] = [[_cell(row, *column) for column in table["columns"]] for row in table["rows"]]
    listen = {
        "originals": result["examples"],
        "codecs": [
            {
                "name": row["codec"], "domain": row["domain"], "examples": row["examples"], "kbits": row["bitrate"] / 1000,
                "transcripts": row.get("transcripts", {}), "si_snr": row["outcomes"]["si_snr"], "mel": row["outcomes"]["mel"],
            }
            for row in result["rows"]
        ],
    }  # fmt: skip
    return render(
        "compare_audio.html.j2", out / "index.html", result=result, tables=tables, listen=listen,
        figure=fidelity_figure(result), notes=notes,
    )  # fmt: skip
