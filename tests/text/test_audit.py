"""The audit of tokenizers: worked numbers, the same numbers in any batch, nothing lost silently, bad input named."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.text.audit import LineFile, TokenizerAudit, engine
from tokenry.text.audit.encoder import AuditEncoder, unknown_id
from tokenry.text.audit.lines import chunks_of
from tokenry.text.audit.tally import BLOCKS, TokenTally, add_to_blocks
from tokenry.text.audit.words import Spellings, frequent_words, sample_line
from tokenry.text.premium import bootstrap_premium, token_premium

EN = ["the cat sat on the mat", "a dog and a cat", "", "where is the mat?", "the end"] * 3
DE = ["die Katze saß auf der Matte", "ein Hund und eine Katze", "", "wo ist die Matte?", "das Ende"] * 3
JA = ["猫がマットに座った", "犬と猫", "", "マットはどこ?", "終わり"] * 3
CORPUS = {"en": EN, "de": DE, "ja": JA}
HARD = [
    "e\u0301 u\u0308\u0323 क्षि กำ",  # combining marks
    "שלום עולם مرحبا \u202babc\u202c",  # right to left
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",  # emoji sequences
    "a\0b \0",  # NUL
    "   ",
    "\t tabs \r and \x0b\x0c",
    "\U0010ffff\ufffe\ufeff",
    "<|end|> <unk> [UNK]",
]


def byte_level(size: int = 320) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator([*EN, *DE], trainer)
    return tokenizer


def word_level() -> Tokenizer:
    """No byte fallback: what it has not seen is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(EN, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False))
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([*EN, *DE], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return byte_level()


def quick(tokenizers, **options):
    options = {"resamples": 50, "vocabulary": False, "words": 10} | options
    return TokenizerAudit(tokenizers, **options)


# --- numbers -------------------------------------------------------------------------------------------------------


def test_counts_and_premiums_by_hand(bpe):
    report = quick({"x": bpe}).run({"p": CORPUS})
    tokens = {code: sum(len(bpe.encode(line).ids) for line in lines) for code, lines in CORPUS.items()}
    premiums = token_premium(tokens, "en")
    for code, lines in CORPUS.items():
        row = report.row("x", "p", code)
        size = sum(len(line.encode()) for line in lines)
        assert (row.tokens, row.lines, row.bytes, row.characters) == (tokens[code], 15, size, sum(map(len, lines)))
        assert row.premium == pytest.approx(premiums[code])
        assert row.byte_premium == pytest.approx(size / sum(len(line.encode()) for line in EN))
        assert row.corrected == pytest.approx(row.premium / row.byte_premium)
        assert row.tokens_per_character == pytest.approx(1 / row.characters_per_token)
        assert row.premium_low <= row.premium <= row.premium_high
        assert row.failures == 0
    assert report.row("x", "p", "en").premium == report.row("x", "p", "en").corrected == 1.0
    assert report.row("x", "p", "en").premium_low == report.row("x", "p", "en").premium_high == 1.0
    assert (report.spreads[0].dearest, report.spreads[0].cheapest) == (max(tokens, key=tokens.get), min(tokens, key=tokens.get))


def test_intervals_are_those_of_the_premium_module(bpe):
    report = quick({"x": bpe}, resamples=300, seed=3).run({"p": CORPUS})
    counts = {code: [len(bpe.encode(line).ids) for line in lines] for code, lines in CORPUS.items()}
    rng = np.random.default_rng(3)
    weights = rng.multinomial(15, np.full(15, 1 / 15), size=256)
    weights = np.concatenate([weights, rng.multinomial(15, np.full(15, 1 / 15), size=44)])
    draws = {code: weights @ np.array(values) for code, values in counts.items()}
    low, high = np.quantile(draws["de"] / draws["en"], [0.025, 0.975])
    row = report.row("x", "p", "de")
    assert (row.premium_low, row.premium_high) == (pytest.approx(low), pytest.approx(high))
    theirs = bootstrap_premium(counts, "en", resamples=300, seed=3)["de"]
    assert (theirs.low, theirs.high) == (pytest.approx(low), pytest.approx(high))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.permutations([0, 1]))
