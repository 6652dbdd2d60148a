"""How busy the machine is while it is measured on, by us and by others, and what kind of machine it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from testbed.interrupts import Deferred
from testbed.processes import cpu_seconds, process_tree

BUSY_LIMIT = 0.9  # share of the CPU above which queues of the CPU are measured, not those of the servers
OTHERS_LIMIT = 0.1  # share of the CPU that others may use before a figure is not to be trusted
AGAIN_LIMIT = 0.2  # from which on a run is repeated: some machines are never rid of the former
QUIET_LATE_S = 0.3e-3  # p99 of how late a sleeper wakes on a machine that has nothing else to do
_NAP_S = 1e-3
_LOOK_S = 5.0
_REST_S = 15.0
_TICK = os.sysconf("SC_CLK_TCK")


class Machine:
    """Counts from its making to `stop`."""

    def __init__(self) -> None:
        self._total, self._idle = _read()
        self._ours = cpu_seconds(process_tree(os.getpid()))

    def stop(self) -> tuple[float, float]:
        """Share of the machine's CPU that was busy, and the part of that which was not ours.

        To be asked before our children end: what they used would count as others'.
        """
        total, idle = _read()
        elapsed = max(total - self._total, 1)
        busy = 1 - (idle - self._idle) / elapsed
        ours = (cpu_seconds(process_tree(os.getpid())) - self._ours) * _TICK / elapsed
        return busy, max(busy - ours, 0.0)


def _read() -> tuple[int, int]:
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def waking_late(signals: Deferred, seconds: float = _LOOK_S) -> float:
    """How late a sleeper wakes here now, p99, seconds; KeyboardInterrupt when a signal comes.

    On an idle guest only its host can be the cause: other guests have its cores.
    """
    late = []
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        signals.check()
        time.sleep(_NAP_S)
        late.append(time.monotonic() - now - _NAP_S)
    return sorted(late)[len(late) * 99 // 100]


def disturbance(signals: Deferred) -> str:
    """What would be measured with a run that began now; empty on a machine that is quiet.

    Both are asked: a sleeper wakes in time beside processes that compute, and those that are run do not.
    """
    watched = Machine()
    late = waking_late(signals)
    _, others = watched.stop()
    if others > OTHERS_LIMIT:
        return f"others use {others:.0%} of the CPU (limit {OTHERS_LIMIT:.0%})"
    if late > QUIET_LATE_S:
        return f"a sleeper wakes {late * 1e3:.1f} ms late (p99; limit {QUIET_LATE_S * 1e3:g})"
    return ""


def await_quiet(signals: Deferred, say: Callable[[str], None], longest_s: float) -> None:
    """Return as soon as nothing disturbs here; TimeoutError when something did for so long."""
    until = time.monotonic() + longest_s
    while what := disturbance(signals):
        if time.monotonic() > until:
            raise TimeoutError(f"the machine was not quiet for {longest_s:g} s: given up")
        say(f"not quiet: {what}")
        if signals.wait(_REST_S):
            raise KeyboardInterrupt


def describe() -> str:
    """The class of the machine in a line."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores{f' ({model})' if model else ''}, Linux {platform.release().split('-')[0]}"
