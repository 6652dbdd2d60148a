"""How busy the machine is while it is measured on, by us and by others, and what kind of machine it is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from testbed.processes import cpu_seconds, process_tree

BUSY_LIMIT = 0.9  # share of the CPU above which queues of the CPU are measured, not those of the servers
OTHERS_LIMIT = 0.1  # share of the CPU that others may use before a figure is not to be trusted
AGAIN_LIMIT = 0.2  # from which on a run is repeated: some machines are never rid of the former
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


def describe() -> str:
    """The class of the machine in a line."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores{f' ({model})' if model else ''}, Linux {platform.release().split('-')[0]}"
