"""Which token sequences a deterministic tokenizer can have produced for the beginning of a text.

A sequence is *valid* when it is the beginning of the tokenizer's own encoding of some text. For a tokenizer without look-ahead
this is ``encode(decode(ids)) == ids``. A pre-tokenizer that looks ahead makes it a statement about what follows: GPT-2 cuts
"\\n\\n" into two tokens before a letter and into one at the end of the text, so both are valid beginnings.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from tokenry.hosts.text_bpe import MergeTable
from tokenry.hosts.text_classes import FUTURES, completions, compress, futures_of, is_prefix, legal_count, split_partial

if TYPE_CHECKING:
    from tokenry.hosts.text import ByteVocabulary

_WINDOW, _WIDEST = 160, 4096
_TABLES_KEPT = 2048


class Canonical(ABC):
    """The valid beginnings of one tokenizer; `data` is always what the tokens spell, prefix space included."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.vocabulary = vocabulary
        self._heads: OrderedDict[bytes, list[int]] = OrderedDict()

    @abstractmethod
    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """Bool [V]: tokens that can follow the valid beginning `ids`, which spells `data`; special tokens are False."""

    def tips(self, data: bytes) -> list[list[int]]:
        """Every valid beginning that spells exactly `data`; more than one only before a look-ahead is decided.

        Raises:
            ValueError: `data` is not the beginning of UTF-8 text.
        """
        text, partial = split_partial(data)
        start = self.firm(data)
        head = self._head(data[:start])
        tail = text.encode()[start:].decode()
        size = len(data) - start
        found: dict[tuple[int, ...], None] = {}
        for future in self._futures(tail, partial):
            self._cut(tail + future, size, found)
        self._raw_tips(tail, partial, found)
        return [head + list(ids) for ids in found]

    def firm(self, data: bytes) -> int:
        """Offset of a cut that stays where it is whatever follows `data`, close to the end; 0 where none is known."""
        return 0

    def _futures(self, tail: str, partial: bytes) -> Sequence[str]:
        return completions(partial) if partial else FUTURES if self.vocabulary.looks_ahead else ("",)

    def _raw_tips(self, tail: str, partial: bytes, found: dict[tuple[int, ...], None]) -> None:
        """Beginnings that end inside a character, which no text shows."""

    def _cut(self, text: str, size: int, found: dict[tuple[int, ...], None]) -> None:
        """Add the part of the encoding of `text` that spells its first `size` bytes, if a token ends there."""
        ids = self.vocabulary.encode_text(text)
        total, lengths = 0, self.vocabulary.lengths
        for count, token in enumerate(ids):
            if total >= size:
                ids = ids[:count]
                break
            total += lengths[token]
        if total == size:
            found[tuple(ids)] = None

    def _head(self, data: bytes) -> list[int]:
        if data not in self._heads:
            self._heads[data] = self.vocabulary.encode_text(data.decode())
            if len(self._heads) > 64:
                self._heads.popitem(last=False)
        return self._heads[data]

    def tail_of(self, ids: Sequence[int], data: bytes) -> tuple[list[int], bytes]:
        """The tokens and bytes behind the firm cut."""
        size = len(data) - self.firm(data)
        count, total = 0, 0
        while total < size:
            count += 1
            total += self.vocabulary.lengths[ids[-count]]
        return list(ids[len(ids) - count :]), data[len(data) - total :]

    def _holds(self, ids: list[int], data: bytes, token: int) -> bool:
        """By definition: some text that begins with `data` and the token is encoded as `ids`, the token, and more."""
        piece = self.vocabulary.pieces[token]
        whole = [*ids, token]
        if not piece or not is_prefix(data + piece):
            return False
        text, partial = split_partial(data + piece)
        # One character per class would not do here: the vocabulary may have merged just that one.
        after = FUTURES if self.vocabulary.looks_ahead else ("",)
        futures = (*completions(partial, 64), *(c + f for c in completions(partial) for f in after)) if partial else after
        return any(self.vocabulary.encode_text(text + future)[: len(whole)] == whole for future in futures)


class Reencoding(Canonical):
    """By definition, token by token: right for every deterministic tokenizer, one encoding per token of the vocabulary."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        super().__init__(vocabulary)
        self._known: OrderedDict[tuple[tuple[int, ...], bytes], np.ndarray] = OrderedDict()

    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """See the base class; the answer for a tail is kept."""
        tail, text = self.tail_of(ids, data)
        key = (tuple(tail), text)
        if key not in self._known:
            found = np.zeros(self.vocabulary.size, dtype=bool)
            for token in self.vocabulary.trie.ids.tolist():
                found[token] = self._holds(tail, text, token)
            self._known[key] = found
            if len(self._known) > 256:
                self._known.popitem(last=False)
        return self._known[key]


class _Bytes:
    """Byte tokens of a SentencePiece vocabulary: they spell the characters that have no piece, one byte each."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self.tokens = vocabulary.byte_tokens
        pieces = {piece for piece in vocabulary.text_pieces if len(piece) <= 4}
        characters = [piece for piece in pieces if len(piece.decode("utf-8", "replace")) == 1]
        self._have: dict[bytes, int] = {}
        for character in characters:
            for size in range(1, len(character) + 1):
                self._have[character[:size]] = self._have.get(character[:size], 0) + 1

    def unknown(self, partial: bytes) -> bool:
        """Whether some character without a piece starts with `partial` (or is `partial`)."""
        if not is_prefix(partial):
            return False
        whole = 1 if not split_partial(partial)[1] else legal_count(partial)
        return self._have.get(partial, 0) < whole

    def followers(self, partial: bytes, mask: np.ndarray) -> None:
        for byte, token in self.tokens.items():
            mask[token] = self.unknown(partial + bytes([byte]))


