"""Vickrey as a peer: `vickrey run` with a configuration of its own, and a small client of its admin API."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.peers.peer import Peer, Server
from testbed.processes import StartError, command_line, free_port

_ROOT = Path(__file__).resolve().parent.parent.parent
SERVICE = "web"


class Vickrey(Peer):
    """A running balancer: the supervisor, its data plane and its controller."""

    stop_signal = signal.SIGINT  # at once: TERM would wait for connections that idle

    def __init__(self, name: str) -> None:
        super().__init__(name, free_port())
        self.admin_port = free_port()
        self.instance = f"testbed-{os.getpid()}-{self.port}"

    def stop(self) -> None:
        super().stop()
        for segment in Path("/dev/shm").glob(f"vickrey.{self.instance}.*"):  # left only by a supervisor that was killed
            segment.unlink(missing_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/"

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> Any:
        """One request to the admin API; RuntimeError with its own words when it refuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            document = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {document.get('error', document)}")
        return document

    def status(self) -> dict[str, Any]:
        """The service's part of the status document."""
        service: dict[str, Any] = self.call("GET", "/v1/status")["services"][SERVICE]
        return service

    def set_policy(self, name: str, **options: Any) -> None:
        self.call("POST", f"/v1/services/{SERVICE}/policy", {"name": name, **options})

    def is_ready(self) -> bool:
        """Does it listen, and dispatch as its policy says, no longer by the fallback of the first moments?"""
        try:
            self.call("GET", "/v1/health", timeout_s=2.0)
            return not self.status()["fallback_active"]
        except (OSError, RuntimeError, ValueError, KeyError, http.client.HTTPException):
            return False

    def roles(self) -> dict[str, list[int]]:
        """The processes by what they do: data plane, controller, supervisor."""
        found: dict[str, list[int]] = {"data plane": [], "controller": [], "supervisor": []}
        for pid in self.pids():
            line = command_line(pid)
            if "-m dataplane" in line:
                found["data plane"].append(pid)
            elif "controlplane.controller" in line:
                found["controller"].append(pid)
            else:
                found["supervisor"].append(pid)
        return found


def configuration(
    peer: Vickrey, servers: Sequence[Server], *, mode: str, policy: str, **service: Any
) -> dict[str, Any]:
    """The configuration as a tree; service: more keys of the service."""
    entries = []
    for i, server in enumerate(servers, 1):
        entry: dict[str, Any] = {"address": server.address, "name": f"s{i}"}
        if server.weight:
            entry["weight"] = server.weight
        if server.maxconn:
            entry["maxconn"] = server.maxconn
        entries.append(entry)
    return {
        "instance": peer.instance,
        "admin": {"listen": f"127.0.0.1:{peer.admin_port}"},
        "service": {
            SERVICE: {
                "listen": f"127.0.0.1:{peer.port}",
                "mode": mode,
                "policy": policy,
                "servers": entries,
                **service,
            }
        },
    }


def start(
    servers: Sequence[Server],
    *,
    mode: str = "http",
    policy: str = "adaptive",
    name: str | None = None,
    cpu: int | None = None,
    **service: Any,
) -> Vickrey:
    peer = Vickrey(name or f"vickrey {mode} {policy}")
    path = peer.folder / "vickrey.yaml"
    # JSON is YAML, so the file needs no writer of its own.
    path.write_text(json.dumps(configuration(peer, servers, mode=mode, policy=policy, **service), indent=2))
    command = [sys.executable, "-m", "controlplane.cli", "run", str(path)]
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    peer.start(command, cpu=cpu, is_ready=peer.is_ready, env={"PYTHONPATH": os.pathsep.join(filter(None, paths))})
    if not peer.roles()["data plane"]:
        peer.stop()
        raise StartError("vickrey is up but has no data plane")
    return peer
