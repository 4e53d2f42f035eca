"""How many tokens a vocabulary size costs, and the size that reaches a wanted count (appendix J).

CTC(V) = a * V^(-b) + c, fitted per language by least squares. The paper says "power law" with an asymptote; this form is
inferred. A target T asks for V* = ((T - c) / a)^(-1/b); a target at or below c is never reached (largest size), one above the
worst observed count needs no more than the smallest size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenry.core.checks import check_int, check_range

Reach = Literal["reached", "unreachable", "easy", "clamped"]
PAPER_TARGETS = tuple(range(50_000, 75_000, 1_000))  # for the evaluation text of the paper


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve ``a * V**-b + c``.

    Attributes:
        a: scale.
        b: exponent; negative in a bad fit.
        c: asymptote, the count that no vocabulary gets below; 0 in a fit without one.
        vocabulary_sizes: realised sizes that were fitted, ascending.
        counts: corpus token counts at those sizes.
        rmse: root mean square of the residuals, in tokens.
        flags: what is wrong with the fit; empty for a good one. ``negative_exponent``, ``negative_scale``,
            ``asymptote_above_minimum`` (c above the smallest count), ``negative_asymptote``, ``not_monotone`` (a count
            that rises with the size), ``degenerate`` (the exponent ran to the end of its range).
    """

    a: float
    b: float
    c: float
    vocabulary_sizes: tuple[float, ...]
    counts: tuple[float, ...]
    rmse: float
    flags: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the curve falls towards an asymptote below what was observed."""
        return not set(self.flags) & {"negative_exponent", "negative_scale", "asymptote_above_minimum"}

    def predict(self, vocabulary_size: float) -> float:
        """Count on the curve at a size."""
        check_range("vocabulary_size", vocabulary_size, 0.0, low_open=True)
        return self.a * float(vocabulary_size) ** -self.b + self.c

    def reach(self, target: float, minimum: float = 8192, maximum: float = 262_144) -> Reach:
        """Whether a target is ``reached`` inside the range, ``unreachable``, ``easy`` (worse than observed) or ``clamped``."""
        size, reach = self._solve(target, minimum, maximum)
        return "clamped" if reach == "reached" and not minimum <= size <= maximum else reach

    def vocabulary_for(
        self, target: float, minimum: float = 8192, maximum: float = 262_144, multiple: int | None = None
    ) -> float:
        """The vocabulary size whose predicted count is `target`.

        Args:
            target: wanted corpus token count.
            minimum: smallest size; also the answer for a target above the worst observed count.
            maximum: largest size; also the answer for a target at or below the asymptote.
            multiple: round to the nearest multiple (128 suits hardware; 1 gives whole sizes) within the range. None, as in the
                paper, leaves the solution as it is, a fraction.

        Raises:
            ValueError: a target that is not above 0, an empty range, or no multiple inside it.
        """
        size = min(max(self._solve(target, minimum, maximum)[0], float(minimum)), float(maximum))
        if multiple is None:
            return size
        check_int("multiple", multiple, 1)
        least, most = math.ceil(minimum / multiple), math.floor(maximum / multiple)
        if least > most:
            raise ValueError(f"multiple must have a multiple between {minimum} and {maximum}, got {multiple}")
        return min(max(math.floor(size / multiple + 0.5), least), most) * multiple

    def predicted_count(
        self, target: float, minimum: float = 8192, maximum: float = 262_144, multiple: int | None = None
    ) -> float:
        """Count expected at ``vocabulary_for(target)``; the one observed where that is an end of the range.

        Where the smallest or largest size was not measured, the curve stands in for the observation.
        """
        size = self.vocabulary_for(target, minimum, maximum, multiple)
        if self.reach(target, minimum, maximum) != "reached" and size in self.vocabulary_sizes:
            return self.counts[self.vocabulary_sizes.index(size)]
        return self.predict(size)

    def _solve(self, target: float, minimum: float, maximum: float) -> tuple[float, Reach]:
        check_range("target", target, 0.0, low_open=True)
        check_range("minimum", minimum, 1.0)
        check_range("maximum", maximum, float(minimum))
        if target > max(self.counts):
            return float(minimum), "easy"
        ratio = (target - self.c) / self.a if self.a else -1.0
        if target <= self.c or ratio <= 0.0 or self.b == 0.0:
            return float(maximum), "unreachable"
        exponent = -math.log(ratio) / self.b
        return math.exp(min(exponent, 700.0)), "reached"


def fit_power_law(vocabulary_sizes: ArrayLike, counts: ArrayLike, *, asymptote: bool = True) -> PowerLaw:
    """Fit ``a * V**-b + c`` to the counts of one language by least squares.

    Args:
        vocabulary_sizes: realised sizes [n], all different (a trainer may stop early: give the size it reached).
        counts: corpus token counts [n].
        asymptote: False fits ``a * V**-b`` alone, which needs two sizes instead of three.

    Returns:
        The curve. A fit that makes no sense is returned with its flags, not refused.

    Raises:
        ValueError: too few sizes, equal sizes, different lengths, or values that are not finite and above 0.
    """
    v, y = (np.asarray(x, np.float64).ravel() for x in (vocabulary_sizes, counts))
    _check_points(v, y, 3 if asymptote else 2)
    order = np.argsort(v)
    v, y = v[order], y[order]
    middle = float(np.exp(np.log(v).mean()))  # V / middle keeps the powers near 1
    columns = _columns(v / middle, asymptote)
    b = _best_exponent(columns, y)
    (scale, c), residual = _linear(columns(b), y)
    a = scale * middle**b
    law = PowerLaw(a, b, c, tuple(v.tolist()), tuple(y.tolist()), math.sqrt(residual / v.size))
    return PowerLaw(a, b, c, law.vocabulary_sizes, law.counts, law.rmse, _flags(law))


def _check_points(v: NDArray[np.float64], y: NDArray[np.float64], least: int) -> None:
    if v.size != y.size:
        raise ValueError(f"counts must hold one value per size, got {y.size} for {v.size}")
    if v.size < least:
        hint = " (asymptote=False needs two)" if least == 3 else ""
        raise ValueError(f"vocabulary_sizes must hold at least {least} sizes{hint}, got {v.size}")
    for name, values in (("vocabulary_sizes", v), ("counts", y)):
        if not np.isfinite(values).all() or (values <= 0).any():
            raise ValueError(f"{name} must be finite and above 0, got {values.tolist()}")
    if len(set(v.tolist())) < v.size:
        raise ValueError(f"vocabulary_sizes must differ, got {v.tolist()}")


_LIMIT = 12.0  # exponents beyond this make a step, not a curve


def _columns(v: NDArray[np.float64], asymptote: bool) -> Callable[[float], NDArray[np.float64]]:
    logs = np.log(v)
    ones = np.ones_like(v)

    def design(b: float) -> NDArray[np.float64]:
        power = np.exp(-b * logs)
        return np.stack([power, ones], axis=1) if asymptote else power[:, None]

    return design


def _linear(design: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Best (a, c) for a given exponent, and the squared residuals: the curve is linear in them."""
    if design.shape[1] == 1:
        power = design[:, 0]
        a, c = float(power @ y / (power @ power)), 0.0
    else:
        power = design[:, 0] - design[:, 0].mean()
        spread = float(power @ power)
        a = float(power @ (y - y.mean()) / spread) if spread > 0 else 0.0
        c = float(y.mean() - a * design[:, 0].mean())
    return (a, c), float(np.square(y - a * design[:, 0] - c).sum())


