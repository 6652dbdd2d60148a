"""What becomes of a policy that fails or lags: the last good decision is kept, it is demoted, or refused in shadow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from controlplane import registry
from controlplane.control_loop import LATE_MAX, REJECTED_MAX, SHADOW_CYCLES, ControlLoop
from controlplane.policies.lsq import LeastConnections
from controlplane.policy import CURVE_N, Directive, Observation
from dataplane.core import Balancer
from shm_layout.segment import Limits, Segment, ServerData, SettingsData


@pytest.fixture
def segment() -> Iterator[Segment]:
    name = f"/vickrey.test{os.getpid()}.loop"
    with Segment.create(name, Limits(max_servers=4), "web") as made:
        made.publish_settings(SettingsData(servers=[ServerData(id=i + 1, name=f"s{i}") for i in range(2)]))
        yield made
        made.unlink()


class Scripted(LeastConnections):
    """Bids n plus a constant, until it is told to misbehave."""

    name = "lsq"

    def __init__(self) -> None:
        self.decisions = 0
        self.curves: Any = None
        self.sleep = 0.0
        self.error: Exception | None = None

    def decide(self, observation: Observation) -> Directive:
        self.decisions += 1
        time.sleep(self.sleep)
        if self.error is not None:
            raise self.error
        curves = np.tile(CURVE_N, (observation.n_servers, 1)) + self.decisions
        return Directive(rule="bids", curves=curves if self.curves is None else self.curves)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    policy = Scripted()
    create = registry.create
    monkeypatch.setattr(registry, "create", lambda spec: policy if spec["name"] == "sed" else create(spec))
    return policy


class Clock:
    """Cycles of a loop, with a flow in between so that none is idle."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self.now_ns = 1_000_000_000
        self.balancer = Balancer(loop.segment, 0, 1, self.now_ns, repair=True)
        loop.begin()

    def cycle(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ns += 200_000_000
            self.balancer.refresh(self.now_ns)
            server = self.balancer.dispatch(self.now_ns).server
            self.balancer.close(self.balancer.open(server, self.now_ns), self.now_ns + 1_000_000)
            self.loop.cycle(self.now_ns)


def first_bid(segment: Segment) -> float:
    curves = segment.read_directive().curves
    assert curves is not None
    return float(curves[0, 0])


@pytest.mark.parametrize(
    "curves",
    [
        np.full((2, len(CURVE_N)), np.nan),
        np.full((2, len(CURVE_N)), np.inf),
        -np.ones((2, len(CURVE_N))),
        np.tile(CURVE_N[::-1], (2, 1)),
        np.ones((3, len(CURVE_N))),
        np.ones((2, 5)),
        np.full((2, len(CURVE_N)), "x"),
    ],
    ids=["nan", "infinite", "negative", "falling", "rows", "points", "text"],
)
def test_a_bad_decision_leaves_the_last_good_one_in_force(segment, scripted, curves):
    clock = Clock(ControlLoop(segment, "web", "sed"))
    clock.cycle()
    good = first_bid(segment)
    scripted.curves = curves
    clock.cycle(REJECTED_MAX - 1)
    assert first_bid(segment) == good
    assert clock.loop.counts.failed == REJECTED_MAX - 1
    scripted.curves = None
    clock.cycle()
    assert first_bid(segment) > good  # forgiven
    assert clock.loop.counts.demotions == 0


def test_five_bad_decisions_in_a_row_demote_to_least_connections(segment, scripted):
    told = []
    clock = Clock(ControlLoop(segment, "web", "sed"))
    clock.loop.on_change = lambda spec, why: told.append((spec["name"], why))
    scripted.error = ZeroDivisionError("by design")
    clock.cycle(REJECTED_MAX + 1)
    assert segment.read_directive().policy == "lsq"
    assert (segment.read_directive().curves == CURVE_N.astype(np.float32)).all()
    assert clock.loop.show()["demoted"].startswith(f"{REJECTED_MAX} decisions in a row were refused")
    assert told[0][0] == "lsq"
    assert "by design" in told[0][1]


def test_late_decisions_are_dropped_and_ten_in_a_row_demote(segment, scripted):
    clock = Clock(ControlLoop(segment, "web", "sed", interval=0.01))
    clock.cycle()
    good = first_bid(segment)
    scripted.sleep = 0.025
    clock.cycle(LATE_MAX - 1)
    assert first_bid(segment) == good
    assert clock.loop.counts.late == LATE_MAX - 1
    assert not clock.loop.demoted
    clock.cycle(2)
    assert clock.loop.demoted
    assert segment.read_directive().policy == "lsq"


def test_a_new_policy_decides_in_shadow_before_it_takes_over(segment, scripted):
    clock = Clock(ControlLoop(segment, "web", "lsq"))
    clock.cycle()
    done: list[str | None] = []
    clock.loop.swap({"name": "sed"}, done.append)
    clock.cycle(SHADOW_CYCLES - 1)
    assert segment.read_directive().policy == "lsq"
    assert not done
    clock.cycle()
    assert segment.read_directive().policy == "sed"
    assert done == [None]


def test_a_policy_that_fails_in_shadow_is_refused(segment, scripted):
    clock = Clock(ControlLoop(segment, "web", "lsq"))
    clock.cycle()
    scripted.error = KeyError("weights")
    done: list[str | None] = []
    clock.loop.swap({"name": "sed"}, done.append)
    clock.cycle(2)
    assert "refused in shadow: KeyError" in str(done[0])
    assert segment.read_directive().policy == "lsq"
    assert list(clock.loop.history) == []


def test_history_holds_the_last_three(segment):
    clock = Clock(ControlLoop(segment, "web", "lsq"))
    for name in ("gsed", "p2c", "wrr", "wcmp"):
        clock.loop.swap(name, lambda error: None)
        clock.cycle(SHADOW_CYCLES)
    assert [spec["name"] for spec in clock.loop.history] == ["gsed", "p2c", "wrr"]
    clock.loop.rollback(lambda error: None)
    clock.cycle(SHADOW_CYCLES)
    assert clock.loop.chosen.spec["name"] == "wrr"
    assert [spec["name"] for spec in clock.loop.history] == ["gsed", "p2c"]


def test_an_idle_service_is_not_read(segment):
    loop = ControlLoop(segment, "web", "adaptive")
    clock = Clock(loop)
    clock.cycle()
    for _ in range(20):
        clock.now_ns += 200_000_000
        loop.cycle(clock.now_ns)
    assert loop.counts.idle >= 19
    assert int(segment.read_controller()["cycles"]) == 21


@pytest.mark.parametrize(("reserve", "flagged"), [("off", False), ("classic", True)])
def test_the_auction_has_a_reserve_only_when_the_service_asks_for_one(segment: Segment, reserve: str, flagged: bool):
    loop = ControlLoop(segment, "web", {"name": "auction", "guard": False}, reserve=reserve)
    Clock(loop).cycle(5)
    assert (float(segment.read_directive().head["classic_reserve"]) > 0) is flagged
