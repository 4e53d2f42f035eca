from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.text.tokenizers import LAYOUTS, TEXT, make
from tokenry import UnsupportedModelError
from tokenry.hosts.text import (
    ByteTrie,
    ByteVocabulary,
    Reencoding,
    char_class,
    completions,
    compress,
    first_noncanonical,
    is_canonical,
    is_prefix,
    split_partial,
    word_spans,
)

texts = st.text(alphabet=st.sampled_from(list("abtheTS 0123'.,!\n\r\t\u00e9\u4e2d\u0301\U0001f600\u00a0<>le")), max_size=24)
BYTE_LEVEL = ("gpt2", "cl100k", "o200k", "digits", "no_regex", "added", "superword")


def _pieces(draw: random.Random, count: int) -> list[bytes]:
    return list({bytes(draw.choices(b"ab\xc3\xa9", k=draw.randint(1, 4))) for _ in range(count)})


# trie


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5), max_size=40), st.binary(max_size=3))
def test_starting_with_is_a_filter(pieces, prefix):
    found = ByteTrie.build(pieces).starting_with(prefix).tolist()
    assert sorted(found) == [i for i, piece in enumerate(pieces) if piece.startswith(prefix)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_matches_and_next_bytes(seed, tail):
    draw = random.Random(seed)
    pieces = _pieces(draw, 20)
    trie = ByteTrie.build(pieces)
    data = bytes(draw.choices(b"ab\xc3\xa9", k=8)) + tail
    for start in range(len(data)):
        expected = {(len(p), i) for i, p in enumerate(pieces) if data.startswith(p, start)}
        assert set(trie.matches(data, start)) == expected
    low, high = trie.span(b"a")
    low = trie.index_after(b"a", low, high)
    assert bytes(trie.next_bytes(low, high, 1)) == bytes(sorted(p[1] for p in pieces if p.startswith(b"a") and len(p) > 1))


def _brute_encodings(data: bytes, pieces: list[bytes]) -> list[list[int]]:
    if not data:
        return [[]]
    return [
        [i, *rest]
        for i, p in enumerate(pieces)
        if p and data.startswith(p)
        for rest in _brute_encodings(data[len(p) :], pieces)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9))
def test_encodings_equal_brute_force(seed, length):
    draw = random.Random(seed)
    pieces = [*_pieces(draw, 10), b"a", b"ab"]  # duplicates count as different ids
    data = bytes(draw.choices(b"ab", k=length))
    trie, brute = ByteTrie.build(pieces), _brute_encodings(data, pieces)
    assert trie.count_encodings(data) == len(brute)
    assert sorted(trie.enumerate_encodings(data, limit=100_000)) == sorted(brute)
    expected = np.log(len(brute)) if brute else -np.inf
    assert trie.log_count_encodings(data) == pytest.approx(expected)


def test_count_is_exact_beyond_floats():
    trie = ByteTrie.build([b"a", b"aa"])
    fibonacci = [1, 1]
    for _ in range(2, 501):
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert trie.count_encodings(b"a" * 500) == fibonacci[500]
    assert trie.log_count_encodings(b"a" * 5000) == pytest.approx(5000 * np.log((1 + 5**0.5) / 2), rel=1e-3)


def test_trie_edges():
    empty = ByteTrie.build([None, b""])
    assert len(empty) == 0
    assert empty.starting_with(b"a").size == 0
    assert empty.count_encodings(b"") == 1
    assert empty.enumerate_encodings(b"x") == []
    assert empty.longest == 0
    high = ByteTrie.build([b"\xff", b"\xff\xff", b"\xfe"])
    assert high.starting_with(b"\xff").tolist() == [0, 1]
    assert high.with_bytes(b"\xfe") == (2,)
    with pytest.raises(ValueError, match="limit must be at least the number of encodings, 89"):
        ByteTrie.build([b"a", b"aa"]).enumerate_encodings(b"a" * 10, limit=5)


