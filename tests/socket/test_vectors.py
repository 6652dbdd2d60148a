"""The table of vectors end to end: raw bytes into a real balancer, and what a real server behind it is sent."""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.socket import vectors
from tests.socket.conftest import IO_BACKENDS, Balancer, Handler, Origin, read_all
from tests.socket.test_http_response import REFUSED
from tests.socket.vectors import BAD_CHUNKS, CHUNKED, FORWARDED, Vector, post

TABLES = {
    "request lines": vectors.REQUEST_LINES,
    "field lines": vectors.FIELD_LINES,
    "hosts": vectors.HOSTS,
    "framing": vectors.FRAMING,
    "hop-by-hop fields": vectors.HOP_BY_HOP,
    "expectations": vectors.EXPECTATIONS,
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)


@dataclass
class Reader:
    """A server that reads whole messages by the letter of RFC 9112, and keeps (head, decoded body) of each."""

    messages: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __call__(self, connection: socket.socket, _: Origin) -> None:
        with connection.makefile("rb") as stream:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = stream.readline()
                    if not line.endswith(b"\r\n"):
                        return
                    head += line
                body = self._body(head, stream.readline, stream.read)
                if body is None:
                    return
                self.messages.append((head, body))
                connection.sendall(OK)

    @staticmethod
    def _body(head: bytes, readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes | None:
        """None: it ended early, or is not what a sender may write."""
        if length := re.search(rb"\r\nContent-Length: (\d+)\r\n", head):
            body = read(int(length[1]))
            return body if len(body) == int(length[1]) else None
        if b"\r\nTransfer-Encoding: chunked\r\n" not in head:
            return b""
        body = b""
        while True:
            size = readline()
            if not re.fullmatch(rb"[0-9a-f]+\r\n", size):
                return None
            n = int(size, 16)
            body += read(n)
            if readline() != b"\r\n":
                return None
            if n == 0:
                return body


def difference(vector: Vector, balancer: Balancer, reader: Reader) -> str | None:
    """Send one vector on a connection of its own; says what came out other than the table has it."""
    before = len(reader.messages)
    with balancer.connect() as s:
        s.sendall(vector.request)
        s.shutdown(socket.SHUT_WR)
        reply = read_all(s)
    status = int(reply.split(b" ")[1]) if reply.startswith(b"HTTP/1.1 ") else 0
    came = reader.messages[before:]
    if vector.status != FORWARDED:
        return None if status == vector.status and not came else f"status {status}, the server was sent {came}"
    expected = vector.origin_head
    if "default-host" in vector.tags and came:
        came = [(re.sub(rb"\r\nHost: [^\r]*", b"\r\nHost: ", came[0][0]), came[0][1])]
    if status != 200 or came != [(expected, vector.origin_body)]:
        return f"status {status}, the server was sent {came}, not {(expected, vector.origin_body)}"
    return None


@pytest.mark.parametrize("table", TABLES)
def test_every_request_of_the_table_meets_its_fate(
    start_origin: Callable[[Handler], Origin], start_balancer: Callable[..., Balancer], io: str, table: str
) -> None:
    reader = Reader()
    balancer = start_balancer([start_origin(reader).port], io=io)
    found = {vector.sentence: difference(vector, balancer, reader) for vector in TABLES[table]}
    assert {sentence: text for sentence, text in found.items() if text} == {}


def test_no_bad_chunk_ever_ends_a_message(
    start_origin: Callable[[Handler], Origin], start_balancer: Callable[..., Balancer], io: str
) -> None:
    reader = Reader()
    balancer = start_balancer([start_origin(reader).port], io=io)
    passed = [
        sentence
        for sentence, body in BAD_CHUNKS.items()
        if b" 200 " in balancer.exchange(post(CHUNKED, body=body), half_close=True)
    ]
    assert passed == []
    assert reader.messages == []
    assert b" 200 " in balancer.exchange(post(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), half_close=True)


def test_every_bad_response_is_answered_502(
    start_origin: Callable[[Handler], Origin], start_balancer: Callable[..., Balancer], io: str
) -> None:
    replies = [data for _, data in REFUSED]
    turn = iter(replies)

    def handle(connection: socket.socket, origin: Origin) -> None:
        if origin.request(connection):
            connection.sendall(next(turn))

    balancer = start_balancer([start_origin(handle).port], io=io)
    request = vectors.post(b"Content-Length: 0")  # a POST is never tried again: one reply each
    statuses = [balancer.exchange(request, half_close=True)[:12] for _ in replies]
    assert statuses == [b"HTTP/1.1 502"] * len(replies)
