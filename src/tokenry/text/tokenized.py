"""Encoding many texts with any tokenizer, without special tokens, padding or truncation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from tokenry.errors import UnsupportedModelError

_BATCH = 4096


def encoded(tokenizer: Any, lines: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each line, without special tokens, padding or truncation."""
    if hasattr(tokenizer, "encode_ordinary_batch"):
        for start in range(0, len(lines), _BATCH):
            yield from tokenizer.encode_ordinary_batch(list(lines[start : start + _BATCH]))
        return
    plain = plain_tokenizer(tokenizer)
    for start in range(0, len(lines), _BATCH):
        batch = list(lines[start : start + _BATCH])
        yield from (e.ids for e in plain.encode_batch_fast(batch, add_special_tokens=False))


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """The ``tokenizers.Tokenizer`` inside, without padding and truncation; a copy where it has them.

    Raises:
        UnsupportedModelError: there is none inside.
    """
    inner = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        supported = ["tokenizers.Tokenizer", "PreTrainedTokenizerFast", "tiktoken.Encoding"]
        raise UnsupportedModelError.of(tokenizer, supported)
    if inner.padding is None and inner.truncation is None:
        return inner
    copy = Tokenizer.from_str(inner.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy
