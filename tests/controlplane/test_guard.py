"""The guard: sees a clear regression, and nothing where there is none."""

from __future__ import annotations

import heapq
import re

import numpy as np
import pytest

from controlplane.guard import (
    REFERENCE,
    SETTLE,
    WATCH,
    WATCH_FLOWS,
    WATCH_MOST,
    Guard,
    Windows,
    flows_between,
)
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

    def times(self, n: int, mean: float, rate: float) -> np.ndarray:
        """Return the completion times of this second's flows."""
        return self.rng.exponential(mean, n)

    def run(
        self, seconds: int, mean: float = 0.02, rate: float = 200, failing: float = 0.0, guard: Guard | None = None
    ):
        """Return the guard's verdict, None if it is still watching at the end."""
        for _ in range(seconds):
            self.now += 1.0
            n = self.rng.poisson(rate)
            times = self.times(n, mean, rate)
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


class Queue(Service):
    """One whose flows wait for four servers, which have work for 60 % of the time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.free = [0.0] * 4

    def times(self, n: int, mean: float, rate: float) -> np.ndarray:
        times = np.zeros(n)
        for i, arrived in enumerate(np.sort(self.now + self.rng.random(n))):
            end = max(heapq.heappop(self.free), arrived) + self.rng.exponential(4 * 0.6 / rate)
            heapq.heappush(self.free, end)
            times[i] = end - arrived
        return times


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


def test_too_little_to_compare_with_means_no_guard_and_says_so():
    service = Service(1)
    assert service.windows.guard() == "too little time to compare with: 0 s; at least 5 s needed"
    service.run(3)
    assert service.windows.guard() == "too little time to compare with: 2 s; at least 5 s needed"
    few = Service(2)
    few.run(40, rate=2)
    why = few.windows.guard()
    assert isinstance(why, str)
    assert re.fullmatch(r"too little traffic to guard: \d\d flows in 39 s; at least 500 needed", why)


# --- little traffic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "seconds", "flows"), [(200, 30, 6000), (40, 60, 2400), (5, 400, 2000), (1, 600, 600)])
def test_what_is_compared_with_grows_until_it_has_flows_enough(rate, seconds, flows):
    service = Service(1)
    service.run(700, rate=rate)
    first, last = service.windows.baseline()
    assert last.now - first.now == pytest.approx(seconds, rel=0.15)
    assert flows_between(first, last) == pytest.approx(flows, rel=0.15)
    assert len(service.windows.snapshots) + len(service.windows.older) <= 95


def test_what_is_compared_with_ends_at_the_last_change_of_policy_but_for_half_a_minute():
    service = Service(1)
    service.run(300, rate=5)
    service.windows.changed()
    first, last = service.windows.baseline()
    assert last.now - first.now == REFERENCE
    service.run(200, rate=5)
    first, last = service.windows.baseline()
    assert 190 <= last.now - first.now <= 200


@pytest.mark.parametrize("rate", [1.2, 5, 20])
@pytest.mark.parametrize("seed", range(8))
def test_with_little_traffic_nothing_is_found_where_nothing_changed(seed, rate):
    service = Service(seed)
    service.run(630, rate=rate)
    began = service.now
    guard = service.windows.guard()
    assert service.run(int(WATCH_MOST) + 5, rate=rate, guard=guard) == ""
    least = min(WATCH_FLOWS / rate, WATCH_MOST)  # it is watched as long as its flows need
    assert service.now - began == pytest.approx(max(least, WATCH), rel=0.15)


@pytest.mark.parametrize(("rate", "within"), [(1.2, 300), (5, 90), (20, 30)])
def test_with_little_traffic_what_is_much_worse_is_found(rate, within):
    service = Service(1)
    service.run(630, rate=rate)
    verdict = service.run(within, mean=0.5, rate=rate, guard=service.windows.guard())
    assert verdict is not None
    assert "p99 before" in verdict


def test_with_little_traffic_errors_are_found():
    service = Service(1)
    service.run(300, rate=5)
    verdict = service.run(200, rate=5, failing=0.3, guard=service.windows.guard())
    assert verdict is not None
    assert "of the flows fail" in verdict


def test_a_watch_that_saw_too_few_flows_says_so():
    service = Service(1)
    service.run(300, rate=5)
    guard = service.windows.guard()
    assert service.run(int(WATCH_MOST) + 5, rate=0.2, guard=guard) == ""
    assert re.fullmatch(r"too little traffic to judge it: \d+ flows in 600 s; at least 500 needed", guard.lacking)


@pytest.mark.parametrize("rate", [5, 200])
@pytest.mark.parametrize("seed", range(4))
def test_queues_alone_are_not_blamed_on_a_policy(seed, rate):
    """Flows that wait for each other come slow in rows; four servers, 60 % of their capacity."""
    service = Queue(seed)
    service.run(650, rate=rate)
    assert service.run(int(WATCH_MOST) + 5, rate=rate, guard=service.windows.guard()) == ""


# --- what is gross ----------------------------------------------------------------------------------------------------


def test_what_is_gross_is_found_within_seven_seconds():
    service = Service(1)
    service.run(40)
    assert service.run(int(SETTLE) + 4, mean=0.5, guard=service.windows.guard()) is not None


@pytest.mark.parametrize("rate", [5, 40, 200])
@pytest.mark.parametrize("mean", [0.04, 0.06, 0.1, 0.5])
def test_what_is_found_sooner_would_be_found_although_all_went_well_from_then_on(mean, rate, monkeypatch):
    """At the moment of a finding the same is watched on, without the short cut, and with no slow flow any more."""
    for seed in range(4):
        sooner, anyway = Service(seed), Service(seed)
        for service in (sooner, anyway):
            service.run(450, rate=rate)
        guard = sooner.windows.guard()
        began = sooner.now
        if not sooner.run(int(WATCH_MOST), mean=mean, rate=rate, guard=guard):
            continue
        found = int(sooner.now - began)
        with monkeypatch.context() as patched:
            patched.setattr("controlplane.guard.SURE_LOOKS", 10**9)
            guard = anyway.windows.guard()
            verdict = anyway.run(found, mean=mean, rate=rate, guard=guard)
            verdict = verdict or anyway.run(int(WATCH_MOST), mean=0.0001, rate=rate, guard=guard)
        assert verdict
        assert "p99 before" in verdict


@pytest.mark.parametrize(("rate", "seconds", "mean"), [(200, 1, 0.15), (5, 12, 0.5)])
def test_a_short_trouble_that_the_test_forgives_is_no_gross_regression(rate, seconds, mean):
    service = Service(1)
    service.run(450, rate=rate)
    guard = service.windows.guard()
    assert service.run(15, rate=rate, guard=guard) is None
    assert service.run(seconds, mean=mean, rate=rate, guard=guard) is None
    assert service.run(int(WATCH_MOST) + 5, rate=rate, guard=guard) == ""


class Farm:
    """Servers that come and go, each with its own counters; 100 flows a second on every one, all of 20 ms."""

    def __init__(self, *ids: int) -> None:
        self.windows, self.now = Windows(), 1000.0
        self.flows = dict.fromkeys(ids, 0.0)

    def run(self, seconds: int, guard: Guard | None = None) -> str | None:
        for _ in range(seconds):
            self.now += 1.0
            self.flows = {i: n + 100.0 for i, n in self.flows.items()}
            outcomes, histogram = (np.zeros((len(self.flows), width)) for width in (len(OUTCOMES), HISTOGRAM_BUCKETS))
            outcomes[:, 0] = histogram[:, 40] = flows = np.array(list(self.flows.values()))
            ids = np.array(list(self.flows), dtype=np.uint64)
            seen = observation(len(ids), ids=ids, now=self.now, histogram=histogram, outcomes=outcomes, flows=flows)
            self.windows.add(seen)
            if guard is not None and (verdict := guard.judge(self.windows)) is not None:
                return verdict
        return None


def test_servers_come_and_go_and_nothing_is_counted_twice_or_lost():
    farm = Farm(1, 2, 3)
    farm.run(10)
    del farm.flows[2]
    farm.run(10)
    farm.flows[4] = 0.0
    farm.run(10)
    begin, end = farm.windows.baseline()
    assert flows_between(begin, end) == pytest.approx(9 * 300 + 10 * 200 + 10 * 300)
    assert farm.windows.restarts == 0


def test_a_watch_goes_on_when_a_server_is_taken_out_and_ends_when_all_begin_anew():
    farm = Farm(1, 2, 3)
    farm.run(40)
    guard = farm.windows.guard()
    assert isinstance(guard, Guard)
    assert farm.run(5, guard) is None
    del farm.flows[1]
    assert farm.run(20, guard) is None
    farm.flows = dict.fromkeys(farm.flows, 0.0)
    assert farm.run(5, guard) == ""
    assert "started anew" in guard.lacking
