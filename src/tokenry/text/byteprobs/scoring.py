"""Next-byte distributions along a known text: the tips of many places in one run, instead of a run a byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.hosts.paths import PathScorer
from tokenry.text.byteprobs.covers import Covers, Tip
from tokenry.text.byteprobs.state import ByteState

_WINDOW, _ROWS = 128, 32  # bytes whose tips are held at a time; tips off the tokenizer's own path in one run


class _Ahead:
    """A scorer that answers from rows fetched ahead; what was not foreseen it runs."""

    def __init__(self, scorer: PathScorer) -> None:
        self.scorer = scorer
        self.rows: dict[tuple[int, ...], Tensor] = {}
        self.check_fits = scorer.check_fits

    def run(self, paths: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        known = [self.rows.get(tuple(path)) if n == 1 else None for path, n in zip(paths, last, strict=True)]
        missing = [i for i, row in enumerate(known) if row is None]
        found = iter(self.scorer.run([paths[i] for i in missing], [last[i] for i in missing]) if missing else ())
        return [next(found) if row is None else row[None] for row in known]

    def fetch(self, paths: set[tuple[int, ...]], own: tuple[int, ...]) -> None:
        """Hold the rows of `paths`, and no others; `own` is the path that most of them begin with."""
        self.rows = {path: row for path, row in self.rows.items() if path in paths}
        wanted = paths - self.rows.keys()
        along = sorted(len(path) for path in wanted if own[: len(path)] == path)
        if along:
            (rows,) = self.scorer.run([own[: along[-1]]], [along[-1] - along[0] + 1])
            self.rows |= {own[:size]: rows[size - along[0]] for size in along}
        beside = sorted((path for path in wanted if path not in self.rows), key=len)
        for start in range(0, len(beside), _ROWS):
            some = beside[start : start + _ROWS]
            self.rows |= dict(zip(some, (rows[-1] for rows in self.scorer.run(some, [1] * len(some), hold=True)), strict=True))


def walk(lm: Any, data: bytes, context: tuple[int, ...]) -> Iterator[ByteState]:
    """The state of a `ByteLM` before every byte of `data`, and after the last; the same object each time.

    Raises:
        ValueError: `data` is not the beginning of UTF-8 text, the tokenizer cannot spell it, or the model gives it no mass.
    """
    vocabulary = lm.vocabulary
    own, whole = context + tuple(vocabulary.encode(data)), vocabulary.prefix + data
    ahead = _Ahead(lm.scorer)
    rules = Covers(vocabulary, ahead, valid_only=lm.valid_only)  # pyright: ignore[reportArgumentType]
    state = ByteState(rules, lm.special_array, b"", context, [], [Tip((), 0.0)])
    for first in range(0, len(whole) + 1, _WINDOW):
        places = range(first, min(first + _WINDOW, len(whole) + 1))
        ahead.fetch({context + tuple(ids) for place in places for ids in vocabulary.canonical.tips(whole[:place])}, own)
        for place in places:
            if place >= len(vocabulary.prefix):
                yield state
            if place < len(whole):
                state.advance(whole[place])


def byte_log_probs(lm: Any, data: bytes, context: tuple[int, ...]) -> Tensor:
    """Log P(byte | the bytes before it), natural, float64 [len(data)]; see `ByteLM.byte_log_probs`."""
    found = torch.full((len(data),), -torch.inf, dtype=torch.float64)
    for place, state in enumerate(walk(lm, data, context)):
        if place == len(data):
            break
        found[place] = state.next_probs()[data[place]].log()
        if not torch.isfinite(found[place]):
            break
    return found
