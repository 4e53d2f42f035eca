"""Every real tokenizer at hand: text comes back, or the error says what does not; followers obey their definition."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary, Reencoding, is_canonical
from tokenry.lab.sources.tokenizers import load_real_tokenizer, real_tokenizers

pytestmark = pytest.mark.slow

HARD = (
    "",
    "\x00\x01\x7f",
    "e\u0301 o\u0302\u0323 \u1e69",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "a" * 20_000,
    " " * 300 + "\n" * 40 + "\t" * 30,
    "<|endoftext|><s></s>[MASK]<pad>",
    "\ufffd\ufeff\u200b\u00a0\u3000\u2581",
    "'s 't 're 'VE 12345 3.14 1,000 HTTPServer camelCase snake_case",
)
BEFORE = "The fox isn't 1234 done.\n\n    def f(x):\n\treturn x+1  # caf\u00e9 \u4e2d\u6587 \U0001f600\r\n\r\nA  b 'tis HTTPServer 3.1!!! ...\n\n\n  Z"


def _vocabulary(name: str) -> ByteVocabulary:
    try:
        return ByteVocabulary.of(load_real_tokenizer(name))
    except UnsupportedModelError as error:
        pytest.skip(str(error))


def _comes_back(vocabulary: ByteVocabulary, text: str) -> None:
    spelled = b"".join(
        vocabulary.pieces[t] or b"" for t in vocabulary.encode_text(vocabulary.prefix.decode() + text if text else "")
    )
    if spelled != (vocabulary.prefix + text.encode() if text else b""):
        with pytest.raises(ValueError, match="data must survive the tokenizer"):
            vocabulary.encode(text)
        return
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text.encode()
    assert is_canonical(ids, vocabulary)
    assert not set(ids) & set(vocabulary.special)


@pytest.mark.parametrize("name", real_tokenizers(here=True))
def test_hard_texts(name):
    vocabulary = _vocabulary(name)
    for text in HARD:
        _comes_back(vocabulary, text)


@pytest.mark.parametrize("name", real_tokenizers(here=True))
def test_random_texts(name):
    vocabulary = _vocabulary(name)

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=60))
    def fuzz(text: str) -> None:
        _comes_back(vocabulary, text)

    fuzz()


@pytest.mark.parametrize("name", real_tokenizers(here=True))
def test_pieces_are_what_single_tokens_decode_to(name):
    vocabulary, tokenizer = _vocabulary(name), load_real_tokenizer(name)
    draw = random.Random(0)
    for token in draw.sample(vocabulary.trie.ids.tolist(), 400):
        piece = vocabulary.pieces[token]
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            continue
        # A letter in front keeps decoders from taking a first space away.
        first = vocabulary.encode_text("a")
        assert tokenizer.decode([*first, token], skip_special_tokens=False) == "a" + text


@pytest.mark.parametrize("name", real_tokenizers(here=True))
def test_followers_obey_their_definition(name):
    vocabulary = _vocabulary(name)
    if isinstance(vocabulary.canonical, Reencoding):
        pytest.skip("every token is re-encoded: the definition itself")
    oracle, draw, data = Reencoding(vocabulary), random.Random(1), BEFORE.encode()
    for end in draw.sample(range(len(data)), 20):
        prefix = vocabulary.prefix + data[:end]
        for ids in vocabulary.canonical.tips(prefix):
            mask = vocabulary.canonical.followers(ids, prefix)
            tail, text = vocabulary.canonical.tail_of(ids, prefix)
            asked = draw.sample(range(vocabulary.size), 40) + [t for _, t in vocabulary.trie.matches(data, end)]
            for token in asked:
                # What the definition allows must be allowed; the reverse holds but for rare characters (limits of the page).
                if oracle.holds(tail, text, token):
                    assert mask[token], (end, vocabulary.pieces[token])
            allowed = np.flatnonzero(mask)
            sample = draw.sample(allowed.tolist(), min(40, len(allowed)))
            assert sum(oracle.holds(tail, text, token) for token in sample) >= 0.9 * len(sample)
