"""A folder of somebody's sound files as clips; what cannot be measured is left out and named."""

from __future__ import annotations

import math
from pathlib import Path

from tokenry.lab.sources.audio.recordings import Clip
from tokenry.lab.sources.audio.speech import SUFFIXES, audio_length, read_audio

SHORTEST = 0.1  # seconds of a clip that something can be measured on


def folder_corpus(
    folder: str | Path,
    *,
    domain: str = "",
    sample_rate: int | None = None,
    limit: int | None = None,
    longest: float | None = None,
    excluded: dict[str, str] | None = None,
) -> list[Clip]:
    """Sound files of a folder, in the order of their names; the words of NAME.wav may stand in NAME.txt beside it.

    `longest` cuts clips to that many seconds; a clip that is cut has no words any more. With `excluded`, files that cannot
    be read, hold no finite samples or no sound, or are shorter than 0.1 s are left out and entered there, name -> reason;
    without, the first that cannot be read is an error, and the others are clips. `limit` counts clips.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder of sound files")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{root} holds no sound file ({', '.join(SUFFIXES)})")
    clips = []
    for path in files:
        if limit is not None and len(clips) >= limit:
            break
        name = path.relative_to(root).with_suffix("").as_posix()
        try:
            clip = _of_file(path, name, domain or "folder", longest)
        except ValueError as error:
            if excluded is None:
                raise
            excluded[path.relative_to(root).as_posix()] = str(error)
            continue
        reason = "" if excluded is None else unusable(clip)
        if reason and excluded is not None:
            excluded[path.relative_to(root).as_posix()] = reason
        else:
            clips.append(clip.at_rate(sample_rate))
    return clips


def _of_file(path: Path, name: str, domain: str, longest: float | None) -> Clip:
    samples, rate = audio_length(path)
    most = -1 if longest is None else math.floor(longest * rate)
    wave, rate = read_audio(path, 0, most)
    words = path.with_suffix(".txt")
    whole = words.is_file() and (longest is None or samples <= most)
    return Clip(wave, rate, name, domain, text=words.read_text(encoding="utf-8").strip() if whole else "")


def unusable(clip: Clip) -> str:
    """Why nothing can be measured on a clip: shorter than 0.1 s, not finite, or silent (within one step of 16 bits); or ""."""
    if clip.seconds < SHORTEST:
        return f"shorter than {SHORTEST:g} s: {clip.seconds:.3f} s"
    if not bool(clip.wave.isfinite().all()):
        return f"{int((~clip.wave.isfinite()).sum())} samples are not finite"
    return "silent" if float(clip.wave.max() - clip.wave.min()) < 2.0**-15 else ""
