"""llhttp, the parser of Node.js, as a second opinion: what we accept it accepts, and sees the same message in it.

Two exceptions: llhttp knows only registered methods, and no minor version above 1. It accepts much that we refuse.
"""

from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.socket import http_c
from tests.socket.vectors import BAD_CHUNKS, CHUNKED, VECTORS, WEBSOCKET, Vector, post

KNOWN_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND"}
BODIES = [Vector(sentence, post(CHUNKED, body=body), 0) for sentence, body in BAD_CHUNKS.items()]
SOURCES = [*VECTORS, WEBSOCKET, *BODIES]
BYTES = b'\0\t\n\r :,;="/#%-aA0159\x7f\x80'


class Seen:
    """What llhttp reports of one message."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.target = b""
        self.messages = 0
        self.upgrade = False
        self.error = ""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.messages:  # trailers are reported like fields, but after the body
            self.fields.append((name, value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def llhttp(data: bytes, parser_type: Any = httptools.HttpRequestParser) -> Seen:
    seen = Seen()
    try:
        parser_type(seen).feed_data(data)
    except httptools.HttpParserUpgrade:
        seen.upgrade = True
    except httptools.HttpParserError as error:
        seen.error = repr(error)
    return seen


def compare(request: bytes) -> None:
    """The request and what it becomes: if we take it, llhttp takes it, with the same fields and the same body."""
    head = http_c.parse_request(request)
    if head.result <= 0:
        return
    if http_c.text(head.c.method_name) not in KNOWN_METHODS or (
        b" HTTP/1.0\r\n" not in request and b" HTTP/1.1\r\n" not in request
    ):
        return
    body, rest = b"", request[head.result :]
    if head.c.framing == http_c.LENGTH:
        if len(rest) < head.c.length:
            return
        body = rest = rest[: head.c.length]
    elif head.c.framing == http_c.CHUNKED:
        read = http_c.read_chunked([rest])
        if read.verdict != "done":
            return
        body, rest = read.data, rest[: len(rest) - len(read.rest)]
    else:
        rest = b""

    fields = [(name, value) for name, value, _ in head.fields]
    seen = llhttp(request[: head.result] + rest)
    assert seen.error == ""
    assert seen.fields[: len(fields)] == fields
    if not seen.upgrade:  # to another protocol than websocket: llhttp leaves the body alone, we drop the upgrade
        assert seen.messages == 1
        assert seen.body == body

    written = http_c.write_request(head, default_host=b"a.example")
    again = llhttp(written + rest)
    assert again.error == ""
    assert again.upgrade == head.c.upgrade_websocket
    if not again.upgrade:
        assert again.messages == 1
        assert again.body == body


@pytest.mark.parametrize("vector", SOURCES, ids=lambda v: v.sentence)
def test_each_vector_that_we_take_llhttp_takes(vector: Vector) -> None:
    compare(vector.request)


@given(vector=st.sampled_from(SOURCES), data=st.data())
def test_damaged_vectors_too(vector: Vector, data: st.DataObject) -> None:
    request = bytearray(vector.request[:3000])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(request) - 1))
        if data.draw(st.booleans()):
            request[at] = data.draw(st.sampled_from(BYTES))
        else:
            request.insert(at, data.draw(st.sampled_from(BYTES)))
    compare(bytes(request))


@given(one=st.sampled_from(SOURCES), other=st.sampled_from(SOURCES), cut=st.integers(0, 200), paste=st.integers(0, 200))
def test_spliced_vectors_too(one: Vector, other: Vector, cut: int, paste: int) -> None:
    compare(one.request[:cut] + other.request[paste:])


LINES = [
    *(b"Content-Length: 5", b"Content-Length: 05", b"Content-Length:\t5 "),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: CHUNKED"),
    *(b"Connection: close", b"Connection: upgrade", b"Connection: content-length"),
    *(b"Upgrade: websocket", b"Upgrade: h2c", b"TE: trailers", b"Expect: 100-continue", b"A: b", b"Trailer: A"),
]


@given(
    lines=st.lists(st.sampled_from(LINES), max_size=5), version=st.sampled_from([b"1.0", b"1.1"]), chunked=st.booleans()
)
@example(lines=[b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 5"], version=b"1.1", chunked=False)
def test_combinations_of_framing_fields_too(lines: list[bytes], version: bytes, chunked: bool) -> None:
    head = b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    compare(head + (b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"))


@given(
    lines=st.lists(st.sampled_from(LINES), max_size=5),
    status=st.sampled_from([b"200", b"204", b"206", b"304", b"404", b"500"]),
    chunked=st.booleans(),
)
def test_responses_too(lines: list[bytes], status: bytes, chunked: bool) -> None:
    data = b"HTTP/1.1 " + status + b" x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    head = http_c.parse_response(data)
    if head.result <= 0:
        return
    written = http_c.write_response(head, keep_alive=head.c.keep_alive)
    body = {
        http_c.NONE: b"",
        http_c.LENGTH: b"hello",
        http_c.CHUNKED: b"5\r\nhello\r\n0\r\n\r\n",
        http_c.CLOSE: b"hello",
    }
    for message in (data, written):
        seen = llhttp(message + body[head.c.framing], httptools.HttpResponseParser)
        assert seen.error == ""
        assert seen.body == (b"hello" if head.c.framing != http_c.NONE else b"")
