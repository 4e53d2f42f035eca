from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.text.tokenizers import llama, make
from tokenry import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.text.byteprobs import ByteLM
from tokenry.text.consistency import (
    ARTEFACTS,
    OUTCOMES,
    SHAPES,
    canonical_tokens,
    classify_edit,
    classify_edit_ids,
    count_encodings,
    encoding_mass,
    enumerate_encodings,
    is_canonical,
    vocabulary_twins,
    wilson,
)

NEWLINE, DETACHED, SHIFT, ACRONYM, PLURAL, MORPHOLOGY, NAME, INSIDE, OTHER = ARTEFACTS


@pytest.mark.parametrize(
    ("before", "after", "artefact", "shape"),
    [
        ([" However"], ["\n", "However"], NEWLINE, "split"),
        ([" Saturday"], [" ", " Saturday"], DETACHED, "split"),
        ([" February"], ["February"], SHIFT, "same"),
        ([" HIV"], ["H", "IV"], ACRONYM, "split"),
        ([" rights"], ["right", "s"], PLURAL, "split"),
        ([" repaid"], ["re", "paid"], MORPHOLOGY, "split"),
        ([" Dorm", "er"], ["D", "orm", "er"], NAME, "split"),
        ([" unbelievable"], ["un", "bel", "ievable"], INSIDE, "split"),
        (["re", "paid"], [" repaid"], MORPHOLOGY, "merge"),
        ([" ", "HIV"], [" HIV"], DETACHED, "merge"),
        ([" H", "IV"], ["H", "IV"], SHIFT, "same"),
        ([" cab", "bage"], [" cabb", "age"], INSIDE, "same"),
        ([" boy\u2019s"], [" boy", "\u2019s"], PLURAL, "split"),
        ([b" caf\xc3", b"\xa9"], [" caf\u00e9"], INSIDE, "merge"),
        (["  x"], ["x"], OTHER, "same"),
    ],
)
def test_worked_examples_of_the_types(before: list, after: list, artefact: str, shape: str) -> None:
    assert classify_edit(before, after) == ("different", artefact, shape)


def test_outcomes_of_plain_edits() -> None:
    assert tuple(classify_edit([" cat"], [" cat"])) == ("unchanged", None, "same")
    assert tuple(classify_edit([" cat"], [" d", "og"])) == ("replaced", None, "split")
    assert classify_edit([" cat"], [" Cat"]).outcome == "replaced"
    assert classify_edit([" caf\u00e9"], [" cafe\u0301"]).outcome == "replaced"
    assert classify_edit([" cat"], []).outcome == "replaced"
    assert classify_edit(" cat", "cat").artefact == SHIFT
    edit = classify_edit([" Dorm", "er"], ["D", "orm", "er"])
    assert (edit.tokens_before, edit.tokens_after) == (2, 3)
    outcome, artefact, shape = pickle.loads(pickle.dumps(edit))
    assert (outcome, artefact, shape) == edit
    assert classify_edit([" Dormer"], ["D", "ormer"], sentence_start=True).artefact == INSIDE


