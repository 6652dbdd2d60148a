"""The values of a configuration file that YAML has no type for: durations, addresses, networks, status ranges, names.

Each parser takes what stood in the file and returns the value, or raises ValueError with what was expected.
"""

import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NAME_BYTES_MAX = 63  # NAME_BYTES of the segment, less its NUL
UNIX_PATH_BYTES_MAX = 107  # sun_path of sockaddr_un, less its NUL
DURATION_MOST = 30 * 86400.0

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(us|ms|s|m|h|d)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
_SERVER_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9_.:\[\]%-]*", re.ASCII)
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


def shown(value: object) -> str:
    """Return a value as an error message quotes it: one short line."""
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return text if len(text) <= 60 else text[:57] + "..."


def parse_duration(value: object) -> float:
    """Return seconds. A bare number is refused: to HAProxy it is milliseconds, to nginx seconds."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match:
            return float(match[1]) * _UNITS[match[2]]
    what = "a duration with its unit, like 200ms, 5s, 1m or 1h"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"expected {what}: {shown(value)} has no unit")
    raise ValueError(f"expected {what}, not {shown(value)}")


def duration(least: float, most: float = DURATION_MOST) -> Callable[[object], float]:
    """Return a parser of durations between two bounds, in seconds."""

    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if seconds < least:
            raise ValueError(f"expected at least {format_duration(least)}, not {value}")
        if seconds > most:
            raise ValueError(f"expected at most {format_duration(most)}, not {value}")
        return seconds

    return parse


def format_duration(seconds: float) -> str:
    """Return the shortest text that parse_duration reads as the same duration (to the nanosecond)."""
    for unit in ("d", "h", "m"):
        count = seconds / _UNITS[unit]
        if seconds and count == int(count):
            return f"{int(count)}{unit}"
    if seconds == 0 or seconds >= 1:
        return f"{round(seconds, 9):.9f}".rstrip("0").rstrip(".") + "s"
    unit = "ms" if seconds >= 1e-3 else "us"
    return f"{seconds / _UNITS[unit]:.6f}".rstrip("0").rstrip(".") + unit


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or to connect: resolved once, when the file is read.

    `text` is what the file says. `family` and `sockaddr` are what socket.socket and its bind or connect take.
    """

    text: str
    family: socket.AddressFamily = field(repr=False)
    sockaddr: Any = field(repr=False)  # (host, port), (host, port, flow, scope) or a path

    def __str__(self) -> str:
        return self.text

    @property
    def is_unix(self) -> bool:
        return self.family == socket.AF_UNIX

    @property
    def host(self) -> str:
        """IP address as text; empty for a Unix socket."""
        return "" if self.is_unix else str(self.sockaddr[0])

    @property
    def port(self) -> int:
        """Port; 0 for a Unix socket."""
        return 0 if self.is_unix else int(self.sockaddr[1])

    @property
    def path(self) -> str:
        """Path of a Unix socket; empty for TCP."""
        return str(self.sockaddr) if self.is_unix else ""


Resolver = Callable[[str], str]
"""From a host name to an IP address as text; OSError when there is none."""


def resolve_host(host: str) -> str:
    """Return an address of a host name: IPv4 when it has one, as the servers behind a name most often listen there."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in found:
            if entry[0] == family:
                return str(entry[4][0])
    raise OSError("no IPv4 or IPv6 address")


def _unix(text: str) -> Address:
    path = text.removeprefix("unix:")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"expected unix: and an absolute path, like unix:/run/app.sock, not {shown(text)}")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"the path of a Unix socket has at most {UNIX_PATH_BYTES_MAX} bytes, this one {len(path)}")
    return Address(text, socket.AF_UNIX, path)


def _split(text: str, expected: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5:
        raise ValueError(f"expected {expected}, not {shown(text)}")
    if int(port) > 65535:
        raise ValueError(f"expected a port of at most 65535, not {port}")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets, like [::1]:{port}, not {shown(text)}")
    return host, int(port)


def _ip(host: str, resolve: Resolver, text: str, expected: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError(f"expected {expected}, not {shown(text)}")
    try:
        return resolve(host)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"cannot resolve host name {shown(host)}: {why}") from None


def _tcp(text: str, host: str, port: int) -> Address:
    if ":" not in host:
        return Address(text, socket.AF_INET, (host, port))
    address, _, scope = host.partition("%")
    try:
        scope_id = int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0
    except OSError:
        raise ValueError(f"no network interface is called {shown(scope)}") from None
    return Address(text, socket.AF_INET6, (address, port, 0, scope_id))


def parse_listen(value: object, resolve: Resolver = resolve_host) -> Address:
    """Return an address to listen on. No host (":8080", "*:8080"): all IPv4 addresses. Port 0: the kernel picks."""
    expected = "an address to listen on, like 127.0.0.1:8080, :8080, [::]:8080 or unix:/run/vickrey.sock"
    if not isinstance(value, str):
        hint = f" (did you mean ':{value}'?)" if isinstance(value, int) and 0 < value < 65536 else ""
        raise ValueError(f"expected {expected}, not {shown(value)}{hint}")
    if value.startswith("unix:"):
        return _unix(value)
    host, port = _split(value, expected)
    return _tcp(value, "0.0.0.0" if host in ("", "*") else _ip(host, resolve, value, expected), port)


def parse_server_address(value: object, resolve: Resolver = resolve_host) -> Address:
    """Return an address to connect to."""
    expected = "the address of a server, like 127.0.0.1:9001, app.example:80, [::1]:9001 or unix:/run/app.sock"
    if not isinstance(value, str):
        raise ValueError(f"expected {expected}, not {shown(value)}")
    if value.startswith("unix:"):
        return _unix(value)
    if "://" in value:
        raise ValueError(f"expected {expected}, without a scheme, not {shown(value)}")
    host, port = _split(value, expected)
    if not host or host == "*":
        raise ValueError(f"a server needs a host: expected {expected}, not {shown(value)}")
    if port == 0:
        raise ValueError(f"a server needs a port from 1 to 65535, not {shown(value)}")
    return _tcp(value, _ip(host, resolve, value, expected), port)


def parse_name(value: object) -> str:
    """Return the name of a service or an instance: it is a part of the segment's name, so dots and slashes are out."""
    expected = "a name of letters, digits, '_' and '-'"
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"expected {expected}, not {shown(value)}")
    if len(value) > NAME_BYTES_MAX:
        raise ValueError(f"expected {expected}, at most {NAME_BYTES_MAX} long, not {len(value)}")
    return value


