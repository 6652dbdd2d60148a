"""Request heads: the table of vectors through parser and writer, and what holds for every head."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.socket import http_c
from tests.socket.vectors import FORWARDED, GET, HOST, KEY, VECTORS, WEBSOCKET, Vector, get, post

ALL = [*VECTORS, WEBSOCKET]


@pytest.mark.parametrize("vector", ALL, ids=lambda v: v.sentence)
def test_each_vector_has_its_verdict_and_its_rewritten_head(vector: Vector) -> None:
    head = http_c.parse_request(vector.request)
    if vector.status != FORWARDED:
        assert head.result == -vector.status
        return
    assert head.result == len(vector.request_head)
    assert http_c.write_request(head) == vector.origin_head


@pytest.mark.parametrize("vector", ALL, ids=lambda v: v.sentence)
def test_a_head_gets_the_same_verdict_wherever_it_was_split(vector: Vector) -> None:
    whole = http_c.parse_request(vector.request).result
    step = max(1, len(vector.request) // 300)
    for n in range(0, len(vector.request), step):
        for at_end in (True, False):
            part = http_c.parse_request(vector.request[:n], at_end).result
            assert part in (0, whole)
            assert whole <= 0 or (part != 0) == (n >= whole)


@given(vector=st.sampled_from(ALL), data=st.data())
def test_a_damaged_head_gets_the_same_verdict_wherever_it_was_split(vector: Vector, data: st.DataObject) -> None:
    request = bytearray(vector.request[:2000])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(request) - 1))
        request[at] = data.draw(st.sampled_from(b"\0\t\n\r :,;aZ19\x7f\x80"))
    whole = http_c.parse_request(bytes(request)).result
    n = data.draw(st.integers(0, len(request)))
    assert http_c.parse_request(bytes(request[:n])).result in (0, whole)


@pytest.mark.parametrize("vector", ALL, ids=lambda v: v.sentence)
def test_without_vector_instructions_the_verdicts_are_the_same(vector: Vector) -> None:
    for n in range(min(len(vector.request), 200)):
        whole, part = vector.request, vector.request[:n]
        damaged = part + b"\x7f" + whole[n + 1 : 2000]
        for data in (whole, part, damaged):
            scalar = http_c.parse_request(data, True, "-U__SSE2__")
            vectorised = http_c.parse_request(data)
            assert scalar.result == vectorised.result


token = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=20).map(str.encode)
value = st.lists(st.integers(0x21, 0xFF).filter(lambda b: b != 0x7F), max_size=40).map(bytes)
blanks = st.text(" \t", max_size=3).map(str.encode)


@given(
    method=token,
    target=st.text("/a?%&=.:@", max_size=30),
    fields=st.lists(st.tuples(token, blanks, value, blanks), max_size=20),
)
def test_what_was_written_parses_again_to_the_same(method: bytes, target: str, fields: list[tuple[bytes, ...]]) -> None:
    lines = b"".join(name + b":" + before + text + after + b"\r\n" for name, before, text, after in fields)
    head = http_c.parse_request(method + b" /" + target.encode() + b" HTTP/1.1\r\n" + HOST + lines + b"\r\n")
    assert head.result > 0
    written = http_c.write_request(head)
    again = http_c.parse_request(written)
    assert again.result == len(written)
    assert http_c.text(again.c.method_name) == method
    assert http_c.text(again.c.target) == b"/" + target.encode()
    assert http_c.text(again.c.host) == b"a.example"
    ours = {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    kept = [(name, text) for name, text, _ in again.fields if name.lower() not in ours][:-1]
    assert kept == [(name, text) for name, _, text, _ in fields]


@given(st.binary(max_size=600))
def test_bytes_at_random_are_never_a_head(data: bytes) -> None:
    assert http_c.parse_request(data).result <= 0


def test_connections_stay_open_as_the_version_and_connection_say() -> None:
    def keeps(version: bytes, connection: bytes = b"") -> bool:
        line = b"Connection: " + connection + b"\r\n" if connection else b""
        return bool(http_c.parse_request(b"GET / HTTP/" + version + b"\r\n" + HOST + line + b"\r\n").c.keep_alive)

    assert keeps(b"1.1")
    assert keeps(b"1.1", b"keep-alive")
    assert keeps(b"1.1", b"x")
    assert not keeps(b"1.1", b"Close")
    assert not keeps(b"1.1", b"keep-alive, close")
    assert not keeps(b"1.1", b"close;x")
    assert not keeps(b"1.0")
    assert keeps(b"1.0", b"Keep-Alive")
    assert not keeps(b"1.0", b"keep-alive, close")


def test_an_expectation_is_flagged_only_when_a_body_follows() -> None:
    expect = b"Expect: 100-continue"
    assert http_c.parse_request(post(expect, b"Content-Length: 1")).c.expect_continue
    assert http_c.parse_request(post(expect, b"Transfer-Encoding: chunked")).c.expect_continue
    assert not http_c.parse_request(post(expect, b"Content-Length: 0")).c.expect_continue
    assert not http_c.parse_request(post(expect)).c.expect_continue


def test_websocket_is_asked_for_only_well_formed() -> None:
    def asks(request: bytes) -> bool:
        head = http_c.parse_request(request)
        assert head.result > 0
        return bool(head.c.upgrade_websocket)

    upgrade, connection, key = b"Upgrade: websocket", b"Connection: upgrade", KEY[:-2]
    assert asks(get(upgrade, connection, key))
    assert asks(get(b"Upgrade: h2c, websocket", connection, key))
    assert not asks(get(upgrade, key))
    assert not asks(get(connection, key))
    assert not asks(get(upgrade, connection))
    assert not asks(get(upgrade, connection, key, b"Content-Length: 1"))
    assert not asks(post(upgrade, connection, key))


def test_a_trusted_proxy_is_appended_to() -> None:
    head = http_c.parse_request(
        get(
            b"X-Forwarded-For: 1.1.1.1",
            b"X-Forwarded-For: 2.2.2.2",
            b"X-Forwarded-Proto: https",
            b"X-Real-IP: 1.1.1.1",
            b"A: 1",
        )
    )
    assert http_c.write_request(head, append=True) == (
        GET + HOST + b"A: 1\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n"
        b"X-Real-IP: 1.1.1.1\r\nX-Forwarded-Host: a.example\r\nVia: 1.1 vickrey\r\n\r\n"
    )


def test_https_is_told_to_the_server() -> None:
    assert b"\r\nX-Forwarded-Proto: https\r\n" in http_c.write_request(http_c.parse_request(get()), https=True)


def test_a_client_without_an_address_is_not_named() -> None:
    assert b"X-Forwarded-For" not in http_c.write_request(http_c.parse_request(get(b"X-Forwarded-For: 1")), client=b"")


def test_a_request_without_host_gets_the_default() -> None:
    head = http_c.parse_request(b"GET / HTTP/1.0\r\n\r\n")
    assert b"\r\nHost: 127.0.0.1:9001\r\n" in http_c.write_request(head, default_host=b"127.0.0.1:9001")
    assert b"X-Forwarded-Host" not in http_c.write_request(head, default_host=b"127.0.0.1:9001")


@given(vector=st.sampled_from([v for v in ALL if v.status == FORWARDED]), room=st.integers(0, 20000))
def test_the_writer_stays_within_its_room(vector: Vector, room: int) -> None:
    head = http_c.parse_request(vector.request)
    written = http_c.write_request(head, room=room)
    assert written == (vector.origin_head if room >= head.result + 1024 else b"")