def _best_exponent(columns: Callable[[float], NDArray[np.float64]], y: NDArray[np.float64]) -> float:
    """Exponent of least squared residuals: a grid on both sides of zero, then golden sections around its best point."""
    side = np.geomspace(1e-3, _LIMIT, 400)
    grid = np.concatenate([-side[::-1], side])
    loss = [_linear(columns(float(b)), y)[1] for b in grid]
    best = int(np.argmin(loss))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, grid.size - 1)])
    return _polish(columns, y, _golden(lambda b: _linear(columns(b), y)[1], low, high))


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(80):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2.0


def _polish(columns: Callable[[float], NDArray[np.float64]], y: NDArray[np.float64], b: float) -> float:
    """Gauss-Newton steps on (a, c, b): golden sections alone stop at half the digits."""
    loss = _linear(columns(b), y)[1]
    for _ in range(20):
        design = columns(b)
        (a, c), _ = _linear(design, y)
        slope = (columns(b + 1e-6)[:, 0] - columns(b - 1e-6)[:, 0]) / 2e-6
        jacobian = np.column_stack([design, a * slope])
        step = float(np.linalg.lstsq(jacobian, y - a * design[:, 0] - c, rcond=None)[0][-1])
        trial = _linear(columns(b + step), y)[1]
        if not np.isfinite(step) or abs(b + step) > _LIMIT or trial >= loss:
            return b
        b, loss = b + step, trial
    return b


def _flags(law: PowerLaw) -> tuple[str, ...]:
    checks = {
        "negative_exponent": law.b <= 0,
        "negative_scale": law.a <= 0,
        "asymptote_above_minimum": law.c > min(law.counts),
        "negative_asymptote": law.c < 0,
        "not_monotone": any(later > earlier for earlier, later in zip(law.counts, law.counts[1:], strict=False)),
        "degenerate": abs(law.b) >= 0.99 * _LIMIT or abs(law.b) <= 1.1e-3,
    }
    return tuple(name for name, wrong in checks.items() if wrong)


@dataclass(frozen=True)
class TargetChoice:
    """The target of least predicted variance, and what every target would give.

    Attributes:
        target: the chosen one; the first of equals.
        sizes: vocabulary size per language at that target.
        predicted: predicted count per language.
        reach: per language, see `PowerLaw.reach`.
        variances: target -> variance of the predicted counts over languages (n - 1).
    """

    target: float
    sizes: dict[str, float]
    predicted: dict[str, float]
    reach: dict[str, Reach]
    variances: dict[float, float]


def choose_target(
    laws: Mapping[str, PowerLaw],
    targets: Sequence[float],
    *,
    minimum: float = 8192,
    maximum: float = 262_144,
    multiple: int | None = None,
) -> TargetChoice:
    """Choose the common corpus token count whose predicted counts vary least over languages.

    Args:
        laws: one fit per language, at least two.
        targets: counts to try; ``PAPER_TARGETS`` are those of the paper, for its own text.
        minimum: smallest vocabulary.
        maximum: largest vocabulary.
        multiple: see `PowerLaw.vocabulary_for`.

    Raises:
        ValueError: fewer than two languages or no targets.
    """
    if len(laws) < 2:
        raise ValueError(f"laws must hold at least two languages, got {len(laws)}")
    if not len(targets):
        raise ValueError("targets must hold at least one count")

    def predicted(target: float) -> dict[str, float]:
        return {name: law.predicted_count(target, minimum, maximum, multiple) for name, law in laws.items()}

    variances = {float(t): float(np.var(list(predicted(t).values()), ddof=1)) for t in targets}
    best = min(variances, key=variances.__getitem__)
    return TargetChoice(
        best,
        {name: law.vocabulary_for(best, minimum, maximum, multiple) for name, law in laws.items()},
        predicted(best),
        {name: law.reach(best, minimum, maximum) for name, law in laws.items()},
        variances,
    )
