"""Contract checks for tokenizers that a trainer makes: ``check_tokenizer(tokenizer)``."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

_WORDS = ("the", "law", "Straße", "naïve", "данные", "中文", "日本語", "हिन्दी", "עברית", "العربية", "ไทย", "한국어")
_TEXTS = (
    "",
    " ",
    "\n",
    "\r\n\t \x0b\x0c",
    "  two  leading and   trailing   ",
    "a" * 300,
    "\x00\x01\x7f",
    "e\u0301\u0327 \u0301",  # combining marks
    "\u202eright to left\u202c שלום עולם",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f1 \U0001f44d\U0001f3fd",  # emoji sequences
    "\ufeffbyte order mark \u00a0\u2003\u3000 spaces \u2028\u2029",
    "\U0010fffd\U000f0000\ue000 private use",
    "def f(x):\n    return x ** 2  # 1983 19834 (a) (iv) https://example.org/?q=%20",
    "!!!??...---===___***~~~///\\\\\n\n\n\t\t##",
)


def sample_texts(count: int = 40, seed: int = 0) -> list[str]:
    """Texts that tokenizers get wrong: white space, controls, combining marks, right-to-left, emoji, random code points."""
    draw = random.Random(seed)
    texts: list[str] = list(_TEXTS)
    for _ in range(count):
        scalars = [draw.choice((draw.randrange(0x80), draw.randrange(0x800), draw.randrange(0x10000), draw.randrange(0x110000)))
                   for _ in range(draw.randrange(1, 30))]  # fmt: skip
        noise = "".join(chr(c) for c in scalars if not 0xD800 <= c <= 0xDFFF)
        texts.append(noise + draw.choice(("", " ", "\n")) + " ".join(draw.choices(_WORDS, k=draw.randrange(5))))
    return texts


def check_tokenizer(
    tokenizer: Any, *, normalizer: Callable[[str], str] | None = None, texts: Sequence[str] = (), seed: int = 0
) -> None:
    """Run every contract check on a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.

    Checked: ids are contiguous from 0; every byte and difficult Unicode texts round-trip (or equal `normalizer` of the text);
    encoding is deterministic, the same alone and in a batch, and changes nothing in the tokenizer; it saves and loads as a
    plain ``PreTrainedTokenizerFast`` with equal ids; no special token comes unasked; lone surrogates are refused.

    Args:
        tokenizer: what to check.
        normalizer: what the tokenizer does to a text on purpose; None = nothing.
        texts: more texts to check.
        seed: seed of the random texts.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    inner = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    samples = [*sample_texts(seed=seed), *texts]
    before = inner.to_str()
    _contiguous(inner)
    _bytes_covered(inner)
    _round_trip(inner, samples, normalizer or (lambda text: text))
    _deterministic(inner, samples)
    _reloads(tokenizer, inner, samples)
    _refuses_surrogates(inner)
    if inner.to_str() != before:
        _fail("no trace", "encoding changed the tokenizer")


def _fail(check: str, detail: str) -> None:
    raise AssertionError(f"the tokenizer breaks the contract {check!r}: {detail}")


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [i for i, real in zip(encoding.ids, encoding.attention_mask, strict=True) if real]


def _contiguous(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if sorted(vocabulary.values()) != list(range(tokenizer.get_vocab_size(with_added_tokens=True))):
        _fail("contiguous ids", f"{len(vocabulary)} entries with ids {min(vocabulary.values())}..{max(vocabulary.values())}")


def _bytes_covered(tokenizer: Tokenizer) -> None:
    """Every byte value occurs in some text: two-, three- and four-byte characters reach all lead and continuation bytes."""
    characters = [chr(c) for c in (*range(0x80), *range(0x80, 0x800, 0x3F), *range(0x800, 0x10FFFF, 0x7FF))]
    for character in (c for c in characters if not 0xD800 <= ord(c) <= 0xDFFF):
        normal = tokenizer.normalizer.normalize_str(character) if tokenizer.normalizer else character
        if normal and not _ids(tokenizer, character):
            _fail("every byte", f"{character!r} (bytes {character.encode().hex()}) disappears")


def _round_trip(tokenizer: Tokenizer, texts: Sequence[str], normalizer: Callable[[str], str]) -> None:
    for text in texts:
        back = tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=False)
        if back != normalizer(text):
            _fail("round trip", f"{text[:80]!r} came back as {back[:80]!r}")


def _deterministic(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    alone = [_ids(tokenizer, text) for text in texts]
    if alone != [_ids(tokenizer, text) for text in texts]:
        _fail("deterministic", "the same text gave other ids the second time")
    batch = [
        [i for i, real in zip(e.ids, e.attention_mask, strict=True) if real]
        for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]
    for text, one, many in zip(texts, alone, batch, strict=True):
        if one != many:
            _fail("batch is a loop", f"{text[:80]!r} has other ids in a batch")
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for text, ids in zip(texts, alone, strict=True):
        if special & set(ids):
            _fail("no special tokens", f"{text[:80]!r} holds {sorted(special & set(ids))} without being asked")


def _reloads(tokenizer: Any, inner: Tokenizer, texts: Sequence[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    from tokenry.text.bpe import to_transformers

    fast = to_transformers(inner) if isinstance(tokenizer, Tokenizer) else tokenizer
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    if len(loaded) != inner.get_vocab_size(with_added_tokens=True):
        _fail("saves and loads", f"{inner.get_vocab_size(with_added_tokens=True)} entries became {len(loaded)}")
    for text in texts:
        if loaded(text, add_special_tokens=False)["input_ids"] != _ids(inner, text):
            _fail("saves and loads", f"{text[:80]!r} has other ids after loading")
        if loaded.decode(_ids(inner, text), skip_special_tokens=False) != inner.decode(
            _ids(inner, text), skip_special_tokens=False
        ):
            _fail("saves and loads", f"{text[:80]!r} decodes to another text after loading")


def _refuses_surrogates(tokenizer: Tokenizer) -> None:
    try:
        tokenizer.encode("a\ud800b")
    except (TypeError, ValueError):  # UnicodeEncodeError is a ValueError
        return
    _fail("clear errors", "a lone surrogate was accepted")
