"""Words of a text, tokens of a text with their places, and the tokens that belong to a word."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenry.hosts.text import ByteVocabulary
from tokenry.text.consistency.edits import spelled


@dataclass(frozen=True)
class Word:
    """A word or a run of punctuation: its text and its characters [start, end)."""

    text: str
    start: int
    end: int


def split_words(text: str, separators: str = "") -> list[Word]:
    """Words and runs of punctuation in order; white space and the characters of `separators` are between them.

    A word is a run without white space, its outer punctuation and symbols cut off: "state-of-the-art", "don't".
    """
    found: list[Word] = []
    place = 0
    while place < len(text):
        if _parts(text[place], separators):
            place += 1
            continue
        end = place
        while end < len(text) and not _parts(text[end], separators):
            end += 1
        low, high = place, end
        while low < end and _is_punctuation(text[low]):
            low += 1
        while high > low and _is_punctuation(text[high - 1]):
            high -= 1
        bounds = [(place, low), (low, high), (high, end)]
        found += [Word(text[a:b], a, b) for a, b in bounds if a < b]
        place = end
    return found


def _parts(char: str, separators: str) -> bool:
    return char.isspace() or char in separators


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


class TokenText:
    """A text as its tokens spell it; special tokens stand for their names.

    Attributes:
        ids: the tokens.
        data: their bytes.
        text: the bytes as text; bytes that are no UTF-8 become lone surrogates, so that nothing is lost.
    """

    def __init__(self, ids: Sequence[int], vocabulary: ByteVocabulary) -> None:
        self.ids = list(ids)
        pieces = [spelled(token, vocabulary) for token in self.ids]
        self.data = b"".join(pieces)
        self.text = self.data.decode("utf-8", "surrogateescape")
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64).tolist()
        self._starts = [0, *self._ends[:-1]] if self.ids else []

    def span(self, start: int, end: int) -> TokenSpan:
        """The tokens of the word at characters [start, end), with the white space in front of it that is its own.

        A token that holds only white space between the word and what stands before it belongs to the word.
        """
        lead = start
        while lead and self.text[lead - 1].isspace():
            lead -= 1
        low, left = self._byte(start), self._byte(lead)
        high = low + len(self.text[start:end].encode("utf-8", "surrogateescape"))
        first, last = bisect_right(self._ends, low), bisect_left(self._starts, high)
        while first and self._starts[first - 1] >= left and self._ends[first - 1] > left:
            first -= 1
        pieces = [self.data[max(self._starts[i], left) : min(self._ends[i], high)] for i in range(first, last)]
        exact = bool(pieces) and self._starts[first] >= left and self._ends[last - 1] == high
        return TokenSpan(tuple(self.ids[first:last]), tuple(pieces), first, last, exact)

    def _byte(self, char: int) -> int:
        return len(self.text[:char].encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class TokenSpan:
    """Tokens [first, last) of a word: ids, and the bytes of each that lie inside the word and its white space.

    `exact`: no token reaches over the word into its neighbours.
    """

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    first: int
    last: int
    exact: bool
