"""Apache as a backend: Debian's binary with a configuration of its own, prefork or event, and what it says of itself.

    /?d=MS&size=BYTES      MS milliseconds of CPU (at a whole core), then a body, as the other backends do
    /dummy.php/?n=N        a loop of N turns, as the traces of MARLLB ask for; any path with n does it
    /wiki/…, /w/…          a page of the Wikipedia mix: work and size follow from its title
    /….png, .css, .js, …   a static object of the mix: 1 KB to 500 KB, by its address
    /static/100k … /static/10m    static files
    /health                200

Work is done by mod_lua in the very worker that took the request: real CPU time of a real Apache, which a control group
can limit, and which no PHP is needed for. `calibrate` measures how fast that loop is here. `server-status?auto`, on a
listener of its own on loopback, is the ground truth.
"""

from __future__ import annotations

import http.client
import math
import os
import pwd
import random
import shutil
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from testbed.namespaces import is_root
from testbed.processes import Child, accepts, free_port

MODULES = Path("/usr/lib/apache2/modules")
_NEEDED = ("authz_core", "headers", "lua", "status")
STATIC = {"100k": 100, "200k": 200, "500k": 500, "1m": 1024, "2m": 2048, "5m": 5120, "10m": 10240}  # KiB
OBJECTS = 64
_OBJECT_MEDIAN, _OBJECT_SIGMA = 6_000, 1.3  # bytes; log-normal, as file sizes on the web are
_OBJECT_LEAST, _OBJECT_MOST = 1_000, 500_000

Mpm = Literal["prefork", "event"]


@dataclass(frozen=True)
class Calibration:
    """per_ms: turns of the loop in a millisecond of a core."""

    per_ms: float

    @property
    def turn_ns(self) -> float:
        return 1e6 / self.per_ms


@dataclass(frozen=True)
class Apache:
    """One server as it shall be. turn_s: CPU seconds of one turn of ?n=, 0: the loop's own."""

    name: str
    host: str = "127.0.0.1"
    port: int = 8080
    status_port: int = 8081  # on loopback
    mpm: Mpm = "prefork"
    workers: int = 32
    backlog: int = 128
    keepalive_s: float = 0.0  # 0: a connection per request
    turn_s: float = 0.0
    demand_ms: float = 0.0
    size: int = 64
    wiki_ms: float = 10.0


def program() -> str | None:
    return shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin:/usr/local/sbin")


def why_not() -> str:
    """Return why no Apache can be started here; empty when it can."""
    if program() is None:
        return "apache2 is not installed (Debian: apt-get install apache2)"
    missing = [name for name in _NEEDED if not (MODULES / f"mod_{name}.so").exists()]
    return f"apache2 lacks mod_{missing[0]} in {MODULES}" if missing else ""


