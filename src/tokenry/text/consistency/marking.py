"""Choosing target words of a passage and putting brackets around them without touching their tokens."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tokenry.core.checks import check_choice, check_range
from tokenry.hosts.text import ByteVocabulary
from tokenry.text.consistency.spans import TokenText, Word, split_words
from tokenry.text.consistency.stop_words import STOP_WORDS

BRACKETS = ("[", "]")


@dataclass(frozen=True)
class Target:
    """A marked word.

    Attributes:
        text: the word.
        index: its place in ``split_words(passage.text)``.
        start, end: its characters in the passage.
        marked_start, marked_end: its characters in the marked passage, brackets and white space left out.
        ids: its tokens in the marked passage, those of the space in front included.
    """

    text: str
    index: int
    start: int
    end: int
    marked_start: int
    marked_end: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class MarkedPassage:
    """A passage, the same with brackets around the targets, and the targets in order.

    `refused` counts words that were drawn but would have had other tokens between brackets.
    """

    text: str
    marked: str
    targets: tuple[Target, ...]
    refused: int = 0


def select_passages(texts: Sequence[str], *, min_words: int = 100, max_words: int = 600) -> list[str]:
    """The texts that have between `min_words` and `max_words` words (runs without white space), both included."""
    return [text for text in texts if min_words <= len(text.split()) <= max_words]


def mark_words(
    text: str,
    tokenizer: Any,
    *,
    share: float = 0.05,
    seed: int = 0,
    stop_words: Collection[str] = STOP_WORDS,
    placement: str = "around_space",
    words: Collection[str] | None = None,
) -> MarkedPassage:
    """Mark `share` of the words that are no stop words, drawn uniformly; at least one where there is one.

    `placement` "around_space" puts the opening bracket before the space in front of the word ("met[ Saturday] at"), so that
    the word keeps the tokens it has in the text; "around_word" is the usual writing ("met [Saturday] at"), where the word
    mostly has the tokens of a word without a space. Words whose tokens reach over a bracket (and, in the first placement,
    words that do not keep their tokens) are never marked. The first word of a passage is no target: what stands in front of
    it is the prompt's. `words`: draw from these words only (any case).

    Raises:
        ValueError: `text` already holds brackets, or no word can be marked.
    """
    check_range("share", share, 0.0, 1.0, low_open=True)
    check_choice("placement", placement, ("around_space", "around_word"))
    if any(bracket in text for bracket in BRACKETS):
        raise ValueError(f"text must not hold the brackets {BRACKETS} that mark targets")
    vocabulary = ByteVocabulary.of(tokenizer)
    every = split_words(text)
    chosen = {word.casefold() for word in words} if words is not None else None
    candidates = [i for i, word in enumerate(every) if i and _is_target(word, stop_words, chosen)]
    wanted = max(1, round(share * len(candidates)))
    random.Random(seed).shuffle(candidates)
    kept, refused = _keeping_tokens(text, every, candidates, wanted, vocabulary, placement)
    if not kept:
        raise ValueError(f"text must have a word that can be marked, got none in {text[:40]!r} ({refused} lose their tokens)")
    marked, targets = _render(text, every, sorted(kept), vocabulary, placement)
    return MarkedPassage(text, marked, tuple(targets), refused)


def _is_target(word: Word, stop_words: Collection[str], chosen: Collection[str] | None) -> bool:
    plain = word.text.casefold()
    straight = plain.replace("\u2019", "'")
    if not word.text[0].isalpha() or straight in stop_words:
        return False
    return chosen is None or plain in chosen


def _keeping_tokens(
    text: str, every: list[Word], candidates: list[int], wanted: int, vocabulary: ByteVocabulary, placement: str
) -> tuple[list[int], int]:
    """The first `wanted` candidates that keep their tokens when all of the chosen ones are marked."""
    plain = TokenText(vocabulary.encode_text(text), vocabulary)
    if plain.text != text:
        raise ValueError(f"text must survive the tokenizer, its normaliser {vocabulary.layout.normalizer} changes it")
    kept: list[int] = []
    refused = 0
    rest = list(candidates)
    while rest and len(kept) < wanted:
        batch, rest = rest[: wanted - len(kept)], rest[wanted - len(kept) :]
        tried = sorted([*kept, *batch])
        marked, places = bracketed(text, [every[i] for i in tried], placement)
        tokens = TokenText(vocabulary.encode_text(marked), vocabulary)
        kept = []
        for index, (start, end) in zip(tried, places, strict=True):
            span, own = tokens.span(start, end), plain.span(every[index].start, every[index].end)
            if span.exact and (placement == "around_word" or (own.exact and span.ids == own.ids)):
                kept.append(index)
        refused += len(tried) - len(kept)
    return kept, refused


def bracketed(text: str, words: Sequence[Word], placement: str) -> tuple[str, list[tuple[int, int]]]:
    """`text` with brackets around `words` (ascending), and the characters of each word in the result."""
    parts, places, place, size = [], [], 0, 0
    for word in words:
        before = word.start
        if placement == "around_space" and before and text[before - 1] == " ":
            before -= 1
        parts.append(text[place:before] + BRACKETS[0] + text[before : word.end] + BRACKETS[1])
        start = size + (before - place) + 1 + (word.start - before)
        places.append((start, start + word.end - word.start))
        size += len(parts[-1])
        place = word.end
    return "".join(parts) + text[place:], places


def _render(
    text: str, every: list[Word], kept: list[int], vocabulary: ByteVocabulary, placement: str
) -> tuple[str, list[Target]]:
    marked, places = bracketed(text, [every[i] for i in kept], placement)
    tokens = TokenText(vocabulary.encode_text(marked), vocabulary)
    targets = [
        Target(every[i].text, i, every[i].start, every[i].end, start, end, tokens.span(start, end).ids)
        for i, (start, end) in zip(kept, places, strict=True)
    ]
    return marked, targets
