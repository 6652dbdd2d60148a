"""A balancer's decisions must not keep its flows waiting: a burst of Python of some milliseconds, on a core that a
worker wants for some microseconds, made one flow in a hundred a millisecond longer.
"""

from __future__ import annotations

import contextlib
import os

# Lower priority than the workers': a tenth of their share where all cores are busy, which decisions can live with.
NICE = 10


def to_background() -> None:
    """Let the calling thread, and those that it starts, give way to the data plane; never raises.

    Batch: it preempts nobody when it wakes. Needs no privileges; where it is forbidden nothing changes.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICE))
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def waited_for_core() -> float:
    """Return how many seconds this thread was ready and had no core, so far; 0 where the kernel does not say."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0
