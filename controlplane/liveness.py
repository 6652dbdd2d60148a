"""Whether the children live: judged by their signs of life in the segment, not by the presence of a process.

A process that exits is restarted by processes.py. This is for the one that stays and does nothing: a controller
without a heartbeat is killed after a few seconds (the data plane goes on by the fallback rule meanwhile); a data
plane with a silent worker is reported at once and killed only when it stays so, because that cuts its connections.

When the whole machine stood still (a frozen virtual machine), everybody is late, the judge too: then nobody is judged.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.processes import Child, Controller, DataPlane

if TYPE_CHECKING:
    from controlplane.service import LiveService

log = logging.getLogger("vickrey.liveness")

LATE_S = 2.0  # a tick that comes this late says that we stood still; a worker this silent, that it did
GRACE_S = 3.0  # after we stood still, until anybody is judged again
START_S = 20.0  # until a new process must have given its first sign of life
CONTROLLER_SILENT_S = 3.0
WORKER_SILENT_S = 3.0
WORKER_KILLED_S = 15.0
CHECK_EVERY_S = 0.5


class Liveness:
    """Watches both children."""

    def __init__(self, services: Mapping[str, LiveService], dataplane: DataPlane, controller: Controller) -> None:
        self._services = services
        self._dataplane = dataplane
        self._controller = controller
        self._judge_from = 0.0
        self._checked = 0.0
        self._silent_s = 0.0  # the longest silence of the present stall of the data plane
        self._reported = False

    def watch(self, now: float, slept_s: float) -> float:
        """Judge what is to be judged; returns for how long nobody can be blamed for what he did, usually 0.

        now: monotonic seconds; slept_s: how much too late this call comes.
        """
        if slept_s > LATE_S:
            log.warning("this process stood still for %.1f s: nobody is judged by it", slept_s)
            self._judge_from = now + GRACE_S
            self._silent_s, self._reported = 0.0, False
            return slept_s
        if now < self._judge_from or now - self._checked < CHECK_EVERY_S:
            return 0.0
        self._checked = now
        self._watch_controller()
        return self._watch_dataplane()

    def _watch_controller(self) -> None:
        child = self._controller
        if not child.running:
            return
        silent_s = self._controller_silence_s()
        most_s = max(CONTROLLER_SILENT_S, *(10 * service.config.interval for service in self._services.values()))
        if silent_s is None:
            silent_s, most_s = time.monotonic() - child.started, START_S
        if silent_s > most_s:
            log.error("controller: no sign of life for %.1f s, it is killed and restarted", silent_s)
            child.signal(signal.SIGKILL)

    def _watch_dataplane(self) -> float:
        child = self._dataplane
        if not child.running:
            self._silent_s, self._reported = 0.0, False
            return 0.0
        silent_s = self._worker_silence_s()
        if silent_s is None:
            if time.monotonic() - child.started > START_S:
                log.error("data plane: not ready within %.0f s, it is killed and restarted", START_S)
                child.signal(signal.SIGKILL)
            return 0.0
        if silent_s <= LATE_S:
            stalled_s, self._silent_s, self._reported = self._silent_s, 0.0, False
            if stalled_s:
                log.warning("data plane: it is back after about %.1f s of silence", stalled_s)
            return stalled_s
        self._silent_s = silent_s
        if silent_s > WORKER_SILENT_S and not self._reported:
            self._reported = True
            log.error("data plane: a worker gave no sign of life for %.1f s", silent_s)
        if silent_s > WORKER_KILLED_S:
            log.error("data plane: a worker was silent for %.1f s, it is killed and restarted", silent_s)
            child.signal(signal.SIGKILL)
        return 0.0

    # What the segments say.

    def _worker_silence_s(self) -> float | None:
        """Return the longest silence of a worker; None when one has not yet spoken since the data plane started."""
        started_ns = int(self._dataplane.started * 1e9)
        beats = np.concatenate([s.segment.read_workers()[: s.threads]["heartbeat_ns"] for s in self._services.values()])
        oldest_ns = int(beats.min())
        return None if oldest_ns < started_ns else max(time.monotonic_ns() - oldest_ns, 0) / 1e9

    def _controller_silence_s(self) -> float | None:
        started_ns = int(self._controller.started * 1e9)
        oldest_ns = min(int(s.segment.read_controller()["heartbeat_ns"]) for s in self._services.values())
        return None if oldest_ns < started_ns else max(time.monotonic_ns() - oldest_ns, 0) / 1e9

    def dataplane_is_ready(self) -> bool:
        return self._dataplane.running and self._worker_silence_s() is not None

    @property
    def dataplane_up(self) -> bool:
        silent_s = self._worker_silence_s() if self._dataplane.running else None
        return silent_s is not None and silent_s <= WORKER_SILENT_S

    @property
    def controller_up(self) -> bool:
        """Whether a controller gives signs of life, fresh enough for every service."""
        silent_s = self._controller_silence_s() if self._controller.running else None
        stale_s = min(service.config.stale_after for service in self._services.values())
        return silent_s is not None and silent_s <= stale_s

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the document of both processes."""
        return {
            "dataplane": {**_child_status(self._dataplane), "up": self.dataplane_up},
            "controller": {**_child_status(self._controller), "up": self.controller_up},
        }


def _child_status(child: Child) -> dict[str, Any]:
    return {
        "pid": child.pid or None,
        "restarts": child.restarts,
        "uptime_s": round(time.monotonic() - child.started, 1) if child.running else None,
        "last_exit": child.last_exit or None,
    }
