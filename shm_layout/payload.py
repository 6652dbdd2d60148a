"""The two payloads that control processes publish, as Python values: settings and directive, to bytes and back.

Rules, states and health go by their names in lower case ("bids", "drain", "ejected"). Times and durations are
nanoseconds here, as in the segment. Check a payload before you decode it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shm_layout._segment import ffi, lib
from shm_layout.errors import PayloadRejectedError
from shm_layout.layout import (
    ADDRESS_BYTES,
    CLASSIC_SERVER,
    CURVE_POINTS,
    DIRECTIVE,
    FALLBACK_CURVES,
    HEADER_BYTES,
    NAME_BYTES,
    PREFIX_BYTES,
    REJECTS,
    ROUTES_MAX,
    RULES,
    SERVER_ENTRY,
    SERVER_HEALTH,
    SERVER_STATES,
    SERVERS_LIMIT,
    SETTINGS,
    SLA_CLASSES,
    TRUSTED_MAX,
)

SECOND = 1_000_000_000
_LINE = 64

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class ServerData:
    """One server slot; id 0 and state "free": nobody's."""

    id: int = 0
    name: str = ""
    address: bytes = b""  # a sockaddr: pack_address()
    state: str = "ready"
    health: str = "up"
    weight: int = 1  # 0 … 256
    maxconn: int = 0  # 0: no limit
    backup: bool = False
    slowstart_begin_ns: int = 0
    slowstart_ns: int = 0
    capacity: float = 0.0  # classic: load in flight at which it counts as full; 0: learned
    coalition: int = 0  # 0: of none


FREE_SERVER = ServerData(state="free", weight=0)


@dataclass(frozen=True, slots=True)
class RouteData:
    """Requests whose target begins with prefix."""

    prefix: str
    sla: str = "silver"
    load: float = 0.0  # in mean flows; 0: learned


@dataclass(slots=True)
class SettingsData:
    """The settings of one service; fields as in struct settings."""

    version: int = 1
    servers: Sequence[ServerData] = ()
    fallback_rule: str = "bids"
    fallback_curve: str = "lsq"
    fallback_choices: int = 0
    maxconn: int = 10_000
    queue_slots: int = 1024
    retries: int = 1
    retry_budget_percent: int = 20
    sample_durations: int = 4
    log_targets: bool = False
    accepting: bool = True
    trusted: Sequence[IPNetwork] = ()
    routes: Sequence[RouteData] = ()
    sla_default: str = "silver"
    sla_header: str = ""  # in lower case; empty: none
    sla_any_client: bool = False  # believe it of every client, not of the trusted networks' only
    stale_after_ns: int = 3 * SECOND
    timeout_http_request_ns: int = 5 * SECOND
    timeout_http_keep_alive_ns: int = 60 * SECOND
    timeout_connect_ns: int = 1 * SECOND
    timeout_client_ns: int = 30 * SECOND
    timeout_server_ns: int = 30 * SECOND
    timeout_queue_ns: int = 10 * SECOND
    timeout_tunnel_ns: int = 3600 * SECOND
    drain_deadline_ns: int = 0

    def encode(self) -> bytes:
        """Return the payload; PayloadRejectedError when a value does not fit its field or would be refused."""
        memory = np.zeros(SETTINGS.itemsize + len(self.servers) * SERVER_ENTRY.itemsize, dtype=np.uint8)
        head = memory[: SETTINGS.itemsize].view(SETTINGS)[0]
        servers = memory[SETTINGS.itemsize :].view(SERVER_ENTRY)
        for name in (f.name for f in fields(self)):
            if name not in (
                "servers",
                "trusted",
                "routes",
                "sla_default",
                "sla_header",
                "fallback_rule",
                "fallback_curve",
            ):
                _store(head, name, getattr(self, name))
        head["n_slots"] = len(self.servers)
        head["fallback_rule"] = _index(RULES, self.fallback_rule, "fallback rule")
        head["fallback_curve"] = _index(FALLBACK_CURVES, self.fallback_curve, "fallback curve")
        if len(self.trusted) > TRUSTED_MAX:
            raise PayloadRejectedError(f"{len(self.trusted)} trusted networks, at most {TRUSTED_MAX}", "bounds")
        head["n_trusted"] = len(self.trusted)
        for row, network in zip(head["trusted"], self.trusted, strict=False):
            mapped, prefix = pack_network(network)
            row["address"] = np.frombuffer(mapped, np.uint8)
            row["prefix_bits"] = prefix
        _encode_classes(head, self)
        for row, server in zip(servers, self.servers, strict=True):
            _encode_server(row, server)
        payload = memory.tobytes()
        check_settings(payload)
        return payload


