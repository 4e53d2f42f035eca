"""Running totals of constant size: what was counted so far, mergeable in any order, with blocks for the bootstrap.

Line i belongs to block i mod BLOCKS, so that a corpus of any length needs the same memory; the intervals resample
blocks, which are single lines as long as there are no more lines than blocks. All counts are 64-bit integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tokenry.text.audit.encoder import ChunkCount

BLOCKS = 1024


def add_to_blocks(blocks: np.ndarray, first: int, values: np.ndarray) -> None:
    """Add the values of lines first, first + 1, ... to their blocks [BLOCKS], in place."""
    place, start = first % BLOCKS, 0
    while start < len(values):
        take = min(BLOCKS - place, len(values) - start)
        blocks[place : place + take] += values[start : start + take]
        place, start = 0, start + take


def _blocks() -> np.ndarray:
    return np.zeros(BLOCKS, dtype=np.int64)


@dataclass
class TextTally:
    """Size of a text: lines, and characters (code points) and UTF-8 bytes per block."""

    lines: int = 0
    characters: np.ndarray = field(default_factory=_blocks)
    bytes: np.ndarray = field(default_factory=_blocks)

    def add(self, first: int, characters: list[int], sizes: list[int]) -> None:
        """Count lines in, by their characters and their bytes."""
        self.lines += len(sizes)
        add_to_blocks(self.characters, first, np.array(characters, dtype=np.int64))
        add_to_blocks(self.bytes, first, np.array(sizes, dtype=np.int64))


@dataclass
class TokenTally:
    """What a tokenizer made of a text: tokens per block, unknown tokens, failures by kind with the first examples."""

    examples: int = 3
    tokens: np.ndarray = field(default_factory=_blocks)
    unknown: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[int, str, str, str]] = field(default_factory=list)
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add(self, first: int, count: ChunkCount) -> None:
        """Count a chunk in; the order of the chunks does not matter."""
        add_to_blocks(self.tokens, first, count.tokens)
        self.unknown += count.unknown
        for kind, number in count.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + number
        self.encode_seconds += count.encode_seconds
        self.decode_seconds += count.decode_seconds
        if count.failures:
            kept: dict[str, int] = {}
            merged = sorted([*self.failures, *count.failures])
            self.failures = []
            for failure in merged:
                kept[failure[1]] = kept.get(failure[1], 0) + 1
                if kept[failure[1]] <= self.examples:
                    self.failures.append(failure)
