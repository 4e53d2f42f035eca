"""Byte decoding behind `model.generate`, and filling in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import check_int
from tokenry.text.byteprobs.model import ByteLM
from tokenry.text.byteprobs.sampling import sample_symbol


def byte_decoding(lm: ByteLM, *, generator: torch.Generator | None = None) -> Callable[..., Tensor]:
    """A decoding method for ``model.generate(..., custom_generate=byte_decoding(lm))``.

    Leading special ids of each row (padding left out) stay as context, the rest is read as text, so that a prompt that ends
    inside a word is continued exactly. Returns the ids [B,L'] of prompt and continuation as the tokenizer encodes them, padded
    on the right; `max_new_tokens`, `max_length`, `temperature`, `top_p` and `do_sample` of the generation config count, `top_k`
    has no meaning over bytes.

    Raises:
        ValueError: more than one beam is asked for.
    """

    def decode(model: Any, input_ids: Tensor, *, generation_config: Any = None, **kwargs: Any) -> Tensor:
        config = generation_config or model.generation_config
        if (config.num_beams or 1) > 1:
            raise ValueError(f"num_beams must be 1 for byte decoding, got {config.num_beams}")
        attention = kwargs.get("attention_mask")
        rows = []
        for r, row in enumerate(input_ids.tolist()):
            kept = row if attention is None else [token for token, used in zip(row, attention[r].tolist(), strict=True) if used]
            rows.append(_continue(lm, kept, config, generator))
        pad = config.pad_token_id if config.pad_token_id is not None else min(lm.ends, default=0)
        width = max(map(len, rows))
        return torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=input_ids.device)

    return decode


def _continue(lm: ByteLM, ids: list[int], config: Any, generator: torch.Generator | None) -> list[int]:
    head = 0
    while head < len(ids) and not lm.vocabulary.pieces[ids[head]]:
        head += 1
    context, text = ids[:head], lm.vocabulary.decode(ids[head:])
    state = lm.start(text, context=context or None)
    budget = config.max_new_tokens if config.max_new_tokens is not None else (config.max_length or 20) - len(ids)
    temperature = (config.temperature if config.temperature is not None else 1.0) if config.do_sample else 0.0
    top_p = config.top_p if config.top_p is not None else 1.0
    ended: list[int] = []
    while len(lm.vocabulary.encode(state.text)) < len(ids) - head + budget:
        symbol = sample_symbol(state.next_probs(), temperature=temperature, top_p=top_p, generator=generator)
        if symbol >= 256:
            ended = [lm.specials[symbol - 256]]
            break
        state.advance(symbol)
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
