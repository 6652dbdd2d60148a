"""Comparisons of policies on the same seeds: paired ratios with Student's t, one-sided bounds, Holm's correction.

Figures of one seed are compared as log(x / y): all policies met the same flows, so what makes a seed hard cancels; a
ratio's logarithm is symmetric, and no seed with long times outweighs the others. The mean over the seeds, taken back,
is the geometric mean of the ratios.

Sources   Student, "The probable error of a mean", Biometrika 6(1), 1908
          Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6(2), 1979
          Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24(4), 1982: a claim that
          is an intersection ("not worse than any of them") may be tested part by part, each at the full level
          Abramowitz and Stegun 26.5.8, 26.7.1: the incomplete beta function, and t by it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
# Spread of log-ratios below which all seeds agree: what floating point leaves of equal figures.
_EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class Ratio:
    """x over y, paired by seed: the geometric mean, its two-sided 95 % interval, and one-sided 95 % bounds.

    better and worse are one-sided p-values: of a ratio as small (as great) as this, were x and y alike. nan: there are
    fewer than two seeds, or figures that are no positive numbers.
    """

    value: float
    low: float
    high: float
    lower: float  # one-sided
    upper: float
    better: float
    worse: float
    log_mean: float
    log_error: float  # standard error
    seeds: int


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function (Lentz's method)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    h = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            h *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return h


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), a, b > 0, 0 ≤ x ≤ 1."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def student_tail(t: float, freedom: int) -> float:
    """Return P(T > t) for Student's t."""
    if math.isnan(t):
        return math.nan
    square = t * t
    if square > freedom:  # of the two forms, the one that loses no digits
        half = 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + square))
    else:
        half = 0.5 - 0.5 * incomplete_beta(0.5, freedom / 2.0, square / (freedom + square))
    return half if t >= 0 else 1.0 - half


@lru_cache(maxsize=256)
def student_quantile(p: float, freedom: int) -> float:
    """Return t with P(T ≤ t) = p, 0.5 ≤ p < 1."""
    if not 0.5 <= p < 1.0 or freedom < 1:
        raise ValueError(f"expected p in [0.5, 1) and a degree of freedom, not {p} and {freedom}")
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > 1.0 - p:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if student_tail(middle, freedom) > 1.0 - p else (low, middle)
    return 0.5 * (low + high)


_NOTHING = Ratio(*(math.nan,) * 9, seeds=0)


def paired_ratio(x: ArrayLike, y: ArrayLike, confidence: float = CONFIDENCE) -> Ratio:
    """Return x over y of values that belong together seed by seed, (seeds,) each, positive.

    With a single seed only the value is known; its bounds and p-values are nan.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected as many values of both, not {a.shape} and {b.shape}")
    if len(a) == 0 or not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        return _NOTHING
    logs = np.log(a / b)
    n, mean = len(logs), float(logs.mean())
    if n == 1:
        return Ratio(math.exp(mean), *(math.nan,) * 6, log_mean=mean, log_error=math.nan, seeds=1)
    error = float(logs.std(ddof=1)) / math.sqrt(n)
    if error < _EQUAL:
        # Every seed says the same. Alike is no better than alike; else no test is needed.
        mean = 0.0 if abs(mean) < _EQUAL else mean
        value, better = math.exp(mean), 1.0 if mean == 0 else float(mean > 0)
        return Ratio(*(value,) * 5, better, 1.0 if mean == 0 else 1.0 - better, mean, 0.0, n)
    two, one = (student_quantile(p, n - 1) * error for p in (0.5 + confidence / 2, confidence))
    return Ratio(
        value=math.exp(mean),
        low=math.exp(mean - two),
        high=math.exp(mean + two),
        lower=math.exp(mean - one),
        upper=math.exp(mean + one),
        better=student_tail(-mean / error, n - 1),
        worse=student_tail(mean / error, n - 1),
        log_mean=mean,
        log_error=error,
        seeds=n,
    )


def upper_bound(ratio: Ratio, level: float) -> float:
    """Return the one-sided upper bound of a ratio at another level; nan where there is none."""
    if not ratio.log_error >= 0:
        return math.nan
    return math.exp(ratio.log_mean + student_quantile(level, ratio.seeds - 1) * ratio.log_error)


def seeds_needed(ratio: Ratio, margin: float, confidence: float = CONFIDENCE) -> int | None:
    """Return about how many seeds would bring the upper bound to 1 + margin, were the ratio what it seems; None: none.

    The normal quantile stands for Student's, so it is an estimate from below.
    """
    room = math.log1p(margin) - ratio.log_mean
    if not room > 0 or not ratio.log_error >= 0:
        return None
    normal = student_quantile(confidence, 100_000)
    return math.ceil(ratio.seeds * (normal * ratio.log_error / room) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: the k-th smallest times (m − k + 1), never below its predecessor's.

    Those below α may be believed together: the chance that any of them is wrong is at most α, however the tests
    depend on each other. nan counts as 1.
    """
    known = [1.0 if math.isnan(p) else p for p in p_values]
    m, running = len(known), 0.0
    adjusted = [1.0] * m
    for rank, i in enumerate(sorted(range(m), key=known.__getitem__)):
        running = max(running, min(1.0, (m - rank) * known[i]))
        adjusted[i] = running
    return adjusted
