"""An admin API that answers from a dictionary, for tests of the commands that talk to one.

What the real one answers is tested with the real balancer; here it is what the commands make of answers, good and bad.
"""

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

SERVER = {
    "name": "big", "address": "127.0.0.1:9002", "id": 7, "slot": 1, "state": "ready", "health": "up", "weight": 20,
    "learned_weight": 3.25, "share": 0.755, "in_flight": 12, "flows_total": 123456, "rps": 250.5, "errors": 3,
    "fct_mean_ms": 12.3456, "fct_p50_ms": 4.2, "fct_p90_ms": None, "fct_p99_ms": 1234.5,
}  # fmt: skip
STATUS = {
    "instance": "web-1",
    "pid": 42,
    "processes": {"dataplane": {"pid": 43, "up": True, "restarts": 2}, "controller": {"pid": None, "up": False}},
    "services": {
        "web": {
            "listen": ["127.0.0.1:8080"],
            "mode": "http",
            "policy": {"name": "adaptive"},
            "rule": "bids",
            "fallback_active": True,
            "servers": [SERVER],
        }
    },
}


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        api: AdminDouble = self.server.api  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        api.requests.append((self.command, self.path, body))
        status, answer = api.answers.get((self.command, self.path), (404, {"error": f"no {self.path}"}))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = _answer

    def address_string(self) -> str:
        return "test"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class AdminDouble:
    """requests: what was asked so far, (method, path, body). answers: by method and path, (status, document)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {("GET", "/v1/status"): (200, STATUS)}

    def changes(self) -> list[tuple[str, str, Any]]:
        return [request for request in self.requests if request[0] != "GET"]


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def admin_double(unix_path: str = "") -> Iterator[AdminDouble]:
    """Serve an admin API on a free port of loopback, or on a Unix socket."""
    server: socketserver.BaseServer
    if unix_path:
        server = _UnixServer(unix_path, _Handler)
        api = AdminDouble(f"unix:{unix_path}")
    else:
        server = _TcpServer(("127.0.0.1", 0), _Handler)
        api = AdminDouble(f"127.0.0.1:{server.server_address[1]}")
    server.api = api  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> int:
    """Return a port of loopback on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
