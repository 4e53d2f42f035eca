"""Ids of a vocabulary that a reader cannot tell apart, or hardly."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tokenry.hosts.text import ByteVocabulary

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class VocabularyTwins:
    """Pairs of ids (smaller id first, ascending); only pieces that are whole characters count.

    Attributes:
        size: ids with whole characters.
        identical: both spell the same text.
        case: equal but for case.
        leading_space: equal but for one space in front.
        unicode: equal after NFKC, not before.
        both_forms: words (letters only) that have an id with the space in front and one without.
    """

    size: int
    identical: Pairs
    case: Pairs
    leading_space: Pairs
    unicode: Pairs
    both_forms: int

    def counts(self) -> dict[str, int]:
        """Number of pairs of every kind, and the words with both forms."""
        kinds = {name: len(getattr(self, name)) for name in ("identical", "case", "leading_space", "unicode")}
        return kinds | {"both_forms": self.both_forms}


def vocabulary_twins(tokenizer: Any) -> VocabularyTwins:
    """Compare all pieces of a vocabulary with each other, by grouping; `tokenizer` as for `count_encodings`."""
    vocabulary = ByteVocabulary.of(tokenizer)
    texts: dict[int, str] = {}
    for token, piece in enumerate(vocabulary.pieces):
        try:
            text = piece.decode() if piece else ""
        except UnicodeDecodeError:
            continue
        if text:
            texts[token] = text
    by_text: dict[str, list[int]] = defaultdict(list)
    for token, text in texts.items():
        by_text[text].append(token)
    spaced = [text for text in by_text if " " + text in by_text]
    return VocabularyTwins(
        size=len(texts),
        identical=_sorted(pair for ids in by_text.values() for pair in combinations(ids, 2)),
        case=_alike(by_text, str.casefold),
        leading_space=_sorted((a, b) for text in spaced for a in by_text[text] for b in by_text[" " + text]),
        unicode=_alike(by_text, lambda text: unicodedata.normalize("NFKC", text)),
        both_forms=sum(text.isalpha() for text in spaced),
    )


def _alike(by_text: dict[str, list[int]], form: Callable[[str], str]) -> Pairs:
    groups: dict[str, list[str]] = defaultdict(list)
    for text in by_text:
        groups[form(text)].append(text)
    return _sorted(
        (a, b) for texts in groups.values() for one, two in combinations(texts, 2) for a in by_text[one] for b in by_text[two]
    )


def _sorted(pairs: Iterable[tuple[int, int]]) -> Pairs:
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))
