"""Added tokens: strings that a tokenizer looks for in a text before its algorithm sees what lies between them.

They are found leftmost first, longest first, those of the raw text before those of the normalised one. What a text that may go on
already settles is found here; what it leaves open (a beginning of an added token at its end) is a place behind which nothing is
decided, and no cut may lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.hosts.text.trie import ByteTrie

_STEP = 64  # bytes between two places where a search may be taken up again


@dataclass(frozen=True)
class AddedPattern:
    """One entry of a tokenizer's added tokens; `piece` is what it spells.

    Attributes:
        matched: False for special tokens: they use up their place but stay text.
        flagged: what stands beside it counts (``single_word``, ``lstrip``, ``rstrip``).
    """

    token: int
    piece: bytes
    matched: bool
    single_word: bool
    lstrip: bool
    rstrip: bool

    @property
    def flagged(self) -> bool:
        """See the class."""
        return self.single_word or self.lstrip or self.rstrip


@dataclass(frozen=True)
class Settled:
    """What the added tokens leave of a text that may go on.

    Attributes:
        start: end of the last added token that is there whatever follows; text behind it is cut and merged on its own.
        live: first place behind which an added token may still come to lie; the length of the text if there is none.
        barred: places between the two where the text must not be cut.
    """

    start: int
    live: int
    barred: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Hit:
    place: int
    end: int
    pattern: AddedPattern | None  # None: nothing is decided from `place` on


class AddedTokens:
    """The added tokens of one tokenizer.

    Args:
        patterns: those of the raw text and those of the normalised text, in the order in which they are looked for.
    """

    def __init__(self, patterns: Sequence[Sequence[AddedPattern]]) -> None:
        used = any(pattern.matched for level in patterns for pattern in level)
        self._levels = [_Level(level) for level in patterns if level] if used else []
        self.matched = tuple(p for level in patterns for p in level if p.matched)
        self.flagged = tuple(pattern for pattern in self.matched if pattern.flagged)
        self._longest = max((level.longest for level in self._levels), default=0)
        self._known: tuple[bytes, list[tuple[int, int]]] = (b"", [(0, 0)])
        self._rest: dict[bytes, list[bytes]] = {}
        for piece in {pattern.piece for pattern in self.matched}:
            for size in range(1, len(piece)):
                self._rest.setdefault(piece[:size], []).append(piece[size:])

    def settle(self, data: bytes) -> Settled:
        """What is decided in `data`, the beginning of a text."""
        if not self._levels:
            return Settled(0, len(data))
        place, start, points = self._resume(data)
        barred: set[int] = set()
        while True:
            raw = self._levels[0].find(data, place, len(data))
            limit = len(data) if raw is None else raw.place
            for hit in self._normalised(data, place, limit, closed=raw is not None and raw.pattern is not None):
                if hit.pattern is None:
                    return self._settled(data, points, start, hit.place, barred)
                start = self._take(hit, start, barred)
                place = hit.end
                self._mark(points, place, start)
            if raw is None or raw.pattern is None:
                return self._settled(data, points, start, limit, barred)
            start, place = self._take(raw, start, barred), raw.end
            self._mark(points, place, start)

    def _normalised(self, data: bytes, place: int, limit: int, *, closed: bool) -> Iterator[_Hit]:
        """Tokens of the normalised text before `limit`, where the text between two raw ones ends (`closed`) or may end."""
        if len(self._levels) < 2:
            return
        while hit := self._levels[1].find(data, place, limit, closed=closed):
            yield hit
            if hit.pattern is None:
                return
            place = hit.end

    @staticmethod
    def _take(hit: _Hit, start: int, barred: set[int]) -> int:
        assert hit.pattern is not None
        if hit.pattern.matched:
            return hit.end
        if hit.pattern.single_word:
            barred.add(hit.place)  # alone, what stands from there on would be found
        return start

    def _resume(self, data: bytes) -> tuple[int, int, list[tuple[int, int]]]:
        known, points = self._known
        kept = [(0, 0)]
        for place, start in points[1:] if not self.flagged else ():
            if place > len(data) - self._longest or data[:place] != known[:place]:
                break
            kept.append((place, start))
        return *kept[-1], kept

    @staticmethod
    def _mark(points: list[tuple[int, int]], place: int, start: int) -> None:
        if place - points[-1][0] >= _STEP:
            points.append((place, start))

    def _settled(self, data: bytes, points: list[tuple[int, int]], start: int, live: int, barred: set[int]) -> Settled:
        self._mark(points, live, start)
        self._known = (data, points)
        return Settled(start, live, frozenset(barred))

    def flagged_near(self, tail: bytes) -> bool:
        """Whether a token for which its neighbours count lies in `tail` or begins at its end."""
        begins = any(tail.endswith(pattern.piece[:size]) for pattern in self.flagged for size in range(1, len(pattern.piece)))
        return begins or any(pattern.piece in tail for pattern in self.flagged)

    def completing(self, tail: bytes, trie: ByteTrie) -> set[int]:
        """Tokens that complete an added token begun in `tail`."""
        found: set[int] = set()
        for size in range(1, min(self._longest, len(tail) + 1)):
            for rest in self._rest.get(tail[-size:], ()):
                found.update(trie.starting_with(rest).tolist())
        return found

    def inside(self, trie: ByteTrie, pieces: Sequence[bytes | None]) -> tuple[list[int], list[int]]:
        """Tokens of the vocabulary with an added token inside: (never made, depends on the neighbours)."""
        plain = _Level([p for p in self.matched if not p.flagged])
        beside = _Level(self.flagged)
        never, depends = [], []
        for token in trie.ids.tolist() if self.matched else ():
            piece = pieces[token] or b""
            if plain.within(piece):
                never.append(token)
            elif beside.within(piece):
                depends.append(token)
        return never, depends


class _Level:
    """Added tokens that are looked for together."""

    def __init__(self, patterns: Sequence[AddedPattern]) -> None:
        self.patterns = {pattern.piece: pattern for pattern in patterns}
        self.longest = max(map(len, self.patterns), default=0)
        self._begun = {piece[:size] for piece in self.patterns for size in range(1, len(piece))}
        self._sizes: dict[bytes, list[int]] = {}
        for piece in self.patterns:
            self._sizes.setdefault(piece[:1], []).append(len(piece))
        for first, sizes in self._sizes.items():
            self._sizes[first] = sorted(set(sizes), reverse=True)
        self._first = re.compile(b"[" + b"".join(map(re.escape, self._sizes)) + b"]") if self._sizes else None

    def within(self, piece: bytes) -> bool:
        """Whether one of them lies in `piece`."""
        if self._first is None:
            return False
        places = (found.start() for found in self._first.finditer(piece))
        return any(piece[i : i + size] in self.patterns for i in places for size in self._sizes[piece[i : i + 1]])

    def find(self, data: bytes, place: int, limit: int, *, closed: bool = False) -> _Hit | None:
        """The first of them in ``data[place:limit]``, or the first place that is undecided; None if there is neither.

        `closed`: nothing that reaches over `limit` counts. Otherwise it makes its place undecided.
        """
        end = limit if closed else len(data)
        for found in self._first.finditer(data, place, limit) if self._first is not None else ():
            i = found.start()
            if not closed and len(data) - i < self.longest and data[i:] in self._begun:
                return _Hit(i, i, None)
            for size in self._sizes[data[i : i + 1]]:
                if i + size <= end and data[i : i + size] in self.patterns:
                    return self._judge(data, i, i + size, limit, closed)
        return None

    def _judge(self, data: bytes, place: int, end: int, limit: int, closed: bool) -> _Hit:
        pattern = self.patterns[data[place:end]]
        if end > limit:
            return _Hit(place, place, None)
        if not pattern.flagged:
            return _Hit(place, end, pattern)
        after = data[end : min(end + 4, limit) if closed else end + 4].decode("utf-8", "ignore")[:1]
        if not after and not closed:
            return _Hit(place, place, None)
        if pattern.single_word and (_is_word(_last(data[:place])) or _is_word(after)):
            return _Hit(place, end, AddedPattern(pattern.token, pattern.piece, False, True, False, False))
        return _Hit(place, end + (len(after.encode()) if pattern.rstrip and after.isspace() else 0), pattern)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _last(data: bytes) -> str:
    return data[-4:].decode("utf-8", "ignore")[-1:]


def patterns_of(
    definition: Any, added: dict[int, str], pieces: Sequence[bytes | None]
) -> tuple[list[AddedPattern], list[AddedPattern]]:
    """The added tokens of a ``tokenizer.json`` definition, those of raw and those of normalised text; `added`: the matched ones."""
    levels: tuple[list[AddedPattern], list[AddedPattern]] = ([], [])
    for entry in definition.get("added_tokens", []) if definition else ():
        token = entry["id"]
        matched = token in added
        piece = pieces[token] if matched else entry["content"].encode()
        if piece:
            sides = (entry["single_word"], entry["lstrip"], entry["rstrip"])
            levels[bool(entry["normalized"])].append(AddedPattern(token, piece, matched, *sides))
    return levels
