"""Switchbacks: the intervals keep their word, alike is seldom told apart, and what is worse is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from controlplane.deployment.options import SwitchbackOptions
from controlplane.deployment.paired import interval, looks, student
from controlplane.deployment.switchback import Switchback
from controlplane.guard import Totals, percentile
from shm_layout.layout import HISTOGRAM_LOW

RATE = 200.0
EDGES = np.append(HISTOGRAM_LOW, np.inf)


@pytest.mark.parametrize("error", [0.2, 0.05, 0.01, 0.0033])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 23, 200])
def test_quantiles_of_t_are_those_of_scipy(error, freedom):
    assert student(error, freedom) == pytest.approx(stats.t.ppf(1 - error / 2, freedom), rel=2e-4)


@pytest.mark.parametrize(("error", "number"), [(0.05, 6), (0.05, 24), (0.01, 8)])
def test_the_interval_covers_the_truth_as_often_as_it_says(error, number):
    rng = np.random.default_rng(1)
    runs = 3000
    covered = 0
    for _ in range(runs):
        found = interval(list(rng.normal(0.3, 2.0, number)), error)
        covered += found.low <= 0.3 <= found.high
    # Four standard errors of a binomial count.
    assert covered / runs == pytest.approx(1 - error, abs=4 * np.sqrt(error * (1 - error) / runs))


def test_one_value_tells_nothing_of_its_error():
    assert interval([1.0]).low == -np.inf
    assert np.isnan(interval([]).mean)


@given(st.integers(2, 500), st.integers(2, 8))
def test_looks_are_few_and_the_last_is_the_end(most, least):
    found = looks(most, least=least)
    assert found[-1] == most
    assert len(found) <= 6
    assert list(found) == sorted(set(found))
    assert found[0] >= min(least, most)


def test_a_percentile_lies_within_its_bucket():
    rng = np.random.default_rng(2)
    times = rng.exponential(0.02, 20_000)
    histogram = np.histogram(times, EDGES)[0].astype(float)
    for q in (0.5, 0.9, 0.99):
        assert percentile(histogram, q) == pytest.approx(np.quantile(times, q), rel=0.07)
    assert np.isnan(percentile(np.zeros(256), 0.5))


class Service:
    """A service whose completion times hang on who decides; a cycle a second."""

    def __init__(self, seed: int, candidate: float = 1.0, failing: float = 0.0, drift: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = {True: 0.02 * candidate, False: 0.02}
        self.failing, self.drift = failing, drift
        self.probabilities = {
            arm: np.diff(np.append(1 - np.exp(-EDGES[:-1] / mean), 1.0)) for arm, mean in self.means.items()
        }
        self.now, self.histogram = 1000.0, np.zeros(len(HISTOGRAM_LOW))
        self.opened = self.failed = self.fct = 0.0

    def totals(self) -> Totals:
        return Totals(self.now, self.histogram, self.opened, self.opened, self.failed, self.opened, self.fct)

    def second(self, candidate: bool) -> None:
        self.now += 1.0
        counts = self.rng.poisson(RATE * self.probabilities[candidate])
        n = counts.sum()
        load = 1.0 + self.drift * np.sin(self.now / 300.0)
        self.histogram = self.histogram + counts
        self.opened += n
        self.failed += self.rng.binomial(n, self.failing if candidate else 0.0)
        self.fct += self.rng.gamma(max(n, 1), self.means[candidate]) * load


def measure(service: Service, seconds: float = 10.0, pairs: int = 12) -> Switchback:
    switchback = Switchback(SwitchbackOptions(seconds, pairs), service.rng)
    for _ in range(100_000):
        candidate = switchback.turn(service.now, service.totals)
        if switchback.verdict:
            return switchback
        service.second(candidate)
    raise AssertionError("it does not end")


def test_alike_is_hardly_ever_found_worse():
    """By chance 5 % may be, 10 of 200; 22 would be four standard errors more."""
    found = [measure(Service(seed, drift=0.3)).verdict for seed in range(200)]
    assert sum(verdict in ("worse", "harm") for verdict in found) <= 22
    assert sum(verdict == "better" for verdict in found) <= 22


def test_a_clear_regression_is_found_every_time():
    for seed in range(10):
        switchback = measure(Service(seed, candidate=1.3))
        assert switchback.verdict == "worse"
        assert not switchback.takes
        effect = switchback.effect("mean")
        assert effect["low"] < 0.3 < effect["high"] + 0.05


def test_a_clear_improvement_is_taken_every_time():
    for seed in range(10):
        switchback = measure(Service(seed, candidate=0.8))
        assert switchback.verdict == "better"
        assert switchback.effect("mean")["high"] < 0


def test_a_little_worse_than_the_margin_is_never_taken():
    assert not any(measure(Service(seed, candidate=1.12)).takes for seed in range(10))


def test_errors_alone_are_a_reason():
    for seed in range(5):
        switchback = measure(Service(seed, candidate=0.9, failing=0.02))
        assert not switchback.takes
        assert "errors" in switchback.why or "fail" in switchback.why


def test_great_harm_ends_it_within_a_block():
    switchback = measure(Service(1, candidate=1.0, failing=0.5))
    assert switchback.verdict == "harm"
    assert len(switchback.pairs) <= 1


def test_turns_are_paired_and_half_each():
    service = Service(3)
    switchback = Switchback(SwitchbackOptions(10.0, 24), service.rng)
    turns = []
    while not switchback.verdict:
        turns.append(switchback.turn(service.now, service.totals))
        service.second(turns[-1])
    blocks = [turns[i] for i in range(0, len(turns) - 10, 10)]
    pairs = list(zip(blocks[::2], blocks[1::2], strict=False))
    assert all(first != second for first, second in pairs)
    assert {first for first, _ in pairs} == {True, False}


def test_a_block_that_was_slept_through_does_not_count():
    service = Service(4)
    switchback = Switchback(SwitchbackOptions(10.0, 24), service.rng)
    for second in range(200):
        if second == 65:
            service.now += 100.0
        service.second(switchback.turn(service.now, service.totals))
    assert switchback.void == 1
    assert len(switchback.pairs) >= 5


def test_without_traffic_it_ends_undecided():
    service = Service(5)
    switchback = Switchback(SwitchbackOptions(10.0, 4), service.rng)
    for _ in range(1000):
        service.now += 1.0
        switchback.turn(service.now, service.totals)
    assert switchback.verdict == "undecided"
    assert "too few flows" in switchback.why


@settings(max_examples=25)
@given(st.floats(0.3, 3.0), st.integers(0, 1000))
def test_what_is_taken_is_never_shown_to_be_slower(candidate, seed):
    switchback = measure(Service(seed, candidate=candidate))
    shown = switchback.show()
    assert shown["pairs"] == len(switchback.pairs)
    if switchback.takes:
        assert switchback.effect("mean")["change"] <= switchback.options.margin
