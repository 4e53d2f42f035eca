"""Testbed for lexinvariant models: training on batches that are drawn on the fly, losses by position, text as 27 letters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import check_int
from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded
from tokenry.text.lexinvariant import LexinvariantConfig, LexinvariantForCausalLM

LETTERS = " abcdefghijklmnopqrstuvwxyz"


def build_model(seed: int, **options: Any) -> LexinvariantForCausalLM:
    """A model with weights from `seed`, the global random state untouched."""
    with seeded(seed):
        return LexinvariantForCausalLM(LexinvariantConfig(seed=seed, **options))


def rotary_body(width: int, layers: int, heads: int, length: int) -> dict[str, Any]:
    """A Llama body with attention biases: among random embeddings, a rotary head needs a constant to look back by."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=length, attention_bias=True,
    ).to_dict()  # fmt: skip


def train_on(
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """AdamW with clip 1.0, a warm-up of 100 steps and linear decay; `draw` gives tokens and labels [B,T]."""
    check_int("steps", steps, 1)
    model.to(device)

    def loss_of(step: int) -> Tensor:
        tokens, labels = draw()
        return model(tokens.to(device), labels=labels.to(device)).loss

    plan = Plan(steps=steps, learning_rate=learning_rate, decay=lambda i: min((i + 1) / 100, 1.0) * (1 - i / steps), fused=True)
    descend(model, loss_of, plan, log_every=50, progress=progress)
    model.eval()


@torch.no_grad()
def losses_by_position(model: nn.Module, tokens: Tensor, *, seed: int = 0, chunk: int = 64) -> Tensor:
    """Nats of tokens 1..T-1 given those before, one draw of the embeddings for every sequence: [B,T-1]."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    out = []
    for part in tokens.to(device).split(chunk):
        logits = model(part, generator=generator, use_cache=False).logits
        nats = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten(), reduction="none")
        out.append(nats.view(len(part), -1).cpu())
    return torch.cat(out)


def letters_of(text: str) -> Tensor:
    """Lower-cased letters and single spaces of a text as ids 0..26: [n]."""
    clean = re.sub("[^a-z]+", " ", text.lower()).strip()
    return torch.tensor([LETTERS.index(c) for c in clean])


def windows(stream: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Random windows [count, length] of a stream [n]."""
    starts = torch.randint(len(stream) - length + 1, (count, 1), generator=generator)
    return stream[starts + torch.arange(length)]
