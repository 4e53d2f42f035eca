"""Least squares on corpus token counts, one predictor at a time and together (section 3, table of R^2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenry.errors import optional


@dataclass(frozen=True)
class Regression:
    """Ordinary least squares with an intercept.

    Attributes:
        names: the columns, intercept first; a column of words gives one column per word but the first.
        coefficients: one per name.
        standard_errors: of the coefficients.
        p_values: two-sided t tests of the coefficients.
        r_squared: share of the variance that is explained.
        adjusted_r_squared: the same, corrected for the number of columns.
        statistic: F of the whole model.
        df: its degrees of freedom.
        p_value: its p.
        n: observations.
    """

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    standard_errors: tuple[float, ...]
    p_values: tuple[float, ...]
    r_squared: float
    adjusted_r_squared: float
    statistic: float
    df: tuple[int, int]
    p_value: float
    n: int


def regress(y: ArrayLike, predictors: Mapping[str, Sequence[Any]]) -> Regression:
    """Regress `y` [n] on all predictors together; a predictor of strings (such as the script) is a category.

    Raises:
        ValueError: no predictor, different lengths, values that are not finite, predictors that depend on each other or do not
            vary, a constant y, or too few observations.
        MissingDependencyError: scipy is not installed.
    """
    stats = optional("scipy.stats", "lab")
    target = np.asarray(y, np.float64).ravel()
    names, design = _design(target, predictors)
    n, columns = design.shape
    if np.linalg.matrix_rank(design / np.maximum(np.abs(design).max(axis=0), 1e-300)) < columns:
        raise ValueError(f"predictors must vary and not depend on each other, got {', '.join(names[1:])}")
    if n <= columns:
        raise ValueError(f"y must hold more than {columns} observations for {columns} coefficients, got {n}")
    coefficients, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = float(np.square(target - design @ coefficients).sum())
    total = float(np.square(target - target.mean()).sum())
    if total == 0:
        raise ValueError("y must vary, got equal values")
    df = (columns - 1, n - columns)
    r_squared = 1.0 - residual / total
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual / df[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, coefficients / errors, np.inf)
        statistic = float(np.divide((total - residual) / df[0], residual / df[1]))
    return Regression(
        names,
        tuple(coefficients.tolist()),
        tuple(errors.tolist()),
        tuple((2.0 * stats.t.sf(np.abs(t), df[1])).tolist()),
        r_squared,
        1.0 - (1.0 - r_squared) * (n - 1) / df[1],
        statistic,
        df,
        float(stats.f.sf(statistic, *df)),
        n,
    )


def regress_each(y: ArrayLike, predictors: Mapping[str, Sequence[Any]]) -> dict[str, Regression]:
    """One regression per predictor, as the paper does."""
    return {name: regress(y, {name: values}) for name, values in predictors.items()}


def _design(
    target: NDArray[np.float64], predictors: Mapping[str, Sequence[Any]]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    if not np.isfinite(target).all():
        raise ValueError("y must be finite")
    if not predictors:
        raise ValueError("predictors must hold at least one column")
    names, columns = ["intercept"], [np.ones(target.size)]
    for name, values in predictors.items():
        if len(values) != target.size:
            raise ValueError(f"predictors[{name!r}] must hold {target.size} values like y, got {len(values)}")
        if any(isinstance(value, str) for value in values):
            words = sorted(set(map(str, values)))
            for word in words[1:]:
                names.append(f"{name}={word}")
                columns.append(np.array([float(str(value) == word) for value in values]))
            if len(words) == 1:
                raise ValueError(f"predictors[{name!r}] must vary, got only {words[0]!r}")
        else:
            names.append(name)
            columns.append(np.asarray(values, np.float64))
            if not np.isfinite(columns[-1]).all():
                raise ValueError(f"predictors[{name!r}] must be finite")
    return tuple(names), np.stack(columns, axis=1)
