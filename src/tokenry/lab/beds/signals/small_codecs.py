"""Small 16 kHz codecs trained on real audio, one backbone with four quantizers; their weights are in the package.

``tools/train_small_codecs.py`` made them.
"""

from __future__ import annotations

from pathlib import Path

from tokenry.codecs.audio.small_codec import ConvCodec
from tokenry.core.checks import check_choice

WEIGHTS = Path(__file__).parents[1] / "weights" / "audio"
SMALL_CODECS = ("rvq", "fsq", "svq", "kmeans")


def small_codec(name: str, folder: Path = WEIGHTS) -> ConvCodec:
    """One of the trained codecs: rvq (4 x 256), fsq (16^8), svq (4096) or kmeans (1024), in evaluation mode."""
    check_choice("name", name, SMALL_CODECS)
    return ConvCodec.from_pretrained(folder / name)
