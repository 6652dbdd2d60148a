"""Servers that refuse, vanish, close, hang or fail: rows 1 to 6 of the matrix, at the engine."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from shm_layout.layout import OUTCOMES
from tests.socket.conftest import IO_BACKENDS, answer, free_port, raw, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
SECOND = 1_000_000_000


@contextlib.contextmanager
def full_listener() -> Iterator[int]:
    """A listener whose backlog is full: connecting to its port neither succeeds nor fails."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(4):
            s = stack.enter_context(socket.socket())
            s.setblocking(False)
            s.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield port


def outcomes(service, slot: int) -> dict[str, int]:
    stats = service.segment.read_stats()[slot]
    return {name: int(n) for name, n in zip(OUTCOMES, stats["outcomes"], strict=True) if n}


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_refused_connection_goes_to_the_next_server(start_origin, start_balancer, service, io, mode):
    origin = start_origin(answer())
    service.publish([free_port(), origin.port])
    balancer = start_balancer([0], io=io, mode=mode, SEGMENT=service.segment.name)
    for _ in range(30):
        with balancer.connect() as s:
            s.sendall(POST)
            assert read_message(s, b"ok").startswith(b"HTTP/1.1 200 ")
    service.settle()
    assert set(outcomes(service, 0)) <= {"connect_failed"}


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_server_that_swallows_connections_is_left_after_timeout_connect(
    start_origin, start_balancer, service, io, mode
):
    origin = start_origin(answer())
    with full_listener() as port:
        service.publish([port, origin.port], timeout_connect_ns=SECOND // 4)
        balancer = start_balancer([0], io=io, mode=mode, SEGMENT=service.segment.name)
        service.settle()
        longest, asked = 0.0, 0
        while longest < 0.2 and asked < 60:  # ties are broken at random
            begun = time.monotonic()
            with balancer.connect() as s:
                s.sendall(GET)
                assert read_message(s, b"ok").startswith(b"HTTP/1.1 200 ")
            longest, asked = max(longest, time.monotonic() - begun), asked + 1
        service.settle()
        assert outcomes(service, 0).get("connect_failed", 0) >= 1
        assert 0.2 < longest < 3


def test_a_failed_post_reaches_one_server_once_and_a_failed_get_two(start_origin, start_balancer, service, io):
    origins = [start_origin(raw(b"")) for _ in range(3)]
    service.publish([origin.port for origin in origins])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    for request, expected in ((POST, 1), (GET, 2)):
        for origin in origins:
            origin.received.clear()
        with balancer.connect() as s:
            s.sendall(request)
            assert read_message(s).startswith(b"HTTP/1.1 502 ")
        assert sum(len(origin.received) for origin in origins) == expected
        assert max(len(origin.received) for origin in origins) == 1, "twice on the same server"
    service.settle()


def test_a_budget_that_is_spent_denies_retries(start_origin, start_balancer, service, io):
    closing = start_origin(raw(b""))
    service.publish([closing.port], retry_budget_percent=20)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        for _ in range(100):
            s.sendall(GET)
            assert read_message(s, b"Bad Gateway\n").startswith(b"HTTP/1.1 502 ")
    worker = service.worker()
    assert int(worker["retries"]) <= 20 + 20
    assert int(worker["retries_denied"]) >= 60


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("minor", [0, 1])
def test_an_answer_that_dies_in_the_middle_never_looks_whole(start_origin, start_balancer, service, io, framing, minor):
    head = {"length": b"Content-Length: 100\r\n\r\nhalf", "chunked": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"}

    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head.get(framing, b"\r\nhalf"))
        time.sleep(0.1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    origin = start_origin(handle)
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(b"GET /x HTTP/1.%d\r\nHost: a\r\n\r\n" % minor)
        data, reset = b"", False
        try:
            while piece := s.recv(1000):
                data += piece
        except ConnectionResetError:
            reset = True
    assert b"half" in data or reset
    announced = b"content-length" in data.lower() or b"chunked" in data.lower()
    assert reset or announced, "an orderly end of a body that lasts until the end"
    assert not data.endswith(b"0\r\n\r\n")
    service.settle()
    assert outcomes(service, 0) == {"server_abort": 1}
    assert chr(service.segment.read_records(0).records[0]["termination"]) == "S"


def test_a_server_that_hangs_is_timed_out_and_its_time_is_counted(start_origin, start_balancer, service, io):
    origin = start_origin(raw(b"", close=False))
    service.publish([origin.port], timeout_server_ns=SECOND // 3)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(GET)
        assert read_message(s).startswith(b"HTTP/1.1 504 ")
    service.settle()
    assert outcomes(service, 0) == {"server_timeout": 1}
    assert int(service.segment.read_stats()[0]["found_fct_ns"].sum()) >= SECOND // 3


def test_a_server_s_own_503_passes_and_counts_against_it(start_origin, start_balancer, service, io):
    origin = start_origin(answer(b"mine", status=b"503 Service Unavailable"))
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(GET)
        assert read_message(s, b"mine").endswith(b"mine")
    service.settle()
    assert outcomes(service, 0) == {"server_5xx": 1}
    assert int(service.worker()["answered_here"]) == 0