def test_bad_words_are_refused() -> None:
    for before in ([], [" "], ""):
        with pytest.raises(ValueError, match="before must spell"):
            classify_edit(before, ["a"])
    with pytest.raises(TypeError, match="before"):
        classify_edit([1], ["a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="after"):
        classify_edit(["a"], None)  # type: ignore[arg-type]


_ALPHABET = st.sampled_from(["a", "b", "s", "A", "B", " ", "\n", "\u00e9", "'"])


def _cut(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted({cut % (len(text) + 1) for cut in cuts} - {0, len(text)}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=60, deadline=None)
@given(
    st.text(_ALPHABET, min_size=1, max_size=8),
    st.text(_ALPHABET, max_size=8),
    st.lists(st.integers(0, 8)),
    st.lists(st.integers(0, 8)),
)
def test_types_belong_to_phantom_edits_only(old: str, new: str, left: list[int], right: list[int]) -> None:
    assume(old.strip())
    for other in (new, old, " " + old, "\n" + old.strip()):
        before, after = _cut(old, left), _cut(other, right)
        edit = classify_edit(before, after)
        assert edit.outcome in OUTCOMES
        assert edit.shape in SHAPES
        assert (edit.artefact is not None) == (edit.outcome == "different")
        assert edit.outcome == ("unchanged" if before == after else "different" if old.strip() == other.strip() else "replaced")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.lists(st.integers(0, 7), max_size=5), st.permutations(range(8)))
def test_outcome_does_not_depend_on_the_numbering(before: list[int], after: list[int], order: list[int]) -> None:
    pieces = ["a", "b", " a", "ab", " ", "\n", "ab", "ba"]
    assume("".join(pieces[i] for i in before).strip())
    renumbered: list[str] = [""] * 8
    for old, new in enumerate(order):
        renumbered[new] = pieces[old]
    first = classify_edit_ids(before, after, pieces)
    assert first == classify_edit_ids([order[i] for i in before], [order[i] for i in after], renumbered)
    assert classify_edit_ids(before, before, pieces).outcome == "unchanged"


def test_two_ids_of_one_text_are_a_phantom_edit() -> None:
    assert classify_edit_ids([3], [6], ["a", "b", " a", "ab", " ", "\n", "ab"]) == ("different", OTHER, "same")
    with pytest.raises(ValueError, match=r"ids must be in 0..1"):
        classify_edit_ids([0], [5], ["a", "b"])


def _brute(data: bytes, pieces: list[bytes]) -> int:
    if not data:
        return 1
    return sum(_brute(data[len(piece) :], pieces) for piece in pieces if piece and data.startswith(piece))


@settings(max_examples=60, deadline=None)
@given(st.text("ab\u00e9", max_size=9), st.lists(st.text("ab\u00e9", min_size=1, max_size=3), min_size=1, unique=True))
def test_number_of_encodings_matches_brute_force(text: str, pieces: list[str]) -> None:
    count = count_encodings(text, pieces)
    assert count == _brute(text.encode(), [piece.encode() for piece in pieces])
    assert (
        count
        == count_encodings(text.encode(), {piece: i for i, piece in enumerate(pieces)})
        == count_encodings(text, set(pieces))
    )
    if count <= 50:
        assert len({tuple(ids) for ids in enumerate_encodings(text, pieces, limit=50)}) == count


def test_numbers_of_encodings_by_hand() -> None:
    assert count_encodings("abc", {"a", "b", "c", "ab", "bc", "abc"}) == 4
    assert count_encodings("", ["a"]) == 1
    assert count_encodings("x", ["a"]) == 0
    assert count_encodings("a" * 200, ["a", "aa"]) == 453973694165307953197296969697410619233826  # Fibonacci
    assert count_encodings("\u00e9", make("gpt2")) >= 1
    with pytest.raises(TypeError, match="text"):
        count_encodings(3, ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="surrogates"):
        count_encodings("\ud800", ["a"])
    with pytest.raises(ValueError, match="limit"):
        enumerate_encodings("aaaa", ["a", "aa"], limit=3)
    with pytest.raises(UnsupportedModelError):
        count_encodings("a", object())


def test_pure_bytes_have_one_encoding() -> None:
    alphabet = [bytes([byte]) for byte in range(256)]
    for text in ("", "word", "caf\u00e9 \u4e2d"):
        assert count_encodings(text, alphabet) == 1


@pytest.mark.parametrize("layout", ["gpt2", "o200k", "sentencepiece", "unigram"])
def test_own_encodings_are_canonical(layout: str) -> None:
    tokenizer = make(layout)
    vocabulary = ByteVocabulary.of(tokenizer)
    ids = vocabulary.encode("the quick fox isn't here")
    assert is_canonical(ids, tokenizer)
    assert canonical_tokens(ids, tokenizer).all()
    long = next(i for i, token in enumerate(ids) if vocabulary.lengths[token] > 1 and i)
    ways = vocabulary.trie.enumerate_encodings(vocabulary.pieces[ids[long]] or b"")
    other = next(way for way in ways if way != [ids[long]])
    changed = [*ids[:long], *other, *ids[long + 1 :]]
    if is_canonical(changed, tokenizer):
        pytest.skip("two spellings of one piece")
    flags = canonical_tokens(changed, tokenizer)
    assert flags[:long].all()
    assert flags[long + len(other) :].all()
    assert not flags[long : long + len(other)].any()
    assert canonical_tokens([], tokenizer).shape == (0,)


def _letters() -> PreTrainedTokenizerFast:
    vocab = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, " ": 4, "ab": 5, "aab": 6, "ba": 7, " a": 8}
    merges = [("a", "b"), ("a", "ab"), ("b", "a"), (" ", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("context", ["", "b"])
def test_mass_of_encodings_matches_the_model(context: str) -> None:
    tokenizer = _letters()
    model = llama(9)
    lm = ByteLM(model, tokenizer)
    mass = encoding_mass(lm, "aaba", context=context, batch_size=3)
    before = [0, *lm.vocabulary.encode(context)]
    total, own = [], 0.0
    canonical = lm.vocabulary.encode(context + "aaba")[len(before) - 1 :]
    for ids in lm.vocabulary.trie.enumerate_encodings(b"aaba"):
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([before + ids])).logits[0].double(), -1)
        score = sum(float(rows[len(before) - 1 + i, token]) for i, token in enumerate(ids))
        total.append(score)
        own = score if ids == canonical else own
    assert mass.encodings == len(total) == count_encodings("aaba", tokenizer)
    assert mass.log_prob == pytest.approx(np.logaddexp.reduce(total), abs=1e-4)
    assert mass.canonical_log_prob == pytest.approx(own, abs=1e-4)
    assert mass.canonical_share + mass.noncanonical_share == 1.0
    assert 0 < mass.noncanonical_share < 1


def test_mass_refuses_what_it_cannot_answer() -> None:
    lm = ByteLM(llama(9), _letters())
    with pytest.raises(ValueError, match="context must end"):
        encoding_mass(lm, "b", context="a")
    with pytest.raises(ValueError, match="word must not be empty"):
        encoding_mass(lm, "")
    with pytest.raises(ValueError, match="limit"):
        encoding_mass(lm, "aabab", limit=2)


def test_pairs_of_a_vocabulary() -> None:
    pieces = ["word", " word", "Word", "word", "\ufb01", "fi", b"\xc3", " 1", "1"]
    twins = vocabulary_twins(pieces)
    assert twins.identical == ((0, 3),)
    assert twins.case == ((0, 2), (2, 3), (4, 5))
    assert twins.leading_space == ((0, 1), (1, 3), (7, 8))
    assert twins.unicode == ((4, 5),)
    assert twins.both_forms == 1
    assert twins.size == 8
    assert twins.counts()["leading_space"] == 3


def test_wilson_interval() -> None:
    rate = wilson(8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 20).low == 0.0
    assert wilson(20, 20).high == 1.0
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="count"):
        wilson(3, 2)
