"""Small tokenizers of every supported layout, trained on the spot, and a Llama for their tokens."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaForCausalLM

from tokenry.testing import tiny

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [
    "The quick brown fox isn't over the lazy dog's 1234 bones.\n\n    def foo(x):\n\treturn x+1  # caf\u00e9\n",
    "\u4e2d\u6587\u5b57\u7b26 and \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442, \U0001f600\U0001f601 e\u0301!\r\n\r\nHTTPServer 3.14 ... 'tis\n\n\n  we'll they're\n",
    "the the then there these  those   and    andy  andes\n\n\n\n12345 678 9\n \n  \n   x\t\ty",
] * 4
# One contraction is written with one l only, as a hand-made pattern may have it.
ONE_L = r"'s|'t|'re|'ve|'m|'l|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LAYOUTS = (
    "gpt2", "cl100k", "o200k", "digits", "no_regex", "sentencepiece", "metaspace", "unigram", "added", "superword", "one_l",
    "thinking", "neighbours", "raw_and_normal", "sentencepiece_added",
)  # fmt: skip


def _byte_level(pre: pre_tokenizers.PreTokenizer, size: int = 420) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


def _sentencepiece(unigram: bool, metaspace: bool) -> Tokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    if unigram:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=False))
        trainer = trainers.BpeTrainer(
            vocab_size=520, special_tokens=[*special, *byte_tokens], limit_alphabet=60, show_progress=False
        )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.train_from_iterator(TEXT, trainer)
    if not unigram:
        # Byte tokens are ordinary pieces of a real SentencePiece vocabulary; only the first three are special.
        import json

        definition = json.loads(tokenizer.to_str())
        definition["added_tokens"] = definition["added_tokens"][:3]
        tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _raw(text: str, **sides: bool) -> AddedToken:
    return AddedToken(text, normalized=False, **sides)


_ADDED = {
    "added": ["\n\n", "\n\n\n", "<table>", "the dog", "12"],
    "thinking": [_raw("<think>"), _raw("</think>"), _raw("<tool_call>"), _raw("</tool_call>")],
    "neighbours": [_raw("the", single_word=True), _raw("12", single_word=True), _raw("<mask>", lstrip=True), _raw("<sep>", rstrip=True)],
    "raw_and_normal": [_raw("dog's"), "g's 12", _raw("34 bones"), " and", "fox isn", _raw("isn't o")],
}  # fmt: skip


@cache
def make(layout: str) -> Tokenizer:
    """A trained tokenizer of the layout; the same object every time."""
    if layout == "gpt2":
        return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    if layout in ("cl100k", "o200k"):
        return _byte_level(_split(CL100K if layout == "cl100k" else O200K))
    if layout == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        return _byte_level(pre_tokenizers.Sequence(parts))
    if layout == "no_regex":
        return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if layout == "superword":
        return _byte_level(_split(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"), 520)
    if layout == "one_l":
        return _byte_level(_split(ONE_L))
    if layout in _ADDED:
        tokenizer = _byte_level(_split(CL100K) if layout == "thinking" else pre_tokenizers.ByteLevel(add_prefix_space=False))
        tokenizer.add_tokens(_ADDED[layout])
        return tokenizer
    if layout == "sentencepiece_added":
        tokenizer = Tokenizer.from_str(_sentencepiece(False, False).to_str())
        tokenizer.add_tokens(["<think>", "</think>", "\n\n", "\n\n\n", "  "])
        return tokenizer
    return _sentencepiece(layout == "unigram", layout in ("metaspace", "unigram"))


def llama(size: int, **changes) -> LlamaForCausalLM:
    tokens = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    return tiny("llama", **{**tokens, "initializer_range": 0.4, **changes})
