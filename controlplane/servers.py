"""The servers of one service as the supervisor keeps them: slots, administrative states, health, weights.

A server is known by its name and address. It keeps its slot for as long as the configuration names it; one that was
removed takes no new flows and leaves its slot when its last flow ended. Its id is a hash of name and address: the
same on every balancer of a fleet (the Maglev tables are built from the ids) and after every restart (what was learned
is kept under it).

Three things say whether a server gets flows, and none overwrites another:

    state      ready, drain or maint: what the operator wants
    up         what the checks and the failed connections say
    ejected    what its answers say: too many errors, out for a while
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controlplane.config import Server as ServerConfig
from controlplane.config_values import Address

STATES = ("ready", "drain", "maint")


class TableFullError(Exception):
    """More servers than the segment has slots for."""


@dataclass(eq=False)
class Server:
    """One server in its slot."""

    slot: int
    id: int
    name: str
    address: Address
    weight: int
    maxconn: int
    backup: bool
    state: str = "ready"
    capacity: float = 0.0
    coalition: str | int = 0
    leaving: bool = False  # no longer in the configuration
    up: bool = True
    down_cause: str = ""  # why it is not up
    down_count: int = 0
    checks_good: int = 0  # in a row
    checks_bad: int = 0
    checks_failed_total: int = 0
    last_check: str = ""
    last_check_s: float = 0.0  # how long it took
    ejected_until: float = 0.0  # monotonic seconds; 0: not ejected
    eject_cause: str = ""
    eject_unanswered: bool = False  # for giving no answers at all, rather than answering errors
    ejections: int = 0  # lately: the next one lasts that much longer
    ejections_total: int = 0
    slowstart_begin_ns: int = 0
    changed: float = field(default_factory=time.monotonic)  # when its health changed last

    @property
    def ejected(self) -> bool:
        return self.ejected_until > 0

    @property
    def health(self) -> str:
        """up, down or ejected; a server that is both is down."""
        return "down" if not self.up else "ejected" if self.ejected else "up"

    @property
    def shown_state(self) -> str:
        return "drain" if self.leaving and self.state == "ready" else self.state

    @property
    def takes_flows(self) -> bool:
        """Whether new flows may go to it (a backup: once nobody else takes them)."""
        return self.state == "ready" and not self.leaving and self.up and not self.ejected and self.weight > 0


def server_id(name: str, address: Address) -> int:
    """Return the id: 63 bits of a hash, never 0, which marks a free slot."""
    digest = hashlib.blake2b(f"{name}|{address.sockaddr}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


class ServerTable:
    """The slots of one service. Whoever changes a server calls `touch`, so that the table is published again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.slots: list[Server | None] = []
        self.changes = 0  # raised by each change
        self.names: dict[int, str] = {}  # of every id that there ever was, for the access log

    def __iter__(self) -> Iterator[Server]:
        return (server for server in self.slots if server is not None)

    def __len__(self) -> int:
        return sum(server is not None for server in self.slots)

    def find(self, name: str) -> Server | None:
        """Return the server of that name; of two (one on its way out) the one that stays."""
        found = [server for server in self if server.name == name]
        return min(found, key=lambda server: server.leaving, default=None)

    def touch(self) -> None:
        self.changes += 1

    def ids(self) -> NDArray[np.uint64]:
        """Return the ids of the slots in use, 0 for a free one among them."""
        return np.array([0 if server is None else server.id for server in self.slots], dtype=np.uint64)

    def room_for(self, wanted: Sequence[ServerConfig]) -> bool:
        """Return whether all these servers would find a slot, beside those that are still to leave."""
        stay = {server.id for server in self}
        new = sum(server_id(config.name, config.address) not in stay for config in wanted)
        return len(self) + new <= self.limit

    def configure(
        self, wanted: Sequence[ServerConfig], before: Sequence[ServerConfig] = (), slowstart_s: float = 0.0
    ) -> list[str]:
        """Take these servers for what the configuration names; returns what changed, in words.

        before: what it named so far; none at the service's start. A value that was changed by hand since stays, unless
        the configuration's own value changed. A server that joins later ramps up; at the start none does.
        """
        said: list[str] = []
        by_id = {server.id: server for server in self}
        old = {server_id(config.name, config.address): config for config in before}
        named: set[int] = set()
        for config in wanted:
            key = server_id(config.name, config.address)
            named.add(key)
            server = by_id.get(key)
            if server is None:
                server = self._add(key, config)
                if before:
                    self.begin_slowstart(server, slowstart_s)
                    said.append(f"server {server.name} joins")
                continue
            if server.leaving:
                server.leaving = False
                said.append(f"server {server.name} stays")
            for name in ("weight", "maxconn", "state", "backup", "capacity", "coalition"):
                value = getattr(config, name)
                if key not in old or value != getattr(old[key], name):
                    if value != getattr(server, name):
                        said.append(f"server {server.name}: {name} {value}")
                    setattr(server, name, value)
        for server in list(self):
            if server.id not in named and not server.leaving:
                server.leaving = True
                said.append(f"server {server.name} leaves")
        self.touch()
        return said

    def begin_slowstart(self, server: Server, slowstart_s: float) -> None:
        """Its share grows from here on; at once when there is no slow start."""
        server.slowstart_begin_ns = time.monotonic_ns() if slowstart_s > 0 else 0
        self.touch()

    def free(self, idle_slots: Iterable[int]) -> list[str]:
        """Free those of these slots whose servers are leaving; returns their names."""
        freed = []
        for slot in idle_slots:
            server = self.slots[slot] if slot < len(self.slots) else None
            if server is not None and server.leaving:
                self.slots[slot] = None
                freed.append(server.name)
        if freed:
            self.touch()
        return freed

    def _add(self, key: int, config: ServerConfig) -> Server:
        slot = next((slot for slot, server in enumerate(self.slots) if server is None), len(self.slots))
        if slot == self.limit:
            raise TableFullError(f"there is room for {self.limit} servers")
        if slot == len(self.slots):
            self.slots.append(None)
        server = Server(slot, key, config.name, config.address, config.weight, config.maxconn, config.backup)
        server.state, server.capacity, server.coalition = config.state, config.capacity, config.coalition
        self.slots[slot] = server
        self.names[key] = server.name
        return server
