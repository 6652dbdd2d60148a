"""Random draws and elementary functions that give the same bits on every machine and under every numpy.

numpy promises the bits of its bit generators (NEP 19), but not those of `Generator.exponential`, nor of `np.log`,
`np.exp` or `np.sin`, which differ in the last place between processors. So draws are made here from PCG64's raw 64-bit
words with nothing but +, -, *, / and sqrt, which IEEE 754 fixes to the bit, one numpy call each, so that no compiler
can fuse two of them.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

_LN2_HIGH = 0.693147180369123816490  # so short that a multiple by an exponent is exact
_LN2_LOW = 1.90821492927058770002e-10
_HALF_SQRT2 = 0.70710678118654752440
_TWO_PI = 6.28318530717958647693
_UNIT = 2.0**-53


class Draws:
    """One stream of random numbers: of a seed and a purpose, so that what one purpose draws moves no other."""

    def __init__(self, seed: int, purpose: str) -> None:
        word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
        self._bits = np.random.PCG64(np.random.SeedSequence([abs(seed), int(seed < 0), word]))

    def words(self, n: int) -> NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(n), dtype=np.uint64)

    def uniform(self, n: int) -> Floats:
        """Draw from [0, 1)."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * _UNIT

    def exponential(self, n: int) -> Floats:
        """Draw from the exponential distribution of mean 1."""
        return -log(1.0 - self.uniform(n))

    def normal(self, n: int) -> Floats:
        """Draw from the standard normal distribution (Box and Muller, the cosine alone: two draws a number)."""
        u = self.uniform(2 * n).reshape(n, 2)
        return np.sqrt(-2.0 * log(1.0 - u[:, 0])) * sine(u[:, 1] + 0.25)


def log(x: Any) -> Floats:
    """Return the natural logarithm of positive numbers, within 2 units in the last place."""
    mantissa, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    low = mantissa < _HALF_SQRT2
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    k = (exponent - low).astype(np.float64)
    # ln m = 2 artanh(s), |s| < 0.172: twelve terms.
    f = mantissa - 1.0
    s = f / (mantissa + 1.0)
    z = s * s
    series = np.zeros_like(z)
    for term in range(25, 1, -2):
        series = (series + 1.0 / term) * z
    # f - s·(f - 2·series) is 2s + 2s·series with less rounding, since 2s = f - s·f.
    value: Floats = k * _LN2_HIGH + (f - (s * (f - 2.0 * series) - k * _LN2_LOW))
    return value


def exp(x: Any) -> Floats:
    """Return e to the x for |x| < 700."""
    x = np.asarray(x, dtype=np.float64)
    k = np.rint(x / 0.69314718055994530942)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    series = np.ones_like(r)
    for term in range(14, 0, -1):
        series = 1.0 + series * r / float(term)
    value: Floats = np.ldexp(series, k.astype(np.int64))
    return value


def power(x: Any, a: float) -> Floats:
    """Return x to the a, for positive x."""
    return exp(a * log(x))


def sine(turns: Any) -> Floats:
    """Return the sine of an angle in full turns."""
    turns = np.asarray(turns, dtype=np.float64)
    turns = turns - np.rint(turns)  # in [-1/2, 1/2]
    turns = np.where(np.abs(turns) > 0.25, np.copysign(0.5, turns) - turns, turns)
    x = turns * _TWO_PI
    z = x * x
    series = np.zeros_like(z)
    for term in range(22, 0, -2):
        series = (1.0 + series) * z * (-1.0 / (term * (term + 1)))
    value: Floats = x + x * series
    return value
