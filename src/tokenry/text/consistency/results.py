"""Trials of the probe and what they add up to."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

from tokenry.core.checks import check_int, check_range
from tokenry.errors import optional
from tokenry.text.consistency.edits import ARTEFACTS, OUTCOMES, SHAPES

UNALIGNABLE = "unalignable"


@dataclass(frozen=True)
class Trial:
    """One target word.

    Attributes:
        passage: number of the passage; `target`: number of the target in it.
        word: the word; `written`: what stands in its place, "" where that cannot be told.
        outcome: one of OUTCOMES or ``unalignable``.
        artefact: type of a phantom edit, else None.
        shape: ``same``, ``split``, ``merge``; None where unalignable.
        before, after: ids of the word in the prompt and ids generated in its place.
        looks_same: a real edit that NFKC undoes: another string with the same look.
    """

    passage: int
    target: int
    word: str
    written: str
    outcome: str
    artefact: str | None
    shape: str | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    looks_same: bool = False


@dataclass(frozen=True)
class Rate:
    """A share with its Wilson interval; NaN throughout without trials."""

    count: int
    trials: int
    value: float
    low: float
    high: float


def wilson(count: int, trials: int, *, confidence: float = 0.95) -> Rate:
    """Binomial share `count` / `trials` with the Wilson score interval.

    Raises:
        ValueError: `count` is not in 0..trials.
    """
    check_int("trials", trials, minimum=0)
    check_int("count", count, minimum=0, maximum=trials)
    check_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    if not trials:
        return Rate(0, 0, math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = count / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / weight
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) / weight
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == trials else min(1.0, middle + half)
    return Rate(count, trials, share, low, high)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        trials: every target of every passage, in order.
        outputs: generated ids per passage, as they were sampled; `texts`: what they spell.
        canonical_tokens: share of the generated tokens that the tokenizer's own encoding of the output has too (or NaN).
        canonical_outputs: share of the outputs that are their own encoding.
        settings: settings of the run.
    """

    trials: tuple[Trial, ...]
    outputs: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    canonical_tokens: float
    canonical_outputs: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def aligned(self) -> list[Trial]:
        """Trials that count."""
        return [trial for trial in self.trials if trial.outcome != UNALIGNABLE]

    @property
    def aligned_share(self) -> float:
        """Aligned targets / all targets."""
        return len(self.aligned) / len(self.trials) if self.trials else math.nan

    def rates(self, *, confidence: float = 0.95) -> dict[str, Rate]:
        """Share of every outcome among the aligned trials; the three add up to 1. NaN with a warning when none is aligned."""
        if not self.aligned:
            warnings.warn(f"none of {len(self.trials)} targets could be aligned, rates are NaN", stacklevel=2)
        counts = Counter(trial.outcome for trial in self.aligned)
        return {name: wilson(counts[name], len(self.aligned), confidence=confidence) for name in OUTCOMES}

    def artefacts(self) -> dict[str, int]:
        """Number of phantom edits of every type."""
        counts = Counter(trial.artefact for trial in self.phantoms)
        return {name: counts[name] for name in ARTEFACTS}

    def shapes(self) -> dict[str, int]:
        """Number of phantom edits of every shape, and of those with one token on both sides ("1->1", part of "same")."""
        counts = Counter(trial.shape for trial in self.phantoms)
        single = sum(len(trial.before) == len(trial.after) == 1 for trial in self.phantoms)
        return {name: counts[name] for name in SHAPES} | {"1->1": single}

    @property
    def phantoms(self) -> list[Trial]:
        """Trials with the outcome ``different``."""
        return [trial for trial in self.trials if trial.outcome == "different"]

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain row per trial."""
        return [asdict(trial) for trial in self.trials]

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        columns = list(Trial.__dataclass_fields__)
        return optional("pandas", "lab").DataFrame(self.to_rows(), columns=columns)


def merge_results(results: Sequence[ProbeResult]) -> ProbeResult:
    """Several runs as one; passages are numbered on."""
    if not results:
        raise ValueError("results must hold at least one result, got none")
    trials: list[Trial] = []
    outputs: list[tuple[int, ...]] = []
    texts: list[str] = []
    for result in results:
        trials += [replace(trial, passage=trial.passage + len(outputs)) for trial in result.trials]
        outputs += result.outputs
        texts += result.texts
    tokens = [sum(map(len, result.outputs)) for result in results]
    made = [len(result.outputs) for result in results]
    return ProbeResult(
        tuple(trials),
        tuple(outputs),
        tuple(texts),
        _mean([r.canonical_tokens for r in results], tokens),
        _mean([r.canonical_outputs for r in results], made),
        dict(results[0].settings),
    )


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else math.nan
