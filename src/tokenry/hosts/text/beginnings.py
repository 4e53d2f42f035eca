r"""Which token sequences a deterministic tokenizer can have produced for the beginning of a text.

A sequence is *valid* when it is the beginning of the tokenizer's own encoding of some text. For a tokenizer without look-ahead
this is ``encode(decode(ids)) == ids``. A pre-tokenizer that looks ahead makes it a statement about what follows: GPT-2 cuts
"\n\n" into two tokens before a letter and into one at the end of the text, so both are valid beginnings.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tokenry.hosts.text.added import Settled
from tokenry.hosts.text.classes import completions, is_prefix, legal_count, may_compose, open_futures, split_partial
from tokenry.hosts.text.merges import MergeTable
from tokenry.hosts.text.pieces import PieceTable

# Ethiopic, Vai, Deseret, Cherokee, Coptic; Braille, hexagrams, Mahjong tiles, ideographic descriptions
_RARE = ("\u1200\ua500\U00010400\u13a0\u2c80", "\u2801\u4dc0\U0001f000\u2ff0")
_OVER_SPACE = re.compile(rb".(?= )", re.DOTALL)


class Canonical(ABC):
    """The valid beginnings of one tokenizer; `data` is always what the tokens spell, prefix space included."""

    def __init__(self, vocabulary: PieceTable) -> None:
        self.vocabulary = vocabulary
        self._heads: OrderedDict[bytes, list[int] | None] = OrderedDict()
        self._firm: OrderedDict[bytes, int] = OrderedDict()

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
        if head is None:
            return []
        tail = text.encode()[start:].decode()
        size = len(data) - start
        found: dict[tuple[int, ...], None] = {}
        texts = [tail + future for future in self._futures(tail, partial)]
        for text, ids in zip(texts, self.vocabulary.encode_texts(texts), strict=True):
            self._cut(text, ids, size, found)
        self._raw_tips(tail, partial, found)
        return [head + list(ids) for ids in found]

    def is_own(self, ids: Sequence[int], data: bytes) -> bool:
        """Whether `ids` is the encoding of `data` as a whole text; False inside a character."""
        if split_partial(data[-last_character(data) :])[1]:
            return False
        start = self.firm(data)
        head = self._head(data[:start])
        return head is not None and [*head, *self.vocabulary.encode_text(data[start:].decode())] == list(ids)

    def firm(self, data: bytes) -> int:
        """Offset of a cut that stays where it is whatever follows `data`, close to the end; 0 where none is known.

        What stands before it is encoded as if the text ended there, what follows as if it began there.
        """
        if data not in self._firm:  # asked several times for every byte of a text
            self._firm[data] = self._cut_of(data, self.vocabulary.added.settle(data))
            if len(self._firm) > 256:
                self._firm.popitem(last=False)
        return self._firm[data]

    def _cut_of(self, data: bytes, settled: Settled) -> int:
        """The last such cut of `data` that its added tokens leave; the end of the last one, unless text can be cut later."""
        return settled.start

    def _futures(self, tail: str, partial: bytes) -> Sequence[str]:
        return completions(partial) if partial else self._open_futures(tail)

    def _open_futures(self, text: str) -> Sequence[str]:
        return (*open_futures(text), *self._lonely) if self.vocabulary.looks_ahead else ("",)

    @cached_property
    def _lonely(self) -> tuple[str, ...]:
        """A rare letter and a rare symbol that no merge joins to a space before them, where there are such."""
        found = []
        for kind in _RARE:
            encoded = ((char, self.vocabulary.encode_text(" " + char)) for char in kind)
            alone = (char for char, ids in encoded if ids and self.vocabulary.pieces[ids[0]] == b" ")
            found += [char for char in (next(alone, ""),) if char]
        return tuple(found)

    def _raw_tips(self, tail: str, partial: bytes, found: dict[tuple[int, ...], None]) -> None:
        """Add beginnings that end inside a character, which no text shows; none for most algorithms."""
        return

    def _cut(self, text: str, ids: list[int], size: int, found: dict[tuple[int, ...], None]) -> None:
        """Add the part of `ids`, the encoding of `text`, that spells its first `size` bytes, if a token ends there."""
        data, pieces = text.encode()[:size], self.vocabulary.pieces
        total, found_ids = 0, []
        for token in ids:
            if total >= size:
                break
            piece = pieces[token] or b""
            # A normaliser may have changed the text together with what follows.
            if data[total : total + len(piece)] != piece:
                return
            total += len(piece)
            found_ids.append(token)
        if total == size:
            found[tuple(found_ids)] = None

    def _head(self, data: bytes) -> list[int] | None:
        """The tokens of what stands before a firm cut, None where the tokenizer loses some of it."""
        if data not in self._heads:
            ids = self.vocabulary.encode_text(data.decode())
            whole = sum(self.vocabulary.lengths[token] for token in ids) == len(data)
            self._heads[data] = ids if whole else None
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

    def holds(self, ids: list[int], data: bytes, token: int) -> bool:
        """By definition: some text that begins with `data` and the token is encoded as `ids`, the token, and more."""
        piece = self.vocabulary.pieces[token]
        whole = [*ids, token]
        if not piece or not is_prefix(data + piece):
            return False
        text, partial = split_partial(data + piece)
        # One character per class would not do here: the vocabulary may have merged just that one.
        after = self._open_futures(text)
        futures = (*completions(partial, 64), *(c + f for c in completions(partial) for f in after)) if partial else after
        return any(self.vocabulary.encode_text(text + future)[: len(whole)] == whole for future in futures)


def last_character(data: bytes) -> int:
    """Bytes from the start of the last character of `data`, which may be unfinished, to its end."""
    return next((back for back in range(1, min(4, len(data)) + 1) if not 0x80 <= data[-back] < 0xC0), 1)


class Reencoding(Canonical):
    """By definition, token by token: right for every deterministic tokenizer, one encoding per token of the vocabulary."""

    def __init__(self, vocabulary: PieceTable) -> None:
        super().__init__(vocabulary)
        self._known: OrderedDict[tuple[tuple[int, ...], bytes], np.ndarray] = OrderedDict()

    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """See the base class; the answer for a tail is kept."""
        tail, text = self.tail_of(ids, data)
        key = (tuple(tail), text)
        if key not in self._known:
            found = np.zeros(self.vocabulary.size, dtype=bool)
            for token in self.vocabulary.trie.ids.tolist():
                found[token] = self.holds(tail, text, token)
            self._known[key] = found
            if len(self._known) > 256:
                self._known.popitem(last=False)
        return self._known[key]


class _Bytes:
    """Byte tokens of a SentencePiece vocabulary: they spell the characters that have no piece, one byte each."""

    def __init__(self, vocabulary: PieceTable) -> None:
        self.tokens = vocabulary.byte_tokens
        pieces = {piece for piece in vocabulary.text_pieces if len(piece) <= 4}
        characters = [piece for piece in pieces if len(piece.decode("utf-8", "replace")) == 1]
        self._have: dict[bytes, int] = {}
        self._known: dict[bytes, list[int]] = {}
        for character in characters:
            for size in range(1, len(character) + 1):
                self._have[character[:size]] = self._have.get(character[:size], 0) + 1

    def unknown(self, partial: bytes) -> bool:
        """Whether some character without a piece starts with `partial` (or is `partial`)."""
        if not is_prefix(partial):
            return False
        whole = 1 if not split_partial(partial)[1] else legal_count(partial)
        return self._have.get(partial, 0) < whole

    def following(self, partial: bytes) -> list[int]:
        """Byte tokens that may follow the beginning `partial` of a character."""
        if partial not in self._known:
            self._known[partial] = [token for byte, token in self.tokens.items() if self.unknown(partial + bytes([byte]))]
        return self._known[partial]


class PairwiseBPE(Canonical):
    """BPE over the whole text: neighbours decide, and added tokens are checked by definition."""

    def __init__(self, vocabulary: PieceTable, table: MergeTable) -> None:
        super().__init__(vocabulary)
        self.table = table
        self._bytes = _Bytes(vocabulary)
        never, self._beside = vocabulary.added.inside(vocabulary.trie, vocabulary.pieces)
        table.producible[never] = False  # the text would have been cut there
        self._added_ids = np.array(sorted(vocabulary.layout.added), dtype=np.int64)
        self._composing = _compose(vocabulary, table) if vocabulary.layout.normalizer == "NFC" else []

    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """See the base class."""
        tail, text = self.tail_of(ids, data)
        partial = split_partial(data)[1]
        open_tail, open_text = self._after_added(tail, text)
        mask = self._text_followers(open_tail, open_text, partial)
        if self._bytes.tokens:
            mask[list(self._bytes.tokens.values())] = False
            mask[self._bytes.following(partial)] = True
        if len(self._added_ids):
            self._judge_added(mask, tail, text, partial)
        if self._composing and not partial:
            before = text[-16:].decode("utf-8", "ignore")
            for token in self._composing:
                after, _ = split_partial(self.vocabulary.pieces[token] or b"")
                mask[token] &= unicodedata.is_normalized("NFC", before + after)
        return mask

    def _judge_added(self, mask: np.ndarray, tail: list[int], text: bytes, partial: bytes) -> None:
        added, trie = self.vocabulary.added, self.vocabulary.trie
        # An added token cuts the text before it, which must then be what the tokenizer makes of it alone.
        mask[self._added_ids] = not partial and self.vocabulary.encode_text(text.decode()) == tail
        doubtful = added.completing(text, trie)
        if added.flagged:
            doubtful.update(self._beside, (pattern.token for pattern in added.flagged))
        for token in trie.ids.tolist() if added.flagged and added.flagged_near(text) else doubtful:
            mask[token] = self.holds(tail, text, token)

    def _after_added(self, tail: list[int], text: bytes) -> tuple[list[int], bytes]:
        """What follows the last added token: text there is cut and merged on its own."""
        for count in range(len(tail)):
            if tail[-1 - count] in self.vocabulary.layout.added:
                rest = tail[len(tail) - count :]
                return rest, text[len(text) - sum(self.vocabulary.lengths[t] for t in rest) :]
        return tail, text

    def _cut_of(self, data: bytes, settled: Settled) -> int:
        """The last space that no token joins to the character before it."""
        place = settled.live
        while (place := data.rfind(b" ", settled.start + 1, place + 1)) > 0:
            if data[place - 1] not in self._joined and place not in settled.barred:
                return place
            place -= 1
        return settled.start

    @cached_property
    def _joined(self) -> frozenset[int]:
        """Bytes behind which a space may be merged to what stands before it."""
        pieces, added = self.vocabulary.pieces, self.vocabulary.layout.added
        inside = (p for token, p in enumerate(pieces) if p and b" " in p and token not in added)
        return frozenset(b" \t\n\r").union(*(b"".join(_OVER_SPACE.findall(piece)) for piece in inside))

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


def _compose(vocabulary: PieceTable, table: MergeTable) -> list[int]:
    """Tokens that may compose with the character before them; those that no NFC text holds are ruled out in `table`."""
    found = []
    for token in np.flatnonzero(table.producible).tolist():
        piece = vocabulary.pieces[token] or b""
        if piece.isascii() or not is_prefix(piece):
            continue
        text, _ = split_partial(piece)
        if not unicodedata.is_normalized("NFC", text):
            table.producible[token] = False
        elif text and may_compose(text[0]):
            found.append(token)
    return found
