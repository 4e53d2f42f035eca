"""A tokenizer as the audit uses it: batches in, ids out, round trip checked, time inside the tokenizer measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tokenry.hosts.text import as_backend

KINDS = ("unknown", "normalised", "spacing", "changed")
"""Ways a line can fail to come back: unknown tokens; as the normaliser left it; other white space; anything else."""
EXCERPT = 60  # characters of a failing line that are kept


@dataclass
class ChunkCount:
    """What one tokenizer made of one chunk: tokens per line [n], ids seen, failures, seconds inside the tokenizer."""

    tokens: np.ndarray
    used: np.ndarray
    unknown: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[int, str, str, str]] = field(default_factory=list)  # line, kind, text, what came back
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


class AuditEncoder:
    """Counts what a tokenizer does to lines: no special tokens added, none matched in the text, nothing truncated.

    `tokenizer`: a fast tokenizer of transformers, a `tokenizers.Tokenizer` or a `tiktoken.Encoding`; raises
    UnsupportedModelError for anything else. The tokenizer is as it was once the audit is over.
    """

    def __init__(self, name: str, tokenizer: Any, *, round_trip: bool = True, examples: int = 3) -> None:
        self.name = name
        self.backend: Tokenizer = as_backend(tokenizer)
        self.round_trip = round_trip
        self.examples = examples
        self.size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.unknown = unknown_id(self.backend)
        self.seconds = 0.0  # inside the tokenizer, outside `count`

    @contextmanager
    def ready(self) -> Iterator[AuditEncoder]:
        """The options that counting needs, undone afterwards."""
        backend = self.backend
        before = backend.encode_special_tokens, backend.truncation, backend.padding
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        try:
            yield self
        finally:
            backend.encode_special_tokens = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids of every line."""
        start = time.perf_counter()
        ids = self._encode(lines)
        self.seconds += time.perf_counter() - start
        return ids

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Text of every row of ids."""
        start = time.perf_counter()
        lines = self.backend.decode_batch(ids, skip_special_tokens=False)
        self.seconds += time.perf_counter() - start
        return lines

    def _encode(self, lines: list[str]) -> list[list[int]]:
        return [found.ids for found in self.backend.encode_batch_fast(lines, add_special_tokens=False)]

    def count(self, lines: list[str], first: int) -> ChunkCount:
        """Counts over lines; `first` is the number of the first one."""
        start = time.perf_counter()
        ids = self._encode(lines)
        encoded = time.perf_counter() - start
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        seen = np.zeros(self.size, dtype=bool)
        seen[flat] = True
        found = ChunkCount(lengths, np.flatnonzero(seen), encode_seconds=encoded)
        if self.unknown is not None:
            found.unknown = int((flat == self.unknown).sum())
        if self.round_trip:
            start = time.perf_counter()
            back = self.backend.decode_batch(ids, skip_special_tokens=False)
            found.decode_seconds = time.perf_counter() - start
            if back != lines:
                self._failures(lines, ids, back, first, found)
        return found

    def _failures(self, lines: list[str], ids: list[list[int]], back: list[str], first: int, found: ChunkCount) -> None:
        for place, (line, other) in enumerate(zip(lines, back, strict=True)):
            if line == other:
                continue
            kind = self._kind(line, other, ids[place])
            found.kinds[kind] = found.kinds.get(kind, 0) + 1
            if found.kinds[kind] <= self.examples:
                found.failures.append((first + place, kind, *_around(line, other)))

    def _kind(self, line: str, other: str, ids: list[int]) -> str:
        if self.unknown is not None and self.unknown in ids:
            return "unknown"
        if "".join(line.split()) == "".join(other.split()):
            return "spacing"
        normalizer = self.backend.normalizer
        if normalizer is not None:
            plain = normalizer.normalize_str(line).replace("\u2581", " ")
            if "".join(plain.split()) == "".join(other.split()):
                return "normalised"
        return "changed"


def _around(line: str, other: str) -> tuple[str, str]:
    """Both texts from a little before their first difference."""
    place = next((i for i, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))
    start = max(0, place - EXCERPT // 3)
    return line[start : start + EXCERPT], other[start : start + EXCERPT]


def unknown_id(backend: Tokenizer) -> int | None:
    """Id that stands for what the vocabulary lacks, None where there is no such thing."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None:
        return backend.token_to_id(name)
    if type(backend.model).__name__ != "Unigram":
        return None
    try:  # a Unigram model does not tell its unknown id, but shows it for a character that nobody has
        found = backend.model.tokenize("\U0010fffd")
    except Exception:  # it has none and says so
        return None
    return found[0].id if len(found) == 1 else None
