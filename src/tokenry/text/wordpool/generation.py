"""Spelling words one after another (section 3.6 of the paper's released code), and scoring candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import check_int, check_range
from tokenry.text.wordpool.batch import WordBatch, check_words
from tokenry.text.wordpool.blocks import BlockCache


@dataclass(frozen=True, eq=False)
class SpelledWords:
    """Generated words.

    Attributes:
        units: [B,N,canvas] long, 0 after the end.
        lengths: [B,N] long.
        log_probs: [B,N] float32: log-probability of each word under the model (no temperature), end included.
    """

    units: Tensor
    lengths: Tensor
    log_probs: Tensor


@torch.no_grad()
def generate_words(
    model: Any,
    input_units: Tensor,
    word_lengths: Tensor | None = None,
    *,
    word_mask: Tensor | None = None,
    max_new_words: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> SpelledWords:
    """Continue each window by `max_new_words` words, greedily or by sampling.

    A word costs one step of the language model (p positions, its keys kept) and one step of the small decoder per unit. The
    first unit is never the end of word: an empty word does not exist in text; the reported probabilities are the plain model's.

    Args:
        model: the language model; it is used as it is (call ``eval()`` before).
        input_units: [B,T,C0] context.
        word_lengths: [B,T].
        word_mask: [B,T] bool, False = padding, on either side.
        max_new_words: N.
        do_sample: draw from the distribution; the default is arg-max at every unit.
        temperature: divides the logits when sampling.
        generator: source of the draws, on the model's device.

    Raises:
        ValueError: options out of range, or the context and the new words exceed ``block_size``.
    """
    config = model.config
    check_int("max_new_words", max_new_words, 1)
    check_range("temperature", temperature, 0.0, low_open=True)
    batch = check_words(config, input_units, word_lengths, word_mask)
    if input_units.shape[1] + max_new_words - 1 > config.block_size:
        raise ValueError(
            f"max_new_words must leave the window within block_size={config.block_size} words, got {max_new_words} after "
            f"{input_units.shape[1]}"
        )
    mask = batch.mask
    states, cache = model.run_words(model.pool(batch), mask, "new")
    state = _last(states, mask)
    words: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(max_new_words):
        words.append(spell_next(model, state, do_sample=do_sample, temperature=temperature, generator=generator))
        if number + 1 < max_new_words:
            units, lengths, _ = words[-1]
            if mask is not None:
                mask = F.pad(mask, (0, 1), value=True)
            pooled = model.pool(WordBatch(units[:, None], lengths[:, None], None))
            state = model.run_words(pooled, mask, cache)[0][:, -1]
    return SpelledWords(*(torch.stack(part, dim=1) for part in zip(*words, strict=True)))


def _last(states: Tensor, mask: Tensor | None) -> Tensor:
    """State [B,p,d] of the last real word."""
    if mask is None:
        return states[:, -1]
    index = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), index]


@torch.no_grad()
def spell_next(
    model: Any,
    state: Tensor,
    *,
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    longest: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spell the word after state [B,p,d]: units [B,canvas], lengths [B] and log-probabilities [B].

    `longest` stops after that many units (default: the canvas). The other options are those of `generate_words`.
    """
    config, count = model.config, state.shape[0]
    p, canvas, code = config.num_prefix, config.canvas_size, model.slot_code
    cache = BlockCache()
    logits = model.head(model.decoder(state + code[:, :p], cache=cache)[:, -1]).float()
    units = torch.zeros(count, canvas, dtype=torch.long, device=state.device)
    total = torch.zeros(count, device=state.device)
    open_ = torch.ones(count, dtype=torch.bool, device=state.device)
    steps = canvas if longest is None else check_int("longest", longest, 1, canvas)
    for slot in range(steps):
        scored = logits.log_softmax(-1)
        choice = logits.clone()
        if slot == 0:
            choice[:, 0] = float("-inf")
        if do_sample:
            unit = torch.multinomial((choice / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            unit = choice.argmax(-1)
        unit = unit.masked_fill(~open_, 0)
        total = total + scored.gather(1, unit[:, None])[:, 0].masked_fill(~open_, 0.0)
        units[:, slot] = unit
        open_ = open_ & (unit != 0)
        if slot + 1 == steps or not bool(open_.any()):
            break
        entry = model.embedding(unit) + code[:, p + slot]
        if config.released_quirks:
            entry = entry + code[:, p + slot]
        logits = model.head(model.decoder(entry[:, None], cache=cache)[:, -1]).float()
    return units, (units != 0).sum(dim=1), total


@torch.no_grad()
def score_words(
    model: Any,
    input_units: Tensor,
    word_lengths: Tensor | None = None,
    *,
    candidates: Tensor,
    candidate_lengths: Tensor | None = None,
    word_mask: Tensor | None = None,
) -> Tensor:
    """Log-probability of candidates for the word after each window, by the chain rule over units: [B,K] float32.

    Args:
        model: the language model.
        input_units: [B,T,C0] context.
        word_lengths: [B,T].
        candidates: [B,K,C] units, 0 after the end; one set [K,C] serves all windows.
        candidate_lengths: [B,K] or [K].
        word_mask: [B,T] bool.

    Raises:
        ValueError: as the model's forward, for the context and for the candidates.
    """
    config = model.config
    batch = check_words(config, input_units, word_lengths, word_mask)
    if candidates.dim() == 2:
        candidates = candidates.expand(batch.units.shape[0], -1, -1)
        candidate_lengths = None if candidate_lengths is None else candidate_lengths.expand(candidates.shape[:2])
    count, choices, width = candidates.shape
    flat_lengths = None if candidate_lengths is None else candidate_lengths.reshape(-1, 1)
    words = check_words(config, candidates.reshape(count * choices, 1, width), flat_lengths, None)
    states = _last(model.run_words(model.pool(batch), batch.mask)[0], batch.mask)
    p, code = config.num_prefix, model.slot_code
    units = model.embedding(words.units[:, 0]) + code[:, p : p + width]
    if config.released_quirks:
        units = units + code[:, p : p + width]
    start = (states + code[:, :p]).repeat_interleave(choices, dim=0)
    logits = model.head(model.decoder(torch.cat([start, units], dim=1))[:, p - 1 :])
    # a batch of two-word windows: only the second word is scored
    pair = WordBatch(words.units.expand(-1, 2, -1), words.lengths.expand(-1, 2), None)
    return pair.word_log_probs(logits[:, None], config.canvas_size).reshape(count, choices)
