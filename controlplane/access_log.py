"""The access log: one line for each finished flow, read from the workers' rings and written by a thread of its own.

The ring is the only buffer. A writer that is stuck (a blocked pipe, a full disk) reads no further, the workers
overwrite what it has not read, and what was lost is counted: no worker ever waits for a log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import Any

import numpy as np

from controlplane.counters import OUTCOME_NAMES, RULE_NAMES
from shm_layout.layout import NO_SERVER, SLA_CLASSES
from shm_layout.segment import Segment

log = logging.getLogger("vickrey.access")

POLL_S = 0.1
BATCH = 1024
# enum http_method of the HTTP parser; 0 stands for a method that it has no number for, and for tcp mode.
METHODS = ("-", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")

Format = Callable[[Any, str, str, int], str]


class AccessLog:
    """Writes the access log of one service until it is stopped."""

    def __init__(self, segment: Segment, service: str, workers: int, path: str, kind: str, names: Mapping[int, str]):
        self.lost = 0  # overwritten in the ring before they were read
        self.dropped = 0  # read, and could not be written
        self.written = 0
        self._segment = segment
        self._service = service
        self._path = path
        self._format: Format = as_json if kind == "json" else as_combined
        self._names = names
        self._cursors = [0] * workers
        self._reopen = threading.Event()
        self._stop = threading.Event()
        self._fd = self._open()  # here, so that a path that cannot be written fails at the start
        self._thread = threading.Thread(target=self._run, name=f"access log {service}", daemon=True)
        self._thread.start()

    @property
    def lost_total(self) -> int:
        return self.lost + self.dropped

    def reopen(self) -> None:
        """Open the file anew, for log rotation; takes effect at the next poll."""
        self._reopen.set()

    def stop(self) -> None:
        """Write what there is and end; a writer that is stuck is left behind."""
        self._stop.set()
        self._thread.join(1.0)

    def _open(self) -> int:
        if self._path == "stdout":
            return sys.stdout.fileno()
        # O_NONBLOCK: a pipe whose reader sleeps refuses the line instead of keeping us.
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(POLL_S)
            if self._reopen.is_set():
                self._reopen.clear()
                self._reopened()
            for worker in range(len(self._cursors)):
                while self._write_some(worker):
                    pass
        if self._path != "stdout":
            os.close(self._fd)

    def _reopened(self) -> None:
        if self._path == "stdout":
            return
        try:
            fd = self._open()
        except OSError as error:
            log.error("access log of %s: cannot open %s: %s; the old file is kept", self._service, self._path, error)
            return
        os.close(self._fd)
        self._fd = fd

    def _write_some(self, worker: int) -> bool:
        """Write one batch of a worker's records; returns whether there may be more."""
        read = self._segment.read_records(worker, self._cursors[worker], BATCH)
        records, self._cursors[worker] = read.records, read.cursor
        self.lost += read.lost
        if len(records) == 0:
            return False
        # Records carry monotonic times; the wall clock is asked once a batch.
        offset_ns = time.time_ns() - time.monotonic_ns()
        lines = [self._format(record, self._service, self._server(record), offset_ns) for record in records]
        self._write(lines)
        return len(records) == BATCH and not self._stop.is_set()

    def _server(self, record: Any) -> str:
        if int(record["server"]) == NO_SERVER:
            return "-"
        return self._names.get(int(record["server_id"]), "-")

    def _write(self, lines: list[str]) -> None:
        data = "".join(lines).encode()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            # A line that was begun is ended, so that the next one stands alone.
            self.written += data[:done].count(b"\n")
            self.dropped += len(lines) - data[:done].count(b"\n")
            if done and data[done - 1 : done] != b"\n":
                with contextlib.suppress(OSError):
                    os.write(self._fd, b"\n")
            return
        self.written += len(lines)


def _text(field: Any, length: int) -> str:
    return bytes(field)[:length].decode("latin-1")


def _client(record: Any) -> str:
    address = IPv6Address(bytes(record["client"]))
    return str(address.ipv4_mapped or address)


def _between_ms(later: int, earlier: int) -> float | None:
    return round((later - earlier) / 1e6, 3) if later and earlier and later >= earlier else None


def _finite(value: float) -> float | None:
    return round(float(value), 9) if np.isfinite(value) else None


def as_json(record: Any, service: str, server: str, offset_ns: int) -> str:
    """Return one flow as a JSON line. Times are milliseconds; null where the flow did not get that far."""
    opened, dispatched = int(record["opened_ns"]), int(record["dispatched_ns"])
    connected, first, closed = (int(record[name]) for name in ("connected_ns", "first_byte_ns", "closed_ns"))
    method = int(record["method"])
    line = {
        "time": datetime.fromtimestamp((closed + offset_ns) / 1e9, UTC).isoformat(timespec="milliseconds"),
        "service": service,
        "client": _client(record),
        "client_port": int(record["client_port"]),
        "method": METHODS[method] if method < len(METHODS) else "-",
        "target": _text(record["target"], int(record["target_bytes"])),
        "status": int(record["status"]),
        "server": server,
        "queue_ms": _between_ms(dispatched, opened),
        "connect_ms": _between_ms(connected, dispatched),
        "ttfb_ms": _between_ms(first, connected),
        "total_ms": _between_ms(closed, opened),
        "bytes_in": int(record["bytes_in"]),
        "bytes_out": int(record["bytes_out"]),
        "retries": int(record["retries"]),
        "outcome": _name(OUTCOME_NAMES, int(record["outcome"])),
        "termination": chr(int(record["termination"])) if record["termination"] else "-",
        "rule": _name(RULE_NAMES, int(record["rule"])),
        "sla": _name(SLA_CLASSES, int(record["sla"])),
        "route": int(record["route"]),
        "load": _finite(record["load"]),
        "waiting": int(record["waiting"]),
        "handoff": bool(record["handoff"]),
        "found": int(record["found"]),
        "bid": _finite(record["bid"]),
        "price": _finite(record["price"]),
        "directive": int(record["directive_sequence"]),
    }
    return json.dumps(line, separators=(",", ":")) + "\n"


def as_combined(record: Any, service: str, server: str, offset_ns: int) -> str:
    """Return one flow in the combined format of Apache and nginx, and after it what a proxy has to add."""
    opened, closed = int(record["opened_ns"]), int(record["closed_ns"])
    when = datetime.fromtimestamp((closed + offset_ns) / 1e9, UTC).strftime("%d/%b/%Y:%H:%M:%S %z")
    method = int(record["method"])
    target = _text(record["target"], int(record["target_bytes"])).replace("\\", "\\x5c").replace('"', "\\x22")
    target = "".join(c if c.isprintable() and c < "\x7f" else f"\\x{ord(c):02x}" for c in target)
    request = f"{METHODS[method] if method < len(METHODS) else '-'} {target or '-'} HTTP/1.1"
    total_s = (closed - opened) / 1e9 if closed >= opened else 0.0
    return (
        f'{_client(record)} - - [{when}] "{request}" {int(record["status"])} {int(record["bytes_out"])} "-" "-"'
        f" {service}/{server} {total_s:.6f} {_name(OUTCOME_NAMES, int(record['outcome']))}\n"
    )


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)
