"""Exact byte-level probabilities from a tokenized language model (Phan et al. 2024, arXiv 2410.09303).

A prompt that ends inside a word is encoded as a sequence that the model never saw followed by the rest of the word. Summing
over every *cover* (a valid token sequence whose last token reaches past the prompt) gives the probability of the bytes:

    P(x_1..x_n) = sum over t in cover(x_1..x_n) of P(t_1..t_k)                      (byte-token representation lemma)
    P(x_{n+1} | x_1..x_n) = P(x_1..x_{n+1}) / P(x_1..x_n)

The covers of x b are those of x that agree with the byte b, and the tokens that start with b behind the encoding of x,
which take a run of the model: about one per token, since most of them cannot matter. Where the released code differs: it
knows SentencePiece vocabularies only and sums over the three bytes of the space marker; here a space is one byte, byte-
level BPE works too, and a pre-tokenizer that looks ahead may leave two encodings of one prefix open, both of which are
followed. `valid_only=False` is the released code's fast mode.
"""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "ByteLM": "tokenry.text.byteprobs.model",
    "ByteState": "tokenry.text.byteprobs.state",
    "ByteEnsemble": "tokenry.text.byteprobs.ensemble",
    "EnsembleState": "tokenry.text.byteprobs.ensemble",
    "byte_decoding": "tokenry.text.byteprobs.generation",
    "fill_in_the_middle": "tokenry.text.byteprobs.generation",
    "naive_next_byte": "tokenry.text.byteprobs.baselines",
    "healed_next_byte": "tokenry.text.byteprobs.baselines",
    "sample_symbol": "tokenry.text.byteprobs.sampling",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of byte models is checked on: random weights under a byte-level tokenizer of few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenry.text.byteprobs.ensemble import ByteEnsemble
    from tokenry.text.byteprobs.model import ByteLM

    def made(*merges: tuple[str, str]) -> ByteLM:
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
        inner = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=len(pieces), eos_token_id=len(pieces) + 1, initializer_range=0.4,
        )  # fmt: skip
        return ByteLM(LlamaForCausalLM(config).eval(), tokenizer)

    one = made(("t", "h"), ("th", "e"))
    return {"byte level": one, "ensemble": ByteEnsemble([one, made(("q", "u"), ("h", "e"))])}
