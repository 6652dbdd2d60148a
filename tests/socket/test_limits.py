"""At the limit of connections or descriptors: who is in is served, who comes waits outside, and nothing spins."""

import contextlib
import socket
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, answer, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def served(s: socket.socket, seconds: float) -> bool:
    s.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        s.sendall(GET)
        return read_message(s, b"\r\n\r\nok").endswith(b"ok")
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_over_the_limit_wait_and_are_served_when_others_leave(start_origin, start_balancer, io, workers):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io, workers=workers, MAXCONN=16)
    clients = [balancer.connect() for _ in range(120)]
    for s in clients:
        s.sendall(GET)
    time.sleep(0.5)
    assert len(origin.received) <= 16 + workers
    used = balancer.cpu_seconds()
    time.sleep(1)
    assert balancer.cpu_seconds() - used < 0.2
    for s in clients:  # each waits for those before it to leave
        s.settimeout(0.05)
    waiting = list(clients)
    deadline = time.monotonic() + 20
    while waiting and time.monotonic() < deadline:
        for s in list(waiting):
            with contextlib.suppress(TimeoutError):
                reply = read_message(s, b"\r\n\r\nok")
                assert reply.endswith(b"ok"), "refused instead of kept waiting"
                s.close()
                waiting.remove(s)
    assert not waiting
    assert len(origin.received) == 120


def test_descriptors_that_run_out_pause_accepting_and_spare_those_inside(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io, descriptors=64)
    clients = [balancer.connect() for _ in range(120)]
    time.sleep(0.3)
    used = balancer.cpu_seconds()
    time.sleep(1)
    assert balancer.cpu_seconds() - used < 0.2
    # Those inside are served, all at once: descriptors were kept for their servers' connections.
    for s in clients:
        s.sendall(GET)
    time.sleep(0.5)
    good = 0
    for s in clients:
        s.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            reply = s.recv(1000)
            assert reply.startswith(b"HTTP/1.1 200")
            good += 1
    assert good >= 16
    for s in clients[:100]:
        s.close()
    for s in clients[100:]:  # the rest come in as the others leave
        s.settimeout(5)
        assert read_message(s, b"ok").endswith(b"ok")
        s.close()
    with balancer.connect() as s:
        assert served(s, 5)
