"""The contract of valid beginnings, over every layout of tokenizers, and what it takes for added tokens."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from tests.text.tokenizers import CL100K, LAYOUTS, TEXT, _byte_level, _split, make
from tokenry import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.lab.sources.tokenizers import load_real_tokenizer, real_tokenizers
from tokenry.testing.beginnings import check_beginnings, texts_with_added_tokens
from tokenry.text.consistency.masking import CanonicalOnly
from tokenry.text.kl3m import train_domain_tokenizer

REAL = (
    "The fox isn't 1234 done.\n\n    def f(x):\n\treturn x+1  # caf\u00e9 \u4e2d\u6587 \U0001f600\r\n\r\nA  b 'tis HTTPServer 3.1!!! ...\n\n\n  Z",
    "<think>\nOk, so 1983 19834 (a) (iv) </think>\n\n<table><tr>  x</tr> 12 U.S. 34",
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_contract(layout):
    texts = texts_with_added_tokens(make(layout), [text[:90] for text in TEXT[:3]], count=3)
    check_beginnings(make(layout), texts, every=3, probes=6)


def test_contract_of_many_added_tokens():
    tokenizer = train_domain_tokenizer([*TEXT, *REAL], 1500)
    check_beginnings(tokenizer, texts_with_added_tokens(tokenizer, REAL, count=2), every=2, probes=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", real_tokenizers(here=True))
def test_contract_of_real_tokenizers(name):
    tokenizer = load_real_tokenizer(name)
    try:
        vocabulary = ByteVocabulary.of(tokenizer)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    if vocabulary.layout.normalizer not in (None, "NFC") or vocabulary.layout.algorithm == "Unigram":
        pytest.skip("changes text, or re-encodes a text per token of the vocabulary")
    check_beginnings(tokenizer, texts_with_added_tokens(tokenizer, REAL), every=3)


def vocabulary_with(*tokens: AddedToken | str, regex: str = CL100K) -> ByteVocabulary:
    tokenizer = Tokenizer.from_str(_byte_level(_split(regex)).to_str())
    tokenizer.add_tokens(list(tokens))
    return ByteVocabulary.of(tokenizer)


def test_what_added_tokens_settle():
    settle = vocabulary_with("ab", "abcd", "\n\n", "\n\n\n").added.settle
    assert (settle(b"x ab").start, settle(b"x ab").live) == (0, 2)  # "abcd" may come
    assert settle(b"x abc y").start == 4  # it did not: "ab" is there
    assert settle(b"x abcd").start == 6
    assert (settle(b"\n\n\n\n\n\nx").start, settle(b"\n\n\n\nx").start) == (6, 3)  # longest first, from the left
    assert settle(b"\n\n\n\n").live == 3
    assert settle(b"no tokens").live == len(b"no tokens")


def test_searches_taken_up_again_equal_those_from_the_start():
    pieces = ["aa", "ab", "ba", "bbb", "a b", "\n\n"]
    kept, fresh, draw = vocabulary_with(*pieces).added, vocabulary_with(*pieces).added, random.Random(3)
    text = b""
    for _ in range(900):
        text = text + draw.choice((b"a", b"b", b" ", b"\n")) if draw.random() < 0.9 else text[: -draw.randrange(1, 200)]
        fresh._known = (b"", [(0, 0)])  # it remembers nothing
        assert kept.settle(text) == fresh.settle(text), text


def test_the_text_of_a_special_token_hides_what_overlaps_it():
    tokenizer = Tokenizer.from_str(_byte_level(_split(CL100K)).to_str())
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["d|>"])
    check_beginnings(tokenizer, ["fox <|end|> dog d|> the"])


@pytest.mark.parametrize(
    ("chain", "named"),
    [
        ([normalizers.NFC(), normalizers.Lowercase()], "Lowercase"),
        ([normalizers.NFC(), normalizers.Replace("a", "")], "Replace"),
        ([normalizers.NFC(), normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])], "StripAccents"),
        ([normalizers.NFC(), normalizers.NFC()], "NFC"),
    ],
)
def test_every_member_of_a_normaliser_counts(chain, named):
    tokenizer = Tokenizer.from_str(make("gpt2").to_str())
    tokenizer.normalizer = normalizers.Sequence(chain)
    assert ByteVocabulary.of(tokenizer).layout.normalizer == named


def test_canonical_only_refuses_to_spell_an_added_token():
    """Over a tokenizer with `</think>`: its pieces may stand in text, but not complete it; and nothing ends inside a character."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make("thinking"), bos_token="<s>", eos_token="</s>")
    vocabulary, masking = ByteVocabulary.of(tokenizer), CanonicalOnly(tokenizer, 0)
    ids = vocabulary.canonical.tips(b"</think")[0]
    allowed = masking.allowed(ids)
    assert not any(allowed[token] for token in vocabulary.trie.starting_with(b">"))
    assert allowed[vocabulary.trie.with_bytes(b"i")[0]]
    special = list(vocabulary.special)
    assert allowed[special].all()
    assert not masking.allowed(vocabulary.canonical.tips("caf\u00e9".encode()[:-1])[0])[special].any()
