"""How unequal counts are: premiums, byte premiums, dispersion, the F test of two variances, bootstrap intervals (section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenry.core.checks import check_int, check_range
from tokenry.errors import optional
from tokenry.lazy import suggest
from tokenry.text.premium.counting import check_parallel


def token_premium(counts: Mapping[str, float], reference: str) -> dict[str, float]:
    """Tokens of each language over those of `reference` for the same content; 1 for the reference itself.

    Args:
        counts: language -> corpus token count (what ``CorpusCounts.totals`` holds).
        reference: one of the languages.

    Raises:
        ValueError: an unknown reference, a reference count of 0, or a count that is negative or not finite.
    """
    values = _counts(counts)
    if reference not in values:
        raise ValueError(f"reference must be one of the languages of counts, got {reference!r}{suggest(reference, values)}")
    if values[reference] == 0:
        raise ValueError(f"counts[{reference!r}] (the reference) must be above 0, got 0")
    return {language: count / values[reference] for language, count in values.items()}


def _counts(counts: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(counts, Mapping) or not counts:
        raise ValueError("counts must be a mapping of at least one language to its count")
    for language, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, float, np.integer, np.floating)):
            raise TypeError(f"counts[{language!r}] must be a number, got {type(count).__name__}")
        if not np.isfinite(count) or count < 0:
            raise ValueError(f"counts[{language!r}] must be finite and at least 0, got {count}")
    # Python integers stay integers: quotients of counts beyond 2**53 are still right.
    return {language: int(c) if isinstance(c, (int, np.integer)) else float(c) for language, c in counts.items()}


def byte_premium(corpus: Mapping[str, Sequence[str]], reference: str) -> dict[str, float]:
    """UTF-8 bytes of each language over those of `reference` for the same content."""
    check_parallel(corpus)
    return token_premium({k: sum(len(x.encode()) for x in v) for k, v in corpus.items()}, reference)


def length_ratio(corpus: Mapping[str, Sequence[str]], reference: str) -> dict[str, float]:
    """Code points of each language over those of `reference` for the same content."""
    check_parallel(corpus)
    return token_premium({k: sum(map(len, v)) for k, v in corpus.items()}, reference)


def byte_coefficient(lines: Sequence[str]) -> float:
    """UTF-8 bytes per code point.

    Raises:
        ValueError: the lines hold no character.
    """
    characters = sum(map(len, lines))
    if not characters:
        raise ValueError("lines must hold at least one character")
    return sum(len(line.encode()) for line in lines) / characters


def byte_corrected_premium(
    counts: Mapping[str, float], corpus: Mapping[str, Sequence[str]], reference: str
) -> dict[str, float]:
    """Token premium over byte premium: what is left after the length of the text itself; 1 for the reference."""
    tokens, sizes = token_premium(counts, reference), byte_premium(corpus, reference)
    for language in tokens:
        if language not in sizes:
            raise ValueError(f"corpus must hold every language of counts, {language!r} is missing")
        if sizes[language] == 0:
            raise ValueError(f"corpus[{language!r}] must hold at least one character")
    return {language: premium / sizes[language] for language, premium in tokens.items()}


@dataclass(frozen=True)
class Dispersion:
    """Spread of the counts over languages: the premium effect.

    Attributes:
        languages: how many.
        mean: mean count.
        variance: with n - 1 in the denominator.
        standard_deviation: its root.
        coefficient_of_variation: standard deviation over mean.
        max_over_min: largest count over smallest.
    """

    languages: int
    mean: float
    variance: float
    standard_deviation: float
    coefficient_of_variation: float
    max_over_min: float


def dispersion(counts: Mapping[str, float]) -> Dispersion:
    """Variance, standard deviation, coefficient of variation and max/min of the counts.

    Raises:
        ValueError: fewer than two languages, or a count that is not above 0.
    """
    values = _counts(counts)
    for language, count in values.items():
        if count == 0:
            raise ValueError(f"counts[{language!r}] must be above 0, got 0")
    if len(values) < 2:
        raise ValueError(f"counts must hold at least two languages, got {len(values)}")
    x = np.array(list(values.values()), np.float64)
    mean, variance = float(x.mean()), float(x.var(ddof=1))
    deviation = variance**0.5
    return Dispersion(len(x), mean, variance, deviation, deviation / mean, float(x.max() / x.min()))


@dataclass(frozen=True)
class FTest:
    """Two-sample F test of equal variances: ``statistic = var(x) / var(y)``.

    Attributes:
        statistic: ratio of the sample variances (n - 1).
        df: degrees of freedom (len(x) - 1, len(y) - 1).
        p_value: two-sided, twice the smaller tail (at most 1); the paper reports this one.
        p_greater: one-sided, chance of a ratio at least as large: small when x varies more than y.
        p_less: one-sided, chance of a ratio at most as large: small when x varies less than y.
    """

    statistic: float
    df: tuple[int, int]
    p_value: float
    p_greater: float
    p_less: float


def f_test(x: ArrayLike, y: ArrayLike) -> FTest:
    """Compare two variances by the F distribution, var(x) / var(y) with (n_x - 1, n_y - 1) degrees of freedom.

    The test assumes normal samples; Levene's test is the safer choice for heavy tails.

    Raises:
        ValueError: fewer than two values, a value that is not finite, or no variance in y.
        MissingDependencyError: scipy is not installed.
    """
    stats = optional("scipy.stats", "lab")
    first, second = _sample("x", x), _sample("y", y)
    denominator = second.var(ddof=1)
    if denominator == 0:
        raise ValueError("y must vary, got equal values")
    statistic = float(first.var(ddof=1) / denominator)
    df = (first.size - 1, second.size - 1)
    less, greater = float(stats.f.cdf(statistic, *df)), float(stats.f.sf(statistic, *df))
    return FTest(statistic, df, min(1.0, 2.0 * min(less, greater)), greater, less)


def _sample(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64).ravel()
    if array.size < 2:
        raise ValueError(f"{name} must hold at least two values, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile interval."""

    estimate: float
    low: float
    high: float


