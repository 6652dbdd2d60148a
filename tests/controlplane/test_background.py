"""What the controller waits for a core while others use it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from controlplane.background import waited_for_core
from controlplane.deployment.chosen import Chosen, Decider
from controlplane.policy import CURVE_N, Directive

HOGS = 3


@pytest.fixture
def busy_core() -> Iterator[None]:
    """One core for this thread and three processes that compute."""
    if not os.path.exists("/proc/thread-self/schedstat"):
        pytest.skip("this kernel does not say what a thread waits for a core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(HOGS)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        os.sched_setaffinity(0, cores)


class Computes:
    """A policy that computes for so many seconds of CPU time, or sleeps."""

    name = "computes"

    def __init__(self, cpu: float = 0.0, sleep: float = 0.0) -> None:
        self.cpu, self.sleep = cpu, sleep

    def decide(self, o: Any) -> Directive:
        until = time.thread_time() + self.cpu
        while time.thread_time() < until:
            pass
        time.sleep(self.sleep)
        return Directive(rule="bids", weights=np.ones(1), curves=CURVE_N[None, :])


class OneServer:
    n_servers = 1


def test_what_a_decision_waits_for_a_core_does_not_make_it_late(busy_core):
    decider = Decider(Chosen("lsq", policy=Computes(cpu=0.1)))
    begun, waited = time.perf_counter(), waited_for_core()
    assert decider.decide(OneServer(), within=0.2) is not None  # type: ignore[arg-type]
    wall = time.perf_counter() - begun
    assert wall > 0.2
    assert decider.took == pytest.approx(wall - (waited_for_core() - waited), abs=0.05)
    assert decider.late == 0


def test_what_it_computes_or_sleeps_too_long_does():
    for policy in (Computes(cpu=0.05), Computes(sleep=0.05)):
        decider = Decider(Chosen("lsq", policy=policy))
        assert decider.decide(OneServer(), within=0.02) is None  # type: ignore[arg-type]
        assert decider.late == 1
