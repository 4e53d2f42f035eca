"""Words of a text: in how many ways their bytes can be spelled, which are cut most, where the boundaries fall."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

from tokenry.hosts.text import ByteVocabulary
from tokenry.text.audit.encoder import AuditEncoder

LONGEST = 64  # characters; longer runs without a space are no words


def frequent_words(lines: Sequence[str], number: int) -> list[str]:
    """The most frequent words (runs without white space, up to LONGEST characters), ties in alphabetical order."""
    counts = Counter(word for line in lines for word in line.split() if len(word) <= LONGEST)
    return sorted(counts, key=lambda word: (-counts[word], word))[:number]


class Spellings:
    """In how many ways a vocabulary spells a word: exact, by dynamic programming over the bytes of the word.

    Made for many short words; `ByteTrie.count_encodings` of the vocabulary gives the same numbers for texts of any length.
    """

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        self._pieces = Counter(piece for piece in vocabulary.pieces if piece)
        self._longest = max(map(len, self._pieces), default=0)

    def count(self, word: str) -> int:
        """Number of id sequences whose bytes are those of the word."""
        data, pieces = word.encode(), self._pieces
        ways = [1] + [0] * len(data)
        for end in range(1, len(data) + 1):
            total = 0
            for start in range(max(0, end - self._longest), end):
                if ways[start]:
                    same = pieces.get(data[start:end])
                    if same:
                        total += ways[start] * same
            ways[end] = total
        return ways[-1]


def encoding_counts(words: Sequence[str], spellings: Spellings) -> tuple[float, float] | None:
    """(share of words with more than one encoding, mean log2 of the number of encodings) of the words that have one."""
    counts = [count for count in map(spellings.count, words) if count]
    if not counts:
        return None
    return sum(count > 1 for count in counts) / len(counts), sum(map(math.log2, counts)) / len(counts)


def costly_words(words: Sequence[str], encoder: AuditEncoder, number: int = 5) -> list[tuple[str, int]]:
    """(word, tokens) of the words that take most tokens per character: letters only, four characters or more."""
    some = [word for word in words if len(word) >= 4 and all(unicodedata.category(letter)[0] in "LM" for letter in word)]
    counts = [len(ids) for ids in encoder.encode(some)]
    order = sorted(range(len(some)), key=lambda i: (-counts[i] / len(some[i]), -counts[i], some[i]))
    return [(some[i], counts[i]) for i in order[:number]]


def sample_line(lines: Sequence[str], low: int = 30, high: int = 90) -> int | None:
    """Number of the first line of about sentence length, of the longest one up to `high` otherwise; None without text."""
    for number, line in enumerate(lines):
        if low <= len(line) <= high and " " in line:
            return number
    short = [(len(line), -number) for number, line in enumerate(lines) if 0 < len(line) <= high]
    return -max(short)[1] if short else None


def token_spans(line: str, encoder: AuditEncoder) -> list[tuple[int, int]]:
    """Characters [start, end) of every token of a line; tokens that hold parts of one character share its span."""
    return list(encoder.backend.encode(line, add_special_tokens=False).offsets)