# the map


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_spell_what_the_tokenizer_decodes(layout):
    tokenizer, vocabulary = make(layout), ByteVocabulary.of(make(layout))
    for text in TEXT[:3]:
        ids = vocabulary.encode(text) if layout != "unigram" else vocabulary.encode_text(text)
        if layout != "unigram":  # its alphabet lacks nothing here, but spaces at the start are not told apart
            assert vocabulary.decode(ids) == text.encode()
        plain = Tokenizer.from_str(tokenizer.to_str())
        assert plain.encode(text, add_special_tokens=False).ids == ids or layout in ("metaspace", "unigram")


@settings(max_examples=60, deadline=None)
@given(texts)
@pytest.mark.parametrize("layout", BYTE_LEVEL)
def test_byte_level_round_trip(layout, text):
    vocabulary = ByteVocabulary.of(make(layout))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text.encode()
    assert ids == make(layout).encode(text, add_special_tokens=False).ids
    assert is_canonical(ids, vocabulary)


@settings(max_examples=40, deadline=None)
@given(texts, st.integers(1, 3))
@pytest.mark.parametrize("layout", ["gpt2", "o200k", "sentencepiece"])
def test_a_text_cut_inside_a_character_can_be_encoded(layout, text, cut):
    vocabulary = ByteVocabulary.of(make(layout))
    data = (text + "\U0001f608")[: len(text) + 1].encode()[:-cut]
    assert vocabulary.decode(vocabulary.encode(data)) == data


def test_special_tokens_are_not_matched_in_text():
    vocabulary = ByteVocabulary.of(make("gpt2"))
    ids = vocabulary.encode("a<s>b")
    assert not set(ids) & set(vocabulary.special)
    assert vocabulary.decode(ids) == b"a<s>b"
    assert sorted(vocabulary.special.values()) == ["</s>", "<s>"]
    assert all(vocabulary.pieces[token] is None for token in vocabulary.special)


def test_prefix_space_is_added_once_and_taken_away():
    vocabulary = ByteVocabulary.of(make("metaspace"))
    assert vocabulary.prefix == b" "
    assert vocabulary.pieces[vocabulary.encode("the")[0]].startswith(b" ")
    assert vocabulary.decode(vocabulary.encode("the then")) == b"the then"
    assert vocabulary.encode("") == []


def test_transformers_and_tokenizers_objects_agree_and_are_kept():
    fast = PreTrainedTokenizerFast(tokenizer_object=make("gpt2"), eos_token="</s>")
    assert ByteVocabulary.of(fast).pieces == ByteVocabulary.of(make("gpt2")).pieces
    assert ByteVocabulary.of(fast) is ByteVocabulary.of(fast)


def test_bare_vocabularies():
    vocabulary = ByteVocabulary.of({"a": 0, b"\xff": 3})
    assert vocabulary.pieces == (b"a", None, None, b"\xff")
    assert vocabulary.kind == "plain"
    assert ByteVocabulary.of(["a", "b"]).trie.count_encodings(b"ab") == 1
    with pytest.raises(TypeError, match="bare vocabulary"):
        vocabulary.encode("a")
    with pytest.raises(TypeError, match="vocabulary must map"):
        ByteVocabulary.of({"a": -1})


def test_text_that_would_be_lost_is_an_error():
    lower = Tokenizer.from_str(make("gpt2").to_str())
    lower.normalizer = normalizers.Lowercase()
    vocabulary = ByteVocabulary.of(lower)
    assert vocabulary.layout.normalizer == "Lowercase"
    with pytest.raises(ValueError, match=r"data must survive.*Lowercase"):
        vocabulary.encode("Ab")
    letters = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    with pytest.raises(ValueError, match="data must survive"):
        ByteVocabulary.of(letters).encode("abc")
    with pytest.raises(ValueError, match="data must survive"):
        ByteVocabulary.of(make("sentencepiece")).encode("a\u2581b")


