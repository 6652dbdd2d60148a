"""What holds for all tests: those that run real processes run alone, and are asked twice before they count as failed.

They are marked `live`, by where they are or one by one, and `make test` runs the others first, one process a core. They
meet a machine that others use: a scheduler that is late by seconds fails one in some thousands. A second failure
counts, and each first one is in the summary (RERUN), so that a test that needs it often is seen, and mended.

No example of a property has a deadline: a test is as slow as the machine.

Whoever starts the tests in the background may have them ignore Ctrl-C, and with them every process that they start, of
which some are to be ended so: they do not.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Asked twice, a method is called of two instances.
settings.register_profile("vickrey", deadline=None, suppress_health_check=[HealthCheck.differing_executors])
settings.load_profile("vickrey")

REAL_PROCESSES = {"socket", "faults", "testbed", "controlplane", "shm_layout", "test_live.py", "test_interrupt.py"}


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if REAL_PROCESSES & set(item.path.relative_to(here).parts):
            item.add_marker(pytest.mark.live)
        if item.get_closest_marker("live"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture
def interrupted_while_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes right after the first piece of work was handed to a pool of processes."""
    submit, sent = ProcessPoolExecutor.submit, []

    def interrupted(self, *arguments):
        found = submit(self, *arguments)
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return found

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
