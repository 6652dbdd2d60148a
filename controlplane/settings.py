"""From configuration and server table to the settings that the data plane reads: one function each way, no state.

Whatever the data plane may not choose by itself stands in the settings: servers with state, health and weight, limits,
timeouts, the fallback rule. They are published whole; the data plane takes them whole or not at all.
"""

from __future__ import annotations

import math
import socket

from controlplane.config import Address, Config, Service
from controlplane.config_values import coalition_number
from controlplane.servers import Server, ServerTable
from shm_layout.layout import SERVERS_LIMIT
from shm_layout.segment import FREE_SERVER, Limits, RouteData, ServerData, SettingsData, pack_address

SECOND = 1_000_000_000

# The fallback policies: rule, curve, servers sampled for one auction.
FALLBACKS = {
    "lsq": ("bids", "lsq", 0),
    "sed": ("bids", "sed", 0),
    "gsed": ("bids", "gsed", 0),
    "p2c": ("bids", "lsq", 2),
    "wrr": ("wrr", "lsq", 0),
}
SLOTS_LEAST = 64


def threads(service: Service) -> int:
    """Return how many workers serve it: `workers` for each address that it listens on, since each has one listener."""
    return service.workers * len(service.listen)


def segment_limits(service: Service) -> Limits:
    """Return what its segment is sized by: twice its servers, so that a reload finds room."""
    wanted = max(SLOTS_LEAST, 2 * len(service.servers))
    slots = min(1 << math.ceil(math.log2(wanted)), SERVERS_LIMIT)
    return Limits(max_servers=slots, max_workers=threads(service))


def settings_of(
    service: Service, table: ServerTable, version: int, *, accepting: bool = True, drain_deadline_ns: int = 0
) -> SettingsData:
    """Return the settings as they are to be published."""
    rule, curve, choices = FALLBACKS[service.fallback]
    timeout = service.timeout
    slowstart_ns = int(service.slowstart * SECOND)
    return SettingsData(
        version=version,
        servers=[FREE_SERVER if server is None else server_data(server, slowstart_ns) for server in table.slots],
        fallback_rule=rule,
        fallback_curve=curve,
        fallback_choices=choices,
        maxconn=service.maxconn,
        queue_slots=service.queue,
        retries=service.retries,
        retry_budget_percent=service.retry_budget,
        log_targets=service.log.access != "off",
        accepting=accepting,
        trusted=service.forwarded.trust,
        routes=[
            RouteData(route.prefix, route.sla_class or service.sla.default, route.load) for route in service.sla.routes
        ],
        sla_default=service.sla.default,
        sla_header=service.sla.header.lower(),
        sla_any_client=service.sla.trust == "any",
        stale_after_ns=int(service.stale_after * SECOND),
        timeout_http_request_ns=int(timeout.http_request * SECOND),
        timeout_http_keep_alive_ns=int(timeout.http_keep_alive * SECOND),
        timeout_connect_ns=int(timeout.connect * SECOND),
        timeout_client_ns=int(timeout.client * SECOND),
        timeout_server_ns=int(timeout.server * SECOND),
        timeout_queue_ns=int(timeout.queue * SECOND),
        timeout_tunnel_ns=int(timeout.tunnel * SECOND),
        drain_deadline_ns=drain_deadline_ns,
    )


def server_data(server: Server, slowstart_ns: int) -> ServerData:
    """Return one server's entry."""
    return ServerData(
        id=server.id,
        name=server.name,
        address=sockaddr_bytes(server.address),
        state=server.shown_state,
        health=server.health,
        weight=server.weight,
        maxconn=server.maxconn,
        backup=server.backup,
        capacity=server.capacity,
        coalition=coalition_number(server.coalition),
        slowstart_begin_ns=server.slowstart_begin_ns,
        slowstart_ns=slowstart_ns if server.slowstart_begin_ns else 0,
    )


def sockaddr_bytes(address: Address) -> bytes:
    """Return the C struct sockaddr of an address."""
    if address.is_unix:
        return pack_address(address.path)
    scope = address.sockaddr[3] if len(address.sockaddr) > 3 else 0
    return pack_address(f"{address.host}%{socket.if_indextoname(scope)}" if scope else address.host, address.port)


# Keys of a service that cannot change while it runs: sockets, threads and the segment's size hang on them.
FIXED_KEYS = ("listen", "engine", "mode", "workers", "io")
# Keys that the controller is told when it starts.
CONTROLLER_KEYS = ("interval", "balancers", "objective", "reserve")


def refusals(old: Config, new: Config) -> list[tuple[tuple[str, ...], str]]:
    """Return what a reload cannot change, as key path and reason; empty: all of it can be taken in place."""
    found: list[tuple[tuple[str, ...], str]] = []
    if new.instance != old.instance:
        found.append((("instance",), f"cannot change from '{old.instance}' without a restart"))
    for key in ("listen", "audit"):
        if getattr(new.admin, key) != getattr(old.admin, key):
            found.append((("admin", key), "cannot change without a restart"))
    for name in old.service.keys() - new.service.keys():
        found.append((("service", name), "a service cannot be removed without a restart"))
    for name in new.service.keys() - old.service.keys():
        found.append((("service", name), "a service cannot be added without a restart"))
    for name in old.service.keys() & new.service.keys():
        before, after = old.service[name], new.service[name]
        for key in FIXED_KEYS:
            if getattr(before, key) != getattr(after, key):
                was, now = (shown_value(getattr(each, key)) for each in (before, after))
                found.append((("service", name, key), f"cannot change from {was} to {now} without a restart"))
    return sorted(found)


def shown_value(value: object) -> str:
    """Return a value of the configuration in one short line."""
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return str(value)