@pytest.mark.parametrize(
    ("bad", "message"),
    [(b"a\xff", "0xff at position 1"), (b"\xed\xa0\x80", "UTF-8"), ("\ud800", "lone surrogates"), (3, "bytes or str")],
)
def test_bad_text(bad, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ByteVocabulary.of(make("gpt2")).encode(bad)


def test_ids_without_bytes_are_named():
    vocabulary = ByteVocabulary.of(make("gpt2"))
    with pytest.raises(ValueError, match=r"got 0 \(<s>\)"):
        vocabulary.decode([5, 0])
    with pytest.raises(ValueError, match="got 99999"):
        vocabulary.decode([99999])


def test_tokenizers_that_lose_text_are_refused_with_the_reason():
    word_piece = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    with pytest.raises(UnsupportedModelError, match="'##'"):
        ByteVocabulary.of(word_piece)
    clip = Tokenizer(models.BPE(vocab={"a</w>": 0}, merges=[], end_of_word_suffix="</w>"))
    with pytest.raises(UnsupportedModelError, match="word ends"):
        ByteVocabulary.of(clip)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UnsupportedModelError, match="Whitespace drops"):
        ByteVocabulary.of(words)
    dropout = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], dropout=0.1))
    with pytest.raises(UnsupportedModelError, match="random"):
        ByteVocabulary.of(dropout)
    with pytest.raises(UnsupportedModelError, match="PreTrainedTokenizerFast"):
        ByteVocabulary.of(object())


# canonical sequences


def test_first_noncanonical():
    vocabulary = ByteVocabulary.of(make("gpt2"))
    ids = vocabulary.encode("the then")
    split = [*vocabulary.merge_bytes(b"t"), *vocabulary.merge_bytes(b"he"), *ids[1:]]
    assert first_noncanonical(ids, vocabulary) is None
    assert not is_canonical(split, vocabulary)
    assert first_noncanonical(split, vocabulary) == 0
    assert first_noncanonical([*ids[:1], *vocabulary.merge_bytes(b" "), *vocabulary.merge_bytes(b"then")], vocabulary) == 1


@pytest.mark.parametrize("layout", ["gpt2", "no_regex", "sentencepiece", "superword"])
def test_neighbour_table_equals_the_merges_of_the_library(layout):
    vocabulary = ByteVocabulary.of(make(layout))
    table, model = vocabulary.merges, make(layout).model
    names = {token: piece for piece, token in make(layout).get_vocab().items()}
    draw = random.Random(3)
    usable = np.flatnonzero(table.producible).tolist()
    skip = set(vocabulary.byte_tokens.values())
    usable = [token for token in usable if token not in skip]
    for left in draw.sample(usable, 60):
        row = table.row(left)
        for right in draw.sample(usable, 60):
            assert row[right] == ([t.id for t in model.tokenize(names[left] + names[right])] == [left, right])
            assert table.pair(left, right) == row[right]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_followers_equal_their_definition(layout):
    vocabulary = ByteVocabulary.of(make(layout))
    canonical, oracle = vocabulary.canonical, Reencoding(vocabulary)
    assert isinstance(canonical, Reencoding) == (layout == "unigram")
    draw = random.Random(5)
    data = TEXT[draw.randrange(2)].encode() + TEXT[2].encode()[:70]
    for end in sorted(draw.sample(range(len(data)), 6 if layout == "unigram" else 24)):
        prefix = vocabulary.prefix + data[:end]
        for ids in canonical.tips(prefix):
            assert b"".join(vocabulary.pieces[t] for t in ids) == prefix
            mask = canonical.followers(ids, prefix)
            tail, text = canonical.tail_of(ids, prefix)
            inside = [t for t in vocabulary.trie.ids.tolist() if mask[t]]
            asked = draw.sample(range(vocabulary.size), 40) + draw.sample(inside, min(len(inside), 40))
            for token in asked + [t for _, t in vocabulary.trie.matches(data, end)]:
                assert mask[token] == oracle.holds(tail, text, token), (end, ids[-3:], vocabulary.pieces[token])


