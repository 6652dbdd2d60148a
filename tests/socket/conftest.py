"""A real balancer over scripted origins: the engine under sanitizers, and servers that do exactly what a test says."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dataplane.build_ffi import has_io_uring
from shm_layout.segment import Limits, Segment, ServerData, SettingsData, pack_address
from tests.c_build import ASAN_UBSAN, ROOT, SEGMENT_SOURCES, build_c

SOURCES = [
    "tests/c/standalone.c",
    *SEGMENT_SOURCES,
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("core", "socket")
        for path in (ROOT / "dataplane" / folder).glob("*.c")
    ),
]
IO_BACKENDS = ["io_uring", "epoll"] if has_io_uring() else ["epoll"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Balancer:
    """A running engine. stop() ends it and fails the test when it did not end cleanly or a sanitizer spoke."""

    process: subprocess.Popen[str]
    port: int

    def connect(self, timeout: float = 5.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def exchange(self, request: bytes, *, timeout: float = 5.0, half_close: bool = False) -> bytes:
        """Send bytes, return all that comes back until the balancer closes or timeout seconds pass without a byte."""
        with self.connect(timeout) as s:
            s.sendall(request)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            return read_all(s)

    def resident_kb(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS line")

    def pause(self) -> None:
        """Stop every thread, and wait until it stands. SIGCONT goes on."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()):
            time.sleep(0.002)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            self.process.send_signal(signal.SIGTERM)
        _, text = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, f"the engine ended with {self.process.returncode}:\n{text}"
        return text


def read_all(s: socket.socket) -> bytes:
    """Everything until the peer closes; what came before a reset or a silence of the socket's timeout."""
    data = b""
    try:
        while piece := s.recv(65536):
            data += piece
    except (TimeoutError, ConnectionResetError):
        pass
    return data


def read_message(s: socket.socket, until: bytes = b"\r\n\r\n") -> bytes:
    """Bytes up to and with the first occurrence of until (and whatever came along with it)."""
    data = b""
    while until not in data:
        piece = s.recv(65536)
        if not piece:
            break
        data += piece
    return data


Handler = Callable[[socket.socket, "Origin"], None]


@dataclass
class Origin:
    """A server on loopback that runs handler for each connection, and remembers every byte it was sent."""

    handler: Handler
    listener: socket.socket = field(init=False)
    port: int = field(init=False)
    received: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(10)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.handler(connection, self)

    def request(self, connection: socket.socket) -> bytes:
        """Read one head (and what came along), and remember it."""
        data = read_message(connection)
        if data:
            self.received.append(data)
        return data

    def close(self) -> None:
        self.listener.close()


def answer(body: bytes = b"ok", *, extra: bytes = b"", status: bytes = b"200 OK") -> Handler:
    """A handler that gives every request on the connection the same answer with a Content-Length."""

    def handle(connection: socket.socket, origin: Origin) -> None:
        while origin.request(connection):
            connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), extra, body))

    return handle


def raw(reply: bytes, *, close: bool = True) -> Handler:
    """A handler that reads one head and sends reply as it is, then closes (or waits for the peer to)."""

    def handle(connection: socket.socket, origin: Origin) -> None:
        if origin.request(connection):
            connection.sendall(reply)
            if not close:
                read_all(connection)

    return handle


@pytest.fixture
def start_origin() -> Iterator[Callable[[Handler], Origin]]:
    origins: list[Origin] = []

    def start(handler: Handler) -> Origin:
        origins.append(Origin(handler))
        return origins[-1]

    yield start
    for origin in origins:
        origin.close()


@pytest.fixture(scope="session")
def engine_program() -> Path:
    libraries = ("-lm", "-luring") if has_io_uring() else ("-lm", "-DNO_IO_URING")
    return build_c("standalone", SOURCES, (*ASAN_UBSAN, *libraries))


class Service:
    """A segment and the settings in it: what the supervisor does for a balancer, by hand."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.settings = SettingsData(retries=3)

    def publish(self, ports: list[int] | None = None, **changes: Any) -> None:
        """Settings with these changes; ports: new servers, with ids of their own."""
        version = self.settings.version + 1
        if ports is not None:
            changes["servers"] = [
                ServerData(id=version * 1000 + port, name=f"s{port}", address=pack_address("127.0.0.1", port))
                for port in ports
            ]
        self.settings = replace(self.settings, version=version, **changes)
        self.segment.publish_settings(self.settings)

    def taken(self, workers: int = 1, seconds: float = 3.0) -> None:
        """Wait until the workers have these settings in force."""
        deadline = time.monotonic() + seconds
        while any(self.worker(index)["settings_version"] != self.settings.version for index in range(workers)):
            assert time.monotonic() < deadline, "the settings were not taken"
            time.sleep(0.005)

    def worker(self, index: int = 0) -> Any:
        return self.segment.read_workers()[index]

    def in_flight(self) -> int:
        return int(self.segment.read_words().in_flight.sum())

    def settle(self, seconds: float = 15) -> None:
        """Whoever asked whether the balancer is up was accepted, and has left; so have all others."""
        deadline = time.monotonic() + seconds
        while not self.segment.read_workers()["connections_total"].any() or self.in_flight():
            assert time.monotonic() < deadline, f"{self.in_flight()} in flight"
            time.sleep(0.01)


@pytest.fixture
def service() -> Iterator[Service]:
    """To be given to start_balancer: start_balancer([0], SEGMENT=service.segment.name)."""
    name = f"/vickrey.socket-tests-{os.getpid()}.{random.randrange(1 << 30)}"
    limits = Limits(max_servers=64, max_workers=4, reservoir_slots=16, ring_slots=256, journal_slots=256)
    with Segment.create(name, limits, "web") as segment:
        yield Service(segment)
        segment.unlink()


@pytest.fixture
def start_balancer(engine_program: Path) -> Iterator[Callable[..., Balancer]]:
    """start(ports, mode="http", io="io_uring", workers=1, descriptors=4096, **environment) -> Balancer"""
    running: list[Balancer] = []

    def start(
        ports: list[int],
        mode: str = "http",
        io: str = "io_uring",
        workers: int = 1,
        descriptors: int = 4096,
        **environment: object,
    ) -> Balancer:
        port = free_port()
        limited = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]
        process = subprocess.Popen(
            [*limited, str(engine_program), mode, io, str(workers), str(port), *map(str, ports)],
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "ASAN_OPTIONS": "detect_leaks=1",
                **{key: str(value) for key, value in environment.items()},
            },
        )
        balancer = Balancer(process, port)
        running.append(balancer)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return balancer
            except ConnectionRefusedError:
                if process.poll() is not None:
                    break
                time.sleep(0.02)
        raise AssertionError(f"the engine does not listen: {process.communicate()[1]}")

    yield start
    for balancer in running:
        balancer.stop()
