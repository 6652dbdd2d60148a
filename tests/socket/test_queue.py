"""Flows that wait for a server at its maxconn: who came first goes first, whichever worker it came to."""

import signal
import socket
import struct
import threading
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, read_message

TIMESTAMPS = 35  # SO_TIMESTAMPNS, also the type of the message that brings one (socket(7), linux/time_types.h)
pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)


def get(name: str) -> bytes:
    return b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode()


def gated(gate: threading.Semaphore):
    def handle(connection, origin):
        while origin.request(connection):
            assert gate.acquire(timeout=10)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return handle


def wait_for(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_newcomer_does_not_overtake_those_that_wait(start_origin, start_balancer, io):
    gate = threading.Semaphore(0)
    origin = start_origin(gated(gate))
    balancer = start_balancer([origin.port], io=io, SERVER_MAXCONN=1)
    first, second, third = (balancer.connect() for _ in range(3))
    try:
        first.sendall(get("first"))
        wait_for(lambda: len(origin.received) == 1)
        second.sendall(get("second"))
        time.sleep(0.1)
        balancer.pause()
        gate.release()  # the place becomes free …
        time.sleep(0.05)
        third.sendall(get("third"))  # … in the round in which a third flow comes
        time.sleep(0.05)
        balancer.process.send_signal(signal.SIGCONT)
        gate.release(2)
        for s in (first, second, third):
            assert read_message(s, b"ok").endswith(b"ok")
    finally:
        for s in (first, second, third):
            s.close()
    assert [head.split()[1] for head in origin.received] == [b"/first", b"/second", b"/third"]


def came(s: socket.socket) -> int:
    """Return when the kernel was given what stands in a socket that has TIMESTAMPS set, nanoseconds; read it."""
    data, ancillary, *_ = s.recvmsg(1000, 100)
    assert data
    ((_, _, stamp),) = ancillary
    seconds, nanoseconds = struct.unpack("@qq", stamp)
    return int(seconds) * 10**9 + int(nanoseconds)


def test_the_next_request_leaves_before_the_answer_that_made_room_for_it(start_balancer, io):
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        balancer = start_balancer([listener.getsockname()[1]], io=io, SERVER_MAXCONN=1)
        served, waiting = balancer.connect(), balancer.connect()
        served.sendall(get("x"))
        server = listener.accept()[0]
        read_message(server)
        try:
            for s in (served, waiting, server):
                s.settimeout(5)
                s.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
            time.sleep(0.2)  # the first to ask for stamps has them switched on, soon
            ahead = []
            for _ in range(10):
                waiting.sendall(get("x"))
                time.sleep(0.02)
                server.sendall(reply)
                ahead.append(came(served) - came(server))
                served, waiting = waiting, served
            assert min(ahead) > 0, ahead
        finally:
            for s in (served, waiting, server):
                s.close()


@pytest.mark.parametrize("workers", [2, 3])
def test_every_worker_has_its_turn_at_a_server_that_is_always_full(start_origin, start_balancer, io, workers):
    def handle(connection, origin):
        while origin.request(connection):
            time.sleep(0.002)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, workers=workers, SERVER_MAXCONN=1, QUEUE_MS=1000)
    until = time.monotonic() + 2.0
    served = [0] * 16
    refused = [0] * 16

    def client(number: int) -> None:
        with balancer.connect() as s:
            while time.monotonic() < until:
                s.sendall(get("x"))
                reply = read_message(s)
                served[number] += reply.startswith(b"HTTP/1.1 200")
                refused[number] += reply.startswith(b"HTTP/1.1 503")
                if not reply.startswith(b"HTTP/1.1 200"):
                    return

    clients = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert sum(refused) == 0, f"served {served}, refused {refused}"
    assert min(served) * 4 > max(served), f"served {served}"


def test_a_client_that_leaves_the_queue_leaves_nothing(start_origin, start_balancer, io):
    gate = threading.Semaphore(0)
    origin = start_origin(gated(gate))
    balancer = start_balancer([origin.port], io=io, SERVER_MAXCONN=1)
    with balancer.connect() as first:
        first.sendall(get("first"))
        wait_for(lambda: len(origin.received) == 1)
        for _ in range(5):
            s = balancer.connect()
            s.sendall(get("gone"))
            time.sleep(0.02)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            s.close()
        time.sleep(0.1)
        gate.release(2)
        assert read_message(first, b"ok").endswith(b"ok")
        first.sendall(get("last"))
        assert read_message(first, b"ok").endswith(b"ok")
    assert [head.split()[1] for head in origin.received] == [b"/first", b"/last"]
