"""Small causal language models trained on the spot: BPE with byte fallback, and a Llama of some 40,000 parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
    progress: Callable[[int, int], None] | None = None,
) -> LlamaForCausalLM:
    """A Llama trained on windows of `length` tokens of `texts`, each behind the beginning token; AdamW, cosine to zero."""
    ids = torch.cat([torch.tensor(tokenizer(text, add_special_tokens=False).input_ids) for text in texts])
    if len(ids) <= length:
        raise ValueError(f"texts must hold more than length={length} tokens, got {len(ids)}")
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * hidden,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    cast(torch.nn.Module, model).to(device)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        start = torch.randint(len(ids) - length, (batch, 1), generator=draw)
        window = ids[start + torch.arange(length)]
        window = torch.cat([torch.full((batch, 1), tokenizer.bos_token_id), window], dim=1).to(device)
        logits = model(window[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress and step % 20 == 0:
            progress(step, steps)
    return model.eval()
