"""One server of a topology: started in its namespace and control group, looked at, and found again by its marks."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed import cgroups, namespaces
from testbed.backends import apache
from testbed.backends.backend import Spec
from testbed.processes import Child, StartError, cpu_seconds, process_tree
from testbed.topology_state import MARK, Placed, is_process, started_at

READY_S = 60.0  # 24 Python processes on two busy cores take their time
ATTEMPTS = 4  # a free port of loopback may be taken before it is bound
_ROOT = Path(__file__).resolve().parent.parent
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Server:
    """start(), then wait_ready(), then limit(): under a tenth of a core the start would take ten times as long."""

    def __init__(
        self,
        topology: str,
        placed: Placed,
        wanted: apache.Apache | Spec,
        folder: Path,
        group: cgroups.Group | None,
    ) -> None:
        self.placed = placed
        self.wanted = wanted
        self.folder = folder
        self.group = group
        self.child: Child | None = None
        self._mark = f"{topology}:{placed.name}"
        self._stdout = b""

    def start(self) -> None:
        env = {**os.environ, MARK: self._mark}
        if isinstance(self.wanted, apache.Apache):
            self.child = apache.start(self.wanted, self.folder, enter=self._enter, env=env)
        else:
            env["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"
            command = [sys.executable, "-m", "testbed.backends", "--spec", json.dumps([asdict(self.wanted)])]
            self.child = Child(
                f"backend-{self.placed.name}",
                command,
                stdout=subprocess.PIPE,
                cwd=_ROOT,
                env=env,
                before_exec=self._enter,
            )
        self.placed.pid = self.child.pid
        self.placed.started = started_at(self.child.pid)

    def _enter(self) -> None:
        if self.group is not None:
            self.group.enter()
        if self.placed.namespace:
            namespaces.enter(self.placed.namespace)

    def wait_ready(self, check: Callable[[], None]) -> None:
        """check: called again and again, to raise what shall end the wait. Raises StartError."""
        assert self.child is not None
        self._stdout = b""

        def is_ready() -> bool:
            check()
            return self._status_answers() if isinstance(self.wanted, apache.Apache) else self._has_said_its_ports()

        try:
            self.child.wait_ready(is_ready, READY_S)
        except StartError as error:
            log = apache.error_log(self.folder)
            raise StartError(f"{error} {log}".strip() if log else str(error)) from None

    def _status_answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._status() is not None
        return False

    def _status(self) -> dict[str, Any] | None:
        return apache_status(self.placed)

    def _has_said_its_ports(self) -> bool:
        assert self.child is not None
        assert self.child.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.process.stdout, selectors.EVENT_READ)
            if not selector.select(0):
                return False
        self._stdout += os.read(self.child.process.stdout.fileno(), 4096)
        if b"\n" not in self._stdout:
            return False
        (ports,) = json.loads(self._stdout)
        self.placed.port, self.placed.control = ports["port"], ports["control"]
        self.wanted = Spec(**{**asdict(self.wanted), "port": ports["port"], "control": ports["control"]})
        return True

    def limit(self, period_s: float, factor: float = 1.0) -> None:
        """Put the quota in force, divided by a factor."""
        if self.group is not None and self.placed.cpu is not None:
            cores = self.placed.cpu / factor
            self.group.limit(cores, max(period_s, cgroups.period_for([cores])))

    def pids(self) -> list[int]:
        """All processes of this server that live."""
        if self.group is not None:
            return self.group.pids()
        return pids_of(self.placed)

    def signal(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self, timeout_s: float = 2.0) -> None:
        """Stop all of it, and wait until every thread stands: some run on for a moment on a busy machine."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + timeout_s
        while any(_runs(pid) for pid in self.pids()) and time.monotonic() < deadline:
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL all of it: Apache's workers would go on without their parent."""
        deadline = time.monotonic() + 5.0
        while (pids := self.pids() or marked(self._mark)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.child is not None:
                self.child.process.poll()
            time.sleep(0.005)
        if self.child is not None:
            self.child.kill()
            self.child.stop()
        self.placed.pid = self.placed.started = 0


def _runs(pid: int) -> bool:
    """Is there a thread of it that is not stopped, nor dead?"""
    for task in Path("/proc", str(pid), "task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if task.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return True
    return False


def pids_of(placed: Placed) -> list[int]:
    return process_tree(placed.pid) if is_process(placed.pid, placed.started) else []


def marked(mark: str) -> list[int]:
    """Processes of a topology (ID:) or of one of its servers (ID:SERVER), by their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if any(v == wanted or (mark.endswith(":") and v.startswith(wanted)) for v in variables):
                    found.append(int(entry.name))
    return found


def apache_status(placed: Placed, timeout_s: float = 0.5) -> dict[str, Any] | None:
    """server-status of an Apache, asked within its namespace; see apache.read_status."""
    if placed.namespace:
        return namespaces.call_in(placed.namespace, lambda: apache.read_status(placed.control, timeout_s))
    return apache.read_status(placed.control, timeout_s)


def measure(placed: Placed, group: cgroups.Group | None) -> dict[str, Any]:
    """Ground truth of one server now; `up` is false when it does not run, and then the rest is missing or zero.

    Keys: name, backend, mpm, address, pid, up, workers, busy, queued, requests, cpu_s, memory (bytes), quota_cores; for
    Apache also keepalive, served, uptime_s, answered (false: all workers were taken, it could not be asked); for
    aiohttp what its /stats has.
    """
    row: dict[str, Any] = {
        "name": placed.name,
        "backend": placed.backend,
        "mpm": placed.mpm or None,
        "address": placed.address,
        "pid": placed.pid,
        "up": is_process(placed.pid, placed.started),
        "workers": placed.workers,
        "busy": 0,
        "queued": 0,
        "quota_cores": placed.cpu,
    }
    if not row["up"]:
        return row
    pids = (group.pids() if group is not None else []) or pids_of(placed)
    cpu = group.cpu_seconds() if group is not None else None
    row["cpu_s"] = cpu if cpu is not None else cpu_seconds(pids)
    row["memory"] = memory_bytes(pids)
    if group is not None and (throttled := group.throttled_seconds()) is not None:
        row["throttled_s"] = throttled
    try:
        row |= _apache(placed) if placed.backend == "apache" else aiohttp_call(placed, "/stats", None)
    except (OSError, ValueError):
        row["answered"] = False  # stopped, cut off, or ending
    return row


def _apache(placed: Placed) -> dict[str, Any]:
    status = apache_status(placed)
    waiting = apache.queued(placed.pid, placed.host, placed.port)
    if status is None:
        return {"busy": placed.workers, "queued": waiting, "answered": False}
    keys = ("busy", "keepalive", "workers", "requests", "uptime_s")
    truth = {key: status[key] for key in keys}
    served = status["requests"]  # Apache counts a request when its answer has gone
    return {**truth, "served": served, "queued": waiting, "answered": True, "status_cpu_s": status["cpu_s"]}


def aiohttp_call(placed: Placed, path: str, body: bytes | None, timeout_s: float = 5.0) -> dict[str, Any]:
    url = f"http://{placed.host}:{placed.control}{path}"
    with contextlib.closing(urllib.request.urlopen(url, data=body, timeout=timeout_s)) as answer:
        document: dict[str, Any] = json.loads(answer.read())
        return document


def memory_bytes(pids: list[int]) -> int:
    """Memory of processes that share most of it: what each has alone, and once what they share."""
    own, shared = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            _, resident, common = (int(v) for v in Path("/proc", str(pid), "statm").read_text().split()[:3])
            own += resident - common
            shared = max(shared, common)
    return (own + shared) * _PAGE
