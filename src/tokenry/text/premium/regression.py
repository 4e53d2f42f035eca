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
        MissingDependencyError: statsmodels is not installed.
    """
    models: Any = optional("statsmodels.regression.linear_model", "lab")
    target = np.asarray(y, np.float64).ravel()
    names, design = _design(target, predictors)
    n, columns = design.shape
    if np.linalg.matrix_rank(design / np.maximum(np.abs(design).max(axis=0), 1e-300)) < columns:
        raise ValueError(f"predictors must vary and not depend on each other, got {', '.join(names[1:])}")
    if n <= columns:
        raise ValueError(f"y must hold more than {columns} observations for {columns} coefficients, got {n}")
    if np.ptp(target) == 0:
        raise ValueError("y must vary, got equal values")
    with np.errstate(divide="ignore", invalid="ignore"):  # of a perfect fit
        fit = models.OLS(target, design).fit()
        return Regression(
            names=names,
            coefficients=tuple(fit.params.tolist()),
            standard_errors=tuple(fit.bse.tolist()),
            p_values=tuple(fit.pvalues.tolist()),
            r_squared=float(fit.rsquared),
            adjusted_r_squared=float(fit.rsquared_adj),
            statistic=float(fit.fvalue),
            df=(columns - 1, n - columns),
            p_value=float(fit.f_pvalue),
            n=n,
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
