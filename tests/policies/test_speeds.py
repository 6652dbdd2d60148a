"""Times by server from few flows with heavy tails: the logarithms take noise out of the means, and no truth."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.speeds import Speeds

SPEEDS = np.array([1.0, 1.0, 2.0, 4.0])


def pareto(rng: np.random.Generator, n: int) -> np.ndarray:
    """Bounded Pareto of shape 1.2 between 1 and 1,000."""
    low, high, a = 1.0, 1000.0, 1.2
    u = rng.random(n)
    return (-(u * high**a - u * low**a - high**a) / (high**a * low**a)) ** (-1 / a)


def errors(draw, flows: int = 300, runs: int = 40) -> tuple[float, float]:
    """Return the root mean square of the error of log ratios of times: of the means, and refined."""
    rng = np.random.default_rng(1)
    truth = -np.log(SPEEDS)
    plain, refined = [], []
    for _ in range(runs):
        speeds = Speeds()
        speeds.match(np.ones(len(SPEEDS), dtype=bool))
        rows = np.repeat(np.arange(len(SPEEDS)), flows)
        took = draw(rng, len(rows)) / SPEEDS[rows]
        speeds.update(rows, took)
        mean = np.bincount(rows, took) / flows
        for kept, times in ((plain, mean), (refined, speeds.refine(mean, np.full(len(SPEEDS), float(flows))))):
            log = np.log(times)
            kept.append((log - log.mean()) - (truth - truth.mean()))
    return float(np.sqrt(np.mean(np.square(plain)))), float(np.sqrt(np.mean(np.square(refined))))


def test_heavy_tails_are_told_much_better():
    plain, refined = errors(pareto)
    assert refined < 0.6 * plain


def test_exponential_times_lose_nothing():
    plain, refined = errors(lambda rng, n: rng.exponential(1.0, n))
    assert refined < 1.02 * plain


def test_a_server_whose_flows_are_of_another_shape_keeps_its_own_mean():
    rng = np.random.default_rng(2)
    n = 900
    speeds = Speeds()
    speeds.match(np.ones(3, dtype=bool))
    took = np.concatenate([pareto(rng, n), pareto(rng, n), np.full(n, 50.0)])
    rows = np.repeat(np.arange(3), n)
    speeds.update(rows, took)
    mean = np.bincount(rows, took) / n
    assert speeds.refine(mean, np.full(3, float(n)))[2] == pytest.approx(50.0, rel=0.35)


def test_too_few_flows_change_nothing_and_a_new_server_begins_anew():
    speeds = Speeds()
    speeds.match(np.ones(2, dtype=bool))
    speeds.update(np.array([0, 1]), np.array([1.0, 9.0]))
    s = np.array([1.0, 9.0])
    assert (speeds.refine(s, np.ones(2)) == s).all()
    rng = np.random.default_rng(3)
    speeds.update(np.tile([0, 1], 500), pareto(rng, 1000))
    assert (speeds.refine(s, np.full(2, 500.0)) != s).any()
    speeds.match(np.zeros(2, dtype=bool))
    assert (speeds.refine(s, np.full(2, 500.0)) == s).all()
