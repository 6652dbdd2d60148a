"""HAProxy as a peer: one thread, upstream connections reused, no log, no header added."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from testbed.peers.peer import Health, Peer, Server
from testbed.processes import free_port


def is_installed() -> bool:
    return program() is not None


def program() -> str | None:
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def configuration(
    port: int, servers: Sequence[Server], *, mode: str, balance: str, health: Health | None = None
) -> str:
    """health: None: a request is sent once, so that what the server did is what the client sees."""
    lines = [
        "global",
        "    nbthread 1",
        "    maxconn 8000",
        "defaults",
        f"    mode {mode}",
        "    maxconn 8000",
        "    timeout connect 1s",
        "    timeout client 60s",
        "    timeout server 60s",
        "    timeout queue 60s",
        "    timeout http-keep-alive 60s",
        *(["    retries 3", "    option redispatch 1"] if health else ["    retries 0"]),
        "listen service",
        f"    bind 127.0.0.1:{port} backlog 4096",
        f"    balance {balance}",
    ]
    if mode == "http":
        lines.append("    http-reuse always")
        if health:
            lines.append("    retry-on conn-failure empty-response")
    if health:
        lines += [
            f"    option httpchk GET {health.path}",
            f"    default-server check inter {health.inter_s * 1e3:.0f} fall {health.fall} rise {health.rise}"
            # Else a dead server, having no connections, is the one of the least until the next check.
            " observe layer4 error-limit 3 on-error mark-down",
        ]
    for i, server in enumerate(servers, 1):
        told = f" weight {server.weight}" if server.weight else ""
        told += f" maxconn {server.maxconn}" if server.maxconn else ""
        lines.append(f"    server s{i} {server.address}{told}")
    return "\n".join([*lines, ""])


def start(
    servers: Sequence[Server],
    *,
    mode: str = "http",
    balance: str = "leastconn",
    name: str | None = None,
    cpu: int | None = None,
    health: Health | None = None,
) -> Peer:
    """balance: HAProxy's own word: leastconn, roundrobin, random, …"""
    found = program()
    if found is None:
        raise FileNotFoundError("haproxy is not installed (Debian: apt-get install haproxy)")
    peer = Peer(name or f"haproxy {mode} {balance}", free_port())
    path = peer.folder / "haproxy.cfg"
    path.write_text(configuration(peer.port, servers, mode=mode, balance=balance, health=health))
    return peer.start([found, "-db", "-f", str(path)], cpu=cpu)
