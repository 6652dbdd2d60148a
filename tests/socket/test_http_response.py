"""Response heads: what is forwarded, how its body is framed, and what is answered 502 instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.socket import http_c
from tests.socket.http_c import CHUNKED, CLOSE, LENGTH, NONE

OK = b"HTTP/1.1 200 OK\r\n"
ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n"


def ok(*lines: bytes, line: bytes = OK) -> bytes:
    return line + b"".join(field + b"\r\n" for field in lines) + b"\r\n"


# sentence, head, request's method, framing, length, may the connection be reused
FRAMED = [
    ("a length", ok(b"Content-Length: 5"), "GET", LENGTH, 5, True),
    ("a length of zero", ok(b"Content-Length: 0"), "GET", LENGTH, 0, True),
    ("chunks", ok(b"Transfer-Encoding: Chunked"), "GET", CHUNKED, 0, True),
    ("neither: until the connection closes", ok(), "GET", CLOSE, 0, False),
    ("neither, and keep-alive does not help", ok(b"Connection: keep-alive"), "GET", CLOSE, 0, False),
    ("HEAD has no body", ok(b"Content-Length: 5"), "HEAD", NONE, 5, True),
    ("HEAD has no chunks", ok(b"Transfer-Encoding: chunked"), "HEAD", NONE, 0, True),
    ("HEAD without framing leaves the connection open", ok(), "HEAD", NONE, 0, True),
    ("204 has no body", ok(line=b"HTTP/1.1 204 No Content\r\n"), "GET", NONE, 0, True),
    ("204 with a length of zero", ok(b"Content-Length: 0", line=b"HTTP/1.1 204 No Content\r\n"), "GET", NONE, 0, True),
    ("204 that announces a body", ok(b"Content-Length: 5", line=b"HTTP/1.1 204 No Content\r\n"), "GET", NONE, 5, False),
    (
        "204 that announces chunks",
        ok(b"Transfer-Encoding: chunked", line=b"HTTP/1.1 204 No Content\r\n"),
        "GET",
        NONE,
        0,
        False,
    ),
    ("304 has no body", ok(b"Content-Length: 5", line=b"HTTP/1.1 304 Not Modified\r\n"), "GET", NONE, 5, True),
    ("100 Continue", ok(line=b"HTTP/1.1 100 Continue\r\n"), "POST", NONE, 0, True),
    ("103 Early Hints", ok(b"Link: </a>", line=b"HTTP/1.1 103 Early Hints\r\n"), "GET", NONE, 0, True),
    ("close", ok(b"Content-Length: 5", b"Connection: close"), "GET", LENGTH, 5, False),
    ("HTTP/1.0 closes", ok(b"Content-Length: 5", line=b"HTTP/1.0 200 OK\r\n"), "GET", LENGTH, 5, False),
    (
        "HTTP/1.0 that stays open",
        ok(b"Content-Length: 5", b"Connection: Keep-Alive", line=b"HTTP/1.0 200 OK\r\n"),
        "GET",
        LENGTH,
        5,
        True,
    ),
    ("no reason", ok(b"Content-Length: 5", line=b"HTTP/1.1 200 \r\n"), "GET", LENGTH, 5, True),
    ("no reason and no blank", ok(b"Content-Length: 5", line=b"HTTP/1.1 200\r\n"), "GET", LENGTH, 5, True),
    ("a status nobody knows", ok(b"Content-Length: 5", line=b"HTTP/1.1 599 x\r\n"), "GET", LENGTH, 5, True),
    (
        "101 that agrees to websocket",
        ok(b"Upgrade: websocket", b"Connection: Upgrade", ACCEPT, line=SWITCH),
        "GET",
        NONE,
        0,
        True,
    ),
]

REFUSED = [
    ("a length and chunks", ok(b"Content-Length: 5", b"Transfer-Encoding: chunked")),
    ("two lengths", ok(b"Content-Length: 5", b"Content-Length: 6")),
    ("two equal lengths", ok(b"Content-Length: 5", b"Content-Length: 5")),
    ("a list of lengths", ok(b"Content-Length: 5, 5")),
    ("a negative length", ok(b"Content-Length: -5")),
    ("a length too large", ok(b"Content-Length: 9223372036854775808")),
    ("a coding we do not know", ok(b"Transfer-Encoding: gzip, chunked")),
    ("identity", ok(b"Transfer-Encoding: identity")),
    ("chunked twice", ok(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    ("chunked in HTTP/1.0", ok(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK\r\n")),
    ("a bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    ("a bare CR in a value", ok(b"A: b\rc")),
    ("a NUL in a value", ok(b"A: \0")),
    ("a continued line", ok(b"A: b", b" c")),
    ("a blank before the colon", ok(b"A : b")),
    ("an empty line first", b"\r\n" + ok()),
    ("a control character in the reason", ok(line=b"HTTP/1.1 200 O\x01K\r\n")),
    ("a status of two digits", ok(line=b"HTTP/1.1 20 OK\r\n")),
    ("a status of four digits", ok(line=b"HTTP/1.1 2000 OK\r\n")),
    ("a status below 100", ok(line=b"HTTP/1.1 099 OK\r\n")),
    ("a status above 599", ok(line=b"HTTP/1.1 600 OK\r\n")),
    ("a negative status", ok(line=b"HTTP/1.1 -20 OK\r\n")),
    ("two blanks", ok(line=b"HTTP/1.1  200 OK\r\n")),
    ("HTTP/2", ok(line=b"HTTP/2.0 200 OK\r\n")),
    ("HTTP/0.9: a body alone", b"<html></html>\r\n\r\n"),
    ("another protocol", ok(line=b"ICY 200 OK\r\n")),
    ("101 to h2c", ok(b"Upgrade: h2c", b"Connection: Upgrade", ACCEPT, line=SWITCH)),
    ("101 without Upgrade", ok(b"Connection: Upgrade", ACCEPT, line=SWITCH)),
    ("101 without Connection", ok(b"Upgrade: websocket", ACCEPT, line=SWITCH)),
    ("101 without an accept", ok(b"Upgrade: websocket", b"Connection: Upgrade", line=SWITCH)),
    ("a head too long", ok(b"A: " + b"b" * 16384)),
    ("a field too many", ok(*[b"A: 1"] * 101)),
]

Framed = tuple[str, bytes, str, int, int, bool]


@pytest.mark.parametrize("case", FRAMED, ids=lambda c: c[0])
def test_each_response_is_framed(case: Framed) -> None:
    _, data, method, framing, length, keep_alive = case
    head = http_c.parse_response(data, method)
    assert head.result == len(data)
    assert (head.c.framing, head.c.length, head.c.keep_alive) == (framing, length, keep_alive)


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c[0])
def test_each_bad_response_is_refused(case: tuple[str, bytes]) -> None:
    assert http_c.parse_response(case[1]).result == -502


@pytest.mark.parametrize("data", [case[1] for case in [*FRAMED, *REFUSED]])
def test_a_head_gets_the_same_verdict_wherever_it_was_split(data: bytes) -> None:
    whole = http_c.parse_response(data).result
    for n in range(0, len(data), max(1, len(data) // 300)):
        for at_end in (True, False):
            part = http_c.parse_response(data[:n], at_end=at_end).result
            assert part in (0, whole)


def test_a_response_is_written_anew() -> None:
    head = http_c.parse_response(
        ok(
            b"Server: x",
            b"Connection: keep-alive, Foo",
            b"Keep-Alive: timeout=5",
            b"foo: 1",
            b"content-length:005",
            b"Set-Cookie:a=b ",
            b"Set-Cookie: c=d",
            b"Proxy-Authenticate: Basic",
            b"Upgrade: h2c",
            b"Via: 1.1 inner",
        )
    )
    assert http_c.write_response(head) == (
        OK + b"Server: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nVia: 1.1 inner\r\n"
        b"Content-Length: 5\r\nVia: 1.1 vickrey\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("keep_alive", "client_minor", "line"),
    [
        (True, 1, b""),
        (True, 0, b"Connection: keep-alive\r\n"),
        (False, 1, b"Connection: close\r\n"),
        (False, 0, b"Connection: close\r\n"),
    ],
)
def test_the_client_is_told_what_becomes_of_its_connection(keep_alive: bool, client_minor: int, line: bytes) -> None:
    head = http_c.parse_response(ok(b"Content-Length: 5"))
    assert (
        http_c.write_response(head, keep_alive, client_minor)
        == OK + b"Content-Length: 5\r\n" + line + b"Via: 1.1 vickrey\r\n\r\n"
    )


def test_the_framing_is_the_callers() -> None:
    head = http_c.parse_response(ok(b"Transfer-Encoding: chunked"))
    assert b"Transfer-Encoding: chunked\r\n" in http_c.write_response(head)
    assert b"Transfer" not in http_c.write_response(head, keep_alive=False, client_minor=0, framing=CLOSE)
    assert b"chunked" in http_c.write_response(http_c.parse_response(ok()), framing=CHUNKED)


@pytest.mark.parametrize(("line", "method"), [(OK, "HEAD"), (b"HTTP/1.1 304 Not Modified\r\n", "GET")])
def test_head_and_304_keep_the_length_that_they_announce(line: bytes, method: str) -> None:
    head = http_c.parse_response(ok(b"Content-Length: 5", line=line), method)
    assert http_c.write_response(head) == line + b"Content-Length: 5\r\nVia: 1.1 vickrey\r\n\r\n"


@pytest.mark.parametrize("line", [b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 103 Early Hints\r\n"])
def test_what_has_no_body_announces_none(line: bytes) -> None:
    head = http_c.parse_response(ok(b"Content-Length: 5", line=line))
    assert http_c.write_response(head) == line + b"Via: 1.1 vickrey\r\n\r\n"


def test_an_interim_response_says_nothing_of_the_connection() -> None:
    head = http_c.parse_response(ok(line=b"HTTP/1.1 100 Continue\r\n"))
    assert (
        http_c.write_response(head, keep_alive=False, client_minor=0)
        == b"HTTP/1.1 100 Continue\r\nVia: 1.1 vickrey\r\n\r\n"
    )


def test_websocket_is_agreed_to_in_our_own_words() -> None:
    head = http_c.parse_response(ok(b"upgrade:WebSocket", b"connection:upgrade", ACCEPT, line=SWITCH))
    assert head.c.upgrade_websocket
    assert http_c.text(head.c.websocket_key) == ACCEPT.split()[1]
    assert http_c.write_response(head) == (
        SWITCH + ACCEPT + b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nVia: 1.1 vickrey\r\n\r\n"
    )


name = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=20).map(str.encode)
value = st.lists(st.integers(0x21, 0xFF).filter(lambda b: b != 0x7F), max_size=40).map(bytes)


@given(status=st.integers(200, 599), reason=value, fields=st.lists(st.tuples(name, value), max_size=20))
def test_what_was_written_parses_again_to_the_same(
    status: int, reason: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    line = b"HTTP/1.1 %d " % status + reason + b"\r\n"
    head = http_c.parse_response(ok(*[n + b":" + v for n, v in fields], line=line))
    written = http_c.write_response(head, keep_alive=head.c.keep_alive)
    again = http_c.parse_response(written)
    assert again.result == len(written)
    assert (again.c.status, http_c.text(again.c.reason)) == (status, reason)
    assert [
        (n, v) for n, v, _ in again.fields if (n, v) not in [(b"Connection", b"close"), (b"Via", b"1.1 vickrey")]
    ] == fields


@given(st.binary(max_size=600))
def test_bytes_at_random_are_never_a_head(data: bytes) -> None:
    assert http_c.parse_response(data).result <= 0


def test_errors_are_whole_responses() -> None:
    assert http_c.write_error(503, retry_after_s=2) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\n"
        b"Content-Length: 24\r\nRetry-After: 2\r\nConnection: close\r\n\r\n503 Service Unavailable\n"
    )
    for status in (200, 400, 408, 413, 414, 417, 429, 431, 500, 501, 502, 503, 504, 505):
        whole = http_c.write_error(status, keep_alive=True)
        head = http_c.parse_response(whole)
        assert head.result + head.c.length == len(whole)
        assert head.c.status == status
        assert head.c.keep_alive
        assert http_c.write_error(status, keep_alive=True, head_only=True) == whole[: head.result]


def test_the_writers_stay_within_their_room() -> None:
    head = http_c.parse_response(ok(b"Content-Length: 5"))
    assert http_c.write_response(head, room=head.result + 1023) == b""
    assert http_c.write_response(head, room=head.result + 1024) != b""
    assert http_c.write_error(503, room=100) == b""
