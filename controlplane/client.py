"""Talks to the admin API of a running balancer: what `vickrey status`, `policy`, `server` and `reload` are made of.

Only the standard library, so that these commands start at once.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote, urlencode

from controlplane.command import CommandError
from controlplane.config_values import Address, parse_server_address

ANSWER_BYTES_MAX = 64 << 20  # 4,096 servers are some 2 MiB


class _Connection(http.client.HTTPConnection):
    """A connection to an Address, TCP or Unix."""

    def __init__(self, address: Address, timeout: float) -> None:
        # The Host header is an IP address: the API refuses names that a foreign DNS server could make up.
        super().__init__(address.host or "localhost", address.port or None, timeout=timeout)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.socket(self.address.family, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.address.sockaddr)


class Client:
    """The admin API at one address. Every failure is a CommandError with one line for the user."""

    def __init__(self, admin: str, timeout: float = 5.0) -> None:
        self.admin = admin
        self.timeout = timeout
        text = f"127.0.0.1:{admin.removeprefix(':')}" if admin.removeprefix(":").isdigit() else admin
        try:
            self._address = parse_server_address(text.removeprefix("http://").rstrip("/"))
        except ValueError as error:
            raise CommandError(f"--admin {admin}: {error}", status=2) from None

    def get(self, *path: str, **query: object) -> dict[str, Any]:
        return self.request("GET", *path, query=urlencode(query))

    def post(self, *path: str, body: Any = None) -> dict[str, Any]:
        return self.request("POST", *path, body=body)

    def patch(self, *path: str, body: Any) -> dict[str, Any]:
        return self.request("PATCH", *path, body=body)

    def request(self, method: str, *path: str, body: Any = None, query: str = "") -> dict[str, Any]:
        """Send a request to /v1/<path>, each part of it quoted; returns the JSON that came back."""
        connection = _Connection(self._address, self.timeout)
        headers = {"Accept": "application/json"}
        data = None
        if method != "GET":
            data = json.dumps(body or {}).encode()
            headers["Content-Type"] = "application/json"  # a change must be JSON, even an empty one
        try:
            target = "/v1/" + "/".join(quote(part, safe="") for part in path)
            connection.request(method, f"{target}?{query}" if query else target, data, headers)
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX)
        except TimeoutError:
            raise CommandError(f"the balancer at {self.admin} did not answer within {self.timeout:g} s") from None
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise CommandError(
                f"no balancer answers at {self.admin} ({why}): is it running? --admin names another address"
            ) from None
        except (http.client.HTTPException, ValueError):
            raise self._foreign() from None
        finally:
            connection.close()
        return self._judge(response.status, text)

    def status(self) -> dict[str, Any]:
        """Return the whole state; its services are mappings with a list of servers each."""
        state = self.get("status")
        services = state.get("services")
        if not isinstance(services, dict):
            raise self._foreign()
        for service in services.values():
            servers = service.get("servers", []) if isinstance(service, dict) else None
            if not isinstance(servers, list) or not all(isinstance(server, dict) for server in servers):
                raise self._foreign()
        return state

    def _foreign(self) -> CommandError:
        return CommandError(f"what answers at {self.admin} is not a balancer's admin API")

    def _judge(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            raise self._foreign() from None
        if not isinstance(answer, dict):
            raise self._foreign()
        if status >= 400:
            what = str(answer.pop("error", "") or f"the balancer answered {status}")
            raise CommandError(what, details=answer)
        return answer


def the_service(client: Client, name: str | None) -> str:
    """Return the service that is meant: the one named, or the only one."""
    services = list(client.status()["services"])
    if name is None:
        if len(services) != 1:
            raise CommandError(f"--service is needed, one of: {', '.join(services) or 'none'}", status=2)
        return str(services[0])
    if name not in services:
        raise CommandError(f"no service is called '{name}': there are {', '.join(services) or 'none'}")
    return name
