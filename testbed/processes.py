"""Child processes that never outlive this one, and what they cost.

Every child gets a session of its own, so that Ctrl-C reaches only us and we stop the children in order, and a TERM
from the kernel when we die (PR_SET_PDEATHSIG), so that even a SIGKILL of ours leaves no orphan. Children are stopped
by pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_TICK = os.sysconf("SC_CLK_TCK")


class StartError(RuntimeError):
    """A child did not come up; the text has the end of what it wrote to standard error."""


class Child:
    """One running child process; its standard error goes to a temporary file, for the message when it fails."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cpu: int | None = None,
        stdout: int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        death_signal: int = signal.SIGTERM,
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        """before_exec: called in the child first: to enter a namespace, a control group, or become somebody else."""
        self.name = name
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix=f"vickrey-{name}-")  # noqa: SIM115  closed by stop()
        parent = os.getpid()

        def prepare() -> None:
            if before_exec is not None:
                before_exec()
            # Only now: the kernel drops the wish when a process becomes somebody else.
            _libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:  # we died before the kernel knew of the wish
                os._exit(1)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # thousands of connections
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._log,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=prepare,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log(self, last_bytes: int = 4000) -> str:
        self._log.flush()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - last_bytes))
        return self._log.read().decode(errors="replace").strip()

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Return when is_ready says so; StartError when the child ends first or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.is_alive:
                raise StartError(f"{self.name} ended with status {self.process.returncode}: {self.log()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready after {timeout_s:g} s: {self.log()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash would; the process is reaped."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def stop(self, grace_s: float = 5.0, number: int = signal.SIGTERM) -> None:
        """Ask it to end, and KILL it and its children when that does not help in time. Safe to call again."""
        if self.is_alive:
            self.process.send_signal(number)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                family = process_tree(self.pid)
                for pid in reversed(family):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if not self._log.closed:
            self._log.close()


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Does somebody listen on this port of loopback?"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def process_tree(root: int) -> list[int]:
    """root and all of its descendants that live now, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    tree = [root]
    for pid in tree:
        tree.extend(parents.get(pid, []))
    return tree


def cpu_seconds(pids: Iterable[int]) -> float:
    """utime + stime of these processes, all threads; a process that is gone counts zero."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path("/proc", str(pid), "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def command_line(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
