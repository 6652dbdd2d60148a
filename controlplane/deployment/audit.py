"""The audit log: a JSON line for every change of policy, server and configuration: who, what, when, and how it went.

    {"time": "2026-11-21T09:00:00.000+00:00", "who": "127.0.0.1", "service": "web", "what": "enforced", "policy": …}

A thread writes; who records never waits. What a full disk or a blocked pipe does not take is dropped and counted, and
the number is on record as soon as something can be written again. The newest records are also kept in memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("vickrey.audit")

WAITING_MAX, KEPT = 1000, 500
LINE_BYTES_MAX = 16_384


class AuditLog:
    """One file, or none (path empty: records are kept in memory only). OSError: the file cannot be opened."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.written = self.dropped = 0
        self.latest: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._untold = 0  # drops that the file does not tell of yet
        self._reopen = threading.Event()
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING_MAX)
        self._fd = -1
        self._thread: threading.Thread | None = None
        if path:
            self._fd = self._open()  # here, so that a path that cannot be written fails at the start
            self._thread = threading.Thread(target=self._write_all, name="audit log", daemon=True)
            self._thread.start()

    def record(self, what: str, *, who: str, service: str | None = None, **more: Any) -> None:
        """Put something on record; never waits."""
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "who": who, "service": service, "what": what, **more}
        self.latest.append(entry)
        if self._thread is None:
            return
        try:
            self._lines.put_nowait(as_line(entry))
        except queue.Full:
            self._drop()

    def reopen(self) -> None:
        """Open the file anew, after rotation, before the next line."""
        self._reopen.set()

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits and end; a writer that is stuck is left behind."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(seconds)

    def _open(self) -> int:
        # O_NONBLOCK: a pipe whose reader sleeps refuses the line instead of keeping us.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._reopen.is_set():
                self._reopen.clear()
                self._opened_anew()
            if self._untold and self._write(as_line(self._told_drops())):
                self._untold = 0
            if self._write(line):
                self.written += 1
            else:
                self._drop()
        os.close(self._fd)

    def _opened_anew(self) -> None:
        try:
            fd = self._open()
        except OSError as error:
            log.error("cannot open %s: %s; the old file is kept", self.path, error.strerror)
            return
        os.close(self._fd)
        self._fd = fd

    def _told_drops(self) -> dict[str, Any]:
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        return {"time": now, "who": "audit log", "service": None, "what": "dropped", "records": self._untold}

    def _write(self, line: bytes) -> bool:
        done = 0
        try:
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError:
            if done:  # a line that was begun is ended, so that the next one stands alone
                with contextlib.suppress(OSError):
                    os.write(self._fd, b"\n")
            return False
        return True


def as_line(entry: dict[str, Any]) -> bytes:
    """Return a record as a line; of one that is too long, only who, what and when."""
    line = json.dumps(entry, separators=(",", ":"), default=str).encode()
    if len(line) > LINE_BYTES_MAX:
        short = {key: entry.get(key) for key in ("time", "who", "service", "what", "policy", "sha256")}
        line = json.dumps(short | {"too_long": len(line)}, separators=(",", ":"), default=str).encode()
    return line + b"\n"
