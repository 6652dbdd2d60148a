"""The open-loop generator: sends a schedule through a pool of connections and records what became of every request.

A request leaves at its time whether or not earlier ones were answered: the pool grows as needed, and the flow
completion time counts from the *scheduled* arrival, so a stall is charged to every request that it delayed (no
coordinated omission). What the generator itself was late is recorded, too: how long after its time each request left,
and by how much a clock that ticks all the while was late at worst.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import resource
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from testbed.load.connection import (
    ABORTED,
    CONNECT,
    CONNECT_TIMEOUT,
    LOCAL,
    OK,
    TIMEOUT,
    Answer,
    Connection,
    error_of,
)
from testbed.load.schedule import Schedule

_UNKNOWN = 65_535
_TICK_S = 0.05  # how often timeouts, and the generator's own health, are looked after
_WARM_S = 1.0  # for the connections made before the start

RECORD = np.dtype(
    [
        ("scheduled_s", "f8"),  # from the start of the run, like the next three; NaN: never happened
        ("sent_s", "f8"),
        ("first_byte_s", "f8"),
        ("done_s", "f8"),
        ("demand_ms", "f8"),
        ("wait_ms", "f8"),  # as the server says
        ("service_ms", "f8"),
        ("body_bytes", "i8"),
        ("status", "u2"),  # 0: no answer
        ("error", "u1"),  # index into connection.ERROR_NAMES
        ("server", "u2"),  # index into Result.servers; 65535: not said
    ]
)


@dataclass(frozen=True)
class Target:
    """Where requests go, and what they ask for. The demand becomes the query `d`, milliseconds, or `n`, loop turns."""

    host: str
    port: int
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    demand_query: Literal["d", "n"] = "d"
    name: str = ""  # what Host says, when it is not the address

    def request(self, demand_ms: float, keep_alive: bool = True) -> bytes:
        path = self.path
        if demand_ms == demand_ms:  # not NaN
            demand = f"d={demand_ms:.4f}" if self.demand_query == "d" else f"n={demand_ms:.0f}"
            path += f"{'&' if '?' in path else '?'}{demand}"
        return self.get(path, keep_alive)

    @property
    def authority(self) -> str:
        host = self.name or self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def get(self, path: str, keep_alive: bool = True) -> bytes:
        """The request for a path of this target."""
        named = any(name.lower() == "host" for name, _ in self.headers)
        head = f"GET {path} HTTP/1.1\r\n" + ("" if named else f"Host: {self.authority}\r\n")
        if not keep_alive:
            head += "Connection: close\r\n"
        for name, value in self.headers:
            head += f"{name}: {value}\r\n"
        return f"{head}\r\n".encode()


@dataclass(frozen=True)
class Result:
    records: NDArray[np.void]  # dtype RECORD, in order of arrival
    servers: list[str]
    ended_s: float  # when the run was over, after its start
    stall_s: float = 0.0  # the longest time for which the generator did nothing though it should have
    cpu_s: float = 0.0  # what the generator's process spent on the run

    @property
    def fct_s(self) -> NDArray[np.float64]:
        """Flow completion times of the requests that were answered well, from their scheduled arrival."""
        good = self.records[is_good(self.records)]
        fct: NDArray[np.float64] = good["done_s"] - good["scheduled_s"]
        return fct


def is_good(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which requests got all of an answer that is no error: status 200 to 399."""
    good: NDArray[np.bool_] = (records["error"] == OK) & (records["status"] >= 200) & (records["status"] < 400)
    return good


@dataclass(frozen=True)
class Finished:
    """One request that just ended, for whoever watches the run."""

    index: int
    at_s: float
    fct_s: float
    status: int
    error: int
    server: str


