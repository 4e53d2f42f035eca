"""What seeds and items say of a mean difference: a hierarchical bootstrap, Student's t, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenry.errors import optional

Values = NDArray[np.float64]
RESAMPLES, CONFIDENCE = 4000, 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its 95 % interval, and the one-sided p values of lying above and below a margin.

    `p_above` is small when the difference exceeds the margin, `p_below` when it does not. `vacuous`: every difference is zero.
    """

    difference: float
    low: float
    high: float
    p_above: float
    p_below: float
    vacuous: bool = False


def bootstrap_difference(
    better: Sequence[Sequence[float]],
    worse: Sequence[Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean paired difference and its percentile interval: seeds are resampled first, then items within a seed.

    Each argument holds one sequence of per-item outcomes per seed. Every seed weighs the same.
    """
    differences = _differences(better, worse)
    means = _resampled_means(differences, resamples, seed)
    return _mean(differences), *_percentiles(means, confidence)


def estimate(
    better: Sequence[Sequence[float]], worse: Sequence[Sequence[float]], margin: float, *, shared: bool = False
) -> Estimate:
    """The wider of the bootstrap and Student's t: the lower of the low ends, the higher of the high ends, the larger p values.

    Three seeds resampled reach no further than their own lowest and highest mean, which says little about a fourth; t over the
    seeds' means does, but knows nothing of the items. With one seed there is no t over seeds.

    Args:
        better: outcomes per item, one sequence per seed.
        worse: the same items in the same order.
        margin: what the p values are about.
        shared: the items are the same in every seed (languages, models): they are resampled once for all seeds together, and
            their means over the seeds get a t of their own.

    Raises:
        ValueError: nothing to compare, or `shared` with another number of items in some seed.
    """
    differences = _differences(better, worse)
    samples = [np.array([d.mean() for d in differences])]
    if shared:
        if len({d.size for d in differences}) > 1:
            raise ValueError(f"shared items must be the same in every seed, got {[d.size for d in differences]} per seed")
        samples.append(np.mean(differences, axis=0))
    means = _resampled_shared(differences, RESAMPLES, 0) if shared else _resampled_means(differences, RESAMPLES, 0)
    found = [(*_percentiles(means, CONFIDENCE), _share(means <= margin), _share(means > margin))]
    found += [_student(sample, margin) for sample in samples if sample.size > 1]
    lows, highs, above, below = (np.array(column, np.float64) for column in zip(*found, strict=True))
    vacuous = not any(d.any() for d in differences)
    return Estimate(_mean(differences), float(lows.min()), float(highs.max()), float(above.max()), float(below.max()), vacuous)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given: calling those up to a level keeps the family's error below it."""
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, np.float64)[order]
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def _differences(better: Sequence[Sequence[float]], worse: Sequence[Sequence[float]]) -> list[Values]:
    if [len(b) for b in better] != [len(w) for w in worse]:
        raise ValueError(f"better and worse must hold the same items, got {list(map(len, better))} and {list(map(len, worse))}")
    differences = [np.subtract(b, w, dtype=np.float64) for b, w in zip(better, worse, strict=True)]
    if not differences or any(d.size == 0 for d in differences):
        raise ValueError("better and worse must hold at least one seed with at least one item")
    return differences


def _mean(differences: Sequence[Values]) -> float:
    return float(np.mean([d.mean() for d in differences]))


def _resampled_means(differences: Sequence[Values], resamples: int, seed: int) -> Values:
    """Seeds with replacement, then items with replacement within each drawn seed; [resamples]."""
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for _ in differences:
        drawn = rng.integers(len(differences), size=resamples)
        for index, items in enumerate(differences):
            rows = np.flatnonzero(drawn == index)
            total[rows] += items[rng.integers(items.size, size=(rows.size, items.size))].mean(axis=1)
    return total / len(differences)


def _resampled_shared(differences: Sequence[Values], resamples: int, seed: int) -> Values:
    """Seeds with replacement and items with replacement, one draw of items for all seeds of a resample; [resamples]."""
    rng = np.random.default_rng(seed)
    table = np.stack(differences)
    seeds, items = (rng.integers(n, size=(resamples, n)) for n in table.shape)
    return np.array([table[np.ix_(s, i)].mean() for s, i in zip(seeds, items, strict=True)])


def _percentiles(means: Values, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _share(hits: NDArray[np.bool_]) -> float:
    """Share of resamples on the wrong side, the observed one counted with them, so that it is never zero."""
    return float(hits.sum() + 1) / (hits.size + 1)


def _student(sample: Values, margin: float) -> tuple[float, float, float, float]:
    """Student's t over independent means: 95 % interval, p of lying at or below `margin`, p of lying above it."""
    center, error = float(sample.mean()), float(sample.std(ddof=1)) / sample.size**0.5
    if error == 0.0:
        return center, center, float(center <= margin), float(center > margin)
    t = optional("scipy.stats", "lab").t(sample.size - 1)
    reach = float(t.ppf((1 + CONFIDENCE) / 2)) * error
    score = (center - margin) / error
    return center - reach, center + reach, float(t.sf(score)), float(t.cdf(score))
