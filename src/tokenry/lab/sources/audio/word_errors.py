"""Word error rate: the normalisation of texts; jiwer aligns them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from tokenry.errors import optional

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety"}
_SIGNS = {"#": " pound ", "&": " and ", "%": " percent ", "@": " at ", "*": " star ", "+": " plus "}
_SAME = {"ok": "okay", "mr": "mister", "mrs": "missus", "dr": "doctor", "cancelled": "canceled"}


def normalise(text: str) -> list[str]:
    """Words that are compared: lower case, no accents or punctuation, numbers to 99 as words, notes in brackets left out.

    Apostrophes go without a gap ("you're" = "youre"), hyphens part words, the signs # & % @ * + are spoken; a few spellings
    of one word are made equal. Longer numbers are read digit by digit.
    """
    text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", text)
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    text = re.sub("['\u2019`]", "", text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    words = []
    for word in re.findall(r"[^\W\d_]+|\d+", text):
        words += _number(word) if word.isdigit() else [_SAME.get(word, word)]
    return words


def _number(digits: str) -> list[str]:
    value = int(digits)
    if len(digits) > 2 or (len(digits) == 2 and digits[0] == "0"):
        return [_ONES[int(digit)] for digit in digits]
    if value < 20:
        return [_ONES[value]]
    return [_TENS[value - value % 10], *([_ONES[value % 10]] if value % 10 else [])]


def word_error_rate(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> float:
    """Edits of words over words of the references, summed over all pairs; 0 for equal texts, above 1 with many insertions.

    Texts are normalised first. A pair without a word in its reference adds the words of its hypothesis to the edits.

    Raises:
        ValueError: the numbers of texts differ, or no reference holds a word.
        MissingDependencyError: jiwer is not installed.
    """
    pairs = word_errors(references, hypotheses)
    words = sum(count for _, count in pairs)
    if not words:
        raise ValueError("references must hold at least one word, got none after normalisation")
    return sum(edits for edits, _ in pairs) / words


def word_errors(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> list[tuple[int, int]]:
    """(edits, words of the reference) of every pair: the fewest insertions, deletions and substitutions of words."""
    jiwer: Any = optional("jiwer", "speech")
    found = []
    for reference, hypothesis in _pairs(references, hypotheses):
        aligned = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        found.append((aligned.substitutions + aligned.deletions + aligned.insertions, len(reference)))
    return found


def _pairs(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> list[tuple[list[str], list[str]]]:
    first = [references] if isinstance(references, str) else list(references)
    second = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if len(first) != len(second):
        raise ValueError(f"hypotheses must be as many as references, {len(first)}, got {len(second)}")
    return [(normalise(r), normalise(h)) for r, h in zip(first, second, strict=True)]
