"""A worker takes short slices of its core: who sends it something often runs on, on the same core."""

import platform
import re
import time
from pathlib import Path

import pytest

from tests.socket.conftest import answer

SLICE = re.compile(r"^se\.slice\s*:\s*(\d+)$", re.MULTILINE)


def slice_ns(thread: int) -> int:
    try:
        found = SLICE.search(Path(f"/proc/{thread}/sched").read_text())
    except OSError:
        found = None
    if not found:
        pytest.skip("this kernel does not say how long a thread's slices are")
    return int(found[1])


def test_workers_have_short_slices_and_the_main_thread_the_usual_ones(start_origin, start_balancer):
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release and tuple(map(int, release.groups())) < (6, 12):
        pytest.skip("before Linux 6.12 all threads have slices of one length")
    balancer = start_balancer([start_origin(answer()).port], workers=2)
    main = balancer.process.pid
    deadline = time.monotonic() + 10
    slices: dict[int, int] = {}
    while list(slices.values()).count(100_000) < 2:  # it listens before its workers run
        assert time.monotonic() < deadline, slices
        slices = {int(task.name): slice_ns(int(task.name)) for task in Path(f"/proc/{main}/task").iterdir()}
    assert slices[main] > 100_000
