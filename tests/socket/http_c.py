"""The C functions of dataplane/socket/http.h, one Python function each; the library is compiled for the tests.

Bytes given to a parser lie between two pages that may not be touched, right before the second or right behind the
first: a read of one byte too many ends the process.
"""

import ctypes
import mmap
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from cffi import FFI

from tests.c_build import ROOT, build_c

SOURCES = [
    f"dataplane/socket/{name}.c"
    for name in ("chunked", "http_fields", "http_request", "http_response", "http_websocket", "http_write")
]
METHODS = {"GET": 1, "HEAD": 2, "POST": 3}
NONE, LENGTH, CHUNKED, CLOSE = range(4)

ffi = FFI()


def new(ctype: str, init: Any = None) -> Any:
    declare()
    return ffi.new(ctype, init)


@cache
def library(*flags: str) -> Any:
    declare()
    return ffi.dlopen(str(build_c("http.so", SOURCES, ["-shared", "-fPIC", *flags])))


@cache
def declare() -> None:
    header = (ROOT / "dataplane/socket/http.h").read_text()
    ffi.cdef(re.sub(r"^#(?!define \w+ \d).*$", "", header, flags=re.MULTILINE))


class Fence:
    """Memory between two pages that may not be touched."""

    SIZE = 64 * mmap.PAGESIZE

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, self.SIZE + 2 * mmap.PAGESIZE)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + mmap.PAGESIZE
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in (self.begin - mmap.PAGESIZE, self.begin + self.SIZE):
            if protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, data: bytes, at_end: bool = True) -> Any:
        if len(data) > self.SIZE:
            raise ValueError("more bytes than lie between the fences")
        address = self.begin + self.SIZE - len(data) if at_end else self.begin
        ctypes.memmove(address, data, len(data))
        return ffi.cast("char *", address)


fence = Fence()


@dataclass
class Head:
    """What a parser made of a head. c: the struct itself, valid until the next parse."""

    result: int
    c: Any

    @property
    def fields(self) -> list[tuple[bytes, bytes, int]]:
        return [(text(f.name), text(f.value), f.kind) for f in self.c.fields[0 : self.c.n_fields]]


def text(span: Any) -> bytes:
    return bytes(ffi.buffer(span.at, span.n)) if span.n else b""


def parse_request(data: bytes, at_end: bool = True, *flags: str) -> Head:
    """flags: of the compiler, for a library of its own."""
    head = new("struct http_head *")
    return Head(library(*flags).http_parse_request(fence.put(data, at_end), len(data), head), head)


def parse_response(data: bytes, method: str = "GET", at_end: bool = True) -> Head:
    head = new("struct http_head *")
    return Head(library().http_parse_response(fence.put(data, at_end), len(data), METHODS[method], head), head)


def write_request(
    head: Head,
    client: bytes = b"127.0.0.1",
    append: bool = False,
    https: bool = False,
    default_host: bytes = b"",
    room: int = 20000,
) -> bytes:
    client_bytes, host_bytes = new("char[]", client), new("char[]", default_host)
    forward = new(
        "struct forward *",
        {
            "client": {"at": client_bytes, "n": len(client)},
            "append": append,
            "https": https,
            "default_host": {"at": host_bytes, "n": len(default_host)},
        },
    )
    out = new("char[]", room)
    return bytes(ffi.buffer(out, library().http_write_request(head.c, forward, out, room)))


def write_response(
    head: Head, keep_alive: bool = True, client_minor: int = 1, framing: int | None = None, room: int = 20000
) -> bytes:
    out = new("char[]", room)
    framing = head.c.framing if framing is None else framing
    n = library().http_write_response(head.c, keep_alive, client_minor, framing, out, room)
    return bytes(ffi.buffer(out, n))


def write_error(
    status: int, keep_alive: bool = False, head_only: bool = False, retry_after_s: int = 0, room: int = 1024
) -> bytes:
    out = new("char[]", room)
    return bytes(ffi.buffer(out, library().http_write_error(status, keep_alive, head_only, retry_after_s, out, room)))


def websocket_agrees(key: bytes, accept: bytes) -> bool:
    key_bytes, accept_bytes = new("char[]", key), new("char[]", accept)
    key_span = new("struct span *", {"at": key_bytes, "n": len(key)})
    accept_span = new("struct span *", {"at": accept_bytes, "n": len(accept)})
    return bool(library().http_websocket_agrees(key_span[0], accept_span[0]))


@dataclass
class Body:
    """What the chunked reader made of a stream."""

    verdict: str  # "done", "more" or "malformed"
    data: bytes
    rest: bytes
    trailers: bytes


def read_chunked(pieces: list[bytes], trailer_room: int = 0) -> Body:
    """Feed the pieces one after the other. With trailer_room, a buffer for trailers is given when asked for."""
    c = new("struct chunked *")
    library().chunked_begin(c)
    room = new("char[]", max(trailer_room, 1))
    span = new("struct span *")
    data = b""
    for i, piece in enumerate(pieces):
        at = 0
        while at < len(piece) and not c.done:
            rest = piece[at:]
            got = library().chunked_read(c, fence.put(rest), len(rest), span)
            if got < 0:
                return Body("malformed", data, b"", b"")
            assert 0 < got <= len(rest)
            data += text(span[0])
            at += got
            if c.last and not c.done and trailer_room and c.trailer == ffi.NULL:
                c.trailer, c.trailer_room = room, trailer_room
        if c.done:
            return Body("done", data, piece[at:] + b"".join(pieces[i + 1 :]), bytes(ffi.buffer(room, c.trailer_n)))
    return Body("more", data, b"", b"")


def write_chunk_size(n: int) -> bytes:
    out = new("char[]", 18)
    return bytes(ffi.buffer(out, library().chunked_write_size(n, out)))
