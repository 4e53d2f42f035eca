"""Training text out of JSONL files, plain or gzip, with sampling: ``filings.jsonl.gz:0.3`` keeps about three lines of ten."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tokenry.core.checks import check_range
from tokenry.text.reading import blocks_of, format_of, texts_of


def read_jsonl(paths: str | Path | Sequence[str | Path], *, field: str = "text", seed: int = 0) -> Callable[[], Iterator[str]]:
    """A function that reads the field of every kept line, the same lines at each call; trainers take it as `texts`.

    Args:
        paths: files, each with an optional ``:rate`` in (0, 1]; packed files and other encodings as in `tokenry.text.reading`.
        field: key of the text.
        seed: seed of the sampling.

    Raises:
        ValueError: a file that is missing, a rate out of range, or (while reading) a line that is not a JSON object with a text
            in that field; the message names file and line.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not given:
        raise ValueError("paths must hold at least one file")
    files = [_split_rate(str(path)) for path in given]

    def texts() -> Iterator[str]:
        for number, (path, rate) in enumerate(files):
            yield from _lines(path, rate, field, random.Random(f"{seed}:{number}"))

    return texts


def _split_rate(given: str) -> tuple[Path, float]:
    name, separator, rate = given.rpartition(":")
    if Path(given).is_file() or not separator:
        path, kept = Path(given), 1.0
    else:
        try:
            path, kept = Path(name), float(rate)
        except ValueError:
            raise ValueError(f"paths must be files that exist, got {given!r}") from None
        check_range(f"the rate of {given!r}", kept, 0.0, 1.0, low_open=True)
    if not path.is_file():
        raise ValueError(f"paths must be files that exist, got {given!r}")
    return path, kept


def _lines(path: Path, rate: float, field: str, draw: random.Random) -> Iterator[str]:
    form = replace(format_of(path), field=None)
    for first, block in blocks_of(str(path), form, 1 << 20):
        for number, line in enumerate(block.split("\n"), first):
            if (rate < 1.0 and draw.random() >= rate) or not line.strip():
                continue
            yield from texts_of(line, replace(form, field=field), str(path), number)
