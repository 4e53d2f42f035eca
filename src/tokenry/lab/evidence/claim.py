"""Claims: a paper's headline effect as a testable sentence, and the statistics that decide it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Scale = Literal["smoke", "small", "paper"]
Verdict = Literal["holds", "inconclusive", "fails"]
Progress = Callable[[str, float], None]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Contrast:
    """One sentence of a claim: the mean of ``better - worse`` exceeds `margin`.

    A margin of 0 asks for superiority, a negative one for non-inferiority by that much, a positive one for a minimum effect.
    """

    name: str
    better: str
    worse: str
    margin: float = 0.0


@dataclass(frozen=True)
class Competence:
    """The reference arm must reach this mean before any comparison counts."""

    arm: str
    minimum: float


@dataclass
class Measurement:
    """What one seed measured.

    Attributes:
        arms: arm name -> outcome per item, higher is better; the same items in the same order in every arm.
        facts: anything else worth recording (accuracies, bytes, milliseconds, counts).
    """

    arms: dict[str, list[float]]
    facts: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.arms.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values() or not lengths:
            raise ValueError(f"arms must hold the same items (at least one) each, got lengths {lengths}")
        for name, values in self.arms.items():
            if not np.isfinite(values).all():
                raise ValueError(f"arms[{name!r}] must be finite")


@dataclass(frozen=True)
class Comparison:
    """A contrast with its estimate, 95 % interval and verdict."""

    name: str
    better: str
    worse: str
    margin: float
    difference: float
    low: float
    high: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Claim(ABC):
    """A paper's headline effect. Subclasses fill the attributes and measure one seed at a time."""

    system: str
    statement: str
    metric: str
    contrasts: tuple[Contrast, ...]
    competence: Competence | None = None
    assets: tuple[str, ...] = ()

    @abstractmethod
    def settings(self, scale: Scale) -> dict[str, Any]:
        """Sizes that belong to a scale; they are recorded, and a result made with others is not resumed."""

    @abstractmethod
    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Measure every arm once under `seed`; call ``progress(message, fraction)`` on the way."""


def bootstrap_difference(
    better: Sequence[Sequence[float]],
    worse: Sequence[Sequence[float]],
    *,
    resamples: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean paired difference and its percentile interval: seeds are resampled first, then items within a seed.

    Each argument holds one sequence of per-item outcomes per seed. Every seed weighs the same.
    """
    differences = [np.subtract(b, w, dtype=np.float64) for b, w in zip(better, worse, strict=True)]
    if not differences or any(d.size == 0 for d in differences):
        raise ValueError("better and worse must hold at least one seed with at least one item")
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for _ in differences:
        drawn = rng.integers(len(differences), size=resamples)
        for index, items in enumerate(differences):
            rows = np.flatnonzero(drawn == index)
            total[rows] += items[rng.integers(items.size, size=(rows.size, items.size))].mean(axis=1)
    means = total / len(differences)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.mean([d.mean() for d in differences])), float(low), float(high)


def compare(contrast: Contrast, measurements: Sequence[Measurement]) -> Comparison:
    """Decide one contrast over the seeds measured so far."""
    for arm in (contrast.better, contrast.worse):
        missing = [i for i, m in enumerate(measurements) if arm not in m.arms]
        if missing:
            raise ValueError(f"contrast {contrast.name!r} needs arm {arm!r}, missing in measurement {missing[0]}")
    difference, low, high = bootstrap_difference(
        [m.arms[contrast.better] for m in measurements], [m.arms[contrast.worse] for m in measurements]
    )
    verdict: Verdict = "holds" if low > contrast.margin else "fails" if high <= contrast.margin else "inconclusive"
    return Comparison(contrast.name, contrast.better, contrast.worse, contrast.margin, difference, low, high, verdict)


def judge(claim: Claim, measurements: Sequence[Measurement]) -> tuple[Verdict, str, list[Comparison]]:
    """Verdict of a claim, the reason for it, and its comparisons.

    A claim holds when all its contrasts hold and fails when any fails; without a competent reference it is inconclusive.
    """
    comparisons = [compare(contrast, measurements) for contrast in claim.contrasts]
    if claim.competence is not None:
        arm, minimum = claim.competence.arm, claim.competence.minimum
        reached = float(np.mean([np.mean(m.arms[arm]) for m in measurements]))
        if reached < minimum:
            return "inconclusive", f"the reference {arm} reached {reached:.3f}, below the bar of {minimum:g}", comparisons
    by_verdict: Mapping[str, list[str]] = {
        v: [c.name for c in comparisons if c.verdict == v] for v in ("holds", "inconclusive", "fails")
    }
    if by_verdict["fails"]:
        return "fails", f"fails: {'; '.join(by_verdict['fails'])}", comparisons
    if by_verdict["inconclusive"]:
        return "inconclusive", f"interval includes the margin: {'; '.join(by_verdict['inconclusive'])}", comparisons
    return "holds", "every interval clears its margin", comparisons
