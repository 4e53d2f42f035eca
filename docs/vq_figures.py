"""Draws the figures of the quantizers' page from the committed result: ``python docs/vq_figures.py [RESULT.json] [FOLDER]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"vq": "VQ", "rvq": "RVQ", "pq": "PQ", "aq": "AQ", "simvq": "SimVQ", "fsq": "FSQ", "lfq": "LFQ", "bsq": "BSQ"}
REMEDIES = {
    "learnable": "learnable", "ema": "EMA", "kmeans": "EMA, k-means start", "rotation": "EMA, rotation trick",
    "reset": "EMA, reset", "cosine4": "cosine, 4-d, reset", "simvq": "SimVQ", "fsq": "FSQ", "lfq": "LFQ", "bsq": "BSQ",
}  # fmt: skip
COLOURS = ("#1b5e9e", "#c44e17", "#2f8f4e", "#8e44ad", "#b8860b", "#c2185b", "#00838f", "#5d4037", "#546e7a", "#9e9d24")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<")
RATES = (6, 8, 10)


def facts(result: dict[str, Any], name: str) -> list[float]:
    """One fact of every seed."""
    return [float(seed["facts"][name]) for seed in result["seeds"].values()]


def mean(values: list[float]) -> float:
    """Mean of a few numbers."""
    return sum(values) / len(values)


def rate_distortion(result: dict[str, Any], axes: Any) -> None:
    """Explained variance of sentence embeddings over bits; bars span the seeds."""
    for (name, label), colour, mark in zip(NAMES.items(), COLOURS, MARKS, strict=False):
        rows = [facts(result, f"sentences_{bits}bit_{name}_explained") for bits in RATES]
        centre = [mean(row) for row in rows]
        spread = [
            [c - min(r) for c, r in zip(centre, rows, strict=True)],
            [max(r) - c for c, r in zip(centre, rows, strict=True)],
        ]
        axes.errorbar(
            RATES, centre, yerr=spread, label=label, color=colour, marker=mark, markersize=5, linewidth=1.3, capsize=2
        )
    axes.set_xticks(RATES)
    axes.set_xlabel("bits per vector")
    axes.set_ylabel("variance explained, test vectors")
    axes.set_title("Sentence embeddings (MiniLM, D = 384)", fontsize=10)


def collapse(result: dict[str, Any], axes: Any) -> None:
    """Reconstruction over utilisation of the digit autoencoder; a point per seed."""
    for (name, label), colour, mark in zip(REMEDIES.items(), COLOURS, MARKS, strict=False):
        x = [100 * mean(seed["arms"][f"used_{name}"]) for seed in result["seeds"].values()]
        y = [mean(seed["arms"][f"psnr_{name}"]) for seed in result["seeds"].values()]
        axes.scatter(x, y, label=label, color=colour, marker=mark, s=28, alpha=0.9, linewidths=0)
    axes.set_xlim(0, 103)
    axes.set_xlabel("codes in use on test digits, % of the book")
    axes.set_ylabel("PSNR of test digits, dB")
    axes.set_title("Digit autoencoder, 4 tokens of 8 bits", fontsize=10)


def main() -> None:
    """Read the result and write both figures."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "vq.small.json"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "figures"
    result = json.loads(source.read_text(encoding="utf-8"))
    mpl.rcParams.update({"svg.hashsalt": "tokenry", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    target.mkdir(exist_ok=True)
    for name, draw in (("vq_rate_distortion", rate_distortion), ("vq_collapse", collapse)):
        figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        draw(result, axes)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(target / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)
        print(target / f"{name}.svg")  # noqa: T201


if __name__ == "__main__":
    main()
