"""The demo shows its phases, and whatever ends it, nothing that it started stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = "VICKREY_DEMO_TEST"  # in the environment of the demo, and so of all that it starts


class Run:
    """One demo in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        """folder: for temporary files, which a demo that is killed cannot remove."""
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "testbed.demo", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, MARK: self.mark, "TMPDIR": str(folder)},
        )

    def left_behind(self) -> list[str]:
        """Command lines of its processes that live, and segments of its balancer."""
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if f"{MARK}={self.mark}".encode() in environment and state != "Z":
                    left.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return left + [path.name for path in Path("/dev/shm").glob(f"vickrey.testbed-{self.process.pid}-*")]

    def is_clean_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.left_behind():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*options: str) -> Run:
        runs.append(Run(tmp_path, *options))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


def test_the_phases_are_summed_up(demo: Callable[..., Run]):
    run = demo("--duration", "10", "--servers", "1,1,4", "--load", "0.5", "--json")
    output, progress = run.process.communicate(timeout=60)
    assert run.process.returncode == 0, progress
    document = json.loads(output)
    assert [phase["policy"] for phase in document["phases"]] == ["wrr", "lsq", "adaptive"]
    assert not document["interrupted"]
    for phase in document["phases"]:
        fct = phase["fct_ms"]
        assert fct["requests"] > 20
        assert fct["errors"] == {}
        assert 0 < fct["p50"] <= fct["p90"] <= fct["p99"] <= fct["max"]
    requests = {phase["fct_ms"]["requests"] for phase in document["phases"]}
    assert len(requests) == 1, "every phase gets the same arrivals"
    assert "http://127.0.0.1:" in progress
    assert run.left_behind() == []


@pytest.mark.parametrize("after_s", [0.1, 0.5, 0.9, 3.0])
def test_ctrl_c_at_any_moment_leaves_nothing(demo: Callable[..., Run], after_s: float):
    run = demo("--duration", "30")
    time.sleep(after_s)
    run.process.send_signal(signal.SIGINT)
    run.process.communicate(timeout=20)
    assert run.is_clean_within(3), run.left_behind()


def test_a_killed_demo_takes_its_children_along(demo: Callable[..., Run]):
    run = demo("--duration", "30")
    deadline = time.monotonic() + 20
    while len(run.left_behind()) <= 4 and time.monotonic() < deadline:  # the demo, farm, balancer and its children
        time.sleep(0.1)
    assert len(run.left_behind()) > 4
    run.process.kill()
    assert run.is_clean_within(10), run.left_behind()


def test_without_load_it_stays_up_and_answers(demo: Callable[..., Run]):
    run = demo("--no-load", "--servers", "1,2")
    assert run.process.stdout is not None
    lines = []
    while not lines or not lines[-1].startswith("try"):
        lines.append(run.process.stdout.readline())
        assert lines[-1], run.process.communicate()
    url = lines[-1].split("'")[1]
    for _ in range(10):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["X-Server"] in ("s1", "s2")
    run.process.terminate()
    run.process.communicate(timeout=20)
    assert run.process.returncode == 0
    assert run.is_clean_within(3), run.left_behind()


def test_bad_options_are_refused():
    for options in (["--servers", "1,x"], ["--servers", "0"], ["--duration", "1s"]):
        run = subprocess.run([sys.executable, "-m", "testbed.demo", *options], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 2, options
        assert "usage" in run.stderr
