"""How much work a request brings: seeded distributions of demand, in milliseconds at speed 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

PARETO_SHAPE = 1.5
PARETO_SPAN = (
    100.0  # largest demand over smallest: a squared coefficient of variation of 2.7, and no run is one request
)


@dataclass(frozen=True)
class Demand:
    """A distribution and its mean, written `exponential:40`: mean 40 ms of work."""

    shape: str
    mean_ms: float

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        return SHAPES[self.shape](n, rng) * self.mean_ms

    def __str__(self) -> str:
        return f"{self.shape}:{self.mean_ms:g}"


def parse_demand(text: str) -> Demand:
    """Read `shape:mean_ms`; ValueError says what is wrong."""
    shape, _, mean = text.partition(":")
    if shape not in SHAPES:
        raise ValueError(f"unknown demand {shape!r}: one of {', '.join(SHAPES)}")
    try:
        mean_ms = float(mean)
    except ValueError:
        raise ValueError(f"demand {text!r}: the mean after the colon must be milliseconds") from None
    if not (math.isfinite(mean_ms) and mean_ms >= 0):
        raise ValueError(f"demand {text!r}: the mean must not be negative")
    return Demand(shape, mean_ms)


def _fixed(n: int, rng: np.random.Generator) -> Floats:
    return np.ones(n)


def _exponential(n: int, rng: np.random.Generator) -> Floats:
    return rng.exponential(size=n)


def _bounded_pareto(n: int, rng: np.random.Generator) -> Floats:
    """Bounded Pareto of shape a between L and L·span, by inversion, with L such that the mean is 1."""
    a, span = PARETO_SHAPE, PARETO_SPAN
    mean_over_low = a / (a - 1) * (1 - span ** (1 - a)) / (1 - span**-a)
    u = rng.random(n)
    sample: Floats = (1 - u * (1 - span**-a)) ** (-1 / a) / mean_over_low
    return sample


SHAPES = {"exponential": _exponential, "pareto": _bounded_pareto, "fixed": _fixed}
