"""kl3m: tokens per character, term costs, sizes, noise, alignment, boundary agreement."""

from __future__ import annotations

import pydoc_data.topics
import random
import unicodedata
from functools import lru_cache
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.text.kl3m import (
    ERRORS,
    align,
    average_tokens_per_character,
    boundary_agreement,
    corrupt,
    relative_saving,
    term_costs,
    token_sizes,
    tokens_per_character,
    train_char_tokenizer,
    train_domain_tokenizer,
)

FAST = settings(max_examples=25, deadline=None)
TEXTS = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)][:25]
CHAR = train_char_tokenizer(TEXTS, 700)
DOMAIN = train_domain_tokenizer(TEXTS, 1500)


def nfkc(text):
    return unicodedata.normalize("NFKC", text)


def ids(tokenizer, text):
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return [i for i, real in zip(encoding.ids, encoding.attention_mask, strict=True) if real]


# Evaluation ---------------------------------------------------------------------------------------------------------------


def test_evaluation_by_hand():
    bytes_only = train_char_tokenizer(["abc"], 269)
    assert tokens_per_character(bytes_only, "aé") == 1.5
    assert tokens_per_character(bytes_only, ["aé", "b"]) == 4 / 3
    assert term_costs(bytes_only, ["ab", "é"]) == {"ab": 2, "é": 2}
    assert relative_saving(3, 4) == 0.25
    table = average_tokens_per_character(bytes_only, {"x": ["a"], "y": ["é"]})
    assert table == {"x": 1.0, "y": 2.0, "average": 1.5}
    histogram = token_sizes(bytes_only)
    assert (histogram.short, histogram.medium, histogram.long) == (256, 0, 0)
    wide = token_sizes(DOMAIN)
    assert wide.short + wide.medium + wide.long == DOMAIN.get_vocab_size() - 13 == sum(wide.by_length.values())
    assert wide.medium > wide.long


@lru_cache(None)
def distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@FAST
@given(a=st.text("abc", max_size=9), b=st.text("abc", max_size=9))
def test_alignment_is_a_shortest_edit_script(a, b):
    pairs = align(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(p[0] < q[0] and p[1] < q[1] for p, q in pairwise(pairs))
    cost, i, j = 0, 0, 0
    for x, y in [*pairs, (len(a), len(b))]:
        cost += max(x - i, y - j)
        i, j = x + 1, y + 1
    assert cost == distance(a, b)


@FAST
@given(seed=st.integers(0, 10**6), rate=st.floats(0.0, 0.3))
def test_boundary_agreement(seed, rate):
    clean = TEXTS[seed % 25][:200]
    noisy = corrupt(clean, rate, seed=seed)
    for tokenizer in (CHAR, DOMAIN):
        same = boundary_agreement(tokenizer, clean, clean)
        assert same.f1 == 1.0
        assert same.shared == same.clean == same.noisy
        there, back = boundary_agreement(tokenizer, clean, noisy), boundary_agreement(tokenizer, noisy, clean)
        assert 0 <= there.f1 <= 1
        assert there.shared <= min(there.clean, there.noisy)
        assert (there.clean, there.noisy) == (back.noisy, back.clean)


def test_boundary_agreement_by_hand():
    words = train_domain_tokenizer(["cat sat on mat"] * 20, 400, custom=(), min_frequency=1)
    assert [words.decode([i]) for i in ids(words, "cat sat on")] == ["cat", " sat", " on"]
    changed = boundary_agreement(words, "cat sat on", "cat xat on")
    starts = {e[0] for e in words.encode("cat xat on").offsets} - {0}
    assert (changed.clean, changed.noisy, changed.shared) == (2, len(starts), 2)
    assert boundary_agreement(words, "", "").f1 == 1.0
    assert boundary_agreement(words, "cat", "").f1 == 1.0


def test_short_tokens_keep_boundaries_under_noise():
    draw = random.Random(0)
    passages = [t[i : i + 250] for t in TEXTS for i in [draw.randrange(max(1, len(t) - 250))]]
    long = train_char_tokenizer(TEXTS, 700, max_chars=32)
    f1 = {
        name: sum(boundary_agreement(tokenizer, p, corrupt(p, 0.08, seed=i)).f1 for i, p in enumerate(passages)) / len(passages)
        for name, tokenizer in (("capped", CHAR), ("uncapped", long))
    }
    assert f1["capped"] > f1["uncapped"]


@FAST
@given(text=st.text(max_size=80), seed=st.integers(0, 10**6))
def test_noise(text, seed):
    assert corrupt(text, 0.0) == text
    assert corrupt(text, 0.5, seed=seed) == corrupt(text, 0.5, seed=seed)
    kinds = {kind: corrupt("modern clinic 1983 law", 1.0, errors=[kind], seed=seed) for kind in ERRORS}
    assert len(kinds["deletion"]) < 10
    assert "  " in kinds["space_added"]
    assert " " not in kinds["space_lost"]
    assert kinds["case"] == "MODERN CLINIC 1983 LAW"
    assert len(kinds["transposition"]) == len(kinds["substitution"]) == 22
