"""What the tiny vision-language models share: sizes of the language model, tokens, prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.seeding import seeded

TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63}
"""The vocabulary of every model of the zoo that reads text."""
TEXT = {
    **TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
"""Sizes of every decoder of the zoo."""
IMAGE_TOKEN, VIDEO_TOKEN = 60, 59


def built(cls: Any, config: Any, attention: str, seed: int) -> Any:
    """A model of `cls` with random weights from `seed`, in evaluation mode."""
    with seeded(seed):
        model = cls(config)
    model.set_attn_implementation(attention)
    return model.eval()


def ids(rows: list[list[int]]) -> dict[str, Tensor]:
    """Left-padded ids and mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def prompt(images: list[int], words: int, offset: int) -> list[int]:
    """``BOS word (image words)*``: `images` holds the number of placeholders of every image of the prompt."""
    row = [1, 5 + offset]
    for count in images:
        row += [IMAGE_TOKEN] * count + [(7 + offset + 3 * i) % 50 + 2 for i in range(words)]
    return row if images else row + [(7 + offset + 3 * i) % 50 + 2 for i in range(words)]
