"""Clients that dawdle, leave or flood: rows 7 to 9 of the matrix, at the engine."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from shm_layout.layout import OUTCOMES
from tests.socket.conftest import IO_BACKENDS, answer, raw, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = 1_000_000_000


def outcomes(service) -> dict[str, int]:
    service.settle()
    return {name: int(n) for name, n in zip(OUTCOMES, service.segment.read_stats()[0]["outcomes"], strict=True) if n}


def reset(s: socket.socket) -> None:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_slow_reader_holds_its_server_back_and_nobody_else(start_origin, start_balancer, service, io, mode):
    sent = [0]
    blocked = threading.Event()

    def handle(connection, origin):
        if b"/slow" not in origin.request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                sent[0] += connection.send(b"x" * 100_000)
        blocked.set()
        time.sleep(5)

    origin = start_origin(handle)
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, mode=mode, SEGMENT=service.segment.name)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", balancer.port))
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert blocked.wait(20)
        assert sent[0] < 30_000_000
        used = balancer.cpu_seconds()
        with balancer.connect() as other:
            other.sendall(GET)
            assert read_message(other, b"ok").endswith(b"ok")
        time.sleep(1)
        assert balancer.cpu_seconds() - used < 0.2


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_hundred_megabytes_pass_unchanged_both_ways(start_origin, start_balancer, io, mode):
    size = 100_000_000
    piece = bytes(range(256)) * 1000

    def pour(s: socket.socket) -> None:
        for at in range(0, size, len(piece)):
            s.sendall(piece[: size - at])

    def drink(s: socket.socket, got: int, tail: bytes) -> int:
        """Bytes received; each byte is the one that follows from its place."""
        assert tail == (piece * 2)[: len(tail)]
        while got < size and (data := s.recv(1 << 20)):
            at = got % 256
            assert data == (piece * (len(data) // len(piece) + 2))[at : at + len(data)]
            got += len(data)
        return got

    def handle(connection, origin):
        head, _, body = read_message(connection).partition(b"\r\n\r\n")
        if not head:  # the fixture's, which looks whether the balancer listens
            return
        drunk = drink(connection, len(body), body)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        assert drunk == size
        pour(connection)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, mode=mode)
    before = balancer.resident_kb()
    with balancer.connect(20) as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        pour(s)
        _, _, body = read_message(s).partition(b"\r\n\r\n")
        assert drink(s, len(body), body) == size
    assert balancer.resident_kb() - before < 20_000


def test_hundreds_of_slow_heads_are_ended_and_no_server_hears_of_them(start_origin, start_balancer, service, io):
    origin = start_origin(answer())
    service.publish([origin.port], timeout_http_request_ns=SECOND)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    clients = [balancer.connect() for _ in range(300)]
    used = balancer.cpu_seconds()
    until = time.monotonic() + 1.3
    while time.monotonic() < until:
        for s in clients:
            with contextlib.suppress(OSError):
                s.send(b"G")
        time.sleep(0.1)
    for s in clients:
        s.settimeout(2)
        assert read_all(s)[:12] in (b"HTTP/1.1 408", b"HTTP/1.1 501", b"")  # or reset while it was still sending
        s.close()
    assert balancer.cpu_seconds() - used < 1.5
    assert origin.connections == 0


def test_a_body_that_stops_coming_is_a_408_and_frees_the_server(start_origin, start_balancer, service, io):
    origin = start_origin(raw(b"", close=False))
    service.publish([origin.port], timeout_client_ns=SECOND // 3)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        assert read_message(s).startswith(b"HTTP/1.1 408 ")
    assert outcomes(service) == {"client_timeout": 1}


@pytest.mark.parametrize("leave", [reset, socket.socket.close], ids=["reset", "close"])
@pytest.mark.parametrize("stage", ["body", "wait", "answer"])
def test_a_client_that_leaves_takes_its_server_connection_along(
    start_origin, start_balancer, service, io, stage, leave
):
    ended = threading.Event()

    def handle(connection, origin):
        origin.request(connection)
        with contextlib.suppress(OSError):
            if stage == "answer":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
                while True:
                    connection.sendall(b"x" * 100_000)
            while connection.recv(1000):
                pass
        ended.set()

    origin = start_origin(handle)
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    s = balancer.connect()
    s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhalf" if stage == "body" else GET)
    while not origin.received:
        time.sleep(0.01)
    time.sleep(0.05)
    leave(s)
    assert ended.wait(5)
    assert outcomes(service) == {"client_abort": 1}
    deadline = time.monotonic() + 2
    while int(service.worker()["connections"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert int(service.worker()["connections"]) == 0
    assert int(service.worker()["connections_idle_up"]) == 0
    assert not service.segment.read_stats()[0]["found_fct_ns"].any(), "a cancelled flow is no sample"


def test_clients_that_reset_by_the_hundred_leave_nothing(start_origin, start_balancer, service, io):
    origin = start_origin(answer(b"z" * 20_000))
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, workers=3, SEGMENT=service.segment.name)
    while not all(int(service.worker(w)["heartbeat_ns"]) for w in range(3)):
        time.sleep(0.01)  # each has opened what it needs
    before = balancer.descriptors()
    for number in range(600):
        s = balancer.connect()
        s.sendall(GET * (number % 4) + GET[: number % len(GET)])
        reset(s)
    outcomes(service)
    deadline = time.monotonic() + 20  # pooled connections go after 4 s
    while balancer.descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert balancer.descriptors() <= before
    assert sum(int(service.worker(w)["connections"]) for w in range(3)) == 0
