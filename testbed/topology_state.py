"""What is known of a topology that is up: a file that is written before anything is made, so that whatever becomes of
its starter, somebody else can find and remove what it made.

The files are <run folder>/NAME.json; the run folder is $XDG_RUNTIME_DIR/vickrey/testbed, or /run/vickrey/testbed for
root, else one of the user's own in the folder for temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

MARK = "VICKREY_TESTBED"  # in the environment of every process of a topology: ID:SERVER
ID_PREFIX = "vk-tb"  # of everything that is made; veth names have room for 15 characters
VERSION = 1


@dataclass
class Placed:
    """One server, and where it is. pid 0: not started."""

    name: str
    backend: str  # apache, aiohttp
    host: str
    port: int
    control: int  # Apache: of server-status, on loopback of its namespace; aiohttp: of /stats and /fault
    workers: int
    speed: float
    cpu: float | None = None  # quota in cores, in force
    mpm: str = ""
    namespace: str = ""
    link: str = ""
    cgroup: str = ""
    pid: int = 0
    started: int = 0  # ticks since boot: with it, a pid is not mistaken for another process's

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class State:
    id: str
    name: str
    file: str
    title: str
    folder: str
    network: str  # namespaces, loopback
    owner: int
    owner_started: int
    boot_id: str
    is_program: bool = False  # the starter ends with it
    phase: str = "starting"  # starting, running, stopping
    subnet: str = ""
    period_s: float = 0.0
    balancers: int = 1
    turn_ns: float = 0.0  # of the CPU loop here; 0: not measured
    began: float = 0.0  # seconds since 1970
    warnings: list[str] = field(default_factory=list)
    servers: list[Placed] = field(default_factory=list)
    version: int = VERSION

    @property
    def is_alive(self) -> bool:
        """Is its starter there? Without it, what is left is to be removed."""
        return self.boot_id == boot_id() and is_process(self.owner, self.owner_started)

    def server(self, name: str) -> Placed:
        for server in self.servers:
            if server.name == name:
                return server
        raise KeyError(f"no server is called {name}: {', '.join(server.name for server in self.servers)}")


def run_folder() -> Path:
    """Return the folder of the state files, made when it is not there."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        folder = Path(given) / "vickrey" / "testbed"
    elif os.geteuid() == 0:
        folder = Path("/run/vickrey/testbed")
    else:
        folder = Path(tempfile.gettempdir()) / f"vickrey-{os.geteuid()}" / "testbed"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def path_of(name: str) -> Path:
    return run_folder() / f"{name}.json"


def write(state: State) -> None:
    """Replace the file at once: who reads sees the old text or the new."""
    path = path_of(state.name)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(json.dumps(asdict(state), indent=1))
    fresh.replace(path)


def read(path: Path) -> State | None:
    """Return what a file says; None when it is gone or is not a state of this version."""
    try:
        document: Any = json.loads(path.read_text())
        known = {entry.name for entry in fields(State)}
        if document.get("version") != VERSION or set(document) - known:
            return None
        servers = [Placed(**server) for server in document.pop("servers")]
        return State(**document, servers=servers)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def find(name: str) -> State | None:
    return read(path_of(name))


def all_states() -> list[State]:
    """Every topology of this user that is up or was left behind. What killed writers left half done is removed."""
    for fresh in run_folder().glob("*.new"):
        writer = fresh.stem.rpartition(".")[2]
        if not (writer.isdigit() and started_at(int(writer))):
            fresh.unlink(missing_ok=True)
    found = [read(path) for path in sorted(run_folder().glob("*.json"))]
    return [state for state in found if state is not None]


def new_id() -> str:
    return ID_PREFIX + secrets.token_hex(2)


@contextlib.contextmanager
def locked(timeout_s: float = 30.0) -> Iterator[None]:
    """Hold the lock under which names, ids and subnets are claimed. Raises TimeoutError."""
    with open(run_folder() / "lock", "w") as file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another `vickrey testbed` holds the lock") from None
                time.sleep(0.02)
        yield


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def started_at(pid: int) -> int:
    """Return when a process began, in ticks since boot; 0 when it is gone."""
    try:
        fields_ = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields_[0] in "ZX" else int(fields_[19])


def is_process(pid: int, started: int) -> bool:
    return pid > 0 and started > 0 and started_at(pid) == started