def user() -> tuple[int, int] | None:
    """Who Apache runs as, (uid, gid): nobody special when we are root, else who we are (None)."""
    if not is_root():
        return None
    for name in ("www-data", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    return None


def become(who: tuple[int, int] | None) -> None:
    """Give up root for good: to be called in a child, before exec."""
    if who is not None:
        os.setgroups([])
        os.setgid(who[1])
        os.setuid(who[0])


def configuration(server: Apache, folder: Path, documents: Path) -> str:
    """Return httpd.conf; folder: of this server, documents: htdocs, which servers share."""
    modules = [f"mpm_{server.mpm}", *_NEEDED]
    lines = [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in modules]
    lines += [
        f'ServerRoot "{folder}"',
        f'DefaultRuntimeDir "{folder}"',
        "PidFile apache.pid",
        "ErrorLog error.log",
        "LogLevel error",
        f"ServerName {server.name}",
        "ServerTokens Prod",
        f"Listen {server.host}:{server.port}",
        f"Listen 127.0.0.1:{server.status_port}",
        f"ListenBacklog {server.backlog}",
        "AcceptFilter http none",  # deferred accepts would hide connections from the queue that we count
        "Timeout 300",
        "EnableSendfile On",
        "FileETag None",
        f"Header always set X-Server {server.name}",
        "ExtendedStatus On",
        f"ServerLimit {server.workers if server.mpm == 'prefork' else 1}",
        f"StartServers {server.workers if server.mpm == 'prefork' else 1}",
        f"MaxRequestWorkers {server.workers}",
        "MaxConnectionsPerChild 0",
    ]
    if server.mpm == "prefork":  # all workers from the start: what forks later costs the requests their CPU
        lines += [f"MinSpareServers {server.workers}", f"MaxSpareServers {server.workers + 1}"]
    else:
        lines += [
            f"ThreadLimit {server.workers}",
            f"ThreadsPerChild {server.workers}",
            f"MinSpareThreads {server.workers}",
            f"MaxSpareThreads {server.workers}",
            "AsyncRequestWorkerFactor 64",  # idle connections wait in its event loop, and hold no worker
        ]
    if server.keepalive_s > 0:
        lines += ["KeepAlive On", "MaxKeepAliveRequests 0", f"KeepAliveTimeout {round(server.keepalive_s * 1e3)}ms"]
    else:
        lines.append("KeepAlive Off")
    lines += [
        "LuaScope thread",
        "LuaCodeCache forever",
        f'DocumentRoot "{documents}"',
        f'<Directory "{documents}">',
        "    Require all granted",
        "    ForceType application/octet-stream",
        "</Directory>",
        f'LuaMapHandler ^/(?!static/|server-status) "{folder}/pages.lua" handle',
        f"<VirtualHost 127.0.0.1:{server.status_port}>",
        '    <Location "/server-status">',
        "        SetHandler server-status",
        "    </Location>",
        "</VirtualHost>",
    ]
    return "\n".join([*lines, ""])


def pages(server: Apache, documents: Path, calibration: Calibration) -> str:
    """Return the text of pages.lua with this server's settings."""
    loop = server.turn_s * 1e3 * calibration.per_ms if server.turn_s else 1.0
    settings = {
        "per_ms": f"{calibration.per_ms:.6f}",
        "loop": f"{loop:.9f}",
        "demand": f"{server.demand_ms:.6f}",
        "size": str(server.size),
        "wiki": f"{server.wiki_ms:.6f}",
        "objects": str(OBJECTS),
        "folder": f'"{documents}/objects"',
        "one_thread": "true" if server.mpm == "prefork" else "false",
    }
    table = ", ".join(f"{key} = {value}" for key, value in settings.items())
    return f"settings = {{ {table} }}\n{Path(__file__).with_name('pages.lua').read_text()}"


def write_documents(folder: Path) -> None:
    """Make the static files, the same on every machine; some 23 MB."""
    lots = random.Random(1)
    block = lots.randbytes(100 << 10)
    (folder / "static").mkdir(parents=True)
    for name, size_kib in STATIC.items():
        with open(folder / "static" / name, "wb") as file:
            for left in range(size_kib << 10, 0, -len(block)):
                file.write(block[:left])
    (folder / "objects").mkdir()
    normal = statistics.NormalDist(math.log(_OBJECT_MEDIAN), _OBJECT_SIGMA)
    for i in range(OBJECTS):  # quantiles: every file is asked for equally often
        size = int(math.exp(normal.inv_cdf((i + 0.5) / OBJECTS)))
        with open(folder / "objects" / f"object-{i}", "wb") as file:
            for left in range(min(max(size, _OBJECT_LEAST), _OBJECT_MOST), 0, -len(block)):
                file.write(block[:left])
    open_up(folder)


def open_up(folder: Path) -> None:
    """Let the one that Apache runs as read all of it, whatever our umask is."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


def write(server: Apache, folder: Path, documents: Path, calibration: Calibration) -> None:
    """Make the folder with its configuration, writable for the one that Apache runs as."""
    folder.mkdir(exist_ok=True)
    (folder / "httpd.conf").write_text(configuration(server, folder, documents))
    (folder / "pages.lua").write_text(pages(server, documents, calibration))
    (folder / "error.log").write_text("")
    open_up(folder)
    who = user()
    if who is not None:
        os.chown(folder, *who)
        os.chown(folder / "error.log", *who)


def start(
    server: Apache,
    folder: Path,
    *,
    enter: Callable[[], None] | None = None,
    env: dict[str, str] | None = None,
    cpu: int | None = None,
) -> Child:
    """Start it in the foreground as a child. enter: called in the child first, as root still (namespace, cgroup)."""
    found = program()
    if found is None:
        raise FileNotFoundError(why_not())
    who = user()

    def before() -> None:
        if enter is not None:
            enter()
        become(who)

    command = [found, "-d", str(folder), "-f", str(folder / "httpd.conf"), "-DFOREGROUND"]
    return Child(f"apache-{server.name}", command, cpu=cpu, env=env, cwd=folder, before_exec=before)


def error_log(folder: Path, last_bytes: int = 2000) -> str:
    try:
        return (folder / "error.log").read_bytes()[-last_bytes:].decode(errors="replace").strip()
    except OSError:
        return ""


def calibrate(folder: Path, *, rounds: int = 5, env: dict[str, str] | None = None) -> Calibration:
    """Measure the loop's speed in an Apache with one worker; the best of some short rounds, as noise only slows."""
    probe = Apache("calibration", port=free_port(), status_port=free_port(), workers=1)
    write(probe, folder, folder, Calibration(1e6))
    child = start(probe, folder, env=env)
    try:
        child.wait_ready(lambda: accepts(probe.port))
        turns = 2_000_000
        costs_ms = []
        for _ in range(rounds):
            connection = http.client.HTTPConnection("127.0.0.1", probe.port, timeout=30)
            try:
                connection.request("GET", f"/?d={turns / 1e6}")
                answer = connection.getresponse()
                answer.read()
            finally:
                connection.close()
            costs_ms.append(float(answer.headers["X-Cpu-Ms"]))
        return Calibration(turns / min(costs_ms))
    finally:
        child.stop()


def parse_status(text: str) -> dict[str, Any]:
    """Read what `server-status?auto` says.  https://httpd.apache.org/docs/2.4/mod/mod_status.html

    Returns busy (workers with a request: not those that only keep a connection, nor the one that answers this),
    keepalive, workers, requests, size_bytes, uptime_s, cpu_s, mpm. Raises ValueError for another page.
    """
    rows = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    board = rows.get("Scoreboard")
    if board is None or "Uptime" not in rows:
        raise ValueError("not the page of server-status?auto")
    idle = board.count("_") + board.count("I")
    absent = board.count(".") + board.count("S")
    keepalive = board.count("K")
    cpu = sum(float(rows.get(f"CPU{part}", 0)) for part in ("User", "System", "ChildrenUser", "ChildrenSystem"))
    return {
        "mpm": rows.get("ServerMPM", "").lower(),
        "busy": max(len(board) - idle - absent - keepalive - 1, 0),
        "keepalive": keepalive,
        "workers": len(board) - board.count("."),
        "requests": int(rows.get("Total Accesses", 0)),
        "size_bytes": int(rows.get("Total kBytes", 0)) << 10,
        "uptime_s": float(rows["Uptime"]),
        "cpu_s": cpu,
        "scoreboard": board,
    }


def read_status(port: int, timeout_s: float = 0.5) -> dict[str, Any] | None:
    """Ask the Apache of this network namespace; None when it does not answer: all of its workers are taken.

    Raises ConnectionRefusedError when nobody listens.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    began = time.monotonic()
    try:
        connection.request("GET", "/server-status?auto", headers={"Connection": "close"})
        return parse_status(connection.getresponse().read().decode())
    except ConnectionRefusedError:
        raise
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, TimeoutError) or time.monotonic() - began >= timeout_s:
            return None
        raise ConnectionRefusedError(str(error)) from None
    finally:
        connection.close()


def queued(pid: int, host: str, port: int) -> int:
    """Connections that the kernel has accepted and Apache has not yet, as the namespace of this process shows them."""
    wanted = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
    try:
        rows = Path("/proc", str(pid), "net", "tcp").read_text().splitlines()[1:]
    except OSError:
        return 0
    for row in rows:
        fields = row.split()
        if fields[1] == wanted and fields[3] == "0A":  # listens: its receive queue counts connections
            return int(fields[4].split(":")[1], 16)
    return 0