def bootstrap_totals(line_counts: Mapping[str, ArrayLike], *, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Totals [resamples, languages] of parallel lines drawn with replacement; every language gets the same lines.

    Args:
        line_counts: language -> counts [lines] (what ``CorpusCounts.tokens`` holds).
        resamples: how many draws.
        seed: seed of the draws.

    Raises:
        ValueError: languages with different numbers of lines, or none.
    """
    check_int("resamples", resamples, 1)
    if not line_counts:
        raise ValueError("line_counts must hold at least one language")
    rows = {language: np.asarray(counts, np.float64).ravel() for language, counts in line_counts.items()}
    if len({row.size for row in rows.values()}) > 1 or not next(iter(rows.values())).size:
        sizes = {language: row.size for language, row in rows.items()}
        raise ValueError(f"line_counts must hold as many lines (at least one) in every language, got {sizes}")
    table = np.stack(list(rows.values()), axis=1)
    if not np.isfinite(table).all():
        raise ValueError("line_counts must be finite")
    rng = np.random.default_rng(seed)
    lines, totals = len(table), np.empty((resamples, table.shape[1]))
    for start in range(0, resamples, 256):
        some = min(256, resamples - start)
        weights = rng.multinomial(lines, np.full(lines, 1.0 / lines), size=some)
        totals[start : start + some] = weights @ table
    return totals


def bootstrap_premium(
    line_counts: Mapping[str, ArrayLike], reference: str, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Premium of each language with a percentile interval over sentences.

    Raises:
        ValueError: see `token_premium` and `bootstrap_totals`, or a resample with no token of the reference.
    """
    check_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    premiums = token_premium({k: float(np.sum(v)) for k, v in line_counts.items()}, reference)
    totals = bootstrap_totals(line_counts, resamples=resamples, seed=seed)
    base = totals[:, list(line_counts).index(reference)]
    if (base == 0).any():
        raise ValueError(f"line_counts[{reference!r}] must have tokens in more lines: a resample drew none")
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    low, high = np.quantile(totals / base[:, None], tails, axis=0)
    return {k: Interval(p, float(low[i]), float(high[i])) for i, (k, p) in enumerate(premiums.items())}
