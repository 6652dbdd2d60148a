"""Work over processes: none of an interrupt is lost, whenever it comes, and no process is left."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from controlplane.simulation.pool import work_through


def test_each_item_is_answered_under_its_number():
    assert sorted(work_through(abs, [-3, 2, -1], 2)) == [(0, 3), (1, 2), (2, 1)]


@pytest.mark.usefixtures("interrupted_while_processes_start")
@pytest.mark.parametrize("other_thread", [False, True])
def test_an_interrupt_while_processes_are_started_is_not_lost(other_thread):
    """Neither if another thread is there to take it."""
    over = threading.Event()
    if other_thread:
        threading.Thread(target=over.wait, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(work_through(time.sleep, [60.0] * 2, 2))
    assert time.monotonic() - began < 30
    assert multiprocessing.active_children() == []
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    over.set()


def test_workers_outlive_an_interrupt_of_the_terminal():
    """It goes to the whole process group; whether the work ends is their parent's to say."""
    for _, pending in work_through(interrupt_myself, range(2), 2):
        assert pending


def interrupt_myself(_: int) -> bool:
    os.kill(os.getpid(), signal.SIGINT)
    return signal.SIGINT in signal.sigpending()
