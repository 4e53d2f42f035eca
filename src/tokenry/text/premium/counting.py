"""Token counts over parallel lines: the corpus token count (CTC) of section 3 and the size of the text itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenry.lazy import suggest
from tokenry.text.tokenized import encoded


@dataclass(frozen=True)
class CorpusCounts:
    """Sizes of a parallel corpus, line by line: int64 arrays [lines] per language.

    Attributes:
        tokens: tokens of each line, special tokens not counted.
        size_bytes: UTF-8 bytes of each line.
        characters: code points of each line.
    """

    tokens: dict[str, NDArray[np.int64]]
    size_bytes: dict[str, NDArray[np.int64]]
    characters: dict[str, NDArray[np.int64]]

    @property
    def totals(self) -> dict[str, int]:
        """Corpus token count per language."""
        return {language: int(counts.sum()) for language, counts in self.tokens.items()}


def corpus_counts(tokenizers: Any, corpus: Mapping[str, Sequence[str]]) -> CorpusCounts:
    """Count a parallel corpus.

    Args:
        tokenizers: one tokenizer for all languages, or a mapping with one for each language of `corpus`. A
            ``tokenizers.Tokenizer``, a fast tokenizer of transformers, or an encoding of tiktoken.
        corpus: language -> lines; line i says the same in every language. Empty lines count 0.

    Raises:
        ValueError: no languages, languages with different numbers of lines, or a language without a tokenizer.
        TypeError: a line that is not a string.
        UnsupportedModelError: a tokenizer of another kind.
    """
    check_parallel(corpus)
    if isinstance(tokenizers, Mapping):
        for language in corpus:
            if language not in tokenizers:
                raise ValueError(f"tokenizers has none for {language!r}{suggest(language, tokenizers)}")
        each = {language: tokenizers[language] for language in corpus}
    else:
        each = dict.fromkeys(corpus, tokenizers)
    return CorpusCounts(
        {language: line_counts(each[language], lines) for language, lines in corpus.items()},
        {language: np.array([len(x.encode()) for x in lines], np.int64) for language, lines in corpus.items()},
        {language: np.array([len(x) for x in lines], np.int64) for language, lines in corpus.items()},
    )


def check_parallel(corpus: Mapping[str, Sequence[str]]) -> int:
    """The number of lines that every language has, or an error."""
    if not isinstance(corpus, Mapping) or not corpus:
        raise ValueError("corpus must be a mapping of at least one language to its lines")
    for language, lines in corpus.items():
        if isinstance(lines, (str, bytes)):
            raise TypeError(f"corpus[{language!r}] must be a sequence of lines, got one {type(lines).__name__}")
        for index, line in enumerate(lines):
            if not isinstance(line, str):
                raise TypeError(f"corpus[{language!r}][{index}] must be a str, got {type(line).__name__}")
            if not line.isascii() and any("\ud800" <= c <= "\udfff" for c in line):
                raise ValueError(f"corpus[{language!r}][{index}] must be valid Unicode, got a lone surrogate")
    sizes = {language: len(lines) for language, lines in corpus.items()}
    if len(set(sizes.values())) > 1:
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        raise ValueError(
            f"corpus must have as many lines in every language, got {sizes[least]} in {least!r} and {sizes[most]} in {most!r}"
        )
    if not next(iter(sizes.values())):
        raise ValueError("corpus must have at least one line")
    return next(iter(sizes.values()))


def line_counts(tokenizer: Any, lines: Sequence[str]) -> NDArray[np.int64]:
    """Tokens of each line, int64 [lines], without special tokens, padding or truncation.

    Raises:
        UnsupportedModelError: neither a ``tokenizers.Tokenizer`` nor a fast tokenizer nor a tiktoken encoding.
    """
    return np.fromiter((len(ids) for ids in encoded(tokenizer, lines)), np.int64, len(lines))
