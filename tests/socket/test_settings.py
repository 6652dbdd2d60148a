"""Settings that change while flows are open: servers, limits and timeouts, through the segment."""

import socket
import threading
import time
from dataclasses import replace

import pytest

from tests.socket.conftest import IO_BACKENDS, answer, raw, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = 1_000_000_000


def test_pools_of_many_servers_leave_room_for_connections_to_others(start_origin, start_balancer, service, io):
    together = 16
    gate = threading.Barrier(together)

    def handle(connection, origin):
        while origin.request(connection):
            gate.wait(10)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origins = [start_origin(handle) for _ in range(25)]
    service.publish([origin.port for origin in origins], maxconn=16)
    servers = list(service.settings.servers)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    clients = [balancer.connect(10) for _ in range(together)]
    for chosen in range(len(servers)):  # the others get nothing new, but keep their pools
        service.publish(servers=[replace(s, weight=int(i == chosen)) for i, s in enumerate(servers)])
        service.taken()
        for s in clients:
            s.sendall(GET)
        for s in clients:
            assert read_message(s, b"\r\n\r\nok").startswith(b"HTTP/1.1 200")
    for s in clients:
        s.close()


def test_servers_come_and_go_under_load_and_no_request_is_lost(start_origin, start_balancer, service, io):
    origins = [start_origin(answer()) for _ in range(6)]
    ports = [origin.port for origin in origins]
    service.publish(ports[:3], timeout_client_ns=5 * SECOND)
    balancer = start_balancer([0], io=io, workers=2, SEGMENT=service.segment.name)
    until = time.monotonic() + 2
    done, bad = [], []

    def client() -> None:
        with balancer.connect() as s:
            while time.monotonic() < until:
                s.sendall(GET)
                reply = read_message(s, b"\r\n\r\nok")
                (done if reply.startswith(b"HTTP/1.1 200") else bad).append(reply[:40])
                if not reply:
                    return

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    turn = 0
    while time.monotonic() < until:
        turn += 1
        chosen = [ports[(turn + i) % len(ports)] for i in range(1 + turn % 4)]
        service.publish(chosen, maxconn=10_000 if turn % 2 else 16, timeout_server_ns=(1 + turn % 3) * SECOND)
        time.sleep(0.01)
    for thread in clients:
        thread.join()
    assert not bad, bad[:5]
    assert len(done) > 100
    service.settle()
    assert not service.segment.read_workers()["rejected"][:2].any()


def test_a_timeout_that_is_shortened_counts_for_those_who_wait_already(start_origin, start_balancer, service, io):
    origin = start_origin(raw(b"", close=False))
    service.publish([origin.port], timeout_http_keep_alive_ns=60 * SECOND, timeout_server_ns=60 * SECOND)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    waiting = [balancer.connect() for _ in range(100)]
    for s in waiting:
        s.sendall(GET)
    while len(origin.received) < 100:
        time.sleep(0.01)
    service.publish(timeout_server_ns=SECOND // 2)
    for s in waiting:
        s.settimeout(5)
        assert read_message(s).startswith(b"HTTP/1.1 504 ")
        s.close()


def test_a_limit_that_is_lowered_lets_nobody_in_until_enough_have_left(start_origin, start_balancer, service, io):
    origin = start_origin(answer())
    service.publish([origin.port], maxconn=64)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    first = [balancer.connect() for _ in range(32)]
    for s in first:
        s.sendall(GET)
        assert read_message(s, b"ok").endswith(b"ok")
    service.publish(maxconn=16)
    service.taken()
    late = balancer.connect(0.3)
    late.sendall(GET)
    for s in first[:10]:
        s.close()
    with pytest.raises(TimeoutError):
        late.recv(100)
    for s in first[10:]:
        s.close()
    late.settimeout(5)
    assert read_message(late, b"ok").endswith(b"ok")
    late.close()


def test_a_keep_alive_timeout_does_not_cut_an_answer_that_is_being_read_slowly(
    start_origin, start_balancer, service, io
):
    sizes = [n * 25_000 for n in range(40, 200, 2)]  # some of them end in the balancer's own queue

    def handle(connection, origin):
        while head := origin.request(connection):
            size = int(head.split()[1][1:])
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    origin = start_origin(handle)
    others = {"timeout_client_ns": 600 * SECOND, "timeout_server_ns": 600 * SECOND}  # on a busy machine it takes long
    service.publish([origin.port], timeout_http_keep_alive_ns=SECOND // 4, **others)
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    slow = []
    for size in sizes:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", balancer.port))
        s.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
        slow.append(s)
    time.sleep(1)
    for s, size in zip(slow, sizes, strict=True):
        s.settimeout(60)
        assert read_all(s).count(b"x") == size
        s.close()
