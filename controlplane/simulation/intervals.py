"""Means over seeds with 95 % confidence intervals (Student's t), and differences of policies on the same seeds.

All policies meet the same flows in one seed (common random numbers): what differs between seeds cancels in paired
differences, which are therefore much surer than the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Quantiles of Student's t at 97.5 %, for 1 … 10 degrees of freedom; beyond, the first terms of its expansion do.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the half width of its 95 % confidence interval; nan where one sample tells none."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate(values: ArrayLike) -> Estimate:
    """Return the mean of independent values."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Estimate(float(x[0]) if len(x) else math.nan, math.nan)
    return Estimate(float(x.mean()), student(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x)))


def relative(values: ArrayLike, base: ArrayLike) -> Estimate:
    """Return mean(values) / mean(base) − 1, of values that belong together pairwise (delta method)."""
    x, y = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
    mean = float(y.mean()) if len(y) else math.nan
    if not mean > 0:
        return Estimate(math.nan, math.nan)
    ratio = float(x.mean()) / mean
    # x − ratio·y has mean 0, and its spread is that of the ratio, times the mean of y.
    return Estimate(ratio - 1, estimate(x - ratio * y).half / mean)
