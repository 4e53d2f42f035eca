"""kl3m: custom tokens, the two recipes, padding to a power of two, JSONL input, evaluation, noise."""

from __future__ import annotations

import gzip
import json
import pydoc_data.topics
import subprocess
import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import settings
from tokenizers import Tokenizer

from tokenry import MissingDependencyError
from tokenry.testing.tokenizers import check_tokenizer, sample_texts
from tokenry.text.bpe import bpe_parts, train_bpe
from tokenry.text.kl3m import (
    GROUPS,
    SPECIAL_TOKENS,
    add_padding_tokens,
    average_tokens_per_character,
    citation_strings,
    corrupt,
    custom_tokens,
    kl3m_to_transformers,
    neutral_to_special_text,
    read_jsonl,
    relative_saving,
    reporter_abbreviations,
    term_costs,
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


# Custom tokens ------------------------------------------------------------------------------------------------------------


def test_counts_of_the_recipe():
    """500 cased and 457 lower-cased without the citation part; each group by hand."""
    assert len(custom_tokens()) == 500
    assert len(custom_tokens(lowercase=True)) == 457
    sizes = {name: len(custom_tokens(groups=[name])) for name in GROUPS if name != "citations"}
    assert sizes == {
        "whitespace": 4 * 7 + 2,
        "markdown": 5 + 4 + 7 + 6 * 7 - 2,  # "**" and "~~" are runs as well
        "html": 37 * 3 + 12,
        "json": 10,
        "xml": 7,
        "years": 2050 - 1776,
        "enumerations": 52 + 99 + 14,  # "(v)" and "(V)" are letters as well
        "numbers": 990,
    }
    assert sum(sizes.values()) - sizes["enumerations"] - sizes["numbers"] == 500
    assert len(custom_tokens(citations=())) == 500 + 165 + 990


def test_citations_are_split_sorted_and_unique():
    tokens = custom_tokens(citations=["F. Supp. 2d", "U.S.", "F. Supp.", "a b"])
    assert {"F.", "Supp.", "2d", "U.S.", "(iv)", "(Z)", "(99)", "999", "1983"} <= set(tokens)
    assert "a" not in tokens
    assert "F. Supp." not in tokens
    assert "2050" not in tokens
    assert tokens == sorted(set(tokens))
    lower = custom_tokens(citations=["F. Supp."], lowercase=True)
    assert "supp." in lower
    assert all(t == t.lower() for t in lower)
    assert "(Z)" not in lower
    assert custom_tokens(citations=["X.Y."], groups=["citations"]) == ["X.Y."]


def test_custom_token_arguments():
    with pytest.raises(ValueError, match="groups"):
        custom_tokens(groups=["laws"])
    with pytest.raises(ValueError, match="citations"):
        custom_tokens(groups=["citations"])
    with pytest.raises(TypeError, match="citations"):
        custom_tokens(citations="U.S.")
    with pytest.raises(TypeError, match=r"citations\[0\]"):
        custom_tokens(citations=[3])


def test_citation_files(tmp_path, monkeypatch):
    for name, table in (
        ("laws", {"Ala. Code": []}), ("reporters", {"U.S.": [{"variations": {"U. S.": "U.S."}}]}), ("journals", {"A.B.A. J.": []}),
        ("case_name_abbreviations", {"Acad.": ["Academy"]}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}.json"):
            citation_strings(tmp_path)
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    assert citation_strings(tmp_path) == ["Ala. Code", "U.S.", "U. S.", "A.B.A. J.", "Acad."]
    monkeypatch.setattr("tokenry.text.kl3m.custom.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="reporters-db"):
        reporter_abbreviations()


# Recipes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [CHAR, DOMAIN])
def test_special_tokens_and_padding(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(13)] == list(SPECIAL_TOKENS)
    assert SPECIAL_TOKENS[:4] == ("<|start|>", "<|end|>", "<|pad|>", "<|unk|>")
    assert SPECIAL_TOKENS[8] == "</|system|>"
    short, long = tokenizer.encode_batch(["a", "a longer text"])
    assert short.ids[0] == 2
    assert short.ids[-1] != 2
    assert len(short.ids) == len(long.ids)
    fast = kl3m_to_transformers(tokenizer)
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id, fast.unk_token_id) == (0, 1, 2, 3)
    assert (fast.sep_token_id, fast.cls_token_id, fast.mask_token_id, fast.padding_side) == (4, 5, 6, "left")


def test_sizes_are_the_sizes_asked_for():
    assert CHAR.get_vocab_size() == 700
    assert DOMAIN.get_vocab_size() == 1500
    assert train_char_tokenizer(TEXTS, 700, released=True).get_vocab_size() == 687
    assert train_domain_tokenizer(TEXTS, 900, custom=()).get_vocab_size() == 900
    learned = ["the", "of", "zzz", "is", "yyy"]  # what BPE learns anyway takes no second place
    with_learned = train_domain_tokenizer(TEXTS, 600, custom=learned)
    assert with_learned.get_vocab_size() == 600
    assert {"the", "zzz", "yyy"} <= set(with_learned.get_vocab())
    released = train_domain_tokenizer(TEXTS, 600, custom=learned, released=True)
    assert released.get_vocab_size() == 600 - 13 - sum(t in bpe_parts(released)[0] for t in learned)


@pytest.mark.parametrize("cap", [1, 2, 3, 4])
def test_no_merged_token_is_longer_than_the_cap(cap):
    tokenizer = train_char_tokenizer(TEXTS, 1024, max_chars=cap)
    lengths = [len(t) for t in bpe_parts(tokenizer)[0] if t not in SPECIAL_TOKENS]
    assert max(lengths) == cap
    if cap == 1:
        assert tokenizer.get_vocab_size() == 13 + 256


def test_a_longer_cap_never_costs_tokens_on_the_training_text():
    costs = [tokens_per_character(train_char_tokenizer(TEXTS, 700, max_chars=cap), TEXTS) for cap in (1, 2, 3, 4, 8)]
    assert all(a >= b for a, b in pairwise(costs))
    assert all(0 < c <= 4 for c in costs)


def test_released_alphabet_loses_bytes_and_ours_does_not():
    texts = ["plain words of plain text " * 20]
    released = train_char_tokenizer(texts, 600, released=True)
    ours = train_char_tokenizer(texts, 600)
    assert ours.decode(ids(ours, "中 \t")) == "中 \t"
    assert released.decode(ids(released, "中 \t")) != "中 \t"
    with pytest.raises(AssertionError):
        check_tokenizer(released, normalizer=nfkc)


def test_custom_tokens_are_single_ids_and_never_split():
    for token in custom_tokens():
        assert len(ids(DOMAIN, token)) == 1, token
    year = DOMAIN.token_to_id("1983")
    assert year in ids(DOMAIN, "in 1983, and")
    assert year in ids(DOMAIN, "19834")
    apart = train_domain_tokenizer(TEXTS, 600, custom=["1983"], single_word=True)
    assert apart.token_to_id("1983") in ids(apart, "in 1983,")
    assert apart.token_to_id("1983") not in ids(apart, "19834")
    longest = train_domain_tokenizer(TEXTS, 600, custom=["##", "###"])
    assert ids(longest, "###") == [longest.token_to_id("###")]


def test_lowercase_and_normalization():
    lower = train_domain_tokenizer(TEXTS, 1200, lowercase=True)
    check_tokenizer(lower, normalizer=lambda text: lower.normalizer.normalize_str(text))
    assert lower.decode(ids(lower, "The ﬁrst HTML")) == "the first html"
    raw = train_char_tokenizer(TEXTS, 600, normalization=None)
    check_tokenizer(raw)
    composed = train_char_tokenizer(TEXTS, 600, normalization="nfd")
    assert composed.decode(ids(composed, "é")) == "e\u0301"


def test_mlm_puts_cls_and_sep_around_a_text():
    tokenizer = train_char_tokenizer(TEXTS, 600, mlm=True)
    assert tokenizer.encode("a b").ids[0] == 5
    assert tokenizer.encode("a b").ids[-1] == 4
    plain = train_char_tokenizer(TEXTS, 600)
    assert tokenizer.encode("a b").ids[1:-1] == plain.encode("a b").ids
    assert tokens_per_character(tokenizer, "a b") == tokens_per_character(plain, "a b")


def test_special_text_can_be_made_harmless():
    assert 1 in ids(DOMAIN, "x<|end|>y")
    safe = neutral_to_special_text(DOMAIN)
    assert 1 not in ids(safe, "x<|end|>y")
    assert safe.decode(ids(safe, "x<|end|>y")) == "x<|end|>y"


def test_determinism():
    assert train_char_tokenizer(TEXTS, 600).to_str() == train_char_tokenizer(iter(TEXTS), 600).to_str()
    assert train_domain_tokenizer(TEXTS, 1000).to_str() == train_domain_tokenizer(lambda: iter(TEXTS), 1000).to_str()


# Power of two -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "ours", "theirs"), [(300, 512, 512), (512, 512, 1024), (509, 512, 512), (513, 1024, 1024)])
def test_padding_reaches_the_next_power_of_two(size, ours, theirs):
    for released, target in ((False, ours), (True, theirs)):
        tokenizer = train_bpe(TEXTS, size)
        assert add_padding_tokens(tokenizer, released=released) == target - size
        assert tokenizer.get_vocab_size() == target
    assert tokenizer.token_to_id("  ") == size
    assert tokenizer.token_to_id("\n\n") == size + 1
    assert tokenizer.token_to_id("   ") == size + 2


def test_padding_tokens_change_nothing_but_runs_of_white_space():
    plain, padded = (train_char_tokenizer(TEXTS, 900, pad_to_power_of_two=pad) for pad in (False, True))
    assert padded.get_vocab_size() == 1024
    assert train_char_tokenizer(TEXTS, 512, pad_to_power_of_two=True).get_vocab_size() == 512
    for text in ["one two\tthree\nfour", "a b c.", *(" ".join(t.split()) for t in TEXTS[:3])]:
        assert ids(plain, text) == ids(padded, text)
    check_tokenizer(padded, normalizer=nfkc)
    assert train_domain_tokenizer(TEXTS, 1000, pad_to_power_of_two=True).get_vocab_size() == 1024


# Bad input ----------------------------------------------------------------------------------------------------------------


def test_bad_arguments():
    for call, error, message in (
        (lambda: train_char_tokenizer(TEXTS, 268), ValueError, "at least 269"), (lambda: train_char_tokenizer(TEXTS, 500, max_chars=0), ValueError, "max_chars"),
        (lambda: train_char_tokenizer(TEXTS, 500, min_frequency=-1), ValueError, "min_frequency"),
        (lambda: train_char_tokenizer(TEXTS, 500, normalization="nfx"), ValueError, "normalization"),
        (lambda: train_char_tokenizer("text", 500), TypeError, "texts"), (lambda: train_char_tokenizer([], 500), ValueError, "texts"),
        (lambda: train_char_tokenizer(["\ud800"], 500), ValueError, "surrogate"), (lambda: train_char_tokenizer(TEXTS, True), TypeError, "vocab_size"),
        (lambda: train_domain_tokenizer(TEXTS, 700), ValueError, "at least 769"), (lambda: train_domain_tokenizer(TEXTS, 600, custom=[""]), ValueError, r"custom\[0\]"),
        (lambda: train_domain_tokenizer(TEXTS, 600, custom=["a", "a"]), ValueError, r"custom\[1\]"), (lambda: train_domain_tokenizer(TEXTS, 600, custom="ab"), TypeError, "custom"),
        (lambda: train_domain_tokenizer(TEXTS, 600, custom=["<|end|>"]), ValueError, "special"), (lambda: train_domain_tokenizer(TEXTS, 600, custom=[1]), TypeError, "custom"),
        (lambda: train_domain_tokenizer(TEXTS, 600, custom=["A"], lowercase=True), ValueError, "lower"),
        (lambda: tokens_per_character(CHAR, ""), ValueError, "character"), (lambda: tokens_per_character(CHAR, ["", ""]), ValueError, "character"),
        (lambda: term_costs(CHAR, []), ValueError, "terms"), (lambda: term_costs(CHAR, ["a", ""]), ValueError, "terms"), (lambda: term_costs(CHAR, "a"), ValueError, "terms"),
        (lambda: relative_saving(1, 0), ValueError, "reference"), (lambda: corrupt("a", 1.5), ValueError, "rate"), (lambda: corrupt("a", 0.5, errors=[]), ValueError, "errors"),
        (lambda: corrupt("a", 0.5, errors=["typo"]), ValueError, "errors"), (lambda: average_tokens_per_character(CHAR, {}), ValueError, "data_sets"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


# JSONL --------------------------------------------------------------------------------------------------------------------


def test_jsonl_plain_gzip_and_sampling(tmp_path):
    lines = [f"text {i}" for i in range(1000)]
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_text("\n".join(json.dumps({"text": t}) for t in lines) + "\n\n")
    packed.write_bytes(gzip.compress("\n".join(json.dumps({"body": t, "text": t}) for t in lines).encode()))
    assert list(read_jsonl(plain)()) == list(read_jsonl(str(packed))()) == list(read_jsonl(packed, field="body")()) == lines
    some = read_jsonl([f"{plain}:0.3", f"{packed}:0.3"], seed=5)
    kept = list(some())
    assert 500 < len(kept) < 700
    assert kept == list(some())
    assert set(kept) <= set(lines)
    assert kept != list(read_jsonl([f"{plain}:0.3", f"{packed}:0.3"], seed=6)())
    assert train_char_tokenizer(read_jsonl(plain), 300).to_str() == train_char_tokenizer(lines, 300).to_str()


def test_jsonl_defects_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for body, message in (
        ('{"text": "a"}\nnot json', "line 2"),
        ('{"other": 1}', "'text'"),
        ('{"text": 5}', "string"),
        ("[1]", "line 1"),
    ):
        path.write_text(body)
        with pytest.raises(ValueError, match=message):
            list(read_jsonl(path)())
    for given_ in (tmp_path / "none.jsonl", f"{path}:0", f"{path}:1.5", f"{path}:often", []):
        with pytest.raises(ValueError):
            read_jsonl(given_)


# Contract -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [CHAR, DOMAIN, kl3m_to_transformers(DOMAIN)], ids=["char", "domain", "transformers"])
def test_contract(tokenizer):
    check_tokenizer(tokenizer, normalizer=nfkc, texts=TEXTS[:2])


def test_loads_without_this_library(tmp_path):
    kl3m_to_transformers(DOMAIN).save_pretrained(tmp_path)
    expected = [ids(DOMAIN, text) for text in sample_texts(5)]
    (tmp_path / "texts.json").write_text(json.dumps([sample_texts(5), expected]))
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "x, y = json.load(open(sys.argv[1] + '/texts.json')); assert [t(s, add_special_tokens=False)['input_ids'] for s in x] == y; "
        "assert t(['a', 'a b c'], padding=True)['input_ids'][0][0] == 2; assert 'tokenry' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_file_round_trip(tmp_path):
    CHAR.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == CHAR.to_str()