def test_batches_change_no_number(batch, order):
    bpe = byte_level(300)
    whole = quick({"x": bpe}).run({"p": CORPUS, "d": HARD})
    parts = quick({"x": bpe}, batch=batch).run({"p": CORPUS, "d": iter(HARD)})
    for one, other in zip(whole.to_rows(), parts.to_rows(), strict=True):
        one.pop("megabytes_per_second"), other.pop("megabytes_per_second")
        assert one == other
    assert whole.failures == parts.failures
    assert whole.samples == parts.samples


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=50), st.integers(0, 3 * BLOCKS))
def test_blocks_keep_the_sum_in_64_bits(values, first):
    blocks = np.zeros(BLOCKS, dtype=np.int64)
    add_to_blocks(blocks, first, np.array(values, dtype=np.int64))
    assert int(blocks.sum()) == sum(values)
    expected = np.zeros(BLOCKS, dtype=np.int64)
    for place, value in enumerate(values):
        expected[(first + place) % BLOCKS] += value
    assert (blocks == expected).all()


def test_more_lines_than_blocks(bpe):
    lines = [EN[i % 15] for i in range(2 * BLOCKS + 7)]
    row = quick({"x": bpe}, words=0, round_trip=False).run({"d": lines}).rows[0]
    assert row.lines == 2 * BLOCKS + 7
    assert row.tokens == sum(len(bpe.encode(EN[i % 15]).ids) for i in range(len(lines)))
    assert row.tokens_per_character_low <= row.tokens_per_character <= row.tokens_per_character_high


def test_repetition_leaves_premiums_alone(bpe):
    once = quick({"x": bpe}).run({"p": CORPUS})
    twice = quick({"x": bpe}).run({"p": {code: lines * 2 for code, lines in CORPUS.items()}})
    assert [row.premium for row in once.rows] == [row.premium for row in twice.rows]


def test_encodings_are_counted_as_the_trie_counts_them(bpe):
    vocabulary = ByteVocabulary.of(bpe)
    spellings = Spellings(vocabulary)
    for word in ["the", "Matte", "saß", "猫", "", "mat?"]:
        assert spellings.count(word) == vocabulary.trie.count_encodings(word.encode())
    report = quick({"x": bpe}, words=3).run({"d": ["ab ab cat"]})
    counts = [spellings.count(word) for word in ("ab", "cat")]
    assert report.rows[0].encoding_bits == pytest.approx(sum(map(math.log2, counts)) / 2)
    assert report.rows[0].ambiguous_share == 1.0 if min(counts) > 1 else 0.5


def test_words_and_samples():
    assert frequent_words(["b a b", "a c", "x" * 100], 3) == ["a", "b", "c"]
    assert sample_line(["short", "a line of about the right length", "y" * 400]) == 1
    assert sample_line(["", "ab", "y" * 400]) == 1
    assert sample_line(["", "y" * 400]) is None


# --- round trip, unknown tokens --------------------------------------------------------------------------------------


def test_everything_comes_back_from_bytes(bpe):
    report = quick({"x": bpe}).run({"d": HARD})
    assert report.rows[0].failures == 0
    assert report.failures == ()


def test_special_tokens_in_the_text_are_text(bpe):
    row = quick({"x": bpe}).run({"d": ["<|end|>"]}).rows[0]
    assert row.tokens > 1
    assert bpe.encode("<|end|>").ids == [0]  # the tokenizer itself is as it was


def test_unknown_characters_are_counted_and_shown():
    report = quick({"x": word_level()}).run({"p": {"en": EN, "ja": JA}})
    row = report.row("x", "p", "ja")
    assert row.unknown > 0
    assert row.failure_kinds["unknown"] == row.failures == 12
    failure = next(f for f in report.failures if f.language == "ja")
    assert (failure.line, failure.kind, failure.text) == (1, "unknown", JA[0])
    assert "<unk>" in failure.returned
    assert report.row("x", "p", "en").failures == 0
    assert len([f for f in report.failures if f.language == "ja"]) == 3


