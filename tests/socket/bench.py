"""A balancer before servers that answer when a test says so, directed by that test in the controller's place."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shm_layout.layout import CURVE_LOW
from shm_layout.segment import DirectiveData
from tests.socket.conftest import Balancer, Service, read_message

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
N = CURVE_LOW.astype(float)


def flat(value: float) -> np.ndarray:
    return np.full(len(N), value, dtype=np.float32)


def get(name: str, sla: str = "") -> bytes:
    header = f"X-SLA: {sla}\r\n" if sla else ""
    return f"GET /{name} HTTP/1.1\r\nHost: a\r\n{header}\r\n".encode()


def wait_for(condition: Callable[[], Any], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.003)


@dataclass
class Gated:
    """Servers that answer a request when the test says so, by its name."""

    seen: list[tuple[int, str]] = field(default_factory=list)  # (server, name) in order of arrival
    gates: dict[str, threading.Event] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gate(self, name: str) -> threading.Event:
        with self.lock:
            return self.gates.setdefault(name, threading.Event())

    def handler(self, server: int):
        def handle(connection, origin):
            while head := origin.request(connection):
                name = head.split()[1].decode()[1:]
                self.seen.append((server, name))
                assert self.gate(name).wait(10)
                connection.sendall(OK)

        return handle

    def answer(self, *names: str) -> None:
        for name in names:
            self.gate(name).set()

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.seen]


@dataclass
class Bench:
    """A balancer before a cheap server (0) and a dear one (1), with a controller that is this test."""

    service: Service
    servers: Gated
    ports: list[int]
    balancer: Balancer
    clients: dict[str, socket.socket] = field(default_factory=dict)
    sequence: int = 0

    def direct(self, reserve: np.ndarray | None, bids: tuple[float, ...] = (1.0, 5.0), **changes: Any) -> None:
        """Server i bids bids[i] while it is idle, and 10·(bids[i] + n) when it is not."""
        self.sequence += 1
        ids = [server.id for server in self.service.settings.servers]
        curves = np.array([np.where(N == 0, bid, 10 * (bid + N)) for bid in bids], dtype=np.float32)
        made = {"rule": "bids", "sequence": self.sequence, "issued_ns": time.monotonic_ns(), **changes}
        self.service.segment.publish_directive(DirectiveData(ids=ids, curves=curves, reserve=reserve, **made))

    def taken(self) -> None:
        wait_for(lambda: all(row["directive_sequence"] == self.sequence for row in self.rows()))

    def rows(self) -> Any:
        rows = self.service.segment.read_workers()
        return rows[rows["started_ns"] > 0]

    def total(self, name: str, index: int | None = None) -> int:
        values = self.rows()[name]
        return int((values if index is None else values[:, index]).sum())

    def send(self, name: str, sla: str = "") -> socket.socket:
        s = self.clients[name] = self.balancer.connect(10)
        s.sendall(get(name, sla))
        return s

    def hold(self, name: str, sla: str = "") -> socket.socket:
        """Send it, and see it wait."""
        before = self.total("queued")
        s = self.send(name, sla)
        wait_for(lambda: self.total("queued") == before + 1)
        return s

    def arrive(self, name: str, sla: str = "") -> None:
        """Send it, and see it arrive at a server."""
        self.send(name, sla)
        wait_for(lambda: name in self.servers.names)

    def finish(self, *names: str) -> None:
        """Let these be answered, and see that they are."""
        self.servers.answer(*names)
        for name in names:
            assert read_message(self.clients[name], b"ok").startswith(b"HTTP/1.1 200"), name