class PairwiseBPE(Canonical):
    """BPE over the whole text: neighbours decide, and added tokens are checked by definition."""

    def __init__(self, vocabulary: ByteVocabulary, table: MergeTable) -> None:
        super().__init__(vocabulary)
        self.table = table
        self._bytes = _Bytes(vocabulary)
        self._added = _AddedTokens(vocabulary, table)

    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """See the base class."""
        tail, text = self.tail_of(ids, data)
        partial = split_partial(data)[1]
        open_tail, open_text = self._after_added(tail, text)
        mask = self._text_followers(open_tail, open_text, partial)
        if self._bytes.tokens:
            self._bytes.followers(partial, mask)
        for token in self._added.doubtful(text):
            mask[token] = self._holds(tail, text, token)
        return mask

    def _after_added(self, tail: list[int], text: bytes) -> tuple[list[int], bytes]:
        """What follows the last added token: text there is cut and merged on its own."""
        for count in range(len(tail)):
            if tail[-1 - count] in self.vocabulary.layout.added:
                rest = tail[len(tail) - count :]
                return rest, text[len(text) - sum(self.vocabulary.lengths[t] for t in rest) :]
        return tail, text

    def pair(self, left: int, right: int) -> bool:
        """Whether two neighbours of one piece leave each other alone; byte tokens merge with nothing."""
        unmerged = self.vocabulary.byte_token_ids
        return left in unmerged or right in unmerged or self.table.pair(left, right)

    def _text_followers(self, tail: list[int], text: bytes, partial: bytes) -> np.ndarray:
        if partial and self.vocabulary.layout.kind != "byte_level":
            return np.zeros(self.vocabulary.size, dtype=bool)
        mask = (self.table.row(tail[-1]) if tail else self.table.producible).copy()
        for token in self.vocabulary.starts_inside:
            mask[token] &= bool(partial) and is_prefix(partial + (self.vocabulary.pieces[token] or b""))
        if partial:
            keep = np.zeros_like(mask)
            keep[self.vocabulary.starts_inside] = True
            mask &= keep
        return mask

    def _raw_tips(self, tail: str, partial: bytes, found: dict[tuple[int, ...], None]) -> None:
        vocabulary = self.vocabulary
        if not partial:
            return
        if vocabulary.layout.kind == "byte_level":
            found[tuple(vocabulary.merge_bytes(tail.encode() + partial))] = None
        elif self._bytes.tokens and self._bytes.unknown(partial):
            found[(*vocabulary.encode_text(tail), *(self._bytes.tokens[byte] for byte in partial))] = None


class _AddedTokens:
    """Added tokens that are matched in text before BPE sees it (leftmost, longest)."""

    def __init__(self, vocabulary: ByteVocabulary, table: MergeTable) -> None:
        self._rest: dict[bytes, list[bytes]] = {}
        self._trie = vocabulary.trie
        pieces = [vocabulary.pieces[token] or b"" for token in vocabulary.layout.added]
        self._longest = max(map(len, pieces), default=0)
        self._first: set[int] = set()
        for piece in pieces:
            self._first.update(self._trie.starting_with(piece).tolist())
            for size in range(1, len(piece)):
                self._rest.setdefault(piece[:size], []).append(piece[size:])
        known = set(pieces)
        if known:
            sizes = sorted({len(piece) for piece in known})
            for token in self._trie.ids.tolist():
                piece = vocabulary.pieces[token] or b""
                if piece not in known and any(
                    piece[i : i + size] in known for size in sizes for i in range(len(piece) - size + 1)
                ):
                    table.producible[token] = False

    def doubtful(self, tail: bytes) -> set[int]:
        """Tokens that may begin or complete an added token after `tail`."""
        found = set(self._first)
        for size in range(1, min(self._longest, len(tail) + 1)):
            for rest in self._rest.get(tail[-size:], ()):
                found.update(self._trie.starting_with(rest).tolist())
        return found


