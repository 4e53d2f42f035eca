"""Text to words to base units and back, without a tokenizer (section 3.2 of the paper's released code, made explicit)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenry.core.checks import check_choice, check_int

Overflow = Literal["raise", "truncate", "chunk"]
UNKNOWN = "�"  # what an unknown character decodes to


@dataclass(frozen=True)
class ByteUnits:
    """Bytes of UTF-8 as base units: unit = byte + 1; 0 is padding and end of word. Loses nothing."""

    size: int = 257

    def encode(self, word: str) -> list[int]:
        """Units of a word. Lone surrogates are refused.

        Raises:
            ValueError: the word is not valid Unicode.
        """
        try:
            return [byte + 1 for byte in word.encode("utf-8")]
        except UnicodeEncodeError as error:
            raise ValueError(f"word must be valid Unicode, got {word!r}") from error

    def decode(self, units: Iterable[int]) -> str:
        """Text of units up to the first 0; invalid UTF-8 becomes U+FFFD."""
        return bytes(u - 1 for u in _before_end(units, self.size)).decode("utf-8", "replace")


@dataclass(frozen=True)
class CharUnits:
    """Characters as base units: 0 is padding and end of word, 1 an unknown character, then the alphabet in its order."""

    alphabet: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) != len(self.alphabet) or any(len(c) != 1 for c in self.alphabet):
            raise ValueError("alphabet must hold distinct single characters")

    @classmethod
    def build(cls, text: str) -> CharUnits:
        """The characters of `text`, sorted.

        Raises:
            ValueError: the text is empty.
        """
        if not text:
            raise ValueError("text must hold at least one character")
        return cls(tuple(sorted(set(text))))

    @property
    def size(self) -> int:
        """V: the alphabet, the unknown unit and the pad."""
        return len(self.alphabet) + 2

    def encode(self, word: str) -> list[int]:
        """Units of a word; a character outside the alphabet is unit 1."""
        index = self._index()
        return [index.get(c, 1) for c in word]

    def decode(self, units: Iterable[int]) -> str:
        """Text of units up to the first 0; unit 1 becomes U+FFFD."""
        return "".join(UNKNOWN if u == 1 else self.alphabet[u - 2] for u in _before_end(units, self.size))

    def _index(self) -> dict[str, int]:
        found = self.__dict__.get("_found")
        if found is None:
            found = {c: i + 2 for i, c in enumerate(self.alphabet)}
            object.__setattr__(self, "_found", found)
        return found


Units = ByteUnits | CharUnits


def _before_end(units: Iterable[int], size: int) -> Iterable[int]:
    for unit in units:
        if not 0 <= unit < size:
            raise ValueError(f"units must be in 0..{size - 1}, got {unit}")
        if unit == 0:
            return
        yield unit


_PUNCTUATION = re.compile(r"([^\w\s])")
_LOSSLESS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


@dataclass(frozen=True)
class WordSplitter:
    """Splits text into words of base units. The same splitter must serve training and test.

    Args:
        units: base units.
        max_word: longest word, in units.
        overflow: a longer word is refused (``"raise"``), cut with a warning (``"truncate"``), or split into words of `max_word`
            units with a warning (``"chunk"``: for scripts without spaces).
        lossless: keep separators: a word carries the whitespace before it, so that joining the words gives the text back.
            Otherwise whitespace is normalised and punctuation stands alone, as in the released code; the text is then not
            recoverable exactly.
        lower: lower-case the text first.

    Raises:
        ValueError: options out of range, or ``lossless`` with a lossy option.
    """

    units: Units = field(default_factory=ByteUnits)
    max_word: int = 24
    overflow: Overflow = "raise"
    lossless: bool = False
    lower: bool = False

    def __post_init__(self) -> None:
        check_int("max_word", self.max_word, 1)
        check_choice("overflow", self.overflow, ("raise", "truncate", "chunk"))
        if self.lossless and (self.lower or self.overflow == "truncate"):
            raise ValueError("lossless must not be combined with lower=True or overflow='truncate': both lose text")

    def words(self, text: str) -> list[str]:
        """The words of a text, before any is cut; no word is empty, an empty text has none."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if self.lossless:
            return _LOSSLESS.findall(text)
        return _PUNCTUATION.sub(r" \1 ", text.lower() if self.lower else text).split()

    def encode(self, text: str) -> list[list[int]]:
        """Base units of every word.

        Raises:
            ValueError: a word is longer than `max_word` and `overflow` is ``"raise"``.
        """
        out: list[list[int]] = []
        longer = 0
        for word in self.words(text):
            units = self.units.encode(word)
            if len(units) <= self.max_word:
                out.append(units)
                continue
            longer += 1
            if self.overflow == "raise":
                raise ValueError(
                    f"text holds a word of {len(units)} units, longer than max_word={self.max_word}: {word[:30]!r}; "
                    "raise max_word, or pass overflow='truncate' or 'chunk'"
                )
            pieces = range(0, len(units) if self.overflow == "chunk" else 1, self.max_word)
            out.extend(units[i : i + self.max_word] for i in pieces)
        if longer:
            done = "cut" if self.overflow == "truncate" else "split into several words"
            warnings.warn(f"{longer} words longer than max_word={self.max_word} units were {done}", stacklevel=2)
        return out

    def decode(self, words: Sequence[Sequence[int]]) -> str:
        """Text of words: joined as they are when lossless (exact, also for words that were chunked), else with spaces."""
        if not self.lossless:
            return " ".join(self.units.decode(word) for word in words)
        whole: list[int] = []
        for word in words:
            whole.extend(_before_end(word, self.units.size))
        return self.units.decode(whole)
