"""Which tokens of a byte-pair vocabulary can stand side by side, for a whole row of the vocabulary at once.

A sequence of tokens is what BPE would have produced exactly when every neighbouring pair is, and a pair is when no merge
reaches across its border while both of its sides are there. A token grows by a tree of merges; the parts that touch its left
border are its left spine, each there from the time it is made until the time it is merged into the next one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_ROWS_KEPT = 1024


class MergeTable:
    """Merges of a BPE model over ids.

    Attributes:
        producible: bool [V]; BPE alone turns the token's own text back into this one token.
    """

    def __init__(self, size: int, symbols: Sequence[Sequence[int] | None], merges: Sequence[tuple[int, int, int]]) -> None:
        """`symbols`: base ids of every token, None where it has none; `merges`: (left, right, result) in order of rank."""
        self.size = size
        self._rank = {(left << 32) | right: rank for rank, (left, right, _) in reversed(list(enumerate(merges)))}
        table = np.array(merges, dtype=np.int64).reshape(-1, 3)
        self._result = table[:, 2].tolist()
        self._last = len(merges) + 1  # later than every merge
        self.producible = np.zeros(size, dtype=bool)
        self._left = np.full(size, -1, dtype=np.int64)
        self._right = np.full(size, -1, dtype=np.int64)
        self._time = np.full(size, -1, dtype=np.int64)
        self._derive(symbols)
        order = np.argsort(table[:, 0], kind="stable")
        self._partner, self._partner_rank = table[order, 1], order
        self._partner_start = np.searchsorted(table[order, 0], np.arange(size + 1))
        self._index_left_spines()
        self._rows: OrderedDict[int, np.ndarray] = OrderedDict()

    def _derive(self, symbols: Sequence[Sequence[int] | None]) -> None:
        left, right, time = [-1] * self.size, [-1] * self.size, [-1] * self.size
        for token in sorted((i for i, parts in enumerate(symbols) if parts), key=lambda i: len(symbols[i] or ())):
            parts = list(symbols[token] or ())
            last = None
            while len(parts) > 1:
                best, place = self._last, -1
                for index in range(len(parts) - 1):
                    rank = self._rank.get((parts[index] << 32) | parts[index + 1], self._last)
                    if rank < best:
                        best, place = rank, index
                if place < 0:
                    break
                last = (best, parts[place], parts[place + 1])
                parts[place : place + 2] = [self._result[best]]
            if parts == [token]:
                self.producible[token] = True
                if last is not None:
                    rank, left[token], right[token] = last
                    # A merge cannot happen before its parts are there, whatever its rank.
                    time[token] = max(rank, time[left[token]], time[right[token]])
        self._left, self._right, self._time = np.array(left), np.array(right), np.array(time)

    def _index_left_spines(self) -> None:
        """Sorted keys (part, time it is merged away, latest first) of every token whose left spine holds the part."""
        token = np.flatnonzero(self.producible)
        part, gone = token, np.full(len(token), self._last, dtype=np.int64)
        keys, tokens = [], []
        while len(part):
            keys.append(part * (self._last + 1) + (self._last - gone))
            tokens.append(token)
            deeper = self._left[part] >= 0
            token, gone, part = token[deeper], self._time[part[deeper]], self._left[part[deeper]]
        flat = np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)
        order = np.argsort(flat, kind="stable")
        self._spine_key = flat[order]
        self._spine_token = (np.concatenate(tokens) if tokens else flat)[order].astype(np.int32)

    def row(self, token: int) -> np.ndarray:
        """Bool [V]: which tokens can follow `token` inside one stretch of text that BPE sees at once."""
        kept = self._rows.get(token)
        if kept is None:
            kept = np.packbits(self._row(token))
            self._rows[token] = kept
            if len(self._rows) > _ROWS_KEPT:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(token)
        return np.unpackbits(kept, count=self.size).view(bool)

    def pair(self, left: int, right: int) -> bool:
        """Whether `right` can follow `left` inside one stretch of text."""
        return bool(self.row(left)[right])

    def _row(self, token: int) -> np.ndarray:
        allowed = self.producible.copy()
        part, gone = token, self._last
        while part >= 0:
            start, stop = self._partner_start[part], self._partner_start[part + 1]
            partner = self._partner[start:stop]
            happens = np.maximum(np.maximum(self._partner_rank[start:stop], self._time[part]), self._time[partner])
            # On the right border of `token` a merge of the same rank lies further left and comes first: strictly before.
            reaches = happens < gone
            self._forbid(allowed, partner[reaches], happens[reaches])
            gone, part = int(self._time[part]), int(self._right[part])
        return allowed

    def _forbid(self, allowed: np.ndarray, part: np.ndarray, happens: np.ndarray) -> None:
        """Rule out every token that still has `part` on its left border when the merge across the border happens."""
        low = np.searchsorted(self._spine_key, part * (self._last + 1), side="left")
        high = np.searchsorted(self._spine_key, part * (self._last + 1) + (self._last - happens), side="right")
        counts = high - low
        total = int(counts.sum())
        if total:
            shift = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            allowed[self._spine_token[shift + np.arange(total)]] = False


def table_of(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], size: int, keep: Callable[[str], bool]
) -> MergeTable:
    """The merge table of a BPE model: pieces by id, merges as pairs of pieces in order of rank.

    `keep(piece)` says whether a piece is made of text; byte tokens and the like are left out.
    """
    symbols: list[list[int] | None] = [None] * size
    for piece, token in vocabulary.items():
        parts = [vocabulary.get(char, -1) for char in piece]
        if parts and min(parts) >= 0 and keep(piece):
            symbols[token] = parts
    triples = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in merges]
    return MergeTable(size, symbols, triples)