class RegexBPE(PairwiseBPE):
    """BPE inside the pieces that a pre-tokenizer cuts.

    Where it cuts depends on character classes, so it is asked once per pattern of classes and not once per token.
    """

    def __init__(self, vocabulary: ByteVocabulary, table: MergeTable) -> None:
        super().__init__(vocabulary, table)
        self._tables: OrderedDict[tuple, dict] = OrderedDict()
        self._merged: dict[str, list[int]] = {}
        self._patterns: list[tuple[str, ...]] = []
        self._pattern = np.full(vocabulary.size, -1, dtype=np.int64)
        self._group(exact=False)
        if not self._classes_suffice():
            self._group(exact=True)

    def _group(self, exact: bool) -> None:
        """Give every token that starts a character the number of its pattern; `exact`: a pattern of its own."""
        self.exact = exact
        known: dict[object, int] = {}
        self._patterns = []
        inside = set(self.vocabulary.starts_inside)
        for token in np.flatnonzero(self.table.producible).tolist():
            if token in inside or not is_prefix(self.vocabulary.pieces[token] or b"\xff"):
                continue
            text, partial = split_partial(self.vocabulary.pieces[token] or b"")
            short, key, _ = (text, text, []) if exact else compress(text, start_of_token=True)
            number = known.setdefault((key, partial), len(known))
            if number == len(self._patterns):
                self._patterns.append(tuple(short + last for last in completions(partial)))
            self._pattern[token] = number

    def _classes_suffice(self) -> bool:
        """Compare patterns with the tokens themselves on a seeded sample; any difference means they do not."""
        draw = random.Random(0)
        tokens = np.flatnonzero(self._pattern >= 0).tolist()
        if not tokens:
            return True
        for _ in range(300):
            tail = "".join((self.vocabulary.pieces[t] or b"").decode("utf-8", "ignore") for t in draw.choices(tokens, k=2))
            token = draw.choice(tokens)
            piece = self.vocabulary.pieces[token] or b""
            text, partial = split_partial(piece)
            short, _, kept = compress(tail)
            spread = [*kept, len(tail)]
            real = self._ask(tail, tuple(text + last for last in completions(partial)))
            asked = self._ask(short, self._patterns[self._pattern[token]])
            if real != {(tuple(spread[b] for b in cuts), at) for cuts, at in asked}:
                return False
        return True

    def _ask(self, tail: str, variants: Sequence[str]) -> set[tuple[tuple[int, ...], bool]]:
        """Ways to cut: (cuts inside `tail`, cut at its end) of every future in which the token itself is not cut."""
        found = set()
        for text in variants:
            for future in futures_of(text):
                cuts = self.vocabulary.cuts(tail + text + future)
                low = bisect_left(cuts, len(tail))
                at = not tail or (low < len(cuts) and cuts[low] == len(tail))
                after = low + (1 if low < len(cuts) and cuts[low] == len(tail) else 0)
                if after == len(cuts) or cuts[after] >= len(tail) + len(text):
                    found.add((tuple(cuts[:low]), at))
        return found

    def _text_followers(self, tail: list[int], text: bytes, partial: bytes) -> np.ndarray:
        if partial:
            return self._inside_character(tail, text, partial)
        words = text.decode()
        short, key, kept = (words, words, list(range(len(words)))) if self.exact else compress(words)
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
        return mask & self.table.producible

    def _table(self, short: str, key: object) -> dict[tuple[tuple[int, ...], bool], np.ndarray]:
        if key not in self._tables:
            table: dict[tuple[tuple[int, ...], bool], np.ndarray] = {}
            for number, variants in enumerate(self._patterns):
                for way in self._ask(short, variants):
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
                return all(self.pair(a, b) for a, b in pairwise(piece))
            if piece != self._merge(words[first:last]):
                return False
            at += size
        return True

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
                return self._consistent(closed, words, list(cuts), closed=True) and all(
                    self.pair(a, b) for a, b in pairwise(rest)
                )
            total += self.vocabulary.lengths[token]
        return False

    def _raw_tips(self, tail: str, partial: bytes, found: dict[tuple[int, ...], None]) -> None:
        if not partial or self.vocabulary.layout.kind != "byte_level":
            super()._raw_tips(tail, partial, found)
            return
        for last in completions(partial):
            cuts = self.vocabulary.cuts(tail + last)
            bounds = [0, *[cut for cut in cuts if cut <= len(tail)]]
            ids: list[int] = []
            for first, end in pairwise(bounds):
                ids += self._merge(tail[first:end])
            found[(*ids, *self.vocabulary.merge_bytes(tail[bounds[-1] :].encode() + partial))] = None

    def firm(self, data: bytes) -> int:
        """The last cut that every future keeps."""
        text, partial = (
            split_partial(data[-_WIDEST:] if len(data) > _WIDEST else data)
            if len(data) <= _WIDEST
            else (
                data[-_WIDEST:].decode("utf-8", "ignore"),
                split_partial(data)[1],
            )
        )
        ends = completions(partial) if partial else FUTURES
        window = text[-_WINDOW:]
        while True:
            whole = len(window) == len(text)
            kept = set.intersection(*(set(self.vocabulary.cuts(window + future)) for future in ends))
            # A window that starts inside a piece shows wrong cuts at first; two firm cuts later it is in step again.
            firm = sorted(cut for cut in kept if 0 < cut <= len(window))
            if len(firm) > (0 if whole else 2):
                return len(data) - len(partial) - len(window[firm[-1] :].encode())
            if whole:
                return len(data) - len(partial) - len(text.encode())
            window = text[-2 * len(window) :]
