"""A checked batch of words: base units, lengths, which words are real."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import check_mask, check_shape
from tokenry.text.wordpool.config import WordPoolConfig


@dataclass(frozen=True, eq=False)
class WordBatch:
    """Units [B,T,C0], their lengths [B,T], and the mask of real words [B,T] (None: all are real)."""

    units: Tensor
    lengths: Tensor
    mask: Tensor | None

    @property
    def predicted(self) -> Tensor:
        """[B,T-1] bool: words 1..T-1 that are real and have a real word before them."""
        if self.mask is None:
            return torch.ones_like(self.lengths[:, 1:], dtype=torch.bool)
        return self.mask[:, 1:] & self.mask[:, :-1]

    def word_log_probs(self, logits: Tensor, canvas: int) -> Tensor:
        """Chain rule over the units of words 1..T-1 and their end: logits [B,T-1,C0+1,V] -> [B,T-1] float32.

        A word that fills the canvas has no end to predict.
        """
        width = self.units.shape[2]
        target = torch.nn.functional.pad(self.units[:, 1:], (0, 1))
        taken = logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0]
        last = self.lengths[:, 1:, None]
        slot = torch.arange(width + 1, device=logits.device)
        counted = (slot <= last) & (slot < canvas) & self.predicted[..., None]
        return taken.masked_fill(~counted, 0.0).sum(-1)


def check_words(
    config: WordPoolConfig, units: Tensor, lengths: Tensor | None, mask: Tensor | None, *, empty: bool = False
) -> WordBatch:
    """Check a batch of words against the model's sizes; fill in lengths; nothing of the caller's is changed.

    Raises:
        TypeError: a tensor of the wrong type.
        ValueError: no word, too many words, words wider than the canvas, ids or lengths out of range, units after the end of a
            word, or a window without any real word.
    """
    sizes = check_shape("input_units", units, "B T C")
    if units.dtype not in (torch.long, torch.int):
        raise TypeError(f"input_units must be an integer tensor, got {units.dtype}")
    if sizes["B"] == 0 or sizes["C"] == 0 or (sizes["T"] == 0 and not empty):
        raise ValueError(f"input_units must hold at least one word of one unit, got shape {list(units.shape)}")
    if sizes["T"] > config.block_size:
        raise ValueError(f"input_units must hold at most block_size={config.block_size} words, got {sizes['T']}")
    if sizes["C"] > config.canvas_size:
        raise ValueError(f"input_units must be at most canvas_size={config.canvas_size} units wide, got {sizes['C']}")
    units = units.long()
    if mask is not None:
        check_mask("word_mask", mask, units.shape[:2])
        if not bool(mask.any(dim=1).all()):
            raise ValueError("word_mask must leave at least one real word in every window")
        units = units.masked_fill(~mask[..., None], 0)
    if bool((units < 0).any()) or bool((units >= config.vocab_size).any()):
        bad = units[(units < 0) | (units >= config.vocab_size)][0]
        raise ValueError(f"input_units must be in 0..{config.vocab_size - 1}, got {int(bad)}")
    return WordBatch(units, _checked_lengths(units, lengths, mask), None if mask is None or bool(mask.all()) else mask)


def _checked_lengths(units: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    slot = torch.arange(1, units.shape[2] + 1, device=units.device)
    found = ((units != 0) * slot).amax(dim=2)
    if lengths is None:
        lengths = found
    else:
        check_shape("word_lengths", lengths, "B T", B=units.shape[0], T=units.shape[1])
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise TypeError(f"word_lengths must be an integer tensor, got {lengths.dtype}")
        lengths = lengths.long() if mask is None else lengths.long().masked_fill(~mask, 0)
    real = torch.ones_like(lengths, dtype=torch.bool) if mask is None else mask
    if bool((lengths[real] < 1).any()) or bool((lengths[real] > units.shape[2]).any()):
        bad = lengths[real & ((lengths < 1) | (lengths > units.shape[2]))][0]
        raise ValueError(f"word_lengths must be in 1..{units.shape[2]} (a word has at least one unit), got {int(bad)}")
    if bool((found > lengths).any()):
        raise ValueError("input_units must be 0 after the end of a word, as given by word_lengths")
    if bool(((units == 0) & (slot <= lengths[..., None]) & real[..., None]).any()):
        raise ValueError("input_units must not hold id 0 (padding, end of word) inside a word")
    return lengths
