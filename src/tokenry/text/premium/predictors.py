"""What may explain a token premium: properties of a text and of a tokenizer on it (section 3, regressions)."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tokenry.core.checks import check_choice
from tokenry.text.premium.inequity import byte_coefficient
from tokenry.text.tokenized import encoded


def proportion_whitespace(lines: Sequence[str]) -> float:
    """Share of the code points that are whitespace; line ends that the list itself implies do not count."""
    characters = _characters(lines)
    return sum(sum(map(str.isspace, line)) for line in lines) / characters


def unique_characters(lines: Sequence[str]) -> int:
    """Number of different code points, whitespace left out."""
    return len({c for line in lines for c in line if not c.isspace()})


def character_entropy(lines: Sequence[str], *, order: int = 1) -> float:
    """Entropy in bits of single characters (order 1) or of pairs of neighbours (order 2), whitespace removed first.

    Raises:
        ValueError: another order, or no character (pair) to count.
    """
    check_choice("order", order, (1, 2))
    counts: Counter[Any] = Counter()
    for line in lines:
        dense = "".join(line.split())
        counts.update(dense if order == 1 else pairwise(dense))
    total = sum(counts.values())
    if not total:
        raise ValueError(f"lines must hold at least {order} characters beside whitespace")
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values())


def script(lines: Sequence[str]) -> str:
    """The commonest script of the letters, as the first word of their Unicode names (``LATIN``, ``HANGUL``, ``CJK`` ...).

    Raises:
        ValueError: the lines hold no letter.
    """
    letters = Counter(c for line in lines for c in line if c.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]] += count
    if not scripts:
        raise ValueError("lines must hold at least one letter")
    return max(sorted(scripts), key=scripts.__getitem__)


def mean_token_length(tokenizer: Any) -> float:
    """Mean length in characters over the vocabulary, special tokens left out.

    A character counts for the token that holds its first byte, so lengths add up to the length of the text.
    """
    lengths = [_starts(piece) for piece in _pieces(tokenizer) if piece is not None]
    return sum(lengths) / len(lengths)


def mean_token_length_used(tokenizer: Any, lines: Sequence[str]) -> float:
    """Mean length in characters over the different tokens that occur in `lines`.

    Raises:
        ValueError: the lines hold no token.
    """
    pieces, used = _pieces(tokenizer), _types(tokenizer, lines)
    lengths = [_starts(piece) for piece in (pieces[i] for i in used) if piece is not None]
    if not lengths:
        raise ValueError("lines must hold at least one token")
    return sum(lengths) / len(lengths)


def data_similarity(tokenizer: Any, training: Sequence[str], evaluation: Sequence[str]) -> float:
    """Token types that occur in both texts, over the size of the vocabulary."""
    shared = _types(tokenizer, training) & _types(tokenizer, evaluation)
    return len(shared) / len(_pieces(tokenizer))


def line_overlap(training: Sequence[str], evaluation: Sequence[str]) -> float:
    """Share of the evaluation lines that are training lines too, letter by letter: 0 when the text is really held out."""
    if not evaluation:
        raise ValueError("evaluation must have at least one line")
    known = set(training)
    return sum(line in known for line in evaluation) / len(evaluation)


def language_predictors(
    tokenizer: Any, evaluation: Sequence[str], training: Sequence[str] | None = None
) -> dict[str, float | str]:
    """All predictors of one language: a row of the regressions. Data similarity needs the training text."""
    row: dict[str, float | str] = {
        "proportion_whitespace": proportion_whitespace(evaluation),
        "mean_token_length_vocabulary": mean_token_length(tokenizer),
        "mean_token_length_used": mean_token_length_used(tokenizer, evaluation),
        "unique_characters": float(unique_characters(evaluation)),
        "unigram_entropy": character_entropy(evaluation),
        "bigram_entropy": character_entropy(evaluation, order=2),
        "byte_coefficient": byte_coefficient(evaluation),
        "script": script(evaluation),
    }
    if training is not None:
        row["data_similarity"] = data_similarity(tokenizer, training, evaluation)
    return row


def _characters(lines: Sequence[str]) -> int:
    characters = sum(map(len, lines))
    if not characters:
        raise ValueError("lines must hold at least one character")
    return characters


def _types(tokenizer: Any, lines: Sequence[str]) -> set[int]:
    return {i for ids in encoded(tokenizer, lines) for i in ids}


def _pieces(tokenizer: Any) -> Sequence[bytes | None]:
    from tokenry.hosts.text import ByteVocabulary

    return ByteVocabulary.of(tokenizer).pieces


def _starts(piece: bytes) -> int:
    """Bytes that begin a UTF-8 character."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)