def test_kinds_of_failure():
    report = quick({"wp": word_piece()}).run({"d": ["The Cat", "a dog?", "the cat", "猫 cat"]})
    assert report.rows[0].failure_kinds == {"normalised": 1, "spacing": 1, "unknown": 1}
    assert [(f.line, f.kind) for f in report.failures] == [(1, "normalised"), (2, "spacing"), (4, "unknown")]
    assert "WordPiece" in report.notes[0]
    assert report.rows[0].encoding_bits is None


def test_unknown_ids_of_the_models():
    assert unknown_id(byte_level()) is None
    assert unknown_id(word_level()) == 0
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    assert unknown_id(unigram) == 0


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_waste():
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: index for index, letter in enumerate(sorted(letters))}
    extra = ["ab", "Ab", "\u0120ab", "xyz", "a\u0120b"]  # the last two can never come up
    vocabulary |= {piece: 256 + index for index, piece in enumerate(extra)}
    merges = [
        ("a", "b"),
        ("A", "b"),
        ("\u0120", "ab"),
        ("a", "\u0120"),
    ]
    vocabulary["a\u0120"] = 261
    merges.append(("a\u0120", "b"))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    report = TokenizerAudit({"x": tokenizer}, resamples=10, words=0).run({"d": ["ab ab Ab"]})
    found = report.vocabularies["x"]
    assert (found.size, found.added, found.used) == (263, 1, 4)
    assert set(found.unreachable_examples) == {"xyz", "a\u0120b", "a\u0120"}
    assert found.unused_share == pytest.approx(1 - 4 / 262)
    assert any("ab" in group and "Ab" in group for group in found.repeated_examples)
    assert found.partial == 128


def test_prefix_marks_and_inner_pieces_are_not_called_unreachable():
    metaspace = Tokenizer(models.BPE(unk_token="<unk>"))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Metaspace()
    metaspace.train_from_iterator(EN, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False))
    letters = {letter: index for index, letter in enumerate("abt")} | {f"{letter}</w>": 3 + i for i, letter in enumerate("abt")}
    vocabulary = letters | {"ab": 6, "ab</w>": 7}
    suffixed = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("a", "b</w>")], end_of_word_suffix="</w>"))
    suffixed.pre_tokenizer = pre_tokenizers.Whitespace()
    suffixed.decoder = decoders.BPEDecoder("</w>")
    for tokenizer in (metaspace, word_piece(), suffixed):
        report = TokenizerAudit({"x": tokenizer}, resamples=10, words=0).run({"d": EN})
        assert report.vocabularies["x"].unreachable == 0, report.vocabularies["x"].unreachable_examples


# --- input that is wrong, or large -----------------------------------------------------------------------------------


def test_text_that_is_no_text_is_named(bpe, tmp_path):
    audit = quick({"x": bpe})
    with pytest.raises(ValueError, match=r"corpus 'p', language 'de', line 2: holds the lone surrogate U\+D800 at character 3"):
        audit.run({"p": {"en": ["a", "b"], "de": ["a", "xy\ud800"]}})
    with pytest.raises(TypeError, match=r"corpus 'd', line 2: must be a string, got bytes"):
        audit.run({"d": ["a", b"b"]})
    path = tmp_path / "bad.txt"
    path.write_bytes(b"fine\nalso fine\nbad \xff here\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 3: byte 0xff at column 5 is not UTF-8"):
        audit.run({"d": LineFile(path)})
    with pytest.raises(FileNotFoundError, match="is not a file"):
        LineFile(tmp_path / "nowhere.txt")


def test_corpora_that_cannot_be_audited(bpe):
    audit = quick({"x": bpe})
    with pytest.raises(ValueError, match=r"corpus 'p' is not parallel: 'en' has 15 lines, but 'de' 14"):
        audit.run({"p": {"en": EN, "de": DE[:-1]}})
    with pytest.raises(ValueError, match=r"reference='en' is not a language of corpus 'p'"):
        audit.run({"p": {"de": DE}})
    with pytest.raises(ValueError, match=r"corpus 'd' holds no text \(0 lines\)"):
        audit.run({"d": []})
    with pytest.raises(ValueError, match=r"corpus 'd' holds no text \(3 lines\)"):
        audit.run({"d": ["", "", ""]})
    with pytest.raises(ValueError, match=r"language 'de' holds no text"):
        audit.run({"p": {"en": ["a"], "de": [""]}})
    with pytest.raises(ValueError, match="at least one corpus"):
        audit.run({})
    with pytest.raises(TypeError, match=r"corpora\['d'\] must be lines"):
        audit.run({"d": "one string"})


