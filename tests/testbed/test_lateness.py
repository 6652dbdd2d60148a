"""A generator that could not send on time says so, and its run is invalid: whoever starves it, and whenever."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.farm import Farm
from testbed.load.priority import priority


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1.0], workers=4) as running:
        yield running


def replay_while(
    farm: Farm, rate: float, starve: Any, *more: str, after: int = 0, mean_work: float = 0.001
) -> dict[str, Any]:
    """Run a replay of 2 s, starve(process) as soon as it has sent more than `after`, and return its document."""
    begun = farm.stats()[0]["requests"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "controlplane.cli", "replay", f"poisson:rate={rate},mean_work={mean_work}"),
            *("--target", f"http://{farm.addresses[0]}/", "--duration", "2s", "--quiet", "--json"),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while farm.stats()[0]["requests"] <= begun + after and time.monotonic() < deadline:
            time.sleep(0.02)
        starve(process)
    finally:
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=30)
    found: dict[str, Any] = json.loads(said)
    found["status"] = process.returncode
    return found


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


def test_a_generator_that_was_stopped_is_late_and_its_requests_are_charged(farm: Farm):
    found = replay_while(farm, 150, lambda process: stop(process, 0.6))
    assert found["status"] == 1
    assert not found["valid"]
    assert found["late_ms"]["max"] > 400
    assert found["fct_ms"]["max"] > 400  # counted from the schedule: nothing is omitted
    assert any("stood still" in problem for problem in found["problems"])


def test_a_generator_that_is_starved_a_little_all_the_time_is_late(farm: Farm):
    def pulses(process: subprocess.Popen[bytes]) -> None:
        for _ in range(12):
            stop(process, 0.05)
            time.sleep(0.05)

    found = replay_while(farm, 150, pulses)
    assert found["status"] == 1
    assert found["late_ms"]["p99"] > 5
    assert any("late by more than 5 ms" in problem for problem in found["problems"])


def test_a_standstill_between_two_requests_is_seen(farm: Farm):
    # One request a second or so: none is due while the generator stands, but an answer might have waited.
    found = replay_while(farm, 1, lambda process: stop(process, 0.45))
    assert found["late_ms"]["stall"] > 250
    assert not found["valid"]


def test_a_standstill_after_the_last_request_was_sent_is_seen(farm: Farm):
    """Answers that come meanwhile are read before anything else: the last of them ends the run."""
    found = replay_while(farm, 100, lambda process: stop(process, 2.0), "--limit", "12", after=11, mean_work=0.2)
    assert found["late_ms"]["max"] < 400, "all had left"
    assert found["late_ms"]["stall"] > 1000
    assert not found["valid"]


def test_a_priority_ends_with_its_block_and_is_never_an_error():
    before = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    for wanted in ("normal", "high", "realtime"):
        with priority(wanted) as got:
            assert got in ("normal", "high", "realtime")
            if got == "realtime":
                assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == before
