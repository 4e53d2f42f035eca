"""Contract of valid beginnings: ``check_beginnings(tokenizer, texts)``, for every tokenizer whose tokens spell the text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenry.hosts.text import ByteVocabulary, Reencoding, split_partial
from tokenry.testing.verdict import fail


def texts_with_added_tokens(tokenizer: Any, texts: Sequence[str], *, count: int = 6, seed: int = 0) -> list[str]:
    """The texts, and texts with added tokens put into them, whole, broken off, glued to words and spaces; those that survive."""
    vocabulary, draw = ByteVocabulary.of(tokenizer), random.Random(seed)
    added = [(vocabulary.pieces[token] or b"").decode() for token in sorted(vocabulary.layout.added)]
    made = list(texts)
    for _ in range(count if added else 0):
        text = draw.choice(texts)
        for token in draw.choices(added, k=3):
            place = draw.randrange(len(text) + 1)
            cut = draw.choice((len(token), len(token), draw.randrange(1, len(token) + 1)))
            text = text[:place] + draw.choice(("", " ", "\n")) + token[:cut] + draw.choice(("", "\n", " ")) + text[place:]
        made.append(text)
    return [text for text in made if _survives(vocabulary, vocabulary.prefix + text.encode())]


def _survives(vocabulary: ByteVocabulary, data: bytes) -> bool:
    return b"".join(vocabulary.pieces[token] or b"" for token in vocabulary.encode_text(data.decode())) == data


def check_beginnings(tokenizer: Any, texts: Sequence[str], *, every: int = 1, probes: int = 20, seed: int = 0) -> None:
    """Check the valid beginnings of every prefix of `texts`, which must survive the tokenizer.

    Checked: the own encoding of a prefix is among its beginnings; each of them is what some longer text begins with; walking
    token by token finds the same ones as starting from the bytes; the tokenizer's own next token is allowed; of `probes`
    tokens drawn, none is allowed that no text has there.

    Args:
        tokenizer: what `ByteVocabulary.of` takes.
        texts: real text; see `texts_with_added_tokens`.
        every: prefixes are taken at every so many bytes.
        probes: tokens per prefix that are compared with the definition, which encodes a text for each.
        seed: which ones.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    vocabulary, draw = ByteVocabulary.of(tokenizer), random.Random(seed)
    for text in texts:
        data = vocabulary.prefix + text.encode()
        for end in range(1, len(data) + 1, every):
            _own_is_among(vocabulary, data[:end])
            _walked_equal_found(vocabulary, data[:end])
        _own_is_allowed(vocabulary, data, text)
        for end in draw.sample(range(len(data)), min(6, len(data))):
            _allowed_are_valid(vocabulary, data, end, probes, draw)


def _own_is_among(vocabulary: ByteVocabulary, data: bytes) -> None:
    if split_partial(data)[1] or not _survives(vocabulary, data):
        return  # a space behind a token that takes it away
    own, tips = vocabulary.encode_text(data.decode()), vocabulary.canonical.tips(data)
    if own not in tips:
        fail(
            "own encoding",
            vocabulary,
            f"{_names(vocabulary, own)} is not among the beginnings of {data[-60:]!r}: {_all(vocabulary, tips)}",
        )


def _walked_equal_found(vocabulary: ByteVocabulary, data: bytes) -> None:
    """Every beginning is a shorter one and a token that may follow it, and the other way round."""
    canonical = vocabulary.canonical
    walked = []
    for place, *_ in vocabulary.trie.suffix_spans(data):
        last = vocabulary.trie.with_bytes(data[place:])
        for ids in canonical.tips(data[:place]) if last else ():
            mask = canonical.followers(ids, data[:place])
            walked += [[*ids, token] for token in last if mask[token]]
    found = canonical.tips(data)
    if sorted(walked) != sorted(found):
        fail(
            "steps equal start",
            vocabulary,
            f"{data[-60:]!r}: by steps {_all(vocabulary, walked)}, at once {_all(vocabulary, found)}",
        )


def _own_is_allowed(vocabulary: ByteVocabulary, data: bytes, text: str) -> None:
    own, place = vocabulary.encode_text(data.decode()), 0
    for count, token in enumerate(own):
        if not vocabulary.canonical.followers(own[:count], data[:place])[token]:
            fail(
                "own token allowed",
                vocabulary,
                f"{vocabulary.pieces[token]!r} after {_names(vocabulary, own[:count])} in {text!r}",
            )
        place += vocabulary.lengths[token]


def _allowed_are_valid(vocabulary: ByteVocabulary, data: bytes, end: int, probes: int, draw: random.Random) -> None:
    prefix, oracle = data[:end], Reencoding(vocabulary)
    for ids in vocabulary.canonical.tips(prefix):
        mask = vocabulary.canonical.followers(ids, prefix)
        near = [token for _, token in vocabulary.trie.matches(data, end)]
        for token in {*near, *draw.choices(vocabulary.trie.ids.tolist(), k=probes)}:
            if mask[token] != oracle.holds(ids, prefix, token):
                word = "allowed" if mask[token] else "refused"
                fail("definition", vocabulary, f"{vocabulary.pieces[token]!r} is {word} after {_names(vocabulary, ids)}")
        _sampled_allowed(vocabulary, oracle, ids, prefix, np.flatnonzero(mask), probes, draw)


def _sampled_allowed(vocabulary, oracle, ids, prefix, allowed, probes, draw) -> None:
    """Rare characters may be judged by their class (a limit that the page states), so a tenth may differ."""
    asked = draw.sample(allowed.tolist(), min(probes, len(allowed)))
    wrong = [token for token in asked if not oracle.holds(ids, prefix, token)]
    if len(wrong) > 0.1 * len(asked):
        fail("definition", vocabulary, f"after {_names(vocabulary, ids)} no text has {[vocabulary.pieces[t] for t in wrong]}")


def _names(vocabulary: ByteVocabulary, ids: Sequence[int]) -> str:
    return "|".join(repr(vocabulary.pieces[token])[1:] for token in ids[-8:])


def _all(vocabulary: ByteVocabulary, tips: Sequence[Sequence[int]]) -> str:
    return ", ".join(_names(vocabulary, ids) for ids in tips) or "none"
