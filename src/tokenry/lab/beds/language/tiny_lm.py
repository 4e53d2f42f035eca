"""Small causal language models trained on the spot: BPE with byte fallback, and a Llama of some 40,000 parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded

_SPECIAL = ("<unk>", "<s>", "</s>")


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE tokenizer with byte fallback; text and spaces come back exactly."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=12,
        show_progress=False,
    )
    # Words with the space before them, as a SentencePiece trainer sees them.
    words = (" " + word if i else word for text in texts for i, word in enumerate(text.split(" ")))
    tokenizer.train_from_iterator(words, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(_SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def small_llama(
    tokenizer: Any,
    seed: int,
    *,
    hidden: int,
    layers: int,
    key_value_heads: int = 4,
    positions: int = 256,
    pad_token_id: int | None = None,
) -> LlamaForCausalLM:
    """An untrained Llama of 4 heads with tied embeddings for a tokenizer."""
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=key_value_heads,
        intermediate_size=3 * hidden, vocab_size=len(tokenizer), max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    with seeded(seed):
        return LlamaForCausalLM(config)


def train_lm(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    steps: int,
    seed: int,
    hidden: int = 32,
    layers: int = 2,
    length: int = 64,
    batch: int = 16,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LlamaForCausalLM:
    """A Llama trained on windows of `length` tokens of `texts`, each behind the beginning token; AdamW, cosine to zero."""
    ids = torch.cat([torch.tensor(tokenizer(text, add_special_tokens=False).input_ids) for text in texts])
    if len(ids) <= length:
        raise ValueError(f"texts must hold more than length={length} tokens, got {len(ids)}")
    model = small_llama(tokenizer, seed, hidden=hidden, layers=layers, key_value_heads=2, positions=1024)
    cast(torch.nn.Module, model).to(device)
    draw = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> torch.Tensor:
        start = torch.randint(len(ids) - length, (batch, 1), generator=draw)
        window = ids[start + torch.arange(length)]
        window = torch.cat([torch.full((batch, 1), tokenizer.bos_token_id), window], dim=1).to(device)
        logits = model(window[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())

    plan = Plan(steps=steps, learning_rate=4e-3, betas=(0.9, 0.95), warmup=0.0)
    descend(model, loss_of, plan, log_every=20, progress=progress)
    return model.eval()
