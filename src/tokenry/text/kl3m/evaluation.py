"""Evaluation: tokens per character, cost of terms, sizes of tokens, and whether boundaries survive a typing error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.text.kl3m.noise import align
from tokenry.text.tokenized import encoded, plain_tokenizer


def tokens_per_character(tokenizer: Any, texts: str | Iterable[str]) -> float:
    """Tokens over characters of the raw text, special tokens not counted; lower is better.

    Raises:
        ValueError: the texts hold no character.
    """
    held = [texts] if isinstance(texts, str) else list(texts)
    characters = sum(map(len, held))
    if not characters:
        raise ValueError("texts must hold at least one character")
    return sum(map(len, encoded(tokenizer, held))) / characters


def average_tokens_per_character(tokenizer: Any, data_sets: dict[str, Sequence[str]]) -> dict[str, float]:
    """Tokens per character of each data set, and their unweighted mean under ``"average"``, as the paper's table has it."""
    if not data_sets or "average" in data_sets:
        raise ValueError("data_sets must hold at least one data set, and none called 'average'")
    found = {name: tokens_per_character(tokenizer, texts) for name, texts in data_sets.items()}
    return found | {"average": sum(found.values()) / len(found)}


def term_costs(tokenizer: Any, terms: Sequence[str]) -> dict[str, int]:
    """Tokens of each term, special tokens not counted (the paper's table counts them for some tokenizers).

    Raises:
        ValueError: no terms, or an empty one.
    """
    if isinstance(terms, str) or not len(terms) or not all(terms):
        raise ValueError("terms must be a collection of strings that are not empty")
    return {term: len(ids) for term, ids in zip(terms, encoded(tokenizer, terms), strict=True)}


def relative_saving(ours: float, reference: float) -> float:
    """1 - ours / reference."""
    if reference <= 0:
        raise ValueError(f"reference must be > 0, got {reference}")
    return 1.0 - ours / reference


@dataclass(frozen=True)
class SizeHistogram:
    """Tokens of the vocabulary by length in characters: short 1-2, medium 3-6, long 7 and more."""

    short: int
    medium: int
    long: int
    by_length: dict[int, int]


def token_sizes(tokenizer: Any) -> SizeHistogram:
    """Histogram over the vocabulary, special tokens left out; a piece of a character has the length of what it decodes to."""
    inner = plain_tokenizer(tokenizer)
    special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
    ids = [i for i in inner.get_vocab(with_added_tokens=True).values() if i not in special]
    lengths = [max(1, len(text)) for text in inner.decode_batch([[i] for i in ids], skip_special_tokens=False)]
    counts = {length: lengths.count(length) for length in sorted(set(lengths))}
    bins = [sum(n for length, n in counts.items() if low <= length <= high) for low, high in ((0, 2), (3, 6), (7, 10**9))]
    return SizeHistogram(bins[0], bins[1], bins[2], counts)


@dataclass(frozen=True)
class Agreement:
    """Boundaries of a text and of its noisy form, compared where the characters are unchanged.

    Attributes:
        precision: share of the noisy form's boundaries that the clean form has too.
        recall: share of the clean form's boundaries that the noisy form has too.
        f1: their harmonic mean; 1 when neither has any.
        shared: boundaries in both.
        clean: boundaries of the clean form.
        noisy: boundaries of the noisy form.
    """

    precision: float
    recall: float
    f1: float
    shared: int
    clean: int
    noisy: int


def boundary_agreement(
    tokenizer: Any, clean: str, noisy: str, *, alignment: Sequence[tuple[int, int]] | None = None
) -> Agreement:
    """F1 of token boundaries, compared through an edit-distance alignment of the two strings.

    A boundary lies before the first character of a token; the first token's does not count. Boundaries before a character that
    the noise changed, added or lost have no counterpart: they count in the totals and cannot be shared. `alignment` saves
    computing `align` again when several tokenizers look at the same pair.
    """
    to_clean = {there: here for here, there in (align(clean, noisy) if alignment is None else alignment)}
    first, second = _starts(tokenizer, clean), _starts(tokenizer, noisy)
    shared = sum(to_clean.get(place) in first for place in second)
    precision = shared / len(second) if second else float(not first)
    recall = shared / len(first) if first else float(not second)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Agreement(precision, recall, f1, shared, len(first), len(second))


def _starts(tokenizer: Any, text: str) -> set[int]:
    """Character offsets at which a token begins, 0 left out; tokens inside a character begin at that character."""
    inner = plain_tokenizer(tokenizer)
    offsets = inner.encode(text, add_special_tokens=False).offsets
    return {start for start, _ in offsets if start}
