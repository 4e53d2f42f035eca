"""Superword training on the stock trainer: stages, invariants, options, contract."""

from __future__ import annotations

import pydoc_data.topics
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tokenry import UnsupportedModelError
from tokenry.testing.tokenizers import check_tokenizer
from tokenry.text.bpe import bpe_parts, byte_level, text_source, to_transformers
from tokenry.text.premium import STAGE2_REGEX, extend_superword, train_bpe, train_superword, truncate
from tokenry.text.premium.superword import _characters, count_pieces

FAST = settings(max_examples=25, deadline=None)
TEXTS = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)][:25]
SUPER = train_superword(TEXTS, 1200)
PLAIN = train_bpe(TEXTS, 1200)


def total(tokenizer, texts=TEXTS):
    return sum(len(e.ids) for e in tokenizer.encode_batch(list(texts)))


def boundaries(tokenizer, text):
    ends, place = set(), 0
    for i in tokenizer.encode(text).ids:
        place += len(tokenizer.id_to_token(i))  # byte-level spelling: one character per byte
        ends.add(place)
    return ends


# Against a slow reimplementation -------------------------------------------------------------------------------------------


def merge(tokens, pair):
    out, i = [], 0
    while i < len(tokens):
        if tokens[i : i + 2] == list(pair):
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out


def replay(base, texts, found):
    """Stage 2 as described, slowly: pieces in stage-1 tokens; (count of the merge that was learned, highest count) per step."""
    merges = bpe_parts(base)[1]
    split = pre_tokenizers.Split(Regex(STAGE2_REGEX), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = Counter()
    for text in texts:
        for line in text.splitlines(keepends=True):
            for piece, _ in split.pre_tokenize_str(line):
                tokens = list(spell.pre_tokenize_str(piece)[0][0])
                for pair in merges:
                    tokens = merge(tokens, pair)
                words[tuple(tokens)] += 1
    for pair in found:
        pairs = Counter()
        for word, count in words.items():
            for neighbours in pairwise(word):
                pairs[neighbours] += count
        yield pairs[pair], max(pairs.values())
        words = Counter({tuple(merge(list(word), pair)): count for word, count in words.items()})


def test_stage_two_merges_the_most_frequent_pair_each_time():
    texts = [TEXTS[0][:3000], TEXTS[3][:3000]]
    base = train_bpe(texts, 400)
    merges = bpe_parts(extend_superword(base, texts, 440))[1]
    assert merges[:144] == bpe_parts(base)[1]
    assert len(merges) == 184
    steps = list(replay(base, texts, merges[144:]))
    assert steps[0][1] > 5
    assert all(count == best for count, best in steps)


def test_first_entries_are_plain_bpe_and_later_ones_cross_spaces():
    vocab, merges = bpe_parts(SUPER)
    plain, plain_merges = bpe_parts(PLAIN)
    assert SUPER.get_vocab_size() == 1200
    assert set(vocab.values()) == set(range(1200))
    assert {t for t, i in vocab.items() if i < 1080} == {t for t, i in plain.items() if i < 1080}
    assert merges[: 1080 - 256] == plain_merges[: 1080 - 256]
    assert sum("\u0120" in t.lstrip("\u0120") for t, i in vocab.items() if i >= 1080) > 50
    assert total(SUPER) < total(PLAIN)


def test_transition_one_is_the_plain_vocabulary():
    assert bpe_parts(train_superword(TEXTS, 700, transition=1.0)) == bpe_parts(train_bpe(TEXTS, 700))


@FAST
@given(text=st.sampled_from(TEXTS), start=st.integers(0, 2000), length=st.integers(1, 300))
def test_stage_one_segmentation_refines_the_final_one(text, start, length):
    piece = text[start : start + length]
    first = truncate(SUPER, 1080)
    assert boundaries(SUPER, piece) <= boundaries(first, piece)


@FAST
@given(text=st.text(max_size=60))
def test_round_trip(text):
    assert SUPER.decode(SUPER.encode(text).ids) == text
    assert PLAIN.decode(PLAIN.encode(text).ids) == text


def test_counts_never_rise_with_more_merges_of_one_list():
    for tokenizer in (SUPER, PLAIN):
        counts = [total(truncate(tokenizer, size)) for size in range(256, 1201, 118)]
        assert all(a >= b for a, b in pairwise(counts))
    assert total(truncate(PLAIN, 256)) == sum(len(t.encode()) for t in TEXTS)


def test_plain_bpe_needs_a_token_per_word_and_superwords_do_not():
    line = "of the of the of the of the"
    trained = train_superword([line] * 4, 275, transition=0.96)
    pieces = len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(line))
    assert total(train_bpe([line] * 4, 275), [line]) >= pieces > total(trained, [line])


def test_word_cap_and_colon_rule_hold_for_every_stage_two_entry():
    for cap in (1, 2, 3):
        vocab, _ = bpe_parts(train_superword(TEXTS, 1200, max_words=cap, colon_boundary=True))
        later = [t for t, i in vocab.items() if i >= 1080]
        assert len(later) == 120
        assert max(t.count("\u0120") for t in later) <= cap
        assert not any(":" in t.rstrip(":") for t in later)
    assert any(t.count("\u0120") > 2 for t, i in bpe_parts(SUPER)[0].items() if i >= 1080)


