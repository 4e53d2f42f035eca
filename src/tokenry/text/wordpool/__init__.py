"""Word-pooled language models.

Thawani et al., "Learn Your Tokens: Word-Pooled Tokenization for Language Modeling", arXiv 2310.11628. Word boundaries define
the units of the language model; what a word is, is learnt from its bytes or characters, and the next word is spelled out by a
small decoder. Section 3 of the paper and Figure 1:

    H = E[summary slots, units] + slot codes                     every word by itself
    Q = first p slots of WordEncoder(H)                           bidirectional, 2 layers
    G = LN(CausalBlocks(Q + word codes))                          T*p positions
    D = CausalBlocks([G of word j-1, H of word j])                all words in parallel
    loss = cross-entropy of D @ head against the units of word j

- `WordPoolForCausalLM` with `WordPoolConfig`; `generate_words`, `score_words`;
- `WordSplitter`, `ByteUnits`, `CharUnits`, `word_windows`, `WordPoolCollator`: from text to
  batches without a tokenizer;
- `WordPoolTrainer`, `wordpool_training_arguments`: the recipe of the released runs;
- `FlatLM`: the same model over characters, bytes, subwords or whole words, to compare with.

Where the released code differs, the clean form is the default and ``released_quirks=True`` computes as the released code: it
masks pads only against pads, adds the slot codes twice to the units in the decoder, counts every slot of the canvas in the
loss, and reads the summary slots of a canvas of c units from the rows c..c+p-1 of the embedding, those of ordinary units; its flat baseline has no position code (`FlatLMConfig`). Two more habits of it change no number and are not
offered: it overwrites the caller's lengths and writes into H in place. Its data class draws random windows and splits them by
index, so that training and test overlap; here the split is contiguous.
"""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_AT = "tokenry.text.wordpool."
_EXPORTS = {
    "WordPoolConfig": _AT + "config",
    "WordPoolForCausalLM": _AT + "model",
    "WordPoolOutput": _AT + "model",
    "WordBatch": _AT + "batch",
    "check_words": _AT + "batch",
    "SpelledWords": _AT + "generation",
    "generate_words": _AT + "generation",
    "score_words": _AT + "generation",
    "spell_next": _AT + "generation",
    "ByteUnits": _AT + "text",
    "CharUnits": _AT + "text",
    "WordSplitter": _AT + "text",
    "WordPoolCollator": _AT + "data",
    "contiguous_split": _AT + "data",
    "pad_words": _AT + "data",
    "word_windows": _AT + "data",
    "WordPoolTrainer": _AT + "training",
    "wordpool_training_arguments": _AT + "training",
    "FlatLM": _AT + "baselines",
    "FlatLMConfig": _AT + "baselines",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of language models is checked on: three bodies, and the flat baseline."""
    import torch
    from transformers import GPT2Config, LlamaConfig

    from tokenry.text.wordpool.baselines import FlatLM, FlatLMConfig
    from tokenry.text.wordpool.config import WordPoolConfig
    from tokenry.text.wordpool.model import WordPoolForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0}
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    units = torch.randint(1, 9, (3, 6, 5)) * (torch.arange(5) < torch.randint(1, 6, (3, 6))[..., None])
    pooled: dict[str, Any] = {"batch": {"input_units": units}, "ids": "input_units", "mask": "word_mask"}
    found: dict[str, Any] = {}
    for name, body in (("own body", None), ("GPT-2", gpt2), ("Llama", llama)):
        config = WordPoolConfig(**sizes, num_prefix=2, word_layers=1, word_heads=2, word_intermediate_size=32, block_size=8,
                                canvas_size=7, body=body)  # fmt: skip
        found[name] = {"model": WordPoolForCausalLM(config), **pooled}
    flat = FlatLM(FlatLMConfig(**sizes, block_size=8))
    found["flat"] = {"model": flat, "batch": {"input_ids": torch.randint(0, 9, (3, 6))}}
    for case in found.values():
        for weight in case["model"].parameters():  # codes start at zero: let them matter
            weight.data.add_(0.05 * torch.randn_like(weight))
    return found
