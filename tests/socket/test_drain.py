"""TERM: nobody new, what is open is finished, and who was answered sees the end of it."""

import signal
import socket
import threading
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, answer, raw, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def ended(process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process.poll() == 0


def test_open_exchanges_finish_and_the_engine_ends_by_itself(start_origin, start_balancer, io):
    gate = threading.Event()

    def handle(connection, origin):
        data = origin.request(connection)
        while b"last" not in data:
            data += connection.recv(65536)
        gate.wait(10)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, workers=2, SERVER_MAXCONN=2)
    clients = [balancer.connect() for _ in range(4)]  # two under way, two queued
    for s in clients:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst,")
    idle = balancer.connect()
    time.sleep(0.2)
    balancer.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):
        balancer.connect()
    for s in clients:
        s.sendall(b"last")
    gate.set()
    for s in clients:
        reply = read_all(s)
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in reply.lower()
        s.close()
    assert read_all(idle) == b""
    idle.close()
    assert ended(balancer.process, 5)


def test_an_idle_client_is_still_served_once_in_the_moment_of_grace(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(GET)
        read_message(s, b"ok")
        balancer.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        s.sendall(GET)
        assert b"connection: close" in read_all(s).lower()
    assert ended(balancer.process, 5)


def test_slow_readers_get_the_end_of_their_answers(start_origin, start_balancer, io):
    sizes = [n * 25_000 for n in range(80, 140)]  # some of them end in the balancer's own queue

    def handle(connection, origin):
        while head := origin.request(connection):
            size = int(head.split()[1][1:])
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    slow = []
    for size in sizes:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", balancer.port))
        s.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
        slow.append(s)
    time.sleep(1)
    balancer.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    for s, size in zip(slow, sizes, strict=True):
        s.settimeout(5)
        assert read_all(s).count(b"x") == size
        s.close()
    assert ended(balancer.process, 5)


def test_an_answer_that_is_cut_short_does_not_look_whole(start_origin, start_balancer, io):
    origin = start_origin(raw(b"HTTP/1.1 200 OK\r\n\r\nhalf", close=False))
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(b"GET /x HTTP/1.0\r\n\r\n")
        assert read_message(s, b"half").endswith(b"half")
        balancer.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        balancer.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            s.recv(100)
    assert ended(balancer.process, 5)


def test_a_worker_that_has_finished_closes_its_connections_while_another_goes_on(start_origin, start_balancer, io):
    def handle(connection, origin):
        head = origin.request(connection)
        if b"/long" in head:
            time.sleep(3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        read_all(connection)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, workers=3)
    clients = [balancer.connect() for _ in range(12)]
    clients[0].sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
    time.sleep(0.1)
    balancer.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    for s in clients[1:]:
        s.settimeout(2.2)
        assert s.recv(10) == b"", "not closed"
    assert time.monotonic() - begun < 2.5
    assert read_message(clients[0], b"ok").endswith(b"ok")
    for s in clients:
        s.close()
    assert ended(balancer.process, 5)
