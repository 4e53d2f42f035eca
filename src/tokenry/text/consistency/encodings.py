"""How many token sequences spell a text, and how much of a model's probability the tokenizer's own one holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenry.core.checks import check_int
from tokenry.hosts.text import ByteVocabulary, as_bytes, first_noncanonical, is_canonical
from tokenry.text.byteprobs import ByteLM

__all__ = [
    "EncodingMass",
    "canonical_tokens",
    "count_encodings",
    "encoding_mass",
    "enumerate_encodings",
    "first_noncanonical",
    "is_canonical",
]


def count_encodings(text: str | bytes, vocabulary: Any) -> int:
    """Number of id sequences that spell exactly `text`: dynamic programming over bytes; 1 for the empty text, exact.

    `vocabulary`: a tokenizer, a `ByteVocabulary`, or bare pieces (set, sequence or mapping to ids; str or bytes; a piece that
    a sequence holds twice counts twice). No prefix space is added; special tokens spell nothing.

    Raises:
        TypeError, UnsupportedModelError: `text` or the vocabulary is of another kind.
    """
    return ByteVocabulary.of(vocabulary).trie.count_encodings(as_bytes("text", text))


def enumerate_encodings(text: str | bytes, vocabulary: Any, *, limit: int = 10_000) -> list[list[int]]:
    """Every id sequence that spells exactly `text`.

    Raises:
        ValueError: there are more than `limit`.
    """
    return ByteVocabulary.of(vocabulary).trie.enumerate_encodings(as_bytes("text", text), limit)


def canonical_tokens(ids: Sequence[int], tokenizer: Any) -> np.ndarray:
    """Bool [len(ids)]: whether the tokenizer's own encoding of the whole text has the same token at the same bytes.

    A single other choice does not spoil what follows it, unlike with `first_noncanonical`.

    Raises:
        ValueError: an id has no bytes (cut special tokens off first).
    """
    vocabulary = ByteVocabulary.of(tokenizer)
    own = vocabulary.encode(vocabulary.decode(ids))
    known = set(_places(own, vocabulary))
    return np.array([place in known for place in _places(ids, vocabulary)], dtype=bool)


def _places(ids: Sequence[int], vocabulary: ByteVocabulary) -> list[tuple[int, int]]:
    ends = np.cumsum([vocabulary.lengths[token] for token in ids]).tolist()
    # Counted from the end, so that a prefix space that only one of the two has shifts nothing.
    return [(ends[-1] - end, token) for end, token in zip(ends, ids, strict=True)]


@dataclass(frozen=True)
class EncodingMass:
    """Probability of a word in a context, over all its encodings. Logarithms are natural.

    Attributes:
        encodings: number of id sequences that spell the word.
        canonical: the tokenizer's own.
        log_prob: log of the sum of P(ids | context) over all encodings.
        canonical_log_prob: log P(canonical | context).
    """

    encodings: int
    canonical: tuple[int, ...]
    log_prob: float
    canonical_log_prob: float

    @property
    def canonical_share(self) -> float:
        """P(canonical) / P(all encodings)."""
        return min(1.0, math.exp(self.canonical_log_prob - self.log_prob))

    @property
    def noncanonical_share(self) -> float:
        """P(non-canonical encodings) / P(all encodings)."""
        return 1.0 - self.canonical_share


def encoding_mass(
    lm: ByteLM, word: str | bytes, *, context: str | bytes = b"", limit: int = 4096, batch_size: int = 64
) -> EncodingMass:
    """Sum of P over the encodings of `word` behind `context`, the canonical one apart (exhaustive, not sampled).

    `word` is the surface with the space before it where it has one. One run of the model per `batch_size` encodings; the
    context is computed once.

    Raises:
        ValueError: `word` is empty or has more than `limit` encodings, or the tokenizer does not cut between context and word.
    """
    check_int("batch_size", batch_size, minimum=1)
    vocabulary, data, before = lm.vocabulary, as_bytes("word", word), as_bytes("context", context)
    if not data:
        raise ValueError("word must not be empty")
    given = vocabulary.encode(before) if before else []
    whole = vocabulary.encode(before + data)
    if whole[: len(given)] != given:
        raise ValueError(f"context must end where a token ends in context + word, got {before[-20:]!r} + {data!r}")
    surface = data if before else vocabulary.prefix + data
    canonical = tuple(whole[len(given) :])
    ways = [tuple(ids) for ids in vocabulary.trie.enumerate_encodings(surface, limit)]
    head = (lm.begin_id, *given)
    scores: list[float] = []
    for start in range(0, len(ways), batch_size):
        paths = [head + ids for ids in ways[start : start + batch_size]]
        scores += [score for score, _ in lm.score(paths, len(head))]
    return EncodingMass(len(ways), canonical, float(np.logaddexp.reduce(scores)), scores[ways.index(canonical)])
