"""Means of paired differences with confidence intervals at any level (Student's t), and when several looks at growing
data may decide.

Source    quantiles of t: Hill, "Algorithm 396: Student's t-quantiles", CACM 13(10), 1970, good to six digits;
          several looks: the error is divided among them (Bonferroni), which holds whatever the looks have in common
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its confidence interval; infinitely wide where fewer than two values tell nothing."""

    mean: float
    low: float
    high: float


def student(error: float, freedom: int) -> float:
    """Return the t that is exceeded in absolute value with probability `error`, 0 < error < 1, freedom >= 1."""
    n = float(freedom)
    if freedom == 1:
        return 1.0 / math.tan(error * math.pi / 2.0)
    if freedom == 2:
        return math.sqrt(2.0 / (error * (2.0 - error)) - 2.0)
    a = 1.0 / (n - 0.5)
    b = 48.0 / (a * a)
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * math.sqrt(a * math.pi / 2.0) * n
    y = (d * error) ** (2.0 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(error / 2.0)
        y = x * x
        if freedom < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0)) * y - 1.0) * (
            n + 1.0
        ) / (n + 2.0) + 1.0 / y
    return math.sqrt(n * y)


def interval(values: Sequence[float], error: float = 0.05) -> Interval:
    """Return the mean of independent values; the truth lies outside of the interval with probability `error`."""
    if len(values) < 2:
        return Interval(values[0] if values else math.nan, -math.inf, math.inf)
    mean = fmean(values)
    half = student(error, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def looks(most: int, number: int = 3, least: int = 5) -> tuple[int, ...]:
    """Return after how many values to look: at most `number` times, first after `least`, last after `most`."""
    least = min(least, most)
    return tuple(sorted({round(least * (most / least) ** (i / max(number - 1, 1))) for i in range(number)} | {most}))
