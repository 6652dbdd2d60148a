"""What the balancer answers by itself, and how that is counted; what it adds for clients that say too little."""

import socket
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, answer, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)


def counted(service, field: str, expected: int) -> bool:
    deadline = time.monotonic() + 2
    while int(service.worker()[field]) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(service.worker()[field]) == expected


def test_options_that_may_go_no_further_are_answered_and_are_no_bad_requests(start_origin, start_balancer, service, io):
    origin = start_origin(answer())
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(b"OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n")
        assert read_all(s).startswith(b"HTTP/1.1 200 OK\r\n")
    assert counted(service, "requests_total", 1)
    assert service.worker()["responses"].tolist() == [0, 0, 1, 0, 0, 0]
    assert int(service.worker()["requests_bad"]) == 0
    assert int(service.worker()["answered_here"]) == 0
    assert not origin.received
    record = service.segment.read_records(0).records[0]
    assert (record["status"], chr(record["termination"])) == (200, "L")


def test_expectations_that_nobody_knows_are_refused_with_417(start_origin, start_balancer, service, io):
    origin = start_origin(answer())
    service.publish([origin.port])
    balancer = start_balancer([0], io=io, SEGMENT=service.segment.name)
    with balancer.connect() as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\nContent-Length: 3\r\n\r\nabc")
        reply = read_all(s)
    assert reply.startswith(b"HTTP/1.1 417 Expectation Failed\r\n")
    assert b"connection: close" in reply.lower()
    assert counted(service, "requests_bad", 1)
    assert service.worker()["responses"].tolist() == [0, 0, 0, 0, 1, 0]
    assert not origin.received


def test_a_1_0_request_without_host_gets_the_address_that_it_was_sent_to(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(b"GET /x HTTP/1.0\r\n\r\n")
        assert read_message(s, b"ok").endswith(b"ok")
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % balancer.port in origin.received[0]


def test_a_1_0_client_that_half_closes_gets_its_answer_however_late(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        time.sleep(1.6)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    assert balancer.exchange(b"GET /x HTTP/1.0\r\n\r\n", half_close=True).endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("left", [b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n", b"x" * 100_000])
def test_what_follows_a_request_that_closes_is_read_and_thrown_away(start_origin, start_balancer, io, left):
    """The answer must not be overtaken by the reset that unread bytes would cause."""
    origin = start_origin(answer(b"y" * 50_000))
    balancer = start_balancer([origin.port], io=io)
    for _ in range(20):
        with balancer.connect() as s:
            s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + left)
            time.sleep(0.01)
            s.shutdown(socket.SHUT_WR)
            assert read_all(s).partition(b"\r\n\r\n")[2] == b"y" * 50_000
    assert all(b"/next" not in head for head in origin.received)


def test_bytes_that_come_while_the_last_answer_is_awaited_do_not_destroy_it(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        time.sleep(0.02)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"y" * 500_000)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    for _ in range(10):
        with balancer.connect() as s:
            s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            time.sleep(0.005)
            s.sendall(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.05)  # the balancer is done with it by now
            assert len(read_all(s).partition(b"\r\n\r\n")[2]) == 500_000
