"""Network namespaces, one per server, each tied to the host by a veth pair.

    host 198.18.7.1 ── vk-tb1a2b.1 ═══ eth0 198.18.7.11 in vk-tb1a2b-s1

Addresses are single (/32) and routed to their veth, so no bridge is needed. 198.18.0.0/15 is set aside for benchmarks
(RFC 2544): it collides with nobody's network. Needs root. All names begin with the topology's id, so that what somebody
left behind can be found and removed by it.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from testbed.topology_state import MARK

RUN = Path("/run/netns")  # where iproute2 keeps them
POOL = ipaddress.IPv4Network("198.18.0.0/15")
HOST_PART = 1  # of the host in each /24
FIRST_PART = 11  # of the first server
SERVERS_MAX = 240

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21  # linux/capability.h
_UIDS_LEAST = 1000  # of a user namespace in which one may become somebody else
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class NamespaceError(RuntimeError):
    """The kernel or `ip` refused; the text has its words."""


def why_not() -> str:
    """Return why no namespaces can be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not is_root():
        return "network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN, which this root lacks (a container?)"
    if program() is None:
        return "`ip` is not installed (Debian: apt-get install iproute2)"
    return ""


def is_root() -> bool:
    """Are we root of the machine, not of a container without its privileges or of a user namespace?"""
    if os.geteuid() != 0:
        return False
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    has = int(status["CapEff"], 16)
    mapped = int(Path("/proc/self/uid_map").read_text().split()[2])
    return bool(has >> _CAP_NET_ADMIN & has >> _CAP_SYS_ADMIN & 1) and mapped > _UIDS_LEAST


def program() -> str | None:
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def ip(*arguments: str, commands: Sequence[str] = (), check: bool = True, owner: str = "") -> str:
    """Run `ip`, with commands as a batch; returns its output. Raises NamespaceError.

    In a session of its own, so that a Ctrl-C does not end it half way; with the mark of its owner, a topology's id, so
    that it is found when we are killed meanwhile.
    """
    found = program()
    if found is None:
        raise NamespaceError(why_not())
    call = [found, *arguments, *(["-batch", "-"] if commands else [])]
    done = subprocess.run(
        call,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=False,
        env={**os.environ, MARK: f"{owner}:ip"} if owner else None,
    )
    if check and done.returncode:
        what = " ".join([*arguments, *(commands[:1])])
        raise NamespaceError(f"ip {what}: {' '.join(done.stderr.split())}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """One server's namespace and its cable."""

    name: str  # vk-tb1a2b-s1
    link: str  # vk-tb1a2b.1, the host's end
    address: str
    host: str  # the host's address on this cable

    def make(self) -> None:
        """Make it, with loopback and eth0 up. Raises NamespaceError, and may then have made a part."""
        topology = self.link.partition(".")[0]
        ip(
            owner=topology,
            commands=[
                f"netns add {self.name}",
                f"link add {self.link} type veth peer name eth0 netns {self.name}",
                f"address add {self.host}/32 dev {self.link}",
                f"link set {self.link} up",
                f"route add {self.address}/32 dev {self.link} src {self.host}",
            ],
        )
        ip(
            "-n",
            self.name,
            owner=topology,
            commands=[
                "link set lo up",
                f"address add {self.address}/32 dev eth0",
                "link set eth0 up",
                f"route add {self.host}/32 dev eth0 src {self.address}",
                f"route add default via {self.host} dev eth0",
            ],
        )

    def enter(self) -> None:
        """Move the calling thread into it; in a child before exec, the whole process."""
        enter(self.name)

    def cut(self, is_cut: bool) -> None:
        """Pull the cable, or plug it in again: with it cut, what is sent to the server vanishes."""
        # The server's end: were it the host's, its route would go, and a connect fail at once.
        ip("-n", self.name, "link", "set", "eth0", "down" if is_cut else "up")
        if not is_cut:  # the kernel drops routes of a link that goes down
            ip("-n", self.name, "route", "replace", f"{self.host}/32", "dev", "eth0", "src", self.address)
            ip("-n", self.name, "route", "replace", "default", "via", self.host, "dev", "eth0")

    def remove(self) -> None:
        """Remove it and its cable; safe to call when it is gone or was never finished."""
        remove(self.name, self.link)


def plan(topology: str, names: Sequence[str], subnet: ipaddress.IPv4Network) -> list[Namespace]:
    """Return the namespaces of a topology's servers, none of them made yet. subnet: a /24."""
    if len(names) > SERVERS_MAX:
        raise ValueError(f"a topology in namespaces has at most {SERVERS_MAX} servers, not {len(names)}")
    host = str(subnet[HOST_PART])
    return [
        Namespace(f"{topology}-{name}", f"{topology}.{i + 1}", str(subnet[FIRST_PART + i]), host)
        for i, name in enumerate(names)
    ]


def free_subnet(taken: Sequence[str] = ()) -> ipaddress.IPv4Network:
    """Return a /24 of the pool that no link, route or other topology of this machine uses. Raises NamespaceError."""
    used = [ipaddress.IPv4Network(text) for text in taken]
    for row in json.loads(ip("-j", "-4", "address") or "[]"):
        used += [ipaddress.IPv4Network(info["local"]) for info in row.get("addr_info", []) if "local" in info]
    for row in json.loads(ip("-j", "-4", "route") or "[]"):
        if row.get("dst", "default") != "default":
            used.append(ipaddress.IPv4Network(row["dst"], strict=False))
    for number in range(0, POOL.num_addresses, 256):
        subnet = ipaddress.IPv4Network((int(POOL.network_address) + number, 24))
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise NamespaceError(f"no /24 of {POOL} is free")


def enter(name: str) -> None:
    """Move the calling thread into a namespace. Raises OSError."""
    descriptor = os.open(RUN / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"network namespace {name}")
    finally:
        os.close(descriptor)


def call_in(name: str, function: Callable[[], T]) -> T:
    """Call a function within a namespace, and return or raise what it does.

    A namespace belongs to a thread: one is made for the call, and the others of this process stay where they are.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(name)
            results.append(function())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name=f"in {name}", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def existing(prefix: str) -> list[str]:
    """Names of the namespaces that begin so."""
    return sorted(entry.name for entry in RUN.glob(f"{prefix}*")) if RUN.is_dir() else []


def links(prefix: str) -> list[str]:
    """Names of the host's links that begin so."""
    return sorted(entry.name for entry in Path("/sys/class/net").glob(f"{prefix}*"))


def pids_in(names: Sequence[str]) -> list[int]:
    """Return the processes that live in one of these namespaces."""
    wanted = {_identity(RUN / name) for name in names} - {None}
    found = []
    for entry in Path("/proc").iterdir():
        if wanted and entry.name.isdigit() and _identity(entry / "ns" / "net") in wanted:
            found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells one namespace from another; with the device, as a file that is no namespace has a number, too."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove(name: str, link: str = "") -> None:
    """Remove a namespace and a link where they are; safe to call again."""
    if link and Path("/sys/class/net", link).exists():
        ip("link", "delete", link, check=False)
    if name and (RUN / name).exists():
        ip("netns", "delete", name, check=False)
        # A `netns add` that was killed between making the file and mounting on it leaves a file that is no namespace.
        (RUN / name).unlink(missing_ok=True)
