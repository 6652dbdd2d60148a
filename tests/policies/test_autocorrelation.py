"""Times that go up and down together: how that is measured, and that nobody is held then."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane import reserve
from controlplane.autocorrelation import PAIRS_LEAST, RETRY_SECONDS, Autocorrelation
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import Directive, Floats, Observation
from dataplane.simulator import BoundedPareto, Poisson, Result, Server, Simulation, Works, World


def known(servers: int) -> Autocorrelation:
    watch = Autocorrelation()
    watch.match(np.ones(servers, dtype=bool))
    return watch


def shown(level: Floats, noise: Floats, rows: np.ndarray, usual: Floats | None = None) -> Autocorrelation:
    """Return what looks of 50 flows tell whose logarithmic times are level + noise."""
    usual = np.zeros(rows.max() + 1) if usual is None else usual
    watch = known(len(usual))
    for at in np.array_split(np.arange(len(rows)), max(len(rows) // 50, 1)):
        watch.update(rows[at], at.astype(np.uint64), np.exp(level[at] + noise[at]), usual, 0.0)
    return watch


def test_pairs_on_different_servers_are_counted_by_hand_across_looks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Autocorrelation, "_correct", lambda *_: None)
    usual = np.log([1.0, 2.0])
    watch = known(2)
    # Deviations 1, 2 on servers 0, 1, not given in order; then 3, -1 on 1, 0: pairs (1, 2), (3, -1), and, between two
    # rounds, none: server 0 ends one and the next. Between the looks of a round there is none either: 1, then 1.
    rounds = int(PAIRS_LEAST)
    for i in range(rounds):
        assert watch.share == 0.0 or 2 * i >= PAIRS_LEAST
        for rows, closed, off in (([1, 0], [20, 10], [2.0, 1.0]), ([0, 1], [40, 30], [-1.0, 3.0])):
            at = np.array(rows)
            watch.update(at, np.array(closed, dtype=np.uint64), np.exp(usual[at] + off), usual, 0.0)
    level = (1 + 2 + 3 - 1) / 4
    common = (1 * 2 - 3 * 1) / 2 - level**2
    assert watch.common == pytest.approx(common, abs=0.01)
    assert watch.share == pytest.approx(common / ((1 + 4 + 9 + 1) / 4 - level**2), abs=0.01)
    assert not watch.together


def test_a_pair_may_end_in_two_looks_and_not_across_another_server_that_took_a_row():
    for same, pairs in ((np.ones(2, dtype=bool), 1.0), (np.array([False, True]), 0.0)):
        watch = known(2)
        for row in (0, 1):
            watch.match(same)
            watch.update(np.array([row]), np.array([row], dtype=np.uint64), np.ones(1), np.zeros(2), 0.0)
        assert watch._pairs[0] == pairs
    watch.match(np.ones(1, dtype=bool))  # fewer servers: the last of them is gone
    watch.update(np.array([0]), np.array([3], dtype=np.uint64), np.ones(1), np.zeros(1), 0.0)


def test_the_part_in_common_is_that_of_the_level_in_the_variance():
    rng = np.random.default_rng(1)
    n = 4000
    rows = rng.integers(0, 8, n)
    level = np.repeat(rng.normal(0.0, 0.5, n // 200), 200)
    watch = shown(level, rng.normal(0.0, 0.5, n), rows)
    assert watch.share == pytest.approx(0.5, abs=0.15)
    assert watch.together
    alone = shown(np.zeros(n), rng.normal(0.0, 0.5, n), rows)
    assert alone.share == pytest.approx(0.0, abs=0.1)
    assert not alone.together


def test_what_one_server_does_alone_and_noise_that_all_have_do_not_count():
    rng = np.random.default_rng(2)
    n = 4000
    rows = rng.integers(0, 4, n)
    noise = rng.normal(0.0, 0.1, n)
    slow = np.where((rows == 0) & (np.arange(n) // 500 % 2 == 0), 1.0, 0.0)
    assert not shown(slow, noise, rows, usual=np.array([0.5, 0, 0, 0])).together
    # All alike but for a hundredth, which they have in common.
    hundredth = np.repeat(rng.normal(0.0, 0.01, n // 100), 100)
    watch = shown(hundredth, 0.01 * noise, rows)
    assert watch.share > 0.5
    assert not watch.together


def test_a_server_that_gets_flows_in_slow_minutes_only_is_not_taken_for_a_slow_one():
    rng = np.random.default_rng(4)
    n = 4000
    level = np.repeat([0.0, 1.5], 200)[np.arange(n) % 400]
    # Servers 0 and 1 get what comes; 2 and 3 one flow in twenty of the fast times. By their means they are the slower.
    rows = rng.integers(0, 4, n)
    seldom = (level == 0.0) & (rows > 1) & (rng.random(n) > 0.05)
    rows[seldom] -= 2
    usual = np.array([level[rows == i].mean() for i in range(4)])
    assert usual[2] > usual[0] + 0.5
    watch = shown(level, rng.normal(0.0, 1.0, n), rows, usual)
    assert watch._beside[[0, 1]].mean() - watch._beside[[2, 3]].mean() == pytest.approx(usual[2] - usual[0], abs=0.2)
    assert watch.share > 0.25


def test_it_is_over_once_times_differ_by_chance_again():
    rng = np.random.default_rng(3)
    n = 2000
    rows = rng.integers(0, 4, n)
    watch = shown(np.repeat(rng.normal(0.0, 1.0, 10), n // 10), rng.normal(0.0, 0.1, n), rows)
    assert watch.together
    for at in np.array_split(np.arange(6 * n), 200):
        watch.update(rows[at % n], at.astype(np.uint64), np.exp(rng.normal(0.0, 0.5, len(at))), np.zeros(4), 0.0)
    assert not watch.together


def runs(rng: np.random.Generator, n: int, low: float, high: float, length: float) -> Floats:
    """Return demands that are low and high in turn, for so many flows in the mean, and alike but for a tenth."""
    level = np.concatenate(
        [np.full(rng.geometric(1.0 / length), high if i % 2 else low) for i in range(int(4 * n / length))]
    )[:n]
    return np.asarray(level * (1.0 + 0.1 * rng.uniform(-1.0, 1.0, n)))


def slow_seconds(workers: int, servers: int, load: float, length: float, seed: int) -> World:
    works = Works(runs(np.random.default_rng(seed), 8000, 0.01, 0.05, length))
    rate = load * workers * servers / works.mean
    fleet = [Server(workers=workers) for _ in range(servers)]
    return World(fleet, Poisson(rate), works, seed=seed, flows=8000, rings=True, warmup=2.0)


def run(world: World, reserve: str) -> Result:
    return Simulation(world, ring_slots=16384).run(Adaptive(), reserve=reserve)


@pytest.mark.parametrize(
    ("workers", "servers", "load", "length"), [(4, 4, 0.5, 200), (16, 3, 0.5, 400), (2, 6, 0.6, 100)]
)
def test_slow_seconds_are_not_made_longer_by_holding(workers, servers, load, length):
    """Nine, seventeen and 1.06 times as long it was where they were taken for servers with fewer workers."""
    world = slow_seconds(workers, servers, load, length, 1)
    assert run(world, "learned").fct.mean() <= 1.03 * run(world, "off").fct.mean()


def test_limits_that_are_far_too_low_cost_little(monkeypatch: pytest.MonkeyPatch):
    """Whatever misleads the estimate: the longer the queue, the more goes to servers that are taken to be full."""
    monkeypatch.setattr(reserve, "limits", lambda k, samples: np.ones(len(k)))
    monkeypatch.setattr(Autocorrelation, "update", lambda *_: None)
    world = slow_seconds(8, 4, 0.5, 200, 1)
    assert run(world, "learned").fct.mean() <= 2.0 * run(world, "off").fct.mean()


def swing(watch: Autocorrelation, looks: int, now: float, alike: bool, noise: float = 0.1) -> float:
    """Show times that are all long in one look and all short in the next; return when the last look was."""
    rng = np.random.default_rng(int(now * 10))
    for i in range(looks):
        rows = rng.integers(0, 2, 50)
        took = np.exp(i % 2 + rng.normal(0.0, noise, 50))
        watch.update(rows, np.arange(50, dtype=np.uint64), took, np.zeros(2), now, alike)
        now += 0.2
    return now


def test_what_is_alike_is_tried_anew_after_twice_as_long_each_time_and_soon_again_after_a_calm():
    watch, now, waited = known(2), 0.0, []
    for _ in range(4):
        now = swing(watch, 10, now, alike=True)
        assert watch.together
        found = watch._since
        while watch.together:
            watch.retry(now)
            now += 0.1
        assert watch.share == 0.0
        waited.append(now - found)
    assert waited == pytest.approx([RETRY_SECONDS * 2**i for i in range(4)], abs=0.3)
    watch.retry(now + 1000.0)
    swing(watch, 10, now + 1000.0, alike=True)
    watch.retry(now + 1002.0 + 1.1 * RETRY_SECONDS)
    assert not watch.together


def test_demands_alike_must_share_more_and_a_few_pairs_tell_nothing():
    # Half of the variance is in common.
    for alike in (False, True):
        watch = known(2)
        swing(watch, 40, 0.0, alike, noise=0.5)
        assert 0.3 < watch.share < 0.55
        assert watch.together == (not alike)
    # Of independent times the share of sixty pairs is above 0.13 in a sixth of all cases: not beyond chance.
    rng, found = np.random.default_rng(5), 0
    for _ in range(50):
        watch = shown(np.zeros(130), rng.normal(0.0, 1.0, 130), rng.integers(0, 2, 130))
        found += watch.together
    assert found <= 5


def test_a_damaged_record_is_soon_forgotten():
    watch = known(2)
    swing(watch, 40, 0.0, alike=False)
    before = watch.share
    watch.update(np.array([0, 1]), np.array([1, 2], dtype=np.uint64), np.array([1.8e10, 1.0]), np.zeros(2), 9.0)
    assert watch.share > 0.8 * before


def test_flows_that_wait_at_servers_whose_limits_are_not_known_yet_do_not_pass_for_a_slow_minute():
    seen = []

    class Watched(Adaptive):
        def __deepcopy__(self, memo: object) -> Watched:
            return self

        def decide(self, observation: Observation) -> Directive:
            seen.append(self.late.autocorrelation.together)
            return super().decide(observation)

    fleet = [Server(speed=s, workers=k, delay=1e-4) for s, k in ((1, 8), (1, 8), (2, 2), (2, 2), (4, 1), (4, 1))]
    world = World(fleet, Poisson(0.95 * 32 / 0.04), BoundedPareto(0.04, ratio=100.0), seed=1, flows=8000, rings=True)
    Simulation(world, ring_slots=16384).run(Watched(), reserve="learned")
    assert np.mean(seen) < 0.1
