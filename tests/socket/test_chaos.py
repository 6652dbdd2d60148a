"""Clients and servers that misbehave at random: nothing crashes, races, leaks or stays in flight."""

import random
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from dataplane.build_ffi import has_io_uring
from tests.c_build import ASAN_UBSAN, TSAN, build_c
from tests.socket.conftest import IO_BACKENDS, SOURCES, read_message

SECONDS = 2.5
CLIENTS = 12


def misbehaving_origin(seed: int):
    draw = random.Random(seed)

    def handle(connection, origin):
        while head := origin.request(connection):
            what = draw.random()
            length = draw.choice([0, 2, 1000, 30_000, 200_000])
            body = b"x" * length
            if what < 0.05:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if what < 0.1:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (length + 10) + body)
                return
            if what < 0.13:
                connection.sendall(b"nonsense\r\n\r\n")
                return
            if what < 0.2:
                time.sleep(0.05)
            if what < 0.4:
                chunks = b"".join(
                    b"%x\r\n%s\r\n" % (len(body[i : i + 777]), body[i : i + 777]) for i in range(0, length, 777)
                )
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
            elif what < 0.45:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)
                return
            else:
                has_body = not head.startswith(b"HEAD")
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + (body if has_body else b"")
                )

    return handle


def misbehaving_client(port: int, seed: int, until: float) -> None:
    draw = random.Random(seed)
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as s:
                for _ in range(draw.randint(1, 6)):
                    what = draw.random()
                    method = draw.choice([b"GET", b"GET", b"HEAD", b"POST"])
                    body = b"y" * draw.choice([0, 5, 5000, 100_000]) if method == b"POST" else b""
                    framing = b"Content-Length: %d\r\n" % len(body) if method == b"POST" else b""
                    request = b"%s /x HTTP/1.%d\r\nHost: a\r\n%s\r\n" % (method, draw.random() < 0.9, framing) + body
                    if what < 0.1:
                        s.sendall(request[: draw.randint(1, len(request))])
                        break
                    if what < 0.15:
                        s.sendall(bytes(draw.randrange(256) for _ in range(50)) + b"\r\n\r\n")
                    elif what < 0.25:
                        s.sendall(request * draw.randint(2, 8))
                    else:
                        s.sendall(request)
                    if what < 0.35:
                        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
                    if what < 0.4:
                        s.shutdown(socket.SHUT_WR)
                    if not read_message(s):
                        break
        except OSError:
            pass


BUILDS = {"asan": ASAN_UBSAN, "tsan": TSAN, "asan-older-kernel": (*ASAN_UBSAN, "-DNO_MULTISHOT")}


@pytest.fixture(params=BUILDS)
def engine_program(request) -> Path:
    libraries = ("-lm", "-luring") if has_io_uring() else ("-lm", "-DNO_IO_URING")
    return build_c(f"standalone-{request.param}", SOURCES, (*BUILDS[request.param], *libraries))


@pytest.mark.parametrize("io", IO_BACKENDS)
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_chaos_leaves_nothing_behind(request, start_origin, start_balancer, io, mode):
    if "older-kernel" in request.node.name and io == "epoll":
        pytest.skip("epoll takes the same way on every kernel")
    seed = 7
    origins = [start_origin(misbehaving_origin(seed + number)) for number in range(4)]
    balancer = start_balancer(
        [origin.port for origin in origins], mode=mode, io=io, workers=2, TIMEOUT_MS=500, SERVER_MAXCONN=2
    )
    until = time.monotonic() + SECONDS
    clients = [
        threading.Thread(target=misbehaving_client, args=(balancer.port, seed * 100 + number, until))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    time.sleep(1.5)
    descriptors = len(list(Path(f"/proc/{balancer.process.pid}/fd").iterdir()))
    summary = balancer.stop()
    assert descriptors < 60 + 2 * 4 * 8, f"{descriptors} descriptors are open after everybody left"
    assert "in flight 0" in summary, summary
    requests = sum(int(line.split("requests ")[1].split()[0]) for line in summary.splitlines() if "requests " in line)
    assert mode == "tcp" or requests > 50
