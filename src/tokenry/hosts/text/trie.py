"""A prefix trie over the byte strings of a vocabulary, kept as one sorted array: a node is a range of it.

Building is one sort (262,144 entries: well under a second), the memory is one flat buffer, and the children of a node are
contiguous, so that "all tokens that start with these bytes" is two binary searches.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from tokenry.core.checks import check_int


class ByteTrie:
    """Prefix trie over token bytes.

    Attributes:
        ids: token ids in the order of their bytes, int64 [M].
        lengths: bytes per token, in that order, int32 [M].
        longest: length of the longest token in bytes.
    """

    def __init__(self, keys: list[bytes], ids: np.ndarray) -> None:
        self._keys = keys
        self.ids = ids
        self.lengths = np.fromiter(map(len, keys), dtype=np.int32, count=len(keys))
        self.longest = int(self.lengths.max(initial=0))
        self._buffer = np.frombuffer(b"".join(keys) + b"\0", dtype=np.uint8)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])[:-1]
        self.rank = np.full(int(ids.max(initial=-1)) + 1, -1, dtype=np.int64)
        self.rank[ids] = np.arange(len(ids))
        self._ends: dict[bytes, tuple[int, ...]] = {}
        for key, token in zip(keys, ids.tolist(), strict=True):
            self._ends[key] = (*self._ends[key], token) if key in self._ends else (token,)
        # The longest token behind each first two bytes, so that `matches` knows when to stop looking.
        self._reach: dict[bytes, int] = {}
        for key in keys:
            head = key[:2]
            if len(key) > self._reach.get(head, 0):
                self._reach[head] = len(key)

    @classmethod
    def build(cls, pieces: Sequence[bytes | None]) -> ByteTrie:
        """The trie of `pieces`, byte strings by id; None and empty pieces are left out."""
        order = sorted((i for i, piece in enumerate(pieces) if piece), key=lambda i: (pieces[i], i))
        return cls([pieces[i] or b"" for i in order], np.array(order, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._keys)

    def span(self, prefix: bytes, low: int = 0, high: int | None = None) -> tuple[int, int]:
        """Range [low, high) of the sorted tokens that start with `prefix`; `low` and `high` narrow the search."""
        high = len(self._keys) if high is None else high
        start = bisect_left(self._keys, prefix, low, high)
        after = _successor(prefix)
        return start, high if after is None else bisect_left(self._keys, after, start, high)

    def suffix_spans(self, data: bytes) -> list[tuple[int, int, int]]:
        """(place, low, high) of every place of `data` whose rest some tokens start with."""
        places = range(max(0, len(data) - self.longest), len(data))
        spans = [(place, *self.span(data[place:])) for place in places]
        return [(place, low, high) for place, low, high in spans if low < high]

    def starting_with(self, prefix: bytes) -> np.ndarray:
        """Ids of the tokens that start with `prefix`, in byte order, int64."""
        low, high = self.span(prefix)
        return self.ids[low:high]

    def with_bytes(self, piece: bytes) -> tuple[int, ...]:
        """Ids of the tokens whose bytes are exactly `piece`, ascending."""
        return self._ends.get(piece, ())

    def next_bytes(self, low: int, high: int, depth: int) -> np.ndarray:
        """Byte number `depth` of every token of the range [low, high), all of which must be longer than `depth`; uint8."""
        return self._buffer[self._offsets[low:high] + depth]

    def with_next_byte(self, low: int, high: int, depth: int, byte: int) -> tuple[int, int]:
        """The part of the range [low, high) whose byte number `depth` is `byte`; all of it must be longer than `depth`."""
        return self.span(self._keys[low][:depth] + bytes([byte]), low, high) if low < high else (low, low)

    def matches(self, data: bytes, start: int = 0) -> list[tuple[int, int]]:
        """Tokens that match `data` at `start`: (length, id), shortest first."""
        found: list[tuple[int, int]] = []
        reach = max(self._reach.get(data[start : start + 2], 0), self._reach.get(data[start : start + 1], 0))
        for length in range(1, min(reach, len(data) - start) + 1):
            found.extend((length, token) for token in self._ends.get(data[start : start + length], ()))
        return found

    def count_encodings(self, data: bytes) -> int:
        """Number of id sequences whose bytes are `data` (1 for the empty string), exact."""
        ways = [0] * (len(data) + 1)
        ways[0] = 1
        for start in range(len(data)):
            if ways[start]:
                for length, _ in self.matches(data, start):
                    ways[start + length] += ways[start]
        return ways[-1]

    def log_count_encodings(self, data: bytes) -> float:
        """Natural logarithm of `count_encodings`, in floating point; -inf where there is none."""
        ways = np.zeros(len(data) + 1)
        ways[0], shift = 1.0, 0.0
        for start in range(len(data)):
            if ways[start]:
                for length, _ in self.matches(data, start):
                    ways[start + length] += ways[start]
            if ways[start] > 1e200:
                ways, shift = ways / 1e200, shift + 200 * math.log(10)
        return math.log(ways[-1]) + shift if ways[-1] else -math.inf

    def encodings(self, data: bytes) -> Iterator[list[int]]:
        """Every id sequence whose bytes are `data`, one after the other."""
        ahead: list[list[tuple[int, int]]] = [self.matches(data, start) for start in range(len(data))]
        alive = [False] * len(data) + [True]
        for start in range(len(data) - 1, -1, -1):
            ahead[start] = [(length, token) for length, token in ahead[start] if alive[start + length]]
            alive[start] = bool(ahead[start])
        if not alive[0]:
            return
        stack: list[tuple[int, list[int]]] = [(0, [])]
        while stack:
            position, ids = stack.pop()
            if position == len(data):
                yield ids
                continue
            stack.extend((position + length, [*ids, token]) for length, token in reversed(ahead[position]))

    def enumerate_encodings(self, data: bytes, limit: int = 10_000) -> list[list[int]]:
        """Every id sequence whose bytes are `data`.

        Raises:
            ValueError: there are more than `limit` of them.
        """
        check_int("limit", limit, minimum=1)
        count = self.count_encodings(data)
        if count > limit:
            raise ValueError(f"limit must be at least the number of encodings, {count}, got {limit}")
        return list(self.encodings(data))

    def index_after(self, prefix: bytes, low: int, high: int) -> int:
        """First index of the range [low, high) whose token is longer than `prefix`, all of them starting with it."""
        return bisect_right(self._keys, prefix, low, high)


def _successor(prefix: bytes) -> bytes | None:
    """The smallest byte string that is greater than everything that starts with `prefix`; None: there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None
