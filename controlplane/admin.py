"""The admin HTTP API: what the balancer does, and changes to it while it runs.

    GET   /                                    dashboard              GET  /metrics      Prometheus
    GET   /v1/status                           everything             GET  /stats;csv    HAProxy's CSV
    GET   /v1/health                           200 or 503             GET  /v1/policies  names and descriptions
    GET   /v1/services/{service}/servers       its servers
    PATCH /v1/services/{service}/servers/{server}    {"state": "ready|drain|maint", "weight": 0-256, "maxconn": n}
    GET   /v1/services/{service}/policy        in force, and what it has learned
    POST  /v1/services/{service}/policy        {"name": …, options}; {"enforcing": 50} alone: of the one in force
    POST  /v1/services/{service}/policy/rollback
    POST  /v1/reload                           read the configuration file again
    GET   /v1/audit                            the newest records of the audit log; ?last=, 50

It listens on loopback or a unix socket (0600) and asks for no password, so it must not serve as a tool of somebody
else's web page: a Host that is a name of the outside world is refused (DNS rebinding), and a change must come as JSON
from the same origin (a page elsewhere cannot send that without a permission that is never given). Every change leaves
a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from controlplane import listeners, metrics, registry
from controlplane.config import Address
from controlplane.config_errors import did_you_mean
from controlplane.deployment.audit import KEPT
from controlplane.processes import ControllerError, ControllerUnavailableError
from controlplane.servers import STATES, Server
from controlplane.status import WINDOW_MOST_S, WINDOW_S

if TYPE_CHECKING:
    from controlplane.service import LiveService
    from controlplane.supervisor import Supervisor

log = logging.getLogger("vickrey.admin")
audit = logging.getLogger("vickrey.audit")

BODY_BYTES_MAX = 64 * 1024
BODY_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 512
REQUESTS_MAX = 32  # being answered at once; more wait
KEEP_ALIVE_S = 30.0
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
DASHBOARD_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestError(Exception):
    """A request that cannot be served: the status, and the text that the client reads."""

    def __init__(self, status: int, text: str, **more: Any) -> None:
        super().__init__(text)
        self.status, self.text, self.more = status, text, more


def reply(document: Any, status: int = 200) -> web.Response:
    return web.json_response(document, status=status, dumps=lambda d: json.dumps(d, separators=(",", ":")))


def hostname(host: str) -> str:
    """Return the host part of a Host header, brackets removed."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def is_local_name(host: str, own: frozenset[str]) -> bool:
    """Return whether a Host header names this machine in a way that no foreign DNS server can make up."""
    name = hostname(host)
    if name in own or name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.partition("%")[0])
        return True
    return False


