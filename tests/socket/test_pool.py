"""Pooled connections to servers: never one with bytes that nobody asked for, and always room for another."""

import signal
import socket
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("unsolicited", [EVIL, b""], ids=["bytes", "close"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("first", ["server", "client"])
def test_what_came_before_a_request_was_sent_on_is_no_answer_to_it(
    start_origin, start_balancer, io, unsolicited, method, first
):
    """The server's bytes (or its close) and the next request arrive together, as they do when the balancer is late."""
    pooled = []

    def handle(connection, origin):
        while origin.request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            pooled.append(connection)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    request = GET if method == b"GET" else b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    with balancer.connect() as s:
        for _ in range(5):
            s.sendall(request)
            assert read_message(s, b"\r\n\r\nok").endswith(b"ok")
            time.sleep(0.05)
            balancer.pause()
            if first == "client":
                s.sendall(request)
                time.sleep(0.01)
            if unsolicited:
                pooled[-1].sendall(unsolicited)
            else:
                pooled[-1].shutdown(socket.SHUT_WR)
            time.sleep(0.01)
            if first == "server":
                s.sendall(request)
                time.sleep(0.01)
            balancer.process.send_signal(signal.SIGCONT)
            assert read_message(s, b"\r\n\r\nok").endswith(b"ok")
