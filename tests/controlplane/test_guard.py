"""The guard: sees a clear regression, and nothing where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.guard import SETTLE, WATCH, Guard, Windows
from shm_layout.layout import HISTOGRAM_BUCKETS, HISTOGRAM_LOW, OUTCOMES
from tests.policies.observations import observation


class Service:
    """A service of so many flows a second, seen once a second."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.windows = Windows()
        self.now = 1000.0
        self.histogram = np.zeros((1, HISTOGRAM_BUCKETS))
        self.outcomes = np.zeros((1, len(OUTCOMES)))

    def run(
        self, seconds: int, mean: float = 0.02, rate: float = 200, failing: float = 0.0, guard: Guard | None = None
    ):
        """Return the guard's verdict, None if it is still watching at the end."""
        for _ in range(seconds):
            self.now += 1.0
            n = self.rng.poisson(rate)
            times = self.rng.exponential(mean, n)
            buckets = np.searchsorted(HISTOGRAM_LOW, times, side="right") - 1
            self.histogram = self.histogram + np.bincount(np.maximum(buckets, 0), minlength=HISTOGRAM_BUCKETS)
            self.outcomes = self.outcomes.copy()
            failed = self.rng.binomial(n, failing)
            self.outcomes[0, :2] += [n - failed, failed]
            o = observation(
                1, now=self.now, histogram=self.histogram, outcomes=self.outcomes, flows=self.outcomes.sum(axis=1)
            )
            self.windows.add(o)
            if guard is not None and (verdict := guard.judge(self.windows)) is not None:
                return verdict
        return None


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_found_where_nothing_changed(seed):
    service = Service(seed)
    service.run(40)
    assert service.run(int(WATCH + SETTLE) + 5, guard=service.windows.guard()) == ""


def test_a_slightly_longer_tail_is_no_regression():
    service = Service(1)
    service.run(40)
    assert service.run(70, mean=0.023, guard=service.windows.guard()) == ""


def test_a_clearly_longer_tail_is():
    service = Service(1)
    service.run(40)
    verdict = service.run(30, mean=0.06, guard=service.windows.guard())
    assert verdict is not None
    assert "p99 before" in verdict


def test_errors_are_a_regression():
    service = Service(1)
    service.run(40)
    verdict = service.run(30, failing=0.08, guard=service.windows.guard())
    assert verdict is not None
    assert "of the flows fail" in verdict


def test_a_flash_crowd_is_nobody_s_fault():
    service = Service(1)
    service.run(40)
    assert service.run(70, mean=0.06, rate=400, guard=service.windows.guard()) == ""


def test_too_little_to_compare_with_means_no_guard():
    service = Service(1)
    service.run(3)
    assert service.windows.guard() is None
    service.run(40, rate=2)
    few = Service(2)
    few.run(40, rate=2)
    assert few.windows.guard() is None
