"""Byte decoding behind `model.generate`, and filling in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from tokenry.core.checks import check_int
from tokenry.hosts.path_runs import drive
from tokenry.text.byteprobs.model import ByteLM
from tokenry.text.byteprobs.sampling import STOPPED, choose_or_stop

# Settings of token generation that would be ignored, and the value at which they do nothing.
_NEUTRAL = {
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "bad_words_ids": None, "sequence_bias": None, "guidance_scale": 1.0,
    "output_scores": False, "output_logits": False, "output_attentions": False, "output_hidden_states": False,
    "begin_suppress_tokens": None, "exponential_decay_length_penalty": None, "max_time": None, "stop_strings": None,
    "forced_eos_token_id": None, "suppress_tokens": None, "min_length": 0, "min_new_tokens": 0,
}  # fmt: skip
# What `generate` adds of itself for the settings that count here.
_OWN_PARTS = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MaxLengthCriteria", "EosTokenCriteria")


def byte_decoding(lm: ByteLM, *, generator: torch.Generator | None = None) -> Callable[..., Any]:
    """A decoding method for ``model.generate(..., custom_generate=byte_decoding(lm))``.

    What stands before the last special id of a row (padding left out), a chat say, stays as context, the rest is read as
    text, so that a prompt that ends inside a word is continued exactly. Returns the ids [B,L'] of prompt and continuation
    as the tokenizer encodes them, padded on the right; `max_new_tokens`, `max_length`, `temperature`, `top_p` and
    `do_sample` of the generation config count, `top_k` has no meaning over bytes.

    `return_dict_in_generate` gives a ``GenerateDecoderOnlyOutput`` of the sequences. A row ends, with a warning, where the
    model's window is full.

    Raises:
        ValueError: more than one beam or sequence is asked for, or a setting that changes probabilities of tokens
            (``repetition_penalty``, ``no_repeat_ngram_size``, ``min_p``, ...): over bytes it has no meaning.
    """

    def decode(model: Any, input_ids: Tensor, *, generation_config: Any = None, **kwargs: Any) -> Any:
        config = generation_config or model.generation_config
        for name, neutral in _NEUTRAL.items():
            if getattr(config, name, None) not in (None, neutral):
                raise ValueError(f"{name} must be {neutral} for byte decoding, got {getattr(config, name)}")
        _check_given(lm, config, kwargs)
        attention = kwargs.get("attention_mask")
        rows = []
        for r, row in enumerate(input_ids.tolist()):
            kept = row if attention is None else [token for token, used in zip(row, attention[r].tolist(), strict=True) if used]
            rows.append(_continue(lm, kept, config, generator))
        pad = config.pad_token_id if config.pad_token_id is not None else min(lm.ends, default=0)
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=input_ids.device)
        if getattr(config, "return_dict_in_generate", False):
            return GenerateDecoderOnlyOutput(sequences=ids)  # pyright: ignore[reportArgumentType]
        return ids

    return decode


def _check_given(lm: ByteLM, config: Any, given: dict[str, Any]) -> None:
    """Refuse what would otherwise be left out silently."""
    if given.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds must be None for byte decoding, which reads the prompt's bytes: give input_ids")
    if given.get("streamer") is not None:
        raise ValueError("streamer must be None for byte decoding; ByteLM.bytes_after gives the bytes one by one")
    for name in ("logits_processor", "stopping_criteria"):
        foreign = [type(part).__name__ for part in given.get(name) or () if type(part).__name__ not in _OWN_PARTS]
        if foreign:
            raise ValueError(f"{name} must be empty for byte decoding, got {', '.join(foreign)}: it is about tokens")
    ends = config.eos_token_id
    for token in ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]:
        if 0 <= int(token) < lm.vocabulary.size and lm.vocabulary.pieces[int(token)]:
            raise ValueError(f"eos_token_id must be special tokens for byte decoding, got {int(token)}")


def _continue(lm: ByteLM, ids: list[int], config: Any, generator: torch.Generator | None) -> list[int]:
    head = 0
    for place, token in enumerate(ids):
        if not lm.vocabulary.pieces[token]:
            head = place + 1
    context, text = ids[:head], lm.vocabulary.decode(ids[head:])
    state = lm.start(text, context=context or None)
    budget = config.max_new_tokens if config.max_new_tokens is not None else (config.max_length or 20) - len(ids)
    temperature = (config.temperature if config.temperature is not None else 1.0) if config.do_sample else 0.0
    top_p = config.top_p if config.top_p is not None else 1.0
    ended: list[int] = []
    options = {"temperature": temperature, "top_p": top_p, "generator": generator}
    made = count = 0
    while True:
        if made >= count:  # every byte more is at most one token more
            missing = len(ids) - head + budget - len(lm.vocabulary.encode(state.text))
            if missing <= 0:
                break
            count = made + missing
        (symbol,) = drive([choose_or_stop(state, made, **options)])
        if symbol >= 256:
            ended = [] if symbol == STOPPED else [lm.specials[symbol - 256]]
            break
        state.advance(symbol)
        made += 1
    return [*context, *lm.vocabulary.encode(state.text), *ended]


def fill_in_the_middle(
    lm: ByteLM,
    prefix: bytes | str,
    suffix: bytes | str,
    *,
    markers: Sequence[str] = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    max_bytes: int = 100,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> bytes:
    """The middle between `prefix` and `suffix`, for a model trained to fill in (section 3.6).

    The prompt is in suffix-prefix-middle order, so that the end of the prefix, which may lie inside a word, is where the bytes
    go on: prefix marker, suffix marker, `suffix`, middle marker, `prefix`. `markers` are the model's own prefix, suffix and
    middle tokens, special tokens of its tokenizer.

    Raises:
        ValueError: a marker is no special token of the tokenizer.
    """
    check_int("max_bytes", max_bytes, minimum=0)
    names = {name: token for token, name in lm.vocabulary.special.items()}
    for marker in markers:
        if marker not in names:
            raise ValueError(f"markers must be special tokens of the tokenizer, got {marker!r}; it has {sorted(names)[:20]}")
    first, second, third = (names[marker] for marker in markers)
    context = [lm.begin_id, first, second, *lm.vocabulary.encode(suffix), third]
    made = lm.generate(prefix, max_bytes, temperature=temperature, top_p=top_p, generator=generator, context=context)
    assert isinstance(made, bytes)
    return made