def test_reference_without_tokens():
    silent = Tokenizer(models.BPE(vocab={"x": 0}, merges=[]))  # drops what it lacks
    with pytest.raises(ValueError, match=r"'s' makes no token of the reference 'en' of corpus 'p'"):
        quick({"s": silent}, words=0).run({"p": {"en": ["abc"], "de": ["xx"]}})


def test_resamples_without_reference_leave_intervals_out(bpe):
    row = quick({"x": bpe}).run({"p": {"en": ["", "a"], "de": ["b", "b"]}}).row("x", "p", "de")
    assert row.premium == 2.0
    assert row.premium_low is None


def test_settings_are_checked(bpe):
    for options, sentence in (
        ({"tokenizers": {}}, "at least one tokenizer"),
        ({"resamples": 0}, "resamples"),
        ({"confidence": 1.0}, "confidence"),
        ({"engine": "spark"}, "engine"),
        ({"workers": 0}, "workers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TokenizerAudit(**({"tokenizers": {"x": bpe}} | options))
    with pytest.raises(UnsupportedModelError, match="str"):
        quick({"x": "gpt2"}).run({"d": EN})


def test_a_megabyte_without_a_space(bpe):
    row = quick({"x": bpe}).run({"d": ["ab" * 500_000]}).rows[0]
    assert row.characters == 1_000_000
    assert row.failures == 0
    assert row.encoding_bits is None  # no words


def test_options_of_the_tokenizer_come_back():
    tokenizer = byte_level()
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    before = tokenizer.to_str()
    row = quick({"x": tokenizer}).run({"d": EN}).rows[0]
    assert row.tokens > 15
    assert tokenizer.to_str() == before
    assert tokenizer.encode_special_tokens is False
    with pytest.raises(ValueError, match="no text"):
        quick({"x": tokenizer}).run({"d": []})
    assert tokenizer.to_str() == before


def test_files_are_read_in_blocks(tmp_path, bpe):
    path = tmp_path / "text.txt"
    lines = [f"line {i} with ünïcode" for i in range(500)]
    path.write_bytes("\r\n".join(lines).encode() + b"\n\n\nlast without end")
    expected = [*lines, "", "", "last without end"]
    for size in (1, 7, 64, 1 << 20):
        chunks = list(chunks_of(LineFile(path), size))
        assert [line for chunk in chunks for line in chunk.lines] == expected
        assert [chunk.first for chunk in chunks] == [sum(len(c.lines) for c in chunks[:i]) for i in range(len(chunks))]
    assert list(LineFile(path)) == expected
    assert quick({"x": bpe}).run({"d": LineFile(path)}).rows[0].tokens == quick({"x": bpe}).run({"d": expected}).rows[0].tokens


def test_memory_does_not_grow_with_the_corpus(bpe, monkeypatch):
    monkeypatch.setattr(engine, "HEAD", 1 << 12)

    def peak(times: int) -> int:
        lines = (line for _ in range(times) for line in EN[:5])
        audit = quick({"x": bpe}, batch=1 << 12, words=0)
        tracemalloc.start()
        audit.run({"d": lines})
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(8000) < 1.5 * peak(1600) + 200_000


def test_many_examples_in_any_order_keep_the_first():
    tally = TokenTally(examples=2)
    encoder = AuditEncoder("x", word_level(), examples=2)
    with encoder.ready():
        for first in (8, 0, 4):
            tally.add(first, encoder.count(["猫", "cat", "犬", "cat"], first))
    assert [failure[0] for failure in tally.failures] == [0, 2]
    assert tally.kinds == {"unknown": 6}
