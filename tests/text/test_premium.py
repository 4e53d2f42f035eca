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
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenry import UnsupportedModelError
from tokenry.text.premium import (
    bootstrap_premium,
    bootstrap_totals,
    byte_coefficient,
    byte_corrected_premium,
    byte_premium,
    character_entropy,
    choose_target,
    corpus_counts,
    data_similarity,
    dispersion,
    f_test,
    fit_power_law,
    language_predictors,
    length_ratio,
    line_counts,
    line_overlap,
    mean_token_length,
    mean_token_length_used,
    measure_sizes,
    proportion_whitespace,
    regress,
    regress_each,
    script,
    to_transformers,
    token_premium,
    train_bpe,
    unique_characters,
    validate_vocabularies,
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
    assert counts.size_bytes["zh"].tolist() == [9, 12, 0] and counts.characters["zh"].tolist() == [3, 4, 0]
    assert counts.tokens["en"].dtype == np.int64 and counts.tokens["en"][2] == 0
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
    assert noisy.padding is not None and noisy.truncation is not None


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
    assert byte_premium(CORPUS, "en")["zh"] == 21 / 21 and length_ratio(CORPUS, "en")["zh"] == 7 / 21
    assert byte_coefficient(["aé猫"]) == 2.0
    corrected = byte_corrected_premium({"en": 10, "de": 24, "zh": 20}, CORPUS, "en")
    assert corrected["en"] == 1.0 and corrected["de"] == pytest.approx(2.4 / (27 / 21)) and corrected["zh"] == 2.0


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
    assert test.statistic == pytest.approx(1.125) and test.df == (96, 96) and test.p_value == pytest.approx(0.565, abs=5e-4)
    small = f_test(sample(81, 0.15), sample(388, 1.0))
    assert small.statistic == pytest.approx(0.15) and small.df == (80, 387) and small.p_value < 1e-3
    assert small.p_less < 1e-3 < small.p_greater and small.p_less + small.p_greater == pytest.approx(1.0)
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


# Power law ----------------------------------------------------------------------------------------------------------------

SIZES = np.arange(1, 8) * 16384.0


@FAST
@given(a=st.floats(1e3, 1e7), b=st.floats(0.05, 2.0), share=st.floats(0.05, 0.9), multiple=st.sampled_from([None, 1, 128]))
def test_exact_curves_are_found_and_inverted(a, b, share, multiple):
    fall = a * SIZES**-b
    c = fall[0] * share / (1 - share)
    law = fit_power_law(SIZES, fall + c)
    assert law.flags == () and law.good
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=1e-5)
    for size in (20_000.0, 70_000.0, 110_000.0):
        target = a * size**-b + c
        found = law.vocabulary_for(target, multiple=multiple)
        assert found == pytest.approx(size, rel=1e-5, abs=0 if multiple is None else multiple)
        assert multiple is None or found % multiple == 0
        assert law.reach(target) == "reached"
        assert law.predict(found) == pytest.approx(target, rel=1e-4) if multiple is None else True


@FAST
@given(seed=st.integers(0, 10**6))
def test_vocabulary_falls_strictly_with_the_target(seed):
    rng = np.random.default_rng(seed)
    law = fit_power_law(SIZES, np.sort(rng.uniform(4e4, 9e4, 7))[::-1])
    if not law.good:
        return
    targets = np.linspace(max(law.c, 0.0) + 1, max(law.counts), 20)
    found = [law.vocabulary_for(float(t), minimum=1, maximum=1e300) for t in targets]
    assert all(x > y for x, y in zip(found, found[1:], strict=False) if y > 1 and x < 1e300)


def test_fit_is_the_least_squares_fit():
    """Against a fine grid over the exponent, each with its own linear regression in plain Python."""
    y = [56360.5, 53218.6, 51931.9, 50800.5, 49911.0, 49644.1, 49495.9]
    law = fit_power_law(SIZES, y)

    def loss(b):
        p = [(v / 65536.0) ** -b for v in SIZES]
        mp, my = sum(p) / 7, sum(y) / 7
        a = sum((x - mp) * (z - my) for x, z in zip(p, y, strict=True)) / sum((x - mp) ** 2 for x in p)
        return sum((z - my - a * (x - mp)) ** 2 for x, z in zip(p, y, strict=True))

    best = min((i / 10_000 for i in range(100, 20_000)), key=loss)
    assert law.b == pytest.approx(best, abs=2e-4)
    assert law.rmse == pytest.approx(math.sqrt(loss(best) / 7), rel=1e-5)


def test_targets_out_of_reach():
    law = fit_power_law(SIZES, 3e5 * SIZES**-0.3 + 4e4)
    assert law.reach(law.c) == "unreachable" and law.vocabulary_for(law.c - 1) == 262_144
    assert law.predicted_count(law.c) == law.predict(262_144)  # that size was not measured
    assert law.predicted_count(law.c, maximum=int(SIZES[-1])) == law.counts[-1]  # that one was
    worst = max(law.counts)
    assert law.reach(worst + 1) == "easy" and law.vocabulary_for(worst + 1) == 8192
    assert law.predicted_count(worst + 1, minimum=int(SIZES[0])) == worst
    near = law.predict(400_000)
    assert law.reach(near) == "clamped" and law.vocabulary_for(near) == 262_144
    with pytest.raises(ValueError, match="target"):
        law.vocabulary_for(0)
    with pytest.raises(ValueError, match="maximum"):
        law.vocabulary_for(5e4, minimum=100, maximum=50)
    with pytest.raises(ValueError, match="multiple"):
        law.vocabulary_for(5e4, minimum=130, maximum=140, multiple=128)