class Admin:
    """The API's server."""

    def __init__(self, supervisor: Supervisor, address: Address) -> None:
        self.address = address
        self.shown = address.text  # with the port that was given, once it listens
        self._supervisor = supervisor
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self._busy = asyncio.Semaphore(REQUESTS_MAX)
        own = {hostname(address.text), socket.gethostname().lower()} - {"", "*"}
        self._own_names = frozenset() if address.is_unix else frozenset(own)
        self._page = (Path(__file__).parent / "dashboard.html").read_bytes()

    async def start(self) -> None:
        """Listen; raises ListenError."""
        if self.address.is_unix:
            self._socket = listeners.open_unix_socket(self.address.path, mode=0o600)
        else:
            self._socket = listeners.open_tcp_socket(self.address)
            if not self.address.port:
                self.shown = f"{self.address.text.rpartition(':')[0]}:{self._socket.getsockname()[1]}"
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._dashboard),
                web.get("/v1/status", self._status),
                web.get("/v1/health", self._health),
                web.get("/v1/policies", self._policies),
                web.get("/v1/services/{service}/servers", self._servers),
                web.get("/v1/services/{service}/servers/{server}", self._server_get),
                web.patch("/v1/services/{service}/servers/{server}", self._server_patch),
                web.get("/v1/services/{service}/policy", self._policy_get),
                web.post("/v1/services/{service}/policy", self._policy_set),
                web.post("/v1/services/{service}/policy/rollback", self._policy_rollback),
                web.post("/v1/reload", self._reload),
                web.get("/v1/audit", self._audit),
                web.get("/metrics", self._metrics),
                web.get("/stats;csv", self._csv),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEP_ALIVE_S, handle_signals=False)
        await self._runner.setup()
        runner = self._runner
        assert runner.server is not None
        server = runner.server

        def accept() -> asyncio.Protocol:
            # At the limit the oldest gives way: whoever keeps hundreds of connections locks nobody out but himself.
            if len(server.connections) >= CONNECTIONS_MAX:
                server.connections[0].force_close()
            return server()

        self._server = await asyncio.get_running_loop().create_server(accept, sock=self._socket, backlog=256)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self.address.is_unix:
            with contextlib.suppress(OSError):
                os.unlink(self.address.path)

    # What every request passes.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_origin(request)
            async with self._busy:
                response = await handler(request)
        except RequestError as error:
            response = reply({"error": error.text, **error.more}, error.status)
        except web.HTTPException as error:
            response = reply({"error": f"{error.status} {error.reason}"}, error.status)
        except ControllerUnavailableError as error:
            response = reply({"error": str(error)}, 503)
        except ControllerError as error:
            response = reply({"error": str(error)}, 409)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            response = reply({"error": "internal error; see the balancer's log"}, 500)
        response.headers.update(SECURITY_HEADERS)
        if request.method not in ("GET", "HEAD"):
            status = response.status
            self._supervisor.audit.record(
                "request",
                who=self._peer(request),
                service=request.match_info.get("service"),
                method=request.method,
                path=request.path[:500],
                status=status,
                body=str(request.get("what", ""))[:500],
            )
            audit.log(
                logging.INFO if status < 500 else logging.ERROR,
                "%s %s by %s: %d %.500s",
                request.method,
                json.dumps(request.path)[1:-1],
                self._peer(request),
                status,
                request.get("what", ""),
            )
        return response

    def _check_origin(self, request: web.Request) -> None:
        if not self.address.is_unix and not is_local_name(request.headers.get("Host", ""), self._own_names):
            raise RequestError(403, "this Host is not this machine's; use its IP address or localhost")
        if request.method in ("GET", "HEAD"):
            return
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.headers.get('Host', '')}":
            raise RequestError(403, "changes from another origin are refused")
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise RequestError(403, "changes from another site are refused")
        if request.content_type != "application/json":
            raise RequestError(415, "changes need Content-Type: application/json")

    def _peer(self, request: web.Request) -> str:
        transport = request.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if self.address.is_unix and sock is not None:
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"uid {uid} pid {pid}"
        return request.remote or "?"

    async def _body(self, request: web.Request, known: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the JSON object that a request carries; an empty body is an empty object."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await request.read()
        except TimeoutError:
            raise RequestError(408, "the body did not come in time") from None
        request["what"] = raw.decode(errors="replace").encode("unicode_escape").decode()
        if not raw.strip():
            return {}
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise RequestError(400, "the body must be a JSON object")
        for key in body:
            if known and key not in known:
                raise RequestError(400, f"unknown key '{key:.80}'{did_you_mean(key, known)}")
        return body

    def _service(self, request: web.Request) -> LiveService:
        name = request.match_info["service"]
        services = self._supervisor.services
        if name not in services:
            raise RequestError(404, f"no service is called '{name:.80}'{did_you_mean(name, services)}")
        return services[name]

    def _find_server(self, request: web.Request) -> tuple[LiveService, Server]:
        service, name = self._service(request), request.match_info["server"]
        server = service.table.find(name)
        if server is None:
            hint = did_you_mean(name, [server.name for server in service.table])
            raise RequestError(404, f"service {service.name} has no server called '{name:.80}'{hint}")
        return service, server

    # What is read.

    async def _dashboard(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": DASHBOARD_POLICY}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        return reply(self._supervisor.status(_window(request)))

    async def _health(self, request: web.Request) -> web.Response:
        health = self._supervisor.health()
        return reply(health, 200 if health["ok"] else 503)

    async def _policies(self, request: web.Request) -> web.Response:
        names = [{"name": name, "description": text} for name, text in registry.names().items()]
        return reply({"policies": names, "aliases": registry.ALIASES})

    async def _servers(self, request: web.Request) -> web.Response:
        return reply({"servers": self._service(request).status()["servers"]})

    async def _server_get(self, request: web.Request) -> web.Response:
        service, server = self._find_server(request)
        return reply(service.server_status(server))

    async def _policy_get(self, request: web.Request) -> web.Response:
        return reply(await self._supervisor.show_policy(self._service(request)))

    async def _audit(self, request: web.Request) -> web.Response:
        last = request.query.get("last", "50")
        if not last.isdecimal() or int(last) > KEPT:
            raise RequestError(400, f"last: expected a number of records, 0 … {KEPT}")
        audit = self._supervisor.audit
        records = list(audit.latest)[max(len(audit.latest) - int(last), 0) :]
        told = {"file": audit.path or None, "written": audit.written, "dropped": audit.dropped}
        return reply({**told, "records": records})

    async def _metrics(self, request: web.Request) -> web.Response:
        view = self._supervisor.metrics_view()
        # Thousands of servers are megabytes of text: not on the loop that runs the health checks.
        text = await asyncio.to_thread(metrics.page, view, time.monotonic_ns())
        return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _csv(self, request: web.Request) -> web.Response:
        return web.Response(text=self._supervisor.csv(), content_type="text/plain")

    # What is changed.

    async def _server_patch(self, request: web.Request) -> web.Response:
        service, server = self._find_server(request)
        body = await self._body(request, ("state", "weight", "maxconn"))
        if not body:
            raise RequestError(400, "nothing to change: state, weight or maxconn")
        state = body.get("state", server.state)
        if state not in STATES:
            raise RequestError(400, f"state: expected 'ready', 'drain' or 'maint'{did_you_mean(state, STATES)}")
        weight = _number(body, "weight", server.weight, 256)
        maxconn = _number(body, "maxconn", server.maxconn, 65535)
        service.change_server(server, state=state, weight=weight, maxconn=maxconn)
        return reply(service.server_status(server))

    async def _policy_set(self, request: web.Request) -> web.Response:
        service = self._service(request)
        body = await self._body(request)
        return reply(await self._supervisor.set_policy(service, body, self._peer(request)))

    async def _policy_rollback(self, request: web.Request) -> web.Response:
        service = self._service(request)
        await self._body(request, ("reason",))
        return reply(await self._supervisor.rollback_policy(service, self._peer(request)))

    async def _reload(self, request: web.Request) -> web.Response:
        await self._body(request, ("reason",))
        outcome = await self._supervisor.reload()
        return reply(outcome.document(), 200 if outcome.good else 422)


def _window(request: web.Request) -> float:
    """Return over how many seconds rates and percentiles are taken: ?window=, at most what the history holds."""
    try:
        window_s = float(request.query.get("window", WINDOW_S))
    except ValueError:
        window_s = 0.0
    if not 0.1 <= window_s <= WINDOW_MOST_S:
        raise RequestError(400, f"window: expected seconds from 0.1 to {WINDOW_MOST_S:g}")
    return window_s


def _number(body: dict[str, Any], key: str, default: int, most: int) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RequestError(400, f"{key}: expected a whole number from 0 to {most}")
    return value
