"""Valid beginnings of a tokenizer that cuts text into pieces before it merges: byte-level BPE with a regex, Metaspace."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from tokenry.hosts.text.added import Settled
from tokenry.hosts.text.beginnings import PairwiseBPE, last_character
from tokenry.hosts.text.classes import (
    begins_contraction,
    char_class,
    completions,
    compress,
    futures_of,
    is_prefix,
    open_futures,
    split_partial,
)
from tokenry.hosts.text.merges import MergeTable
from tokenry.hosts.text.pieces import PieceTable

_WINDOW, _WIDEST = 160, 4096
_TABLES_KEPT = 2048
_SAMPLES = 1000

Way = tuple[tuple[int, ...], bool]


class RegexBPE(PairwiseBPE):
    """BPE inside the pieces that a pre-tokenizer cuts.

    Where it cuts depends on character classes, so it is asked once per pattern of classes and not once per token.
    """

    def __init__(self, vocabulary: PieceTable, table: MergeTable) -> None:
        super().__init__(vocabulary, table)
        self._tables: OrderedDict[Hashable, dict[Way, np.ndarray]] = OrderedDict()
        self._merged: dict[str, list[int]] = {}
        self._patterns: list[tuple[tuple[str, ...], bool, bool]] = []
        self._pattern = np.full(vocabulary.size, -1, dtype=np.int64)
        self._whole = vocabulary.whole_tokens
        self._usable = table.producible.copy()
        self._usable[list(self._whole)] = True
        for level in ("coarse", "fine", "exact"):
            self._group(level)
            if level == "exact" or self._classes_suffice():
                break

    def _short(self, text: str, *, start_of_token: bool = False) -> tuple[str, Hashable, list[int]]:
        if self.level == "exact":
            return text, text, list(range(len(text)))
        return compress(text, start_of_token=start_of_token, coarse=self.level == "coarse")

    def _group(self, level: str) -> None:
        """Give every token that starts a character the number of its pattern; ``exact``: a pattern of its own."""
        self.level = level
        known: dict[Hashable, int] = {}
        self._patterns = []
        broken = set(self.vocabulary.starts_inside)
        for token in np.flatnonzero(self._usable).tolist():
            piece = self.vocabulary.pieces[token] or b"\xff"
            if token in broken or not is_prefix(piece):
                continue
            text, partial = split_partial(piece)
            short, key, _ = self._short(text, start_of_token=True)
            ends = completions(partial)
            whole = token in self._whole
            inside = self._goes_on(token, text)
            shape = (key, tuple(map(char_class, ends)) if partial else None, whole, inside)
            number = known.setdefault(shape, len(known))
            if number == len(self._patterns):
                self._patterns.append((tuple(short + last for last in ends), whole, inside))
            self._pattern[token] = number

    def _goes_on(self, token: int, text: str) -> bool:
        """Whether the token can be the beginning of a contraction whose last letter is a token of its own."""
        if not begins_contraction(text):
            return False
        last = self.vocabulary.trie.with_bytes(b"l" if text[-1] in "lL" else b"e")
        return any(self.table.pair(token, letter) for letter in last)

    def _classes_suffice(self) -> bool:
        """Compare patterns with the tokens themselves on a seeded sample; any difference means they do not."""
        draw = random.Random(0)
        tokens = np.flatnonzero(self._pattern >= 0).tolist()
        if not tokens:
            return True
        for _ in range(_SAMPLES):
            tail = "".join((self.vocabulary.pieces[t] or b"").decode("utf-8", "ignore") for t in draw.choices(tokens, k=2))
            token = draw.choice(tokens)
            piece = self.vocabulary.pieces[token] or b""
            text, partial = split_partial(piece)
            short, _, kept = self._short(tail)
            spread = [*kept, len(tail)]
            variants, whole, inside = self._patterns[self._pattern[token]]
            real = self._ask(tail, tuple(text + last for last in completions(partial)), whole, inside)
            asked = self._ask(short, variants, whole, inside)
            if real != {(tuple(spread[b] for b in cuts), at) for cuts, at in asked}:
                return False
        return True

    def _ask(self, tail: str, variants: Sequence[str], whole: bool = False, inside: bool = False) -> set[Way]:
        """Ways to cut: (cuts inside `tail`, cut at its end) of every future in which the token itself is not cut.

        `whole`: only futures in which the token is a piece of its own. `inside`: also those that complete a contraction.
        """
        found = set()
        for text in variants:
            wholes = [tail + text + future for future in futures_of(text, inside=inside)]
            for entire, cuts in zip(wholes, self.vocabulary.cuts_of(wholes), strict=True):
                low = bisect_left(cuts, len(tail))
                at = not tail or (low < len(cuts) and cuts[low] == len(tail))
                after = low + (1 if low < len(cuts) and cuts[low] == len(tail) else 0)
                end = cuts[after] if after < len(cuts) else len(entire)
                if end >= len(tail + text) and (not whole or (at and end == len(tail + text))):
                    found.add((tuple(cuts[:low]), at))
        return found

    def _text_followers(self, tail: list[int], text: bytes, partial: bytes) -> np.ndarray:
        if partial:
            return self._inside_character(tail, text, partial)
        words = text.decode()
        short, key, kept = self._short(words)
        table = self._table(short, key)
        mask = np.zeros(self.vocabulary.size, dtype=bool)
        row = None
        for (cuts, at), allowed in table.items():
            real = [kept[cut] for cut in cuts]
            if self._consistent(tail, words, real, closed=at):
                can = allowed[self._pattern]
                if not at:
                    row = self.table.row(tail[-1]) if row is None else row
                    can = can & row
                mask |= can
        return mask & self._usable

    def _table(self, short: str, key: Hashable) -> dict[Way, np.ndarray]:
        if key not in self._tables:
            table: dict[Way, np.ndarray] = {}
            for number, (variants, whole, inside) in enumerate(self._patterns):
                for way in self._ask(short, variants, whole, inside):
                    # One entry more than patterns: tokens without a pattern have number -1.
                    table.setdefault(way, np.zeros(len(self._patterns) + 1, dtype=bool))[number] = True
            self._tables[key] = table
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        return self._tables[key]

    def _consistent(self, tail: list[int], words: str, cuts: list[int], *, closed: bool, partial: bytes = b"") -> bool:
        """Whether cutting `words` there gives the tokens `tail`; the piece behind the last cut may still grow unless closed."""
        lengths = self.vocabulary.lengths
        ends = {0: 0} | {total: i + 1 for i, total in enumerate(accumulate(lengths[t] for t in tail))}
        bounds = [0, *cuts, len(words)]
        at = 0
        for first, last in pairwise(bounds):
            size = len(words[first:last].encode())
            if last == len(words) and not closed:
                size += len(partial)
            if at + size not in ends:
                return False
            piece = tail[ends[at] : ends[at + size]]
            if last == len(words) and not closed:
                return self._grows(piece)
            if piece != self._merge(words[first:last]):
                return False
            at += size
        return True

    def _grows(self, piece: list[int]) -> bool:
        """Whether `piece` can be the beginning of one piece of text; tokens that only ever stand alone cannot."""
        return self._whole.isdisjoint(piece) and all(self.pair(a, b) for a, b in pairwise(piece))

    def _merge(self, word: str) -> list[int]:
        if word not in self._merged:
            if len(self._merged) > 65536:
                self._merged.clear()
            self._merged[word] = self.vocabulary.merge_text(word)
        return self._merged[word]

    def _inside_character(self, tail: list[int], text: bytes, partial: bytes) -> np.ndarray:
        """Tokens that go on with an unfinished character; only a byte-level vocabulary has them."""
        mask = np.zeros(self.vocabulary.size, dtype=bool)
        if self.vocabulary.layout.kind != "byte_level":
            return mask
        words = text[: len(text) - len(partial)].decode()
        row = self.table.row(tail[-1])
        for token in self.vocabulary.starts_inside:
            piece = partial + (self.vocabulary.pieces[token] or b"")
            if row[token] and is_prefix(piece):
                inner, rest = split_partial(piece)
                ways = self._ask(words, tuple(inner + last for last in completions(rest)))
                mask[token] = any(self._opens(tail, words, cuts, at, partial) for cuts, at in ways)
        return mask

    def _opens(self, tail: list[int], words: str, cuts: tuple[int, ...], at: bool, partial: bytes) -> bool:
        """Whether the tokens fit a cutting in which the unfinished character begins a piece (`at`) or goes on with one."""
        if not at or not words:
            return self._consistent(tail, words, list(cuts), closed=False, partial=partial)
        size, total = len(words.encode()), 0
        for count, token in enumerate(tail):
            if total == size:
                closed, rest = tail[:count], tail[count:]
                return self._consistent(closed, words, list(cuts), closed=True) and self._grows(rest)
            total += self.vocabulary.lengths[token]
        return False

    def _raw_tips(self, tail: str, partial: bytes, found: dict[tuple[int, ...], None]) -> None:
        if not partial or self.vocabulary.layout.kind != "byte_level":
            super()._raw_tips(tail, partial, found)
            return
        for cuts in self.vocabulary.cuts_of([tail + last for last in completions(partial)]):
            bounds = [0, *[cut for cut in cuts if cut <= len(tail)]]
            ids: list[int] = []
            for first, end in pairwise(bounds):
                ids += self._merge(tail[first:end])
            found[(*ids, *self.vocabulary.merge_bytes(tail[bounds[-1] :].encode() + partial))] = None

    def _cut_of(self, data: bytes, settled: Settled) -> int:
        """The last cut that every future keeps."""
        partial = split_partial(data[-last_character(data) :])[1] if data else b""
        size = len(data) - len(partial)
        text = data[max(settled.start, size - _WIDEST) : size].decode("utf-8", "ignore")
        open_bytes = max(size - settled.live, 0)  # a beginning of an added token, which may yet cut the text before it
        window = text[-_WINDOW:]
        while True:
            whole = len(window) == len(text)
            for cut in self._firm_cuts(window, partial, len(window.encode()) - open_bytes, skip=0 if whole else 2):
                place = size - len(window[cut:].encode())
                if place not in settled.barred:
                    return place
            if whole:
                return size - len(text.encode())
            window = text[-2 * len(window) :]

    def _firm_cuts(self, window: str, partial: bytes, closed: int, *, skip: int) -> Iterator[int]:
        """Cuts inside the first `closed` bytes of `window` that no future moves, last first.

        A window that starts inside a piece shows wrong cuts at first; `skip` firm cuts later it is in step again.
        """
        before = window.encode()[: max(closed, 0)].decode("utf-8", "ignore")
        texts = [window + future for future in (completions(partial) if partial else open_futures(window))]
        cuts = self.vocabulary.cuts_of(texts)
        firm = set.intersection(*map(set, cuts))
        if len(before) < len(window):
            firm &= {*self.vocabulary.cuts(before), len(before)}
        kept = sorted(cut for cut in firm if cut <= len(before))
        for cut in reversed(kept[skip:]):
            # What stands before the cut must be cut as if the text ended there: not so for spaces before a word.
            if not window[cut - 1].isspace() and self.vocabulary.cuts(window[:cut]) == [c for c in cuts[0] if c < cut]:
                yield cut