def test_look_ahead_leaves_two_beginnings_open():
    vocabulary = ByteVocabulary.of(make("gpt2"))
    ways = [[vocabulary.pieces[t] for t in ids[-2:]] for ids in vocabulary.canonical.tips(b"fox\n\n")]
    assert [b"\n", b"\n"] in ways
    assert len(ways) == 2
    assert len(vocabulary.canonical.tips(b"fox jum")) == 1


@pytest.mark.parametrize("layout", ["gpt2", "cl100k", "o200k", "sentencepiece", "superword"])
def test_every_true_beginning_is_a_tip(layout):
    """Cut a real encoding anywhere between tokens: what stands before the cut must be among the tips of its bytes."""
    vocabulary = ByteVocabulary.of(make(layout))
    ids = vocabulary.encode(TEXT[0] + TEXT[1])
    for stop in range(1, len(ids), 3):
        assert ids[:stop] in vocabulary.canonical.tips(b"".join(vocabulary.pieces[t] for t in ids[:stop]))


def test_long_text_without_a_space_stays_fast():
    vocabulary = ByteVocabulary.of(make("gpt2"))
    data = b"a" * 1_000_000
    ids = vocabulary.encode(data)
    assert vocabulary.decode(ids) == data
    canonical = vocabulary.canonical
    assert canonical.firm(data) >= len(data) - 4096
    assert canonical.followers(ids, data).any()


# character classes


@settings(max_examples=60, deadline=None)
@given(st.characters(codec="utf-8"), st.integers(1, 3))
def test_completions_start_with_the_partial_character(char, cut):
    data = char.encode()
    if cut < len(data):
        found = completions(data[:cut])
        assert all(c.encode().startswith(data[:cut]) for c in found)
        assert char_class(char) in map(char_class, found)
        assert split_partial(b"x" + data[:cut]) == ("x", data[:cut])
        assert is_prefix(data[:cut])


def test_compress_keeps_what_regexes_see():
    short, _, kept = compress("Hello  wwwww123")
    assert short == "Heo  ww123"
    assert [("Hello  wwwww123")[i] for i in kept] == list(short)
    assert compress("x'really")[1] == ("a", "'", "=r", "=e", "a", "a")
    assert compress("start", start_of_token=True)[1][0] == "=s"


# words


def test_word_spans():
    tokenizer = make("gpt2")
    ids, spans = word_spans("the quick  fox isn't", tokenizer)
    assert ids == tokenizer.encode("the quick  fox isn't").ids
    assert [s.text for s in spans] == ["the", "quick", "fox", "isn't"]
    for span in spans:
        joined = tokenizer.decode(ids[span.first_token : span.last_token]).strip()
        assert span.text == "the quick  fox isn't"[span.start_char : span.end_char] == joined
    assert word_spans("", tokenizer) == ([], [])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert word_spans("the fox", fast)[1] == word_spans("the fox", tokenizer)[1]


def test_trie_of_a_large_vocabulary_is_quick_and_small():
    import time
    import tracemalloc

    draw = random.Random(0)
    pieces = [bytes(draw.choices(b"abcdefghijklmnop \xe3\x81", k=draw.randint(1, 14))) for _ in range(262_144)]
    start = time.perf_counter()
    ByteTrie.build(pieces)
    assert time.perf_counter() - start < 30  # a guard against quadratic work; the figure is in benchmarks/
    tracemalloc.start()
    ByteTrie.build(pieces)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_definition_is_json():
    """The layout is read from the public JSON form, so a round trip of it changes nothing."""
    tokenizer = make("sentencepiece")
    assert (
        ByteVocabulary.of(Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str())))).pieces
        == ByteVocabulary.of(tokenizer).pieces
    )
    assert list(itertools.islice(ByteVocabulary.of(tokenizer).byte_tokens, 3)) == [0, 1, 2]
    assert isinstance(tokenizer.decoder, decoders.Decoder)
