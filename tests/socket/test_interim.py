"""Interim answers (1xx): as many as a server likes to send, never more than the client takes."""

import contextlib
import socket
import threading
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def hint(number: int, padding: int = 0) -> bytes:
    return b"HTTP/1.1 103 Early Hints\r\nLink: </%d>%s\r\n\r\n" % (number, b"x" * padding)


@pytest.mark.parametrize("ending", ["length", "chunked", "close"])
def test_many_interim_answers_in_one_packet_pass_in_order(start_origin, start_balancer, io, ending):
    final = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\n\r\nok",
    }[ending]

    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(b"".join(hint(number) for number in range(40)) + final)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        for _ in range(3):
            s.sendall(GET)
            reply = read_message(s, b"ok")
            assert reply.count(b"103 Early Hints") == 40
            assert [reply.index(b"</%d>" % n) for n in range(40)] == sorted(
                reply.index(b"</%d>" % n) for n in range(40)
            )
            assert b"200 OK" in reply
            if ending != "length":
                break


def test_a_flood_of_interim_answers_waits_for_a_client_that_does_not_read(start_origin, start_balancer, io):
    sent = [0]
    blocked = threading.Event()

    def handle(connection, origin):
        origin.request(connection)
        connection.settimeout(0.7)
        piece = b"".join(hint(number, 4000) for number in range(16))
        with contextlib.suppress(TimeoutError):
            while sent[0] < 60_000_000:
                connection.send(piece[:4000])  # a piece of a hint, so that heads are cut anywhere
                sent[0] += 4000
                piece = piece[4000:] + piece[:4000]
        blocked.set()
        time.sleep(5)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    before = balancer.resident_kb()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", balancer.port))
        s.sendall(GET)
        assert blocked.wait(10)
        assert sent[0] < 30_000_000, "the server was never held back"
        assert balancer.resident_kb() - before < 8000  # each of the buffers once
        other = balancer.connect()  # the others are not affected
        other.close()


def test_a_get_is_not_sent_again_once_an_interim_answer_came(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(hint(1))

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    reply = balancer.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 103 ")
    assert b"HTTP/1.1 502 " in reply
    assert len(origin.received) == 1
