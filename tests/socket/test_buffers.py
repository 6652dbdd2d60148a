"""When the pools of buffers run out: connections wait for one, at no cost, and nothing is lost."""

import socket
import threading
import time
from pathlib import Path

import pytest

from dataplane.build_ffi import has_io_uring
from tests.c_build import ASAN_UBSAN, build_c
from tests.socket.conftest import IO_BACKENDS, SOURCES, read_all

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
SIZE = 6_000_000
STUCK = 60


@pytest.fixture(scope="module")
def engine_program() -> Path:
    libraries = ("-lm", "-luring") if has_io_uring() else ("-lm", "-DNO_IO_URING")
    return build_c(
        "standalone-few-buffers",
        SOURCES,
        (*ASAN_UBSAN, "-DSMALL_BUFFERS(limit)=150", "-DBULK_BUFFERS(limit)=20", *libraries),
    )


def test_readers_that_stand_still_cost_no_cpu_and_lose_nothing(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + b"x" * SIZE)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, MAXCONN=64)
    stuck = []
    for _ in range(STUCK):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", balancer.port))
        s.settimeout(60)
        s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        stuck.append(s)
    time.sleep(3)  # time for the pools to run out
    used = balancer.cpu_seconds()
    deadline = time.monotonic() + 30
    while (now := balancer.cpu_seconds()) - used > 0.02 and time.monotonic() < deadline:
        used = now
        time.sleep(0.5)
    used = balancer.cpu_seconds()
    time.sleep(1.5)
    used = balancer.cpu_seconds() - used
    lost = []

    def drink(s: socket.socket) -> None:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        if (got := read_all(s).count(b"x")) != SIZE:
            lost.append(got)
        s.close()

    readers = [threading.Thread(target=drink, args=(s,)) for s in stuck[:6]]
    for s in stuck[6:]:
        s.close()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    summary = balancer.stop()
    assert not lost
    assert "exhausted 0" not in summary, "the pools did not run out: the test tests nothing"
    assert used < 0.3, f"{used:.2f} s of CPU in 1.5 s"