@dataclass(slots=True)
class DirectiveData:
    """A directive; row i of each array is server slot i's, None: absent. Fields as in struct directive."""

    ids: ArrayLike  # (servers,) uint64
    rule: str
    policy: str = ""
    sequence: int = 1
    issued_ns: int = 0
    settings_version: int = 0
    epoch: int = 0
    choices: int = 0
    enforcing_percent: int = 100
    classic_noise: float = 0.0
    classic_reserve: float = 0.0
    coalition_above: float = 0.0
    coalition_below: float = 0.0  # 0: no hand-offs
    sla_reserve: ArrayLike = (1.0, 1.0, 1.0)  # by class
    weights: ArrayLike | None = None  # (servers,)
    curves: ArrayLike | None = None  # (servers, CURVE_POINTS)
    alias_keep: ArrayLike | None = None  # (servers,) uint32, in units of 2^-32
    alias_other: ArrayLike | None = None  # (servers,) slots
    table: ArrayLike | None = None  # (table_slots,) slots
    classic: NDArray[Any] | None = None  # (servers,) of dtype CLASSIC_SERVER
    reserve: ArrayLike | None = None  # (CURVE_POINTS,) by flows waiting; None: no flow is held
    loads: ArrayLike | None = None  # (routes + 1, SLA classes) > 0
    aging: ArrayLike | None = None  # (servers, 2): flows in flight, growth a second

    def encode(self) -> NDArray[np.uint64]:
        """Return the payload as words; PayloadRejectedError when an array has not the shape that its rows ask for.

        Values are not looked at here: publish_directive() checks them as the reader will.
        """
        ids = np.ascontiguousarray(self.ids, dtype=np.uint64)
        n = ids.shape[0]
        arrays = {
            "off_ids": _array("ids", ids, np.uint64, (n,)),
            "off_weights": _array("weights", self.weights, np.float32, (n,)),
            "off_curves": _array("curves", self.curves, np.float32, (n, CURVE_POINTS)),
            "off_alias_keep": _array("alias_keep", self.alias_keep, np.uint32, (n,)),
            "off_alias_other": _array("alias_other", self.alias_other, np.uint32, (n,)),
            "off_table": _array("table", self.table, np.uint32, (-1,)),
            "off_classic": _array("classic", self.classic, CLASSIC_SERVER, (n,)),
            "off_reserve": _array("reserve", self.reserve, np.float32, (CURVE_POINTS,)),
            "off_loads": _array("loads", self.loads, np.float32, (-1, len(SLA_CLASSES))),
            "off_aging": _array("aging", self.aging, np.float32, (n, 2)),
        }
        offsets, end = {}, DIRECTIVE.itemsize
        for name, array in arrays.items():
            if array is not None:
                offsets[name] = end
                end += -(-array.nbytes // _LINE) * _LINE
        words = np.zeros(end // 8, dtype=np.uint64)
        memory = words.view(np.uint8)
        for name, offset in offsets.items():
            data = arrays[name]
            assert data is not None
            memory[offset : offset + data.nbytes] = data.reshape(-1).view(np.uint8)
        head = memory[: DIRECTIVE.itemsize].view(DIRECTIVE)[0]
        for name in ("sequence", "issued_ns", "settings_version", "epoch", "choices", "enforcing_percent"):
            _store(head, name, getattr(self, name))
        with np.errstate(over="ignore"):  # becomes infinite, which the check refuses
            for name in ("classic_noise", "classic_reserve", "coalition_above", "coalition_below"):
                head[name] = getattr(self, name)
            head["sla_reserve"] = np.asarray(self.sla_reserve, dtype=np.float64)
        head["policy"] = _text("policy", self.policy)
        head["rule"] = _index(RULES, self.rule, "rule")
        head["n_servers"] = n
        head["n_routes"] = 0 if arrays["off_loads"] is None else len(arrays["off_loads"])
        head["table_slots"] = 0 if arrays["off_table"] is None else len(arrays["off_table"])
        for name, offset in offsets.items():
            head[name] = offset
        return words


@dataclass(frozen=True, slots=True)
class SettingsView:
    """A settings payload read back: head a record of dtype SETTINGS, servers (n_slots,) of SERVER_ENTRY."""

    head: np.void
    servers: NDArray[np.void]
    epoch: int

    @property
    def ids(self) -> NDArray[np.uint64]:
        """(n_slots,) ids, 0 for a free slot."""
        return self.servers["id"]

    @property
    def names(self) -> list[str]:
        return [name.decode(errors="replace") for name in self.servers["name"].tolist()]


@dataclass(frozen=True, slots=True)
class DirectiveView:
    """A directive read back: head a record of dtype DIRECTIVE; arrays as in DirectiveData, None where absent."""

    head: np.void
    epoch: int
    ids: NDArray[np.uint64]
    weights: NDArray[np.float32] | None
    curves: NDArray[np.float32] | None
    alias_keep: NDArray[np.uint32] | None
    alias_other: NDArray[np.uint32] | None
    table: NDArray[np.uint32] | None
    classic: NDArray[np.void] | None
    reserve: NDArray[np.float32] | None
    loads: NDArray[np.float32] | None
    aging: NDArray[np.float32] | None

    @property
    def rule(self) -> str:
        return RULES[int(self.head["rule"])]

    @property
    def policy(self) -> str:
        return str(self.head["policy"].decode(errors="replace"))


def check_settings(payload: Any, max_servers: int = SERVERS_LIMIT) -> None:
    """Raise PayloadRejectedError when a reader with so many server slots would refuse the payload."""
    reason = ffi.new("uint32_t *")
    with ffi.from_buffer(payload) as data:
        code = lib.segment_check_settings(data, len(data), max_servers, reason)
    if code != 0:
        raise PayloadRejectedError(f"settings refused: {_why(code)}", REJECTS[reason[0]])


def check_directive(payload: Any, max_servers: int = SERVERS_LIMIT, max_table: int = 2**32 - 1) -> None:
    """Raise PayloadRejectedError when a reader with these limits would refuse the payload."""
    reason = ffi.new("uint32_t *")
    with ffi.from_buffer(payload) as data:
        code = lib.segment_check_directive(data, len(data), max_servers, max_table, reason)
    if code != 0:
        raise PayloadRejectedError(f"directive refused: {_why(code)}", REJECTS[reason[0]])


def decode_settings(payload: NDArray[np.uint64], epoch: int) -> SettingsView:
    """Return the parts of a checked payload, as views of it."""
    memory = payload.view(np.uint8)
    head = memory[: SETTINGS.itemsize].view(SETTINGS)[0]
    return SettingsView(head, memory[SETTINGS.itemsize :].view(SERVER_ENTRY), epoch)


def decode_directive(payload: NDArray[np.uint64], epoch: int) -> DirectiveView:
    """Return the parts of a checked payload, as views of it."""
    memory = payload.view(np.uint8)
    head = memory[: DIRECTIVE.itemsize].view(DIRECTIVE)[0]
    n = int(head["n_servers"])

    def at(name: str, dtype: Any, count: int) -> NDArray[Any] | None:
        offset = int(head[name])
        return None if offset == 0 else np.frombuffer(memory, dtype, count, offset)

    curves = at("off_curves", np.float32, n * CURVE_POINTS)
    loads = at("off_loads", np.float32, int(head["n_routes"]) * len(SLA_CLASSES))
    aging = at("off_aging", np.float32, n * 2)
    return DirectiveView(
        head=head,
        epoch=epoch,
        ids=np.frombuffer(memory, np.uint64, n, int(head["off_ids"])),
        weights=at("off_weights", np.float32, n),
        curves=None if curves is None else curves.reshape(n, CURVE_POINTS),
        alias_keep=at("off_alias_keep", np.uint32, n),
        alias_other=at("off_alias_other", np.uint32, n),
        table=at("off_table", np.uint32, int(head["table_slots"])),
        classic=at("off_classic", CLASSIC_SERVER, n),
        reserve=at("off_reserve", np.float32, CURVE_POINTS),
        loads=None if loads is None else loads.reshape(-1, len(SLA_CLASSES)),
        aging=None if aging is None else aging.reshape(n, 2),
    )


def pack_address(address: str, port: int = 0) -> bytes:
    """Return the sockaddr of an IP address and port, or of a Unix socket's path ("/…", or "@…": abstract).

    ValueError: it is neither.
    """
    if address.startswith(("/", "@")):
        path = b"\0" + address[1:].encode() if address[0] == "@" else address.encode() + b"\0"
        packed = struct.pack("=H", socket.AF_UNIX) + path
        if len(packed) > 2 + 108:
            raise ValueError(f"{address}: longer than a Unix socket's path may be")
        return packed
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + ip.packed + bytes(8)
    scope = socket.if_nametoindex(ip.scope_id) if ip.scope_id else 0
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + ip.packed + struct.pack("=I", scope)


def unpack_address(packed: bytes) -> tuple[str, int]:
    """Return address and port (0: a Unix socket) of a sockaddr; ("", 0) when it is empty."""
    if len(packed) < 2:
        return "", 0
    (family,) = struct.unpack_from("=H", packed)
    if family == socket.AF_UNIX:
        path = packed[2:]
        return ("@" + path[1:].decode() if path[:1] == b"\0" else path.rstrip(b"\0").decode()), 0
    (port,) = struct.unpack_from("!H", packed, 2)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(packed[4:8])), port
    return str(ipaddress.IPv6Address(packed[8:24])), port


def pack_network(network: IPNetwork) -> tuple[bytes, int]:
    """Return a network's 16 address bytes and prefix; IPv4 is mapped."""
    if isinstance(network, ipaddress.IPv4Network):
        return bytes(10) + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen
    return network.network_address.packed, network.prefixlen


def _encode_classes(head: np.void, settings: SettingsData) -> None:
    if len(settings.routes) > ROUTES_MAX:
        raise PayloadRejectedError(f"{len(settings.routes)} routes, at most {ROUTES_MAX}", "bounds")
    head["n_routes"] = len(settings.routes)
    head["sla_default"] = _index(SLA_CLASSES, settings.sla_default, "SLA class")
    header = settings.sla_header.encode()
    if len(header) > HEADER_BYTES:
        raise PayloadRejectedError(f"SLA header of {len(header)} bytes, at most {HEADER_BYTES}", "bounds")
    head["sla_header"], head["sla_header_bytes"] = header, len(header)
    for row, route in zip(head["routes"], settings.routes, strict=False):
        prefix = route.prefix.encode()
        if len(prefix) > PREFIX_BYTES:
            raise PayloadRejectedError(f"route of {len(prefix)} bytes, at most {PREFIX_BYTES}", "bounds")
        row["prefix"], row["prefix_bytes"], row["load"] = prefix, len(prefix), route.load
        row["sla"] = _index(SLA_CLASSES, route.sla, "SLA class")


def _encode_server(row: np.void, server: ServerData) -> None:
    for name in ("id", "weight", "maxconn", "backup", "slowstart_begin_ns", "slowstart_ns", "capacity", "coalition"):
        _store(row, name, getattr(server, name))
    row["state"] = _index(SERVER_STATES, server.state, "server state")
    row["health"] = _index(SERVER_HEALTH, server.health, "server health")
    row["name"] = _text("server name", server.name)
    if len(server.address) > ADDRESS_BYTES:
        raise PayloadRejectedError(f"address of {len(server.address)} bytes, at most {ADDRESS_BYTES}", "bounds")
    row["address_bytes"] = len(server.address)
    row["address"][: len(server.address)] = np.frombuffer(server.address, np.uint8)


def _store(record: np.void, name: str, value: float) -> None:
    try:
        record[name] = value
    except (OverflowError, ValueError) as error:
        raise PayloadRejectedError(f"{name}: {value} does not fit", "value") from error


def _index(names: Sequence[str], name: str, what: str) -> int:
    if name not in names:
        raise PayloadRejectedError(f"{what} {name!r}: not one of {', '.join(names)}", "value")
    return names.index(name)


def _text(what: str, text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) >= NAME_BYTES or b"\0" in encoded:
        raise PayloadRejectedError(f"{what} {text!r}: longer than {NAME_BYTES - 1} bytes, or with NUL", "value")
    return encoded


def _array(name: str, values: ArrayLike | None, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any] | None:
    if values is None:
        return None
    given = np.asarray(values)
    if given.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, given.shape, strict=True)):
        raise PayloadRejectedError(f"{name}: shape {given.shape}, expected {shape}", "bounds")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, which the check refuses
        return np.ascontiguousarray(given, dtype=dtype)


def _why(code: int) -> str:
    return str(ffi.string(lib.segment_strerror(code)).decode())


__all__ = [
    "FREE_SERVER",
    "DirectiveData",
    "DirectiveView",
    "RouteData",
    "ServerData",
    "SettingsData",
    "SettingsView",
    "check_directive",
    "check_settings",
    "decode_directive",
    "decode_settings",
    "pack_address",
    "pack_network",
    "unpack_address",
]
