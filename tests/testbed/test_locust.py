"""The locustfile in a real locust: a trace's arrivals, open loop, and what it says of them."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.farm import Farm

# Not imported: locust has gevent replace sockets and threads of the whole process.
if importlib.util.find_spec("locust") is None:
    pytest.skip("locust is not installed: pip install vickrey[testbed]", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1.0], workers=2) as running:
        yield running


def command(farm: Farm, *options: str) -> list[str]:
    locustfile = str(ROOT / "testbed" / "locustfile.py")
    target = f"http://{farm.addresses[0]}"
    return [sys.executable, "-m", "locust", "-f", locustfile, "--headless", "-H", target, *options]


def locust(farm: Farm, *options: str, **environment: str) -> tuple[int, str]:
    run = subprocess.run(
        command(farm, *options),
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def figure(said: str, name: str) -> float:
    found = re.search(rf"\b{re.escape(name)} ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def test_a_trace_is_replayed_open_loop_at_its_speed(farm: Farm, tmp_path: Path):
    # 30 requests of 100 ms at two workers within 0.3 s: a closed loop would need 1.5 s to send them.
    trace = tmp_path / "trace.csv"
    trace.write_text("t,work\n" + "".join(f"{i * 0.1:.1f},0.1\n" for i in range(30)))
    before = farm.stats()[0]
    status, said = locust(farm, "--trace", str(trace), "--speed", "10", "--priority", "realtime")
    assert status in (0, 1), said
    assert "sent 30 requests, answered 30" in said
    assert figure(said, "late by p50") < 200
    assert 1100 < figure(said, "max") < 2500  # the last one waits for 28 others, from its scheduled time on
    assert figure(said, "p99.9") > 1000
    assert "99.9%" in said
    after = farm.stats()[0]
    assert after["demand_ms"] - before["demand_ms"] == pytest.approx(3000)


def test_options_may_be_variables_of_the_environment(farm: Farm):
    status, said = locust(
        farm, VICKREY_TRACE="poisson:mean_work=0.01,flows=200", VICKREY_LOAD="0.5", VICKREY_SERVERS=farm.addresses[0],
        VICKREY_LIMIT="100", VICKREY_CONNECTIONS="per-flow",
    )  # fmt: skip
    assert status in (0, 1), said
    assert "sent 100 requests, answered 100" in said


def test_what_cannot_be_replayed_is_said_and_fails(farm: Farm):
    status, said = locust(farm, "--trace", "no-such-file.csv")
    assert status == 2, said
    assert "no-such-file.csv: No such file" in said


def test_a_run_that_is_cut_short_is_partial_and_fails(farm: Farm):
    status, said = locust(farm, "--trace", "poisson:rate=50,mean_work=0.001,flows=2000", "--run-time", "2s")
    assert status == 1, said
    assert "PARTIAL: ended early" in said
    assert "of 2000 requests were sent" in said


def all_at_once(folder: Path) -> str:
    """A trace that two workers need 7.5 s for."""
    trace = folder / "trace.csv"
    trace.write_text("t,work\n" + "0,0.5\n" * 30)
    return str(trace)


def test_a_run_that_is_cut_while_answers_are_outstanding_is_partial_and_fails(farm: Farm, tmp_path: Path):
    """All have left: without those that still wait the completion times would be those of the quick ones."""
    status, said = locust(farm, "--trace", all_at_once(tmp_path), "--run-time", "2s")
    assert status == 1, said
    answered = figure(said, "30 of 30 requests were sent,")
    assert answered < 30
    assert f"PARTIAL: ended early: 30 of 30 requests were sent, {answered:.0f} answered, 0 failed" in said
    assert farm.await_idle()


def test_an_interrupt_while_answers_are_outstanding_is_partial_and_fails(farm: Farm, tmp_path: Path):
    begun = farm.stats()[0]["requests"]
    process = subprocess.Popen(
        command(farm, "--trace", all_at_once(tmp_path)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    deadline = time.monotonic() + 40
    while farm.stats()[0]["requests"] < begun + 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1, said
    assert "PARTIAL: ended early: 30 of 30 requests were sent" in said
    assert farm.await_idle()