def parse_server_name(value: object) -> str:
    """Return the name of a server: one part of a URL path, so slashes are out."""
    expected = "a name of letters, digits, '_', '-', '.' and ':'"
    if not isinstance(value, str) or not _SERVER_NAME.fullmatch(value):
        raise ValueError(f"expected {expected}, not {shown(value)}")
    if len(value) > NAME_BYTES_MAX:
        raise ValueError(f"expected {expected}, at most {NAME_BYTES_MAX} long, not {len(value)}")
    return value


COALITION_MOST = (1 << 31) - 1  # numbers; names take the other half


def parse_coalition(value: object) -> str | int:
    """Return a coalition as given: a name, or a number; 0: none."""
    expected = f"a name, or a number from 0 (none) to {COALITION_MOST}"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COALITION_MOST:
        return value
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > NAME_BYTES_MAX:
        raise ValueError(f"expected {expected}, not {shown(value)}")
    return value


def coalition_number(coalition: str | int) -> int:
    """Return what stands for it in the segment: the number, or 2^31 and more from the name's hash. 0: none."""
    if isinstance(coalition, int):
        return coalition
    digest = hashlib.blake2b(coalition.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") | (1 << 31)


_PREFIX = re.compile(r"/[!-\"$-~]*", re.ASCII)
PREFIX_BYTES_MAX = 112  # PREFIX_BYTES of the segment
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
HEADER_BYTES_MAX = 64  # HEADER_BYTES of the segment


def parse_prefix(value: object) -> str:
    """Return the prefix of a route: what a request's target begins with."""
    expected = "the begin of a path, like /api/: '/' and printable ASCII without blanks and '#'"
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise ValueError(f"expected {expected}, not {shown(value)}")
    if len(value) > PREFIX_BYTES_MAX:
        raise ValueError(f"expected {expected}, at most {PREFIX_BYTES_MAX} long, not {len(value)}")
    return value


def parse_header_name(value: object) -> str:
    """Return the name of a header as written, or '' for none."""
    if value is False or value in ("", "off"):
        return ""
    expected = f"the name of a header, like X-SLA, at most {HEADER_BYTES_MAX} long"
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > HEADER_BYTES_MAX:
        raise ValueError(f"expected {expected}, not {shown(value)}")
    return value


def server_name_from(address: Address) -> str:
    """Return the name of a server that was given none: its address as written, cut to fit."""
    text = address.text if not address.is_unix else "unix:" + address.path.strip("/").replace("/", "_")
    return "".join(c if _SERVER_NAME.fullmatch("a" + c) else "_" for c in text)[-NAME_BYTES_MAX:]


StatusRanges = tuple[tuple[int, int], ...]


def parse_status(value: object) -> StatusRanges:
    """Return ranges of HTTP statuses, ends included: 200, "200-399" or "200,204,301-302"."""
    ranges: list[tuple[int, int]] = []
    if isinstance(value, int | str) and not isinstance(value, bool):
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*([1-5]\d\d)(?:-([1-5]\d\d))?\s*", part, re.ASCII)
            if not match or int(match[2] or match[1]) < int(match[1]):
                break
            ranges.append((int(match[1]), int(match[2] or match[1])))
        else:
            return tuple(ranges)
    raise ValueError(f"expected statuses like 200, 200-399 or 200,204, not {shown(value)}")


def format_status(ranges: StatusRanges) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(value: object) -> Network:
    """Return a network in CIDR notation; an address alone is a network of one."""
    expected = "a network, like 10.0.0.0/8, 192.0.2.1 or fd00::/8"
    if not isinstance(value, str):
        raise ValueError(f"expected {expected}, not {shown(value)}")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        if "host bits" in str(error):
            meant = ipaddress.ip_network(value, strict=False)
            raise ValueError(f"{shown(value)} has host bits set (did you mean '{meant}'?)") from None
        raise ValueError(f"expected {expected}, not {shown(value)}") from None