def test_bad_fits_are_flagged_and_few_sizes_refused():
    assert {"negative_exponent", "not_monotone"} <= set(fit_power_law([1, 2, 3], [1, 2, 4]).flags)
    assert not fit_power_law([1000, 2000, 3000, 4000], [9, 8, 6, 3]).good  # falls faster and faster
    assert "negative_asymptote" in fit_power_law([1, 2, 3], [3, 2, 1.5]).flags
    two = fit_power_law([100, 200], [4.0, 3.0], asymptote=False)
    assert two.c == 0 and two.predict(100) == pytest.approx(4) and two.predict(200) == pytest.approx(3)
    with pytest.raises(ValueError, match=r"at least 3 .*asymptote=False"):
        fit_power_law([100, 200], [4.0, 3.0])
    for sizes, counts in (
        ([1, 1, 2], [3, 2, 1]),
        ([1, 2, 3], [3, 2]),
        ([0, 1, 2], [3, 2, 1]),
        ([1, 2, 3], [3, 2, float("nan")]),
    ):
        with pytest.raises(ValueError):
            fit_power_law(sizes, counts)


def test_target_of_least_variance_by_brute_force():
    rng = np.random.default_rng(3)
    laws = {
        f"l{i}": fit_power_law(SIZES, a * SIZES**-0.4 + c)
        for i, (a, c) in enumerate(rng.uniform((1e6, 3e4), (3e6, 6e4), (6, 2)))
    }
    targets = list(range(40_000, 90_000, 1_000))
    choice = choose_target(laws, targets)
    best = {t: np.var([law.predicted_count(t) for law in laws.values()], ddof=1) for t in targets}
    assert choice.target == min(best, key=best.get) and choice.variances == pytest.approx(
        {float(t): v for t, v in best.items()}
    )
    assert choice.sizes == {k: law.vocabulary_for(choice.target) for k, law in laws.items()}
    with pytest.raises(ValueError, match="two languages"):
        choose_target({"l0": laws["l0"]}, targets)
    with pytest.raises(ValueError, match="targets"):
        choose_target(laws, [])


def test_validation_loop_reports_realised_sizes():
    words = [f"{a}{b}" for a in ("ver", "un", "be", "ge", "ent") for b in ("kauf", "stand", "lauf", "nehm", "halt")]
    rng = np.random.default_rng(0)
    corpus = {name: [" ".join(rng.choice(words, n)) for _ in range(40)] for name, n in (("short", 5), ("long", 8))}
    curves = {name: measure_sizes(lines, lines, [256, 264, 280, 300, 5000]) for name, lines in corpus.items()}
    assert curves["long"].realised[-1] < 5000 and curves["long"].count_at(264) > curves["long"].count_at(300)
    for name, curve in curves.items():  # one training and truncation = a training per size
        slow = measure_sizes(corpus[name], corpus[name], curve.asked, train=lambda texts, size: train_bpe(texts, size))
        assert curve == slow
    laws = {name: curve.fit() for name, curve in curves.items()}
    targets = np.linspace(300, 900, 13).tolist()
    result = validate_vocabularies(laws, corpus, corpus, targets, minimum=256, maximum=300)
    assert set(result.actual) == {"short", "long"} and result.rmse >= 0
    assert result.realised == {k: int(v) for k, v in result.choice.sizes.items()}
    with pytest.raises(ValueError, match="missing"):
        validate_vocabularies(laws, {"short": []}, corpus, targets, minimum=256, maximum=300)
    with pytest.raises(ValueError, match="one of"):
        curves["long"].count_at(3)


# Predictors and regressions -----------------------------------------------------------------------------------------------


def test_predictors_by_hand():
    assert proportion_whitespace(["a b", "cd "]) == 2 / 6
    assert unique_characters(["ab a", "c"]) == 3
    assert character_entropy(["aabb"]) == 1.0 and character_entropy(["a b", "ab"], order=2) == 0.0
    assert character_entropy(["abcd"], order=2) == pytest.approx(math.log2(3))
    assert [script([x]) for x in ("hello мир", "данные", "漢字", "한국")] == ["LATIN", "CYRILLIC", "CJK", "HANGUL"]
    assert line_overlap(["a", "b"], ["b", "c", "c", "b"]) == 0.5
    tokenizer = train_bpe(["ab ab ab é"] * 5, 258)
    assert mean_token_length(tokenizer) == pytest.approx((256 - 64 + 2 + 2) / 258 if " ab" not in TEXT else 0, abs=0.02)
    assert mean_token_length_used(tokenizer, ["abc"]) == 1.5  # "ab", "c"
    assert data_similarity(tokenizer, ["abc"], ["ab d"]) == Counter(["ab"]).total() / 258
    row = language_predictors(tokenizer, ["ab ab"], ["ab"])
    assert (
        row["script"] == "LATIN"
        and "data_similarity" in row
        and "data_similarity" not in language_predictors(tokenizer, ["ab"])
    )
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
    assert fit.names == ("intercept", "x") and fit.coefficients[1] == pytest.approx(slope)
    assert fit.r_squared == pytest.approx(1 - residual / total)
    assert fit.standard_errors[1] == pytest.approx(math.sqrt(residual / 3 / sum((a - mx) ** 2 for a in x)))
    assert fit.p_values[1] == pytest.approx(fit.p_value) and fit.df == (1, 3)  # t squared is F
    both = regress(y, {"x": x, "script": ["LATIN", "CYRILLIC", "LATIN", "LATIN", "CYRILLIC"]})
    assert both.names == ("intercept", "x", "script=LATIN") and both.r_squared >= fit.r_squared
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


def test_counts_of_other_models_than_bpe():
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert line_counts(words, ["the cat sat", ""]).tolist() == [3, 0]
