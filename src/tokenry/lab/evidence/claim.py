"""Claims: a paper's headline effect as a testable sentence, and the statistics that decide it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from tokenry.core.progress import Progress
from tokenry.lab.evidence.intervals import Estimate, estimate, holm

Scale = Literal["smoke", "small", "paper"]
Verdict = Literal["holds", "inconclusive", "fails", "vacuous"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")
ERROR = 0.025
"""One-sided error of a family of contrasts, once for calling any of them held and once for calling any failed."""


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
    """A contrast with its estimate, 95 % interval and verdict.

    Attributes:
        p: one-sided, on the side of the margin where the difference lies, adjusted (Holm) for the other contrasts of the claim.
        basis: what the interval rests on; with one seed it says nothing about another seed.
    """

    name: str
    better: str
    worse: str
    margin: float
    difference: float
    low: float
    high: float
    p: float
    basis: Literal["seeds and items", "items of one seed"]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Claim(ABC):
    """A paper's headline effect. Subclasses fill the attributes and measure one seed at a time.

    `unit` names what an item stands for where it is the same in every seed (a language, a model). Such units are resampled once
    for all seeds together; items are drawn anew in every seed, and resampled within it.
    """

    system: str
    statement: str
    metric: str
    contrasts: tuple[Contrast, ...]
    competence: Competence | None = None
    unit: str = "item"
    assets: tuple[str, ...] = ()

    @abstractmethod
    def settings(self, scale: Scale) -> dict[str, Any]:
        """Sizes that belong to a scale; they are recorded, and a result made with others is not resumed."""

    @abstractmethod
    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Measure every arm once under `seed`; call ``progress(message, fraction)`` on the way."""


def compare(contrast: Contrast, measurements: Sequence[Measurement], *, shared: bool = False) -> Comparison:
    """Decide one contrast on its own over the seeds measured so far."""
    return compare_all([contrast], measurements, shared=shared)[0]


def compare_all(
    contrasts: Sequence[Contrast], measurements: Sequence[Measurement], *, shared: bool = False
) -> list[Comparison]:
    """Decide a family of contrasts over the seeds measured so far.

    Every contrast is tested on both sides of its margin. The chance to call any of them held that is not is at most `ERROR`,
    and so is the chance to call any failed that is not (Holm). A vacuous one counts in the family and is never decided.
    """
    found = [_estimate(contrast, measurements, shared) for contrast in contrasts]
    above = holm([1.0 if e.vacuous else e.p_above for e in found])
    below = holm([1.0 if e.vacuous else e.p_below for e in found])
    basis = "seeds and items" if len(measurements) > 1 else "items of one seed"
    comparisons = []
    for contrast, e, p_above, p_below in zip(contrasts, found, above, below, strict=True):
        verdict = "vacuous" if e.vacuous else "holds" if p_above <= ERROR else "fails" if p_below <= ERROR else "inconclusive"
        p = p_above if e.difference > contrast.margin else p_below
        comparisons.append(
            Comparison(**asdict(contrast), difference=e.difference, low=e.low, high=e.high, p=p, basis=basis, verdict=verdict)
        )
    return comparisons


def _estimate(contrast: Contrast, measurements: Sequence[Measurement], shared: bool) -> Estimate:
    for arm in (contrast.better, contrast.worse):
        missing = [i for i, m in enumerate(measurements) if arm not in m.arms]
        if missing:
            raise ValueError(f"contrast {contrast.name!r} needs arm {arm!r}, missing in measurement {missing[0]}")
    better, worse = ([m.arms[arm] for m in measurements] for arm in (contrast.better, contrast.worse))
    return estimate(better, worse, contrast.margin, shared=shared)


def judge(claim: Claim, measurements: Sequence[Measurement]) -> tuple[Verdict, str, list[Comparison]]:
    """Verdict of a claim, the reason for it, and its comparisons.

    A claim holds when all its contrasts hold and fails when any fails. Without a competent reference, or with a contrast that
    is undecided or vacuous, it is inconclusive. Its verdict is never ``vacuous``.
    """
    comparisons = compare_all(claim.contrasts, measurements, shared=claim.unit != "item")
    if claim.competence is not None:
        arm, minimum = claim.competence.arm, claim.competence.minimum
        reached = float(np.mean([np.mean(m.arms[arm]) for m in measurements]))
        if reached < minimum:
            return "inconclusive", f"the reference {arm} reached {reached:.3f}, below the bar of {minimum:g}", comparisons
    verdict, reason = _sum_up(comparisons)
    alone = "" if len(measurements) > 1 else " (one seed: its items alone, nothing about other seeds)"
    return verdict, reason + alone, comparisons


def _sum_up(comparisons: Sequence[Comparison]) -> tuple[Verdict, str]:
    failed = [c.name for c in comparisons if c.verdict == "fails"]
    if failed:
        return "fails", f"fails: {'; '.join(failed)}"
    open_ones = [c for c in comparisons if c.verdict == "inconclusive"]
    reasons = {
        "interval includes the margin": [c.name for c in open_ones if c.low <= c.margin < c.high],
        f"clear alone, not among {len(comparisons)} contrasts": [c.name for c in open_ones if not c.low <= c.margin < c.high],
        "every difference is zero": [c.name for c in comparisons if c.verdict == "vacuous"],
    }
    said = ". ".join(f"{reason}: {'; '.join(names)}" for reason, names in reasons.items() if names)
    return ("inconclusive", said) if said else ("holds", "every contrast clears its margin")
