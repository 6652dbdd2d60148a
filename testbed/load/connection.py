"""One client connection: writes a request, reads an HTTP/1.1 answer, tells its owner what happened.

A raw asyncio protocol, because a client library costs several times what the server does, and the generator shares the
machine with what it measures.
"""

from __future__ import annotations

import asyncio
import errno
import re
from typing import Protocol

_HEADERS = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|x-server|x-service-ms|x-wait-ms):[ \t]*([^\r]*)", re.IGNORECASE
)
_MAX_HEAD_BYTES = 65_536

# Why a request has no answer.
OK, CONNECT, CLOSED, TIMEOUT, MALFORMED, ABORTED, REFUSED, RESET, UNREACHABLE, CONNECT_TIMEOUT, LOCAL = range(11)
ERROR_NAMES = (
    "ok",
    "connect",  # no connection, for a reason that has no name here
    "closed",  # the connection ended, in order, before the answer did
    "timeout",  # no answer, or not all of it, in time
    "malformed",  # what came is no HTTP/1.1
    "aborted",  # the run was ended first
    "refused",  # nobody listens
    "reset",  # the connection was reset
    "unreachable",  # no way there, or nobody answers for it
    "connect-timeout",  # not even a connection in time
    "local",  # the generator had no descriptor or port left: its fault, not the server's
)

_BY_ERRNO = {
    errno.ECONNREFUSED: REFUSED,
    errno.ENOENT: REFUSED,
    errno.ECONNRESET: RESET,
    errno.ECONNABORTED: RESET,
    errno.EPIPE: RESET,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.ENETUNREACH: UNREACHABLE,
    errno.ETIMEDOUT: UNREACHABLE,
    errno.EMFILE: LOCAL,
    errno.ENFILE: LOCAL,
    errno.EADDRNOTAVAIL: LOCAL,
    errno.ENOBUFS: LOCAL,
    errno.ENOMEM: LOCAL,
}


def error_of(failure: BaseException, otherwise: int) -> int:
    """The class of an error of the system."""
    return _BY_ERRNO.get(getattr(failure, "errno", None) or 0, otherwise)


class Owner(Protocol):
    def first_byte(self, index: int) -> None: ...
    def finished(self, connection: Connection, answer: Answer) -> None: ...
    def failed(self, connection: Connection, error: int) -> None: ...  # index -1: an idle connection
    def lost(self, connection: Connection) -> None: ...  # once a connection, the last that is heard of it


class Answer:
    """What is kept of an answer."""

    __slots__ = ("body_bytes", "keeps_alive", "server", "service_ms", "status", "wait_ms")

    def __init__(self) -> None:
        self.status = 0
        self.body_bytes = 0
        self.keeps_alive = True
        self.server = b""
        self.service_ms = float("nan")
        self.wait_ms = float("nan")


class Connection(asyncio.Protocol):
    """Carries one request at a time; `index` is the request's number, -1 when idle."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.index = -1
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer = Answer()
        self._has_byte = False
        self._in_body = False
        self._body_left = -1  # bytes of a counted body to come; -1: until the connection closes
        self._is_chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, index: int, request: bytes) -> None:
        assert self.transport is not None
        self.index = index
        self._answer = Answer()
        self._has_byte = self._in_body = self._is_chunked = False
        self.transport.write(request)

    def close(self) -> None:
        """Reset the connection; the owner is not told."""
        self.index = -1
        if self.transport is not None:
            self.transport.abort()

    def close_in_order(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.index < 0:  # an answer nobody asked for
            self._fail(MALFORMED)
            return
        if not self._has_byte:
            self._has_byte = True
            self.owner.first_byte(self.index)
        if self._in_body and not self._is_chunked:
            self._count(len(data))
            return
        self._buffer += data
        while not self._in_body:
            if not self._read_head():
                return
        if self._is_chunked:
            self._read_chunks()
        else:
            size = len(self._buffer)
            self._buffer.clear()
            self._count(size)

    def _read_head(self) -> bool:
        """Take one head from the buffer; False when there is none yet, or none that can be read."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                self._fail(MALFORMED)
            return False
        head = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 4]
        if head[:7] != b"HTTP/1." or not head[9:12].isdigit():
            self._fail(MALFORMED)
            return False
        answer = self._answer
        answer.status = int(head[9:12])
        if 100 <= answer.status < 200:  # interim: the real head follows
            return bool(self._buffer) and self._read_head()
        length = -1
        answer.keeps_alive = head[7:8] == b"1"
        try:
            for name, value in _HEADERS.findall(head):
                lower = name.lower()
                if lower == b"content-length":
                    length = int(value)
                elif lower == b"transfer-encoding":
                    self._is_chunked = value.strip().lower() == b"chunked"
                elif lower == b"connection":
                    answer.keeps_alive = b"close" not in value.lower()
                elif lower == b"x-server":
                    answer.server = value
                elif lower == b"x-service-ms":
                    answer.service_ms = float(value)
                else:
                    answer.wait_ms = float(value)
        except ValueError:
            self._fail(MALFORMED)
            return False
        self._in_body = True
        self._body_left = 0 if answer.status in (204, 304) else length
        if self._body_left < 0 and not self._is_chunked:
            answer.keeps_alive = False
        return True

    def _count(self, size: int) -> None:
        """So many more bytes of a body that is not chunked."""
        self._answer.body_bytes += size
        if self._body_left < 0:
            return
        self._body_left -= size
        if self._body_left < 0:
            self._fail(MALFORMED)
        elif self._body_left == 0:
            self._finish()

    def _read_chunks(self) -> None:
        while True:
            line_end = self._buffer.find(b"\r\n")
            if line_end < 0:
                return
            try:
                size = int(self._buffer[:line_end].split(b";")[0], 16)
            except ValueError:
                self._fail(MALFORMED)
                return
            if size == 0:  # trailers, if any, and an empty line
                end = self._buffer.find(b"\r\n\r\n", line_end)
                if end < 0:
                    return
                is_clean = end + 4 == len(self._buffer)
                self._buffer.clear()
                if is_clean:
                    self._finish()
                else:
                    self._fail(MALFORMED)
                return
            if len(self._buffer) < line_end + 2 + size + 2:
                return
            self._answer.body_bytes += size
            del self._buffer[: line_end + 2 + size + 2]

    def _finish(self) -> None:
        answer = self._answer
        if not answer.keeps_alive:
            self.close_in_order()
        self.owner.finished(self, answer)

    def _fail(self, error: int) -> None:
        if self.transport is not None:
            self.transport.abort()
        self.owner.failed(self, error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.index >= 0 and self._in_body and self._body_left < 0 and not self._is_chunked and exc is None:
            self._finish()  # the body that lasts until the end of the connection
        else:
            self.owner.failed(self, CLOSED if exc is None else error_of(exc, CLOSED))
        self.transport = None
        self.owner.lost(self)