def test_truncation_is_training_to_the_smaller_size():
    assert bpe_parts(truncate(PLAIN, 700)) == bpe_parts(train_bpe(TEXTS, 700))
    with pytest.raises(ValueError, match="at least 256"):
        truncate(PLAIN, 255)


def test_special_tokens_come_first_and_stay_special():
    tokenizer = train_superword(TEXTS, 700, special_tokens=["<pad>", "<eos>"])
    assert [tokenizer.id_to_token(i) for i in (0, 1)] == ["<pad>", "<eos>"]
    assert tokenizer.get_vocab_size() == 700
    assert tokenizer.decode(tokenizer.encode("a<eos>b").ids) == "ab"
    check_tokenizer(tokenizer)


def test_training_that_runs_out_of_pairs_tells_the_realised_size():
    assert 256 < train_superword(["one two"], 5000, transition=0.5).get_vocab_size() < 300


# Sources ------------------------------------------------------------------------------------------------------------------


def test_lists_iterators_functions_and_files_give_the_same_tokenizer(tmp_path):
    lines = TEXTS[0].splitlines(keepends=True)
    file = tmp_path / "text.txt"
    file.write_text("".join(lines), encoding="utf-8", newline="")
    expected = train_superword(lines, 400).to_str()
    assert train_superword(iter(lines), 400).to_str() == expected
    assert train_superword(lambda: iter(lines), 400).to_str() == expected
    assert train_superword(file, 400).to_str() == expected
    assert train_superword([file], 400).to_str() == expected


def test_bad_input(tmp_path):
    for kwargs, message in (
        ({"vocab_size": 255}, "vocab_size"), ({"vocab_size": 280}, r"transition \* vocab_size"), ({"vocab_size": 500, "transition": 0.0}, "transition"),
        ({"vocab_size": 500, "transition": 1.5}, "transition"), ({"vocab_size": 500, "max_words": 0}, "max_words"),
        ({"vocab_size": 500, "min_frequency": -1}, "min_frequency"), ({"vocab_size": 257, "special_tokens": ["<a>", "<b>"]}, "vocab_size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train_superword(TEXTS, **kwargs)
    for texts, error, message in (
        ("one string", TypeError, "collection"), ([], ValueError, "non-empty"), (["", ""], ValueError, "non-empty"), (["a", 3], TypeError, r"\[1\]"),
        (["ok", "\udc80"], ValueError, "surrogate"), (5, TypeError, "collection"), (tmp_path / "none.txt", ValueError, "exist"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            train_superword(texts, 400)
    with pytest.raises(TypeError, match="vocab_size"):
        train_superword(TEXTS, 400.0)
    with pytest.raises(ValueError, match="vocab_size"):
        extend_superword(PLAIN, TEXTS, 1199)
    with pytest.raises(UnsupportedModelError):
        extend_superword(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), TEXTS, 300)
    with pytest.raises(UnsupportedModelError):
        bpe_parts(object())


def test_more_entries_than_private_characters():
    characters = _characters(131_070)
    assert len(set(characters)) == 131_070
    assert "".join(characters).encode("utf-8")
    with pytest.raises(ValueError, match="at most"):
        _characters(800_000)


# Contract -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [PLAIN, SUPER, to_transformers(SUPER)], ids=["bpe", "superword", "transformers"])
def test_contract(tokenizer):
    check_tokenizer(tokenizer, texts=TEXTS[:3])


def test_loads_without_this_library(tmp_path):
    to_transformers(SUPER, eos_token="<|end|>").save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "x = 'one of the  caf\\u00e9s: 1234\\n'; assert t.decode(t(x)['input_ids']) == x; assert 'tokenry' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_check_finds_broken_tokenizers():
    lossy = Tokenizer(models.BPE(*bpe_parts(PLAIN)))
    lossy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lossy.decoder = PLAIN.decoder
    with pytest.raises(AssertionError, match="round trip"):
        check_tokenizer(lossy)
    vocab = {t: i for i, t in enumerate(t for t in bpe_parts(truncate(PLAIN, 256))[0] if t != "a")}
    missing = Tokenizer(models.BPE(vocab, []))
    missing.pre_tokenizer = byte_level()
    with pytest.raises(AssertionError, match="every byte"):
        check_tokenizer(missing)


def test_very_long_lines_are_cut_before_a_space_and_lose_nothing():
    line = "word and " * 4000 + "x" * 25_000
    pieces = count_pieces(lambda: iter([line, "short"]), STAGE2_REGEX)
    assert sum(len(piece) * count for piece, count in pieces.items()) == len(line) + 5
    assert max(map(len, pieces)) <= 10_000
    assert sum(piece.startswith(" ") for piece in pieces) >= 2
    assert train_superword(["ab cd " * 50_000], 264, transition=0.98).get_vocab_size() > 260


def test_a_megabyte_without_a_space_trains_in_seconds():
    text = "".join(random.Random(0).choices("abcdefgh", k=1_000_000))
    tokenizer = train_superword([text, "b c d"], 300, transition=0.95)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.decode(tokenizer.encode(text[:5000]).ids) == text[:5000]


def test_text_source_reads_again():
    source = text_source(iter(["a", "b"]))
    assert list(source()) == list(source()) == ["a", "b"]
