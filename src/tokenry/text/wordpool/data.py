"""Windows of words, a contiguous split, and the collator that pads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenry.core.checks import check_int, check_range

T = TypeVar("T")


def contiguous_split(items: Sequence[T], test_share: float = 0.2) -> tuple[Sequence[T], Sequence[T]]:
    """Training part, and the last `test_share` of the items as test part: nothing overlaps.

    Raises:
        ValueError: the share is out of range, or a part would be empty.
    """
    check_range("test_share", test_share, 0.0, 1.0, low_open=True, high_open=True)
    cut = len(items) - round(len(items) * test_share)
    if cut == 0 or cut == len(items):
        raise ValueError(f"items must leave both parts something, got {len(items)} items for test_share={test_share}")
    return items[:cut], items[cut:]


def word_windows(words: Sequence[Sequence[int]], block_size: int, *, stride: int | None = None) -> list[dict[str, Any]]:
    """Windows of at most `block_size` words, every `stride` of them (default: one after another), as items for the collator.

    The last window may be shorter; one of a single word is left out, because it has nothing to predict.

    Raises:
        ValueError: fewer than two words.
    """
    check_int("block_size", block_size, 2)
    step = check_int("stride", block_size if stride is None else stride, 1)
    if len(words) < 2:
        raise ValueError(f"words must hold at least two words, got {len(words)}")
    starts = range(0, len(words) - 1, step)
    return [{"words": [list(w) for w in words[s : s + block_size]]} for s in starts]


def pad_words(windows: Sequence[Sequence[Sequence[int]]], canvas_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Units [B,T,C0], lengths [B,T] and word mask [B,T] of windows of different sizes, padded on the right.

    C0 is the longest word plus one end-of-word slot, at most `canvas_size`.

    Raises:
        ValueError: no window, an empty window or word, id 0 inside a word, a word longer than `canvas_size`.
    """
    check_int("canvas_size", canvas_size, 1)
    if not windows or any(not window for window in windows):
        raise ValueError("windows must hold at least one window of at least one word each")
    longest = max(len(word) for window in windows for word in window)
    if longest > canvas_size or any(not word for window in windows for word in window):
        raise ValueError(f"words must have 1..{canvas_size} units (canvas_size), got an empty one or one of {longest}")
    count, words = len(windows), max(len(window) for window in windows)
    units = torch.zeros(count, words, min(longest + 1, canvas_size), dtype=torch.long)
    lengths = torch.zeros(count, words, dtype=torch.long)
    for b, window in enumerate(windows):
        for t, word in enumerate(window):
            units[b, t, : len(word)] = torch.tensor(word, dtype=torch.long)
            lengths[b, t] = len(word)
    if bool((units == 0).sum() != units.numel() - lengths.sum()):
        raise ValueError("words must not hold id 0 (padding, end of word)")
    return units, lengths, lengths > 0


@dataclass(frozen=True)
class WordPoolCollator:
    """Collates items ``{"words": list of lists of units}`` into the model's inputs, with labels.

    Args:
        canvas_size: longest word the model takes.
    """

    canvas_size: int

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """``input_units``, ``word_lengths``, ``word_mask`` and ``labels``."""
        units, lengths, mask = pad_words([item["words"] for item in items], self.canvas_size)
        return {"input_units": units, "word_lengths": lengths, "word_mask": mask, "labels": units.clone()}
