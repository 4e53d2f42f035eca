"""The statistics of claims against scipy, against worked numbers, and against the truth they are to cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenry.lab.evidence.intervals import bootstrap_difference, estimate, holm


def zeros(rows):
    return [[0.0] * len(row) for row in rows]


def test_the_bootstrap_of_one_seed_is_scipys():
    """One level, percentile method, the same generator: equal to the last digits, so that no scaling or shift can hide."""
    items = np.random.default_rng(3).normal(0.2, 1.0, 60)
    mean, low, high = bootstrap_difference([items.tolist()], [[0.0] * 60], resamples=1500, seed=7)
    peer = stats.bootstrap((items,), np.mean, n_resamples=1500, method="percentile", rng=np.random.default_rng(7))
    assert mean == pytest.approx(items.mean(), rel=1e-12)
    assert (low, high) == pytest.approx(tuple(peer.confidence_interval), rel=1e-12)


def test_seeds_are_the_first_level():
    """Items without spread leave only the seeds: of three seeds every resample is one of ten means."""
    rows = [[0.0] * 5, [3.0] * 5, [6.0] * 5]
    mean, low, high = bootstrap_difference(rows, zeros(rows), confidence=0.8)
    assert mean == 3.0
    assert (low, high) == (1.0, 5.0)  # P(mean <= 0) = 1/27, P(mean <= 1) = 4/27


def test_student_over_the_seeds_widens_what_three_seeds_cannot_carry():
    rows = [[m - 0.01, m + 0.01] for m in (0.10, 0.20, 0.30)]
    found = estimate(rows, zeros(rows), 0.0)
    reach = 4.302652729911275 * 0.1 / 3**0.5  # t(.975, 2) of a table
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach))
    peer = stats.ttest_1samp([0.10, 0.20, 0.30], 0.0, alternative="greater")
    assert found.p_above == pytest.approx(peer.pvalue)
    assert found.p_below == pytest.approx(1.0, abs=1e-9)
    _, low, high = bootstrap_difference(rows, zeros(rows))
    assert found.low < low
    assert found.high > high


def test_the_bootstrap_widens_what_three_equal_seeds_hide():
    """Seeds that agree by chance make t blind; the spread of the items stays."""
    items = np.random.default_rng(0).normal(0.5, 1.0, 30)
    rows = [items.tolist()] * 3
    found = estimate(rows, zeros(rows), 0.0)
    assert (found.low, found.high) == pytest.approx(bootstrap_difference(rows, zeros(rows))[1:])
    assert found.high - found.low > 0.1


def test_each_end_is_taken_from_the_wider_of_the_two():
    """Skewed items reach further than t on one side only."""
    rows = [[0.0] * 9 + [10.0 + s] for s in (0.0, 2.0, 4.0)]
    found = estimate(rows, zeros(rows), 0.0)
    mean, low, high = bootstrap_difference(rows, zeros(rows))
    t_low, t_high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem([1.0, 1.2, 1.4]))
    assert found.low == pytest.approx(min(low, t_low))
    assert found.high == pytest.approx(max(high, t_high))
    assert found.high == pytest.approx(high)
    assert low < t_low


def test_one_seed_has_no_student():
    rows = [np.random.default_rng(1).normal(0.3, 1.0, 40).tolist()]
    found = estimate(rows, zeros(rows), 0.0)
    assert (found.low, found.high) == bootstrap_difference(rows, zeros(rows))[1:]
    assert 0.0 < found.p_above < 1.0


def test_units_that_all_seeds_share_are_resampled_together():
    """The same ten languages in three seeds are ten, not thirty."""
    languages = np.random.default_rng(2).normal(0.0, 1.0, 10)
    rows = [(languages + shift).tolist() for shift in (-0.01, 0.0, 0.01)]
    own, shared = (estimate(rows, zeros(rows), 0.0, shared=s) for s in (False, True))
    assert shared.high - shared.low > 1.5 * (own.high - own.low)
    t_low, t_high = stats.t.interval(0.95, 9, loc=languages.mean(), scale=stats.sem(languages))
    assert shared.low <= t_low
    assert shared.high >= t_high
    with pytest.raises(ValueError, match=r"shared items must be the same in every seed, got \[2, 1\]"):
        estimate([[1.0, 2.0], [1.0]], [[0.0, 0.0], [0.0]], 0.0, shared=True)


def test_differences_that_are_all_zero_are_vacuous():
    same = [[0.3, 0.7], [0.1, 0.2]]
    found = estimate(same, same, -0.1)
    assert found.vacuous
    assert (found.low, found.high) == (0.0, 0.0)
    assert not estimate([[0.3, 0.7], [0.1, 0.3]], same, -0.1).vacuous


@pytest.mark.parametrize("better", [[], [[]], [[1.0], []]])
def test_nothing_to_compare_is_refused(better):
    with pytest.raises(ValueError, match="at least one seed with at least one item"):
        estimate(better, better, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), seeds=st.integers(1, 5), items=st.integers(1, 12), margin=st.floats(-1, 1),
    shared=st.booleans(),
)  # fmt: skip
def test_p_values_and_the_interval_agree(seed, seeds, items, margin, shared):
    """A small p value on one side means that the whole interval lies there; both sides are never small at once."""
    rows = np.random.default_rng(seed).normal(0.2, 1.0, (seeds, items)).tolist()
    found = estimate(rows, zeros(rows), margin, shared=shared)
    assert found.low <= found.difference + 1e-12
    assert found.high >= found.difference - 1e-12
    assert found.p_above > 0.025 or found.low > margin
    assert found.p_below > 0.025 or found.high <= margin
    assert found.p_above + found.p_below >= 1.0 - 1e-9


def test_the_interval_of_three_seeds_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = {"both": 0, "bootstrap": 0}
    for _ in range(200):
        runs = (rng.normal(0.3, 1.0, (3, 40)) + rng.normal(0, 0.4, (3, 1))).tolist()
        found = estimate(runs, zeros(runs), 0.0)
        _, low, high = bootstrap_difference(runs, zeros(runs), resamples=400)
        covered["both"] += found.low <= 0.3 <= found.high
        covered["bootstrap"] += low <= 0.3 <= high
    assert covered["both"] / 200 >= 0.94
    assert covered["bootstrap"] / 200 < 0.9


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_one_test_and_bonferroni(p_values):
    adjusted = holm(p_values)
    assert [adjusted[i] for i in np.argsort(p_values)] == sorted(adjusted)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= 1.0
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))
