"""Premium: counts, inequity statistics, power law and target, predictors and regressions."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenry import UnsupportedModelError
from tokenry.text.premium import (
    bootstrap_premium,
    bootstrap_totals,
    byte_coefficient,
    byte_corrected_premium,
    byte_premium,
    character_entropy,
    corpus_counts,
    data_similarity,
    dispersion,
    f_test,
    language_predictors,
    length_ratio,
    line_counts,
    line_overlap,
    mean_token_length,
    mean_token_length_used,
    proportion_whitespace,
    regress,
    regress_each,
    script,
    to_transformers,
    token_premium,
    train_bpe,
    unique_characters,
)

FAST = settings(max_examples=25, deadline=None)
CORPUS = {
    "en": ["the cat sat", "on the mat", ""],
    "de": ["die Katze saß", "auf der Matte", ""],
    "zh": ["猫坐着", "在垫子上", ""],
}
TEXT = [line for lines in CORPUS.values() for line in lines] * 3

# Counts -------------------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_encoding_line_by_line():
    tokenizer = train_bpe(TEXT, 300)
    counts = corpus_counts(tokenizer, CORPUS)
    assert counts.totals == {k: sum(len(tokenizer.encode(x).ids) for x in v) for k, v in CORPUS.items()}
    assert counts.size_bytes["zh"].tolist() == [9, 12, 0]
    assert counts.characters["zh"].tolist() == [3, 4, 0]
    assert counts.tokens["en"].dtype == np.int64
    assert counts.tokens["en"][2] == 0
    each = corpus_counts({k: train_bpe(v, 256) for k, v in CORPUS.items()}, CORPUS)
    assert each.totals == {k: sum(len(x.encode()) for x in v) for k, v in CORPUS.items()}


def test_padding_truncation_and_special_tokens_do_not_count():
    plain = train_bpe(TEXT, 300, special_tokens=["<s>"])
    expected = line_counts(plain, TEXT).tolist()
    noisy = Tokenizer.from_str(plain.to_str())
    noisy.enable_padding(pad_token="<s>", length=64)
    noisy.enable_truncation(4)
    from tokenizers.processors import TemplateProcessing

    noisy.post_processor = TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    assert line_counts(noisy, TEXT).tolist() == expected
    assert line_counts(to_transformers(noisy), TEXT).tolist() == expected
    assert noisy.padding is not None
    assert noisy.truncation is not None


def test_counts_refuse_bad_corpora():
    tokenizer = train_bpe(TEXT, 260)
    with pytest.raises(ValueError, match="as many lines"):
        corpus_counts(tokenizer, {"en": ["a", "b"], "de": ["a"]})
    with pytest.raises(ValueError, match="at least one language"):
        corpus_counts(tokenizer, {})
    with pytest.raises(ValueError, match="at least one line"):
        corpus_counts(tokenizer, {"en": []})
    with pytest.raises(TypeError, match=r"corpus\['en'\]"):
        corpus_counts(tokenizer, {"en": "a string"})
    with pytest.raises(TypeError, match=r"\[0\]"):
        corpus_counts(tokenizer, {"en": [b"x"]})
    with pytest.raises(ValueError, match="surrogate"):
        corpus_counts(tokenizer, {"en": ["a\ud800"]})
    with pytest.raises(ValueError, match="de"):
        corpus_counts({"en": tokenizer}, {"en": ["a"], "de": ["b"]})
    with pytest.raises(UnsupportedModelError):
        corpus_counts(object(), {"en": ["a"]})


# Inequity -----------------------------------------------------------------------------------------------------------------


def test_premium_by_hand():
    assert token_premium({"en": 200, "de": 250, "zh": 100}, "en") == {"en": 1.0, "de": 1.25, "zh": 0.5}
    huge = token_premium({"en": 3 * 10**17, "de": 3 * 10**17 + 300}, "en")
    assert huge["de"] == float(Fraction(3 * 10**17 + 300, 3 * 10**17))
    assert byte_premium(CORPUS, "en")["zh"] == 21 / 21
    assert length_ratio(CORPUS, "en")["zh"] == 7 / 21
    assert byte_coefficient(["aé猫"]) == 2.0
    corrected = byte_corrected_premium({"en": 10, "de": 24, "zh": 20}, CORPUS, "en")
    assert corrected["en"] == 1.0
    assert corrected["de"] == pytest.approx(2.4 / (27 / 21))
    assert corrected["zh"] == 2.0


def test_premium_refuses():
    for counts, reference, message in (
        ({"en": 1}, "fr", "reference"), ({"en": 0, "de": 1}, "en", "above 0"), ({}, "en", "at least one"),
        ({"en": float("nan")}, "en", "finite"), ({"en": -1}, "en", "at least 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            token_premium(counts, reference)
    with pytest.raises(TypeError, match="number"):
        token_premium({"en": "5"}, "en")


@FAST
@given(counts=st.dictionaries(st.text(max_size=3), st.integers(1, 10**15), min_size=2), times=st.integers(1, 50))
def test_reference_is_one_and_repetition_changes_nothing(counts, times):
    reference = next(iter(counts))
    premium = token_premium(counts, reference)
    assert premium[reference] == 1.0
    repeated = token_premium({k: v * times for k, v in counts.items()}, reference)
    assert repeated == pytest.approx(premium)
    spread, again = dispersion(counts), dispersion({k: v * times for k, v in counts.items()})
    assert again.coefficient_of_variation == pytest.approx(spread.coefficient_of_variation, abs=1e-9)
    values = [Decimal(v) for v in counts.values()]
    mean = sum(values) / len(values)
    assert spread.variance == pytest.approx(float(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), rel=1e-6, abs=1e-3)
    assert spread.max_over_min == pytest.approx(max(counts.values()) / min(counts.values()))


def test_dispersion_refuses():
    with pytest.raises(ValueError, match="two languages"):
        dispersion({"en": 1})
    with pytest.raises(ValueError, match="above 0"):
        dispersion({"en": 1, "de": 0})


def test_f_test_reproduces_the_papers_p_values():
    """The paper reports F(96,96) = 1.125, p = 0.565 and F(80,387) = 0.150, p < 0.001: two-sided."""

    def sample(n, variance):
        x = np.arange(n, dtype=float)
        return (x - x.mean()) / x.std(ddof=1) * math.sqrt(variance)

    test = f_test(sample(97, 1.125), sample(97, 1.0))
    assert test.statistic == pytest.approx(1.125)
    assert test.df == (96, 96)
    assert test.p_value == pytest.approx(0.565, abs=5e-4)
    small = f_test(sample(81, 0.15), sample(388, 1.0))
    assert small.statistic == pytest.approx(0.15)
    assert small.df == (80, 387)
    assert small.p_value < 1e-3
    assert small.p_less < 1e-3 < small.p_greater
    assert small.p_less + small.p_greater == pytest.approx(1.0)
    assert f_test([1.0, 1.0], [1.0, 2.0]).statistic == 0.0
    for x, y in (([1], [1, 2]), ([1, 2], [3, 3]), ([1, float("nan")], [1, 2])):
        with pytest.raises(ValueError):
            f_test(x, y)


def test_f_test_against_integration():
    """One-sided p by numerical integration of the F density, with no library."""
    x, y = [3.0, 7.0, 1.0, 9.0, 4.0], [2.0, 2.5, 3.5, 1.0]
    test = f_test(x, y)
    d1, d2 = test.df
    log_beta = math.lgamma(d1 / 2) + math.lgamma(d2 / 2) - math.lgamma((d1 + d2) / 2)
    step, total = 1e-3, 0.0
    for i in range(int(test.statistic / step)):
        f = (i + 0.5) * test.statistic / int(test.statistic / step)
        total += math.exp(
            d1 / 2 * math.log(d1 / d2) + (d1 / 2 - 1) * math.log(f) - (d1 + d2) / 2 * math.log1p(d1 * f / d2) - log_beta
        )
    cdf = total * test.statistic / int(test.statistic / step)
    assert test.p_less == pytest.approx(cdf, abs=1e-5)
    assert test.p_value == pytest.approx(2 * min(cdf, 1 - cdf), abs=1e-4)


def test_bootstrap_draws_the_same_lines_for_every_language():
    rng = np.random.default_rng(0)
    en = rng.integers(5, 30, 200)
    counts = {"en": en, "twice": 2 * en, "other": rng.permutation(en)}
    intervals = bootstrap_premium(counts, "en", resamples=500)
    assert intervals["twice"].low == intervals["twice"].high == 2.0
    assert intervals["other"].low < 1.0 < intervals["other"].high
    assert intervals == bootstrap_premium(counts, "en", resamples=500)
    totals = bootstrap_totals(counts, resamples=500)
    assert totals[:, 0].std() == pytest.approx(math.sqrt(200) * en.std(), rel=0.1)
    for bad in ({}, {"a": [1, 2], "b": [1]}, {"a": []}, {"a": [1.0, float("inf")]}):
        with pytest.raises(ValueError, match="line_counts"):
            bootstrap_totals(bad)
    with pytest.raises(ValueError, match="resample"):
        bootstrap_premium({"en": [0, 0, 0, 1], "de": [1, 1, 1, 1]}, "en", resamples=200)


# Predictors and regressions -----------------------------------------------------------------------------------------------


def test_predictors_by_hand():
    assert proportion_whitespace(["a b", "cd "]) == 2 / 6
    assert unique_characters(["ab a", "c"]) == 3
    assert character_entropy(["aabb"]) == 1.0
    assert character_entropy(["a b", "ab"], order=2) == 0.0
    assert character_entropy(["abcd"], order=2) == pytest.approx(math.log2(3))
    assert [script([x]) for x in ("hello мир", "данные", "漢字", "한국")] == ["LATIN", "CYRILLIC", "CJK", "HANGUL"]
    assert line_overlap(["a", "b"], ["b", "c", "c", "b"]) == 0.5
    tokenizer = train_bpe(["ab ab ab é"] * 5, 258)
    assert mean_token_length(tokenizer) == pytest.approx((256 - 64 + 2 + 2) / 258 if " ab" not in TEXT else 0, abs=0.02)
    assert mean_token_length_used(tokenizer, ["abc"]) == 1.5  # "ab", "c"
    assert data_similarity(tokenizer, ["abc"], ["ab d"]) == Counter(["ab"]).total() / 258
    row = language_predictors(tokenizer, ["ab ab"], ["ab"])
    assert row["script"] == "LATIN"
    assert "data_similarity" in row
    assert "data_similarity" not in language_predictors(tokenizer, ["ab"])
    for call in (
        lambda: proportion_whitespace([""]),
        lambda: character_entropy([" "]),
        lambda: script(["12"]),
        lambda: byte_coefficient([]),
    ):
        with pytest.raises(ValueError, match="at least"):
            call()


def test_regression_against_normal_equations_in_plain_python():
    x = [1.0, 2.0, 3.0, 4.0, 7.0]
    y = [2.1, 3.9, 6.2, 7.8, 14.5]
    fit = regress(y, {"x": x})
    mx, my = sum(x) / 5, sum(y) / 5
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    residual = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - my) ** 2 for b in y)
    assert fit.names == ("intercept", "x")
    assert fit.coefficients[1] == pytest.approx(slope)
    assert fit.r_squared == pytest.approx(1 - residual / total)
    assert fit.standard_errors[1] == pytest.approx(math.sqrt(residual / 3 / sum((a - mx) ** 2 for a in x)))
    assert fit.p_values[1] == pytest.approx(fit.p_value)
    assert fit.df == (1, 3)
    both = regress(y, {"x": x, "script": ["LATIN", "CYRILLIC", "LATIN", "LATIN", "CYRILLIC"]})
    assert both.names == ("intercept", "x", "script=LATIN")
    assert both.r_squared >= fit.r_squared
    assert regress_each(y, {"x": x})["x"] == fit
    for predictors in (
        {},
        {"x": x[:4]},
        {"x": [1.0] * 5},
        {"x": x, "twice": [2 * a for a in x]},
        {"s": ["A"] * 5},
        {"x": [*x[:4], math.inf]},
    ):
        with pytest.raises(ValueError, match="predictors"):
            regress(y, predictors)
    with pytest.raises(ValueError, match="y must vary"):
        regress([1.0] * 5, {"x": x})
    with pytest.raises(ValueError, match="observations"):
        regress([1.0, 2.0], {"x": [1.0, 2.0]})


def test_a_regression_worked_by_hand():
    """y = 2, 4, 5, 4, 5 over x = 1..5: slope 0.6, residual 2.4 of 6 (R^2 0.6), corrected by (n - 1) / (n - columns) = 4 / 3."""
    y, x = [2.0, 4.0, 5.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]
    fit = regress(y, {"x": x})
    assert fit.coefficients == pytest.approx((2.2, 0.6))
    assert fit.r_squared == pytest.approx(0.6)
    assert fit.adjusted_r_squared == pytest.approx(1 - 0.4 * 4 / 3)
    assert fit.statistic == pytest.approx(3.6 / (2.4 / 3))
    # A second column at right angles to x and of no use: R^2 stays, its correction grows to 4 / 2.
    both = regress([2.0, 4.0, 5.0, 4.0, 5.0], {"x": x, "z": [2.0, -1.0, -2.0, -1.0, 2.0]})
    useless = (2 * 2 - 4 - 2 * 5 - 4 + 2 * 5) ** 2 / 14  # what z explains
    assert both.r_squared == pytest.approx((3.6 + useless) / 6)
    assert both.adjusted_r_squared == pytest.approx(1 - (2.4 - useless) / 6 * 4 / 2)
    assert both.df == (2, 2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 4), n=st.integers(8, 20))
def test_adjusted_r_squared_compares_variances_per_degree_of_freedom(seed, columns, n):
    rng = np.random.default_rng(seed)
    x = {f"x{i}": rng.normal(size=n).tolist() for i in range(columns)}
    y = rng.normal(size=n)
    fit = regress(y, x)
    design = np.stack([np.ones(n), *x.values()], axis=1)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert fit.adjusted_r_squared == pytest.approx(1 - (residual @ residual / (n - columns - 1)) / y.var(ddof=1))
    assert fit.adjusted_r_squared < fit.r_squared


def test_regression_with_categories_against_the_inverse_of_the_normal_equations():
    x, script = [3.1, 0.4, 2.2, 5.9, 4.0, 1.3, 2.7, 6.5], list("BACABCCA")
    y = np.array([1.9e6, 1.1e6, 1.7e6, 2.6e6, 2.1e6, 1.4e6, 1.8e6, 2.9e6])
    design = np.array([[1.0, a, c == "B", c == "C"] for a, c in zip(x, script, strict=True)])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    residual, total = np.square(y - design @ coefficients).sum(), np.square(y - y.mean()).sum()
    errors = np.sqrt(np.diag(inverse) * residual / 4)
    fit = regress(y, {"x": x, "script": script})
    close = {"rel": 1e-9}
    assert fit.names == ("intercept", "x", "script=B", "script=C")
    assert fit.coefficients == pytest.approx(coefficients, **close)
    assert fit.standard_errors == pytest.approx(errors, **close)
    assert fit.p_values == pytest.approx(2 * stats.t.sf(np.abs(coefficients / errors), 4), **close)
    assert fit.r_squared == pytest.approx(1 - residual / total, **close)
    assert fit.adjusted_r_squared == pytest.approx(1 - (residual / 4) / (total / 7), **close)
    assert fit.statistic == pytest.approx((total - residual) / 3 / (residual / 4), **close)
    assert fit.p_value == pytest.approx(stats.f.sf(fit.statistic, 3, 4), **close)
    assert (fit.df, fit.n) == ((3, 4), 8)


def test_counts_of_other_models_than_bpe():
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert line_counts(words, ["the cat sat", ""]).tolist() == [3, 0]
