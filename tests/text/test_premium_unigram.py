"""Unigram superwords: pieces that cross spaces, every byte, rules that hold, and fewer tokens than words alone."""

from __future__ import annotations

import json
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.testing.tokenizers import check_tokenizer
from tokenry.text.bpe import ALPHABET
from tokenry.text.premium import line_counts, train_bpe, train_superword_unigram

LINES = [line.strip() for name in sorted(topics) for line in topics[name].splitlines() if len(line) > 40][:250]
TRAINED = train_superword_unigram(LINES, 500)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back(text):
    assert TRAINED.decode(TRAINED.encode(text).ids, skip_special_tokens=False) == text


def test_pieces_cross_spaces_and_need_fewer_tokens_than_words():
    pieces = TRAINED.get_vocab()
    assert set(ALPHABET) <= set(pieces)
    assert any("\u0120" in piece[1:] for piece in pieces)
    words = train_superword_unigram(LINES, 500, regex=r"\s?\S+|\s+")
    assert not any("\u0120" in piece[1:] for piece in words.get_vocab())
    assert line_counts(TRAINED, LINES).sum() < line_counts(words, LINES).sum()
    assert line_counts(TRAINED, LINES).sum() < line_counts(train_bpe(LINES, 500), LINES).sum()
    check_tokenizer(TRAINED)


@pytest.mark.parametrize("most", [1, 2])
def test_word_cap_and_colon_rule_hold_for_every_piece_and_the_size_is_kept(most):
    found = train_superword_unigram(LINES, 330, max_words=most, colon_boundary=True, special_tokens=["<|end|>"])
    pieces = found.get_vocab()
    assert len(pieces) == 330
    assert set(ALPHABET) <= set(pieces)
    assert pieces["<|end|>"] == 0
    assert found.encode("a<|end|>").ids[-1] == 0
    learned = set(pieces) - set(ALPHABET) - {"<|end|>"}
    assert learned
    assert max(piece.count("\u0120") for piece in learned) == most
    assert not any(":" in piece.rstrip(":") for piece in learned)
    for line in LINES[:5]:
        assert found.decode(found.encode(line).ids) == line


def test_pieces_that_fit_are_the_best_of_the_run():
    """Without rules the run itself is returned; a rule drops what it names and, beyond the size, the worst of the rest."""
    free = dict(json.loads(train_superword_unigram(LINES, 800).to_str())["model"]["vocab"])
    capped = dict(json.loads(train_superword_unigram(LINES, 400, max_words=1).to_str())["model"]["vocab"])
    assert len(capped) == 400
    allowed = {piece for piece in free if piece.count("\u0120") <= 1 and piece not in ALPHABET}
    learned = {piece: score for piece, score in capped.items() if piece not in ALPHABET}
    assert set(learned) <= allowed
    assert min(learned.values()) >= max((free[piece] for piece in allowed - set(learned)), default=-99.0)


def test_bad_input():
    for options, match in (
        ({"vocab_size": 200}, "vocab_size must be at least 256"),
        ({"vocab_size": 300, "max_words": 0}, "max_words"),
        ({"vocab_size": 300, "max_piece_length": 1}, "max_piece_length"),
    ):
        with pytest.raises(ValueError, match=match):
            train_superword_unigram(LINES, **options)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str"):
        train_superword_unigram(["a", None], 300)
