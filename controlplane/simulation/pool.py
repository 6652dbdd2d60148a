"""Makes many runs, or other work, over the cores. Ctrl-C ends it at once and leaves no process behind.

Workers are deaf to the terminal's interrupt (it goes to all of them at once) and are ended by their parent; should that
die without a word, the kernel ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import resource_tracker
from typing import TypeVar

from controlplane.simulation.runs import Job, Run, execute

_PR_SET_PDEATHSIG = 1

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _begin(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that are started here be deaf to SIGINT from their first instruction on: they inherit that it is
    blocked.

    One that comes meanwhile is ours, and interrupts us afterwards, for a process that is half started is nobody's.
    Blocking alone does not put it off: another thread may take it.
    """
    resource_tracker.ensure_running()  # which ends the block when it is started
    came: list[int] = []
    ours = threading.current_thread() is threading.main_thread()  # nobody presses Ctrl-C on the others
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if ours else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours:
            signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def execute_all(jobs: Sequence[Job], workers: int) -> Iterator[Run]:
    """Yield the runs as they end. One worker: in this process."""
    for _, run in work_through(execute, jobs, workers):
        yield run


def work_through(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[tuple[int, R]]:
    """Yield the number of each item and what the function, of a module, makes of it, as they end."""
    if min(workers, len(items)) <= 1:
        yield from ((i, function(item)) for i, item in enumerate(items))
        return
    before = set(multiprocessing.active_children())
    # spawn: a forked child would inherit whatever threads of ours held locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _begin, (os.getpid(),))
    try:
        with _deaf_to_interrupts():
            # All workers are started by these: the last starts when there are as many items.
            futures = {pool.submit(function, item): i for i, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)  # waits for them, in the pool's thread: of two who wait, one learns nothing
        raise