class Generator:
    """Runs one schedule: `result = await Generator(target, schedule).run()`.

    targets: several, used in turn by the indices in `choice` (the direct path, without a balancer).
    request: makes the request of an index, instead of the target, from the schedule's demand.
    """

    def __init__(
        self,
        target: Target | list[Target],
        schedule: Schedule,
        *,
        choice: NDArray[np.intp] | None = None,
        timeout_s: float = 30.0,
        keep_alive: bool = True,
        warm_connections: int = 16,
        max_connections: int = 20_000,
        watch: Callable[[Finished], None] | None = None,
        request: Callable[[int], bytes] | None = None,
    ) -> None:
        self.targets = target if isinstance(target, list) else [target]
        self.schedule = schedule
        self.in_flight = 0
        self.connections = 0
        self._choice = choice.tolist() if choice is not None else [0] * len(schedule)
        self._timeout_s = timeout_s
        self._keep_alive = keep_alive
        self._warm = warm_connections if keep_alive else 0
        self._max_connections = max_connections
        self._watch = watch
        self._request = request or self._demand_request
        self.order = array.array("I")  # requests that were answered or failed, in that order; grows
        self._idle: list[list[Connection]] = [[] for _ in self.targets]
        self._owner_of: dict[Connection, int] = {}  # the target that a connection leads to
        self._carrying: dict[int, Connection | None] = {}  # requests in flight; None: still connecting
        self._deadlines: deque[int] = deque()  # requests in order of sending, and so of their timeouts
        self._arrivals = schedule.arrival_s.tolist()
        self._demands = schedule.demand_ms.tolist()
        n = len(schedule)
        nan = array.array("d", [float("nan")]) * n
        self._sent, self._first, self._done = nan[:], nan[:], nan[:]
        self._wait, self._service = nan[:], nan[:]
        self._bytes = array.array("q", [0]) * n
        self._status = array.array("H", [0]) * n
        self._error = array.array("B", [ABORTED]) * n
        self._server = array.array("H", [_UNKNOWN]) * n
        self._server_index: dict[bytes, int] = {}
        self._server_names: list[str] = []
        self._next = 0
        self._stopped = False
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start = 0.0
        self._ended_s = 0.0
        self._tick_due = 0.0
        self._stall_s = 0.0
        self._cpu_s = 0.0

    async def run(self) -> Result:
        """Send the whole schedule and wait for the last answer, or its timeout; abort() ends it earlier."""
        raise_descriptor_limit()
        self._loop = loop = asyncio.get_running_loop()
        for target in range(len(self.targets)):
            await asyncio.gather(*(self._connect_warm(target) for _ in range(self._warm)))
        gc.collect()
        gc.freeze()
        cpu_s = time.process_time()
        self._start = self._tick_due = loop.time() + 0.01
        self._over.clear()
        if not self._stopped:
            loop.call_at(self._start, self._send_due)
            loop.call_at(self._start, self._expire)
            await self._over.wait()
            # What came while we stood still is handled before the clock ticks, and may have been the last of it.
            self._stall_s = max(self._stall_s, loop.time() - self._tick_due)
        self._ended_s = loop.time() - self._start
        self._cpu_s = time.process_time() - cpu_s
        for connection in list(self._owner_of):
            connection.close()
        for task in list(self._tasks):
            task.cancel()
        gc.unfreeze()
        await asyncio.sleep(0)
        return self._result()

    def abort(self) -> None:
        """End the run now: connections are reset, and requests that have no answer yet count as aborted."""
        self._stopped = True
        for index in list(self._carrying):
            self._close(index, ABORTED)
        self._over.set()

    @property
    def now_s(self) -> float:
        """Time since the start of the schedule."""
        return self._loop.time() - self._start if self._loop and self._start else 0.0

    @property
    def sent(self) -> int:
        """Requests that have left."""
        return self._next

    def outcome(self, index: int) -> tuple[float, float, int, int]:
        """Of a request that ended: completion time from its schedule, lateness, seconds; status; error."""
        scheduled = self._arrivals[index]
        return (
            self._done[index] - scheduled,
            self._sent[index] - scheduled,
            self._status[index],
            self._error[index],
        )

    def _send_due(self) -> None:
        assert self._loop is not None
        if self._stopped:
            return
        n, arrivals = len(self._arrivals), self._arrivals
        now = self._loop.time() - self._start
        while self._next < n and arrivals[self._next] <= now:
            self._send(self._next, now)
            self._next += 1
            now = self._loop.time() - self._start
        if self._next < n:
            self._loop.call_at(self._start + arrivals[self._next], self._send_due)
        elif not self._carrying:
            self._over.set()

    def _send(self, index: int, now: float) -> None:
        self._sent[index] = now
        self._carrying[index] = None
        self.in_flight += 1
        self._deadlines.append(index)
        choice = self._choice[index]
        idle = self._idle[choice]
        while idle:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                self._give(connection, index)
                return
        if len(self._owner_of) >= self._max_connections:
            self._end(index, LOCAL)
            return
        assert self._loop is not None
        task = self._loop.create_task(self._connect(index))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give(self, connection: Connection, index: int) -> None:
        self._carrying[index] = connection
        connection.send(index, self._request(index))

    def _demand_request(self, index: int) -> bytes:
        return self.targets[self._choice[index]].request(self._demands[index], self._keep_alive)

    async def _open(self, target: int) -> Connection:
        assert self._loop is not None
        where = self.targets[target]
        _, connection = await self._loop.create_connection(lambda: Connection(self), where.host, where.port)
        self._owner_of[connection] = target
        self.connections += 1
        return connection

    async def _connect(self, index: int) -> None:
        try:
            connection = await self._open(self._choice[index])
        except OSError as error:
            if index in self._carrying:
                self._end(index, error_of(error, CONNECT))
            return
        if index in self._carrying:
            self._give(connection, index)
        else:  # timed out, or aborted, in the meantime
            connection.close()

    async def _connect_warm(self, target: int) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._idle[target].append(await asyncio.wait_for(self._open(target), _WARM_S))

    def _expire(self) -> None:
        """Time out what is due; all requests have the same timeout, so the oldest is due first."""
        assert self._loop is not None
        if self._stopped or self._over.is_set():
            return
        now = self._loop.time()
        self._stall_s = max(self._stall_s, now - self._tick_due)
        oldest = now - self._start - self._timeout_s
        while self._deadlines:
            index = self._deadlines[0]
            if index in self._carrying:
                if self._sent[index] > oldest:
                    break
                self._close(index, TIMEOUT if self._carrying[index] is not None else CONNECT_TIMEOUT)
            self._deadlines.popleft()
        self._tick_due = self._loop.time() + _TICK_S
        self._loop.call_at(self._tick_due, self._expire)

    def _close(self, index: int, error: int) -> None:
        connection = self._carrying[index]
        if connection is not None:
            connection.close()
        self._end(index, error)

    def _end(self, index: int, error: int) -> None:
        """The request is over, with or without an answer."""
        assert self._loop is not None
        del self._carrying[index]
        self.in_flight -= 1
        now = self._loop.time() - self._start
        if error != ABORTED:
            self._done[index] = now
        self._error[index] = error
        self.order.append(index)
        if self._watch:
            server = self._server[index]
            name = self._server_names[server] if server != _UNKNOWN else ""
            self._watch(Finished(index, now, now - self._arrivals[index], self._status[index], error, name))
        if self._next >= len(self._arrivals) and not self._carrying:
            self._over.set()

    # What connections tell their owner.

    def first_byte(self, index: int) -> None:
        assert self._loop is not None
        self._first[index] = self._loop.time() - self._start

    def finished(self, connection: Connection, answer: Answer) -> None:
        index = connection.index
        connection.index = -1
        self._status[index] = answer.status
        self._bytes[index] = answer.body_bytes
        self._wait[index] = answer.wait_ms
        self._service[index] = answer.service_ms
        if answer.server:
            known = self._server_index.get(answer.server)
            if known is None:
                known = self._server_index[answer.server] = len(self._server_names)
                self._server_names.append(answer.server.decode("latin-1"))
            self._server[index] = known
        if not self._keep_alive:
            connection.close_in_order()  # the server may have left that to us
        elif answer.keeps_alive:
            self._idle[self._choice[index]].append(connection)
        self._end(index, OK)

    def failed(self, connection: Connection, error: int) -> None:
        index, connection.index = connection.index, -1
        if index >= 0 and index in self._carrying:
            self._end(index, error)

    def lost(self, connection: Connection) -> None:
        self._owner_of.pop(connection, None)

    def _result(self) -> Result:
        records = np.zeros(len(self.schedule), RECORD)
        records["scheduled_s"] = self.schedule.arrival_s
        records["demand_ms"] = self.schedule.demand_ms
        for name, column in (
            ("sent_s", self._sent),
            ("first_byte_s", self._first),
            ("done_s", self._done),
            ("wait_ms", self._wait),
            ("service_ms", self._service),
            ("body_bytes", self._bytes),
            ("status", self._status),
            ("error", self._error),
            ("server", self._server),
        ):
            records[name] = column
        return Result(records, list(self._server_names), self._ended_s, self._stall_s, self._cpu_s)


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: an open loop may need thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parse_url(url: str) -> Target:
    """http://host:port/path?query; ValueError for anything else, OSError when the host has no address."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"not an http URL: {url}")
    try:
        port = parts.port or 80
    except ValueError:
        raise ValueError(f"no port between 1 and 65535: {url}") from None
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"{parts.hostname}: {getattr(error, 'strerror', None) or 'no host name'}") from None
    # IPv4 first, as most servers of a testbed listen there alone.
    address = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(address, port, path, name=parts.hostname if parts.hostname != address else "")
