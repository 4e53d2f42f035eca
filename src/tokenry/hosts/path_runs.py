"""Work that now and then needs a run of a model, written as a generator, so that many pieces of it share their runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tokenry.hosts.paths import PathScorer

T = TypeVar("T")


@dataclass(frozen=True)
class PathRequest:
    """Token paths whose next-token log-probabilities are wanted."""

    scorer: PathScorer
    paths: list[tuple[int, ...]]


# Yields what is to be run, is sent a list of rows [V] for it, and returns a result.
Steps = Generator[PathRequest, list[np.ndarray], T]


def drive(pieces: Sequence[Steps[Any]]) -> list[Any]:
    """Results of the pieces of work; what they ask of one model at the same time is one run of it."""
    results: list[Any] = [None] * len(pieces)
    waiting: dict[int, PathRequest] = {}

    def go(place: int, rows: list[np.ndarray] | None) -> None:
        try:
            waiting[place] = pieces[place].send(rows)  # pyright: ignore[reportArgumentType]
        except StopIteration as end:
            results[place] = end.value

    for place in range(len(pieces)):
        go(place, None)
    while waiting:
        asked, together = dict(waiting), {}
        waiting.clear()
        for place, request in asked.items():
            together.setdefault(id(request.scorer), []).append(place)
        for places in together.values():
            paths = [path for place in places for path in asked[place].paths]
            found = asked[places[0]].scorer.run(paths, [1] * len(paths)) if paths else []
            rows = [row[-1].numpy() for row in found]
            for place in places:
                count = len(asked[place].paths)
                go(place, rows[:count])
                rows = rows[count:]
    return results
