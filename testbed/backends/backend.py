"""One backend: an aiohttp server over a station of workers.

    GET /?d=MS&size=BYTES    d milliseconds of work at speed 1 (default: the backend's own distribution), then a body
    GET /dummy.php/?n=N      the work of N turns of a loop (turn_ns each), as the traces of MARLLB ask for
    GET /health              200, or 503
    GET /stats               ground truth as JSON: busy, queued, served, …
    POST /fault              see faults.py
    POST /reset              drop what waits, zero the totals, end the fault

Any other path and method is work, too; a body is read and its length answered (X-Received-Bytes). Every answer names
its server (X-Server), and work says how long it waited and how long it was served (X-Wait-Ms, X-Service-Ms), so that a
simulation can be given the same service times. A second, private port, the control port, stays open while a fault has
closed the first.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from urllib.parse import parse_qs

import numpy as np
from aiohttp import web

from testbed.backends.faults import Fault, parse_fault
from testbed.backends.server import Server, connection_of
from testbed.backends.station import Dropped, QueueFull, Station
from testbed.demand import parse_demand
from testbed.processes import rss_bytes

KEEP_ALIVE_S = 3600.0  # longer than any balancer's, so that the balancer decides when a connection closes
MAX_BODY_BYTES = 64 << 20
MAX_DEMAND_MS = 600_000.0
_PROMPT_BYTES = 65_536  # an answer no longer than this leaves at once, however slow its client reads
_SAMPLES = 4096


@dataclass(frozen=True)
class Spec:
    """What a backend is; port and control 0: any free port."""

    name: str = "server"
    host: str = "127.0.0.1"
    port: int = 0
    control: int = 0
    workers: int = 1
    speed: float = 1.0
    limit: int | None = None
    demand: str = "fixed:0"  # of requests that name none
    size: int = 64  # bytes of body, likewise
    cpu: bool = False
    turn_ns: float = 5.0  # of one of ?n=
    seed: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"{self.name}: workers must be at least 1")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"{self.name}: speed must be above 0")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"{self.name}: limit must not be negative")
        if not 0 <= self.size <= MAX_BODY_BYTES:
            raise ValueError(f"{self.name}: size must be between 0 and {MAX_BODY_BYTES}")
        parse_demand(self.demand)


class Backend:
    """Serves between start() and stop(); `port` and `control_port` are then the real ones."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.port = spec.port
        self.control_port = spec.control
        self.station = Station(spec.workers, spec.speed, spec.limit, spec.cpu)
        self.fault = Fault()
        self.requests = 0
        self._fault_ends: asyncio.TimerHandle | None = None
        self._fault_over = asyncio.Event()
        self._lots = random.Random(spec.seed)
        self._demand = parse_demand(spec.demand)
        self._demand_rng = np.random.default_rng(spec.seed)
        self._demands: list[float] = []
        self._bodies: dict[int, bytes] = {}
        self._runner: web.ServerRunner | None = None
        self._control: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        self._control, _, self.control_port = await self._listen(self.spec.control)
        self._runner, self._site, self.port = await self._listen(self.spec.port)

    async def stop(self) -> None:
        if self._fault_ends:
            self._fault_ends.cancel()
        self._fault_over.set()
        for runner in (self._runner, self._control):
            if runner:
                await runner.cleanup()

    async def _listen(self, port: int) -> tuple[web.ServerRunner, web.TCPSite, int]:
        server = Server(self._handle, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_S)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self.spec.host, port, backlog=4096, reuse_address=True)
        await site.start()
        return runner, site, int(runner.addresses[0][1])

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == "/health":
            return await self._health()
        if path == "/stats":
            return web.json_response(self.stats(), headers={"X-Server": self.spec.name})
        if path == "/fault" and request.method == "POST":
            return await self._set_fault(request)
        if path == "/reset" and request.method == "POST":
            await self.set_fault(Fault())
            self.station.clear()
            return web.json_response({"ok": True})
        return await self._work(request)

    async def _health(self) -> web.Response:
        headers = {"X-Server": self.spec.name}
        if self.fault.health:
            if self.fault.kind == "hang":
                await self._fault_over.wait()
            else:
                return web.Response(status=503, text="unwell\n", headers=headers)
        return web.Response(text="ok\n", headers=headers)

    async def _work(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        try:
            demand_ms, size = self._asked_for(request.query_string)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n", headers={"X-Server": self.spec.name})
        connection = connection_of(request)
        received, arrived = 0, connection.request_came()
        if request.body_exists:
            async for piece in request.content.iter_any():
                received += len(piece)
            arrived = asyncio.get_running_loop().time()
        struck = self._is_struck()
        if struck == "hang":
            await self._fault_over.wait()
            arrived = asyncio.get_running_loop().time()
        elif struck == "500":
            return web.Response(status=self.fault.status, text="fault\n", headers={"X-Server": self.spec.name})
        elif struck == "close":
            _abort(request)
        try:
            job = await self.station.serve(demand_ms / 1e3, arrived)
        except (QueueFull, Dropped) as error:
            return web.Response(status=503, text=f"{error}\n", headers={"X-Server": self.spec.name})
        headers = {
            "X-Server": self.spec.name,
            "X-Service-Ms": f"{job.service_s * 1e3:.3f}",
            "X-Wait-Ms": f"{job.wait_s * 1e3:.3f}",
        }
        if received:
            headers["X-Received-Bytes"] = str(received)
        if struck == "close-mid-body":
            response = web.StreamResponse(headers=headers)
            response.content_length = max(size, 2)
            await response.prepare(request)
            await response.write(self._body(max(size, 2))[: max(size, 2) // 2])
            _abort(request)
        if size <= _PROMPT_BYTES:
            connection.once_answered(functools.partial(self.station.answered, job))
        return web.Response(body=self._body(size), headers=headers, content_type="text/plain")

    def _is_struck(self) -> str:
        """The kind of fault that this request meets."""
        if self.fault.kind == "none" or (self.fault.share < 1 and self._lots.random() >= self.fault.share):
            return "none"
        return self.fault.kind

    def _asked_for(self, query: str) -> tuple[float, int]:
        """Demand in milliseconds and size of the body, as the query or the configuration says."""
        demand_ms, size = None, self.spec.size
        if query:
            fields = parse_qs(query)
            if "d" in fields:
                demand_ms = float(fields["d"][0])
            elif "n" in fields:
                demand_ms = float(fields["n"][0]) * self.spec.turn_ns / 1e6
            if "size" in fields:
                size = int(fields["size"][0])
        if demand_ms is None:
            if not self._demands:
                self._demands = self._demand.sample(_SAMPLES, self._demand_rng).tolist()
            demand_ms = self._demands.pop()
        if not 0 <= demand_ms <= MAX_DEMAND_MS:
            raise ValueError(f"d must be between 0 and {MAX_DEMAND_MS:g} ms")
        if not 0 <= size <= MAX_BODY_BYTES:
            raise ValueError(f"size must be between 0 and {MAX_BODY_BYTES}")
        return demand_ms, size

    def _body(self, size: int) -> bytes:
        body = self._bodies.get(size)
        if body is None:
            if len(self._bodies) >= 16:  # sizes come from clients
                self._bodies.clear()
            body = self._bodies[size] = b"x" * size
        return body

    async def _set_fault(self, request: web.BaseRequest) -> web.Response:
        try:
            fault = parse_fault(json.loads(await request.read()))
        except ValueError as error:
            return web.json_response({"ok": False, "error": str(error)}, status=400)
        await self.set_fault(fault)
        return web.json_response({"ok": True, "fault": asdict(fault)})

    async def set_fault(self, fault: Fault) -> None:
        """Show this fault from now on, and only it."""
        if self._fault_ends:
            self._fault_ends.cancel()
            self._fault_ends = None
        async with self._lock:
            self.fault = fault
            self._fault_over.set()
            self._fault_over = asyncio.Event()
            self.station.speed = self.spec.speed / (fault.factor if fault.kind == "slow" else 1.0)
            if fault.kind == "refuse":
                await self._close_port(fault.drop)
            elif self._site is None and self._runner:
                self._site = web.TCPSite(self._runner, self.spec.host, self.port, backlog=4096, reuse_address=True)
                await self._site.start()
        if fault.seconds:
            loop = asyncio.get_running_loop()
            self._fault_ends = loop.call_later(fault.seconds, lambda: loop.create_task(self.set_fault(Fault())))

    async def _close_port(self, drop: bool) -> None:
        if self._site:
            await self._site.stop()
            self._site = None
        if drop and self._runner and self._runner.server:
            for connection in self._runner.server.connections:
                if connection.transport:
                    connection.transport.abort()

    def stats(self) -> dict[str, object]:
        station, totals = self.station, self.station.totals
        return {
            "name": self.spec.name,
            "workers": station.workers,
            "speed": station.speed,
            "limit": station.limit,
            "busy": station.busy,
            "queued": station.queued,
            "requests": self.requests,
            "served": totals.served,
            "rejected": totals.rejected,
            "abandoned": totals.abandoned,
            "demand_ms": totals.demand_s * 1e3,
            "service_ms": totals.service_s * 1e3,
            "wait_ms": totals.wait_s * 1e3,
            "late_ms": totals.late_s * 1e3,
            "fault": self.fault.kind,
            "pid": os.getpid(),  # CPU and memory are the process's: backends may share one
            "cpu_s": time.process_time(),
            "memory": rss_bytes([os.getpid()]),
        }


def _abort(request: web.BaseRequest) -> None:
    """Close the connection under the request, without an answer; the handler goes no further."""
    if request.transport:
        request.transport.close()
    raise asyncio.CancelledError
