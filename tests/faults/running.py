"""A whole balancer as users run it, on free ports, and load on it that notices every lost request."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.processes import Child, free_port

ROOT = Path(__file__).resolve().parent.parent.parent


def wait_until(holds: Callable[[], Any], timeout_s: float = 10.0, every_s: float = 0.02) -> Any:
    """Return what holds() gives as soon as it is true; fail when that takes too long."""
    until = time.monotonic() + timeout_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {getattr(holds, '__name__', holds)}"
        time.sleep(every_s)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """`vickrey run` with one service called web. Keys of the service are given as in a file, '_' for '-'."""

    def __init__(self, folder: Path, servers: list[Any], **keys: Any) -> None:
        self.folder = folder
        self.file = folder / "web.yaml"
        self.port = free_port()
        self.admin_port = free_port()
        self.instance = f"t{os.getpid()}-{self.port}"
        self.plugins: list[Path] = []  # folders with installed policies of third parties
        self.admin: dict[str, Any] = {"listen": f"127.0.0.1:{self.admin_port}"}
        self.keys: dict[str, Any] = {"listen": f"127.0.0.1:{self.port}", "servers": servers, **keys}
        self.child: Child | None = None
        self.write()

    def write(self, **keys: Any) -> None:
        """Write the file, with these keys of the service changed. (JSON is YAML.)"""
        self.keys.update(keys)
        document = {
            "instance": self.instance,
            "admin": self.admin,
            "service": {"web": self.keys},
        }
        self.file.write_text(json.dumps(document))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self.child is not None
        if kind is not None:
            print(self.child.log(20_000))
        children = self.children() if self.child.is_alive else []
        self.child.stop(grace_s=10.0, number=signal.SIGINT)
        if kind is None:
            assert self.child.process.returncode == 0
            assert [pid for pid in children if is_alive(pid)] == []
            assert self.segments() == []

    def start(self) -> None:
        if self.child is not None:
            self.child.stop()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *self.plugins]))}
        command = [sys.executable, "-m", "controlplane.cli", "run", str(self.file)]
        self.child = Child("vickrey", command, env=environment, cwd=self.folder, death_signal=signal.SIGKILL)
        self.child.wait_ready(self.is_healthy, 30.0)

    def is_healthy(self) -> bool:
        try:
            return bool(self.get("health")["ok"] and self.get("health")["controller"])
        except OSError:
            return False

    # What it tells.

    def request(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return self.request("GET", f"/v1/{path}")[1]

    def change(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.request(method, f"/v1/{path}", body or {})
        assert status == 200, answer
        return answer

    def metrics(self) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    @property
    def service(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("status")["services"]["web"]
        return found

    def server(self, name_or_address: str) -> dict[str, Any]:
        return next(s for s in self.service["servers"] if name_or_address in (s["name"], s["address"]))

    def process(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("status")["processes"][name]
        return found

    def pid(self, name: str) -> int:
        return int(wait_until(lambda: self.process(name)["pid"]))

    @property
    def supervisor_pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.supervisor_pid}/task/{self.supervisor_pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def segments(self) -> list[str]:
        return [path.name for path in Path("/dev/shm").glob(f"vickrey.{self.instance}.*")]

    def log(self) -> str:
        assert self.child is not None
        return self.child.log(100_000)

    def in_flight(self) -> int:
        return int(self.service["in_flight"])

    def signal(self, number: int) -> None:
        os.kill(self.supervisor_pid, number)

    def wait_for_exit(self, timeout_s: float = 10.0) -> int:
        assert self.child is not None
        return self.child.process.wait(timeout_s)


class Load:
    """Closed-loop requests over kept-alive connections, in a thread, until the block ends; a lost one is an error."""

    def __init__(
        self, port: int, connections: int = 8, path: str = "/", method: str = "GET", body: bytes = b""
    ) -> None:
        self.statuses: Counter[int] = Counter()
        self.errors: list[str] = []
        self.last_good = 0.0
        self._port, self._connections = port, connections
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self._request = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{length}\r\n".encode() + body
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def good(self) -> int:
        return self.statuses[200]

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.statuses or self.errors)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def run_for(self, requests: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more were answered well."""
        wanted = self.good + requests
        wait_until(lambda: self.good >= wanted, timeout_s)

    def assert_nothing_lost(self) -> None:
        assert self.errors == []
        assert set(self.statuses) == {200}

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._connections)))

    async def _client(self) -> None:
        while not self._stop.is_set():
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                while not self._stop.is_set() and await self._exchange(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError) as error:
                self.errors.append(f"{time.monotonic():.3f} {type(error).__name__}: {error}")
                await asyncio.sleep(0.01)
            finally:
                if writer is not None:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(self._request)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).lower()
        status = int(head.split(b" ", 2)[1])
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or b"0")
        await asyncio.wait_for(reader.readexactly(length), 20)
        self.statuses[status] += 1
        if status == 200:
            self.last_good = time.monotonic()
        return b"connection: close" not in head
