"""The next-word testbed: one question for every arm, exactness as greedy spelling, matched parameters."""

import math

import pytest

from tests.contracts import random_state_kept
from tokenry.lab.beds.language.next_word import Sizes, WordCorpus, build, matched_width, parameters, predict, train, unit_coder

TEXT = "The cat sat on the mat, and the dog sat on the log. A bird sat on the internationalisation! " * 60
CORPUS = WordCorpus.of(TEXT, characters=len(TEXT))


def test_the_corpus_is_lower_case_cut_and_contiguous():
    assert CORPUS.train[:6] == ("the", "cat", "sat", "on", "the", "mat")
    assert max(len(w) for w in CORPUS.train + CORPUS.test) == CORPUS.max_word == 12
    places = CORPUS.items(20, 10, rare=False, seed=0)
    assert places == sorted(set(places))
    assert min(places) >= 10
    with pytest.raises(ValueError, match="count"):
        CORPUS.items(1, 10, rare=True, seed=0)


@pytest.mark.parametrize("kind", ["char", "byte", "subword", "word", "pooled"])
def test_every_arm_spells_each_word_in_its_units(kind):
    coder = unit_coder(kind, CORPUS, 40)
    for word in set(CORPUS.train):
        units = coder.encode(word)
        assert units
        assert all(0 <= unit < coder.size for unit in units)
        assert kind != "char" or (len(units) == len(word) + 1 and units[-1] == 0)
        assert kind != "pooled" or (len(units) == len(word) and 0 not in units)
    if kind == "word":
        assert coder.encode("never") == [0]


@pytest.mark.parametrize("kind", ["char", "subword", "word", "pooled"])
def test_an_arm_learns_a_text_that_repeats_and_is_asked_exactly(kind):
    coder = unit_coder(kind, CORPUS, 60)
    sizes = Sizes(width=32, layers=1, window=24, batch=4, steps=100, learning_rate=8e-3)
    model = build(coder, sizes, CORPUS.max_word, seed=0)
    places = CORPUS.items(24, 60, rare=False, seed=0)
    before = predict(model.eval(), coder, CORPUS, places, 24)
    train(model, coder, CORPUS.train, sizes, seed=0)
    after = predict(model, coder, CORPUS, places, 24, chunk=7)
    assert sum(after.right) > 12 > sum(before.right)
    assert after.bits_per_character < before.bits_per_character
    assert after.bits_per_character == pytest.approx(sum(after.bits) / sum(len(CORPUS.test[i]) + 1 for i in places))
    one = predict(model, coder, CORPUS, places[:1], 24)
    assert one.right == after.right[:1]
    assert math.isclose(one.bits[0], after.bits[0], abs_tol=1e-3)


def test_matched_widths_match():
    pooled = build(unit_coder("pooled", CORPUS, 0), Sizes(64, 2, 24, 4, 0), CORPUS.max_word, seed=0)
    for kind in ("char", "byte", "subword", "word"):
        coder = unit_coder(kind, CORPUS, 60)
        width = matched_width(coder, 4, 24, parameters(pooled))
        flat = build(coder, Sizes(width, 4, 24, 4, 0), CORPUS.max_word, seed=0)
        assert abs(parameters(flat) / parameters(pooled) - 1) < 0.06


def test_building_leaves_the_global_random_state_alone():
    with random_state_kept():
        build(unit_coder("char", CORPUS, 0), Sizes(8, 1, 8, 1, 0), 12, seed=3)
