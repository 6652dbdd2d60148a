"""How the engine treats an exchange, end to end: real sockets, the engine under sanitizers, io_uring and epoll."""

import base64
import hashlib
import socket
import struct
import threading
import time

import pytest

from tests.socket.conftest import IO_BACKENDS, answer, raw, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_request_reaches_the_server_with_its_head_written_anew(start_origin, start_balancer, io):
    origin = start_origin(answer(b"hello"))
    balancer = start_balancer([origin.port], io=io)
    reply = balancer.exchange(
        b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\n"
        b"Keep-Alive: 5\r\nX-Kept: yes\r\n\r\n"
    )
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b"\r\n\r\nhello")
    sent = origin.received[0].lower()
    assert sent.startswith(b"get /x http/1.1\r\nhost: a\r\n")
    assert b"x-kept: yes" in sent
    assert b"x-forwarded-for: 127.0.0.1" in sent
    assert b"x-secret" not in sent
    assert b"keep-alive: 5" not in sent


def test_two_requests_share_a_client_and_a_server_connection(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        for _ in range(3):
            s.sendall(GET)
            assert read_message(s, b"\r\n\r\nok").endswith(b"ok")
    assert origin.connections == 1
    assert len(origin.received) == 3


def test_pipelined_requests_are_answered_in_order(start_origin, start_balancer, io):
    def handle(connection, origin):
        data = b""
        while piece := connection.recv(65536):
            data += piece
            while b"\r\n\r\n" in data:
                head, data = data.split(b"\r\n\r\n", 1)
                target = head.split(b" ")[1]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(target), target))

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    wanted = [b"/%d" % number for number in range(40)]
    request = b"".join(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target for target in wanted)
    reply = balancer.exchange(request + b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    bodies = [part.split(b"HTTP/1.1")[0] for part in reply.split(b"\r\n\r\n")[1:]]
    assert bodies == [*wanted, b"/last"]


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_a_head_that_comes_in_pieces_is_read(start_origin, start_balancer, io, pieces):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io)
    request = b"GET /x HTTP/1.1\r\nHost: a\r\nX-Long: " + b"v" * 200 + b"\r\nConnection: close\r\n\r\n"
    with balancer.connect() as s:
        for start in range(0, len(request), pieces):
            s.sendall(request[start : start + pieces])
            if pieces > 1 or start % 50 == 0:
                time.sleep(0.002)
        assert read_all(s).endswith(b"\r\n\r\nok")
    assert b"v" * 200 in origin.received[0]


@pytest.mark.parametrize("size", [0, 1, 5_000, 16_384, 70_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_pass_both_ways_unchanged(start_origin, start_balancer, io, size, chunked):
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    def in_chunks(data):
        sizes = [1, 10, 255, 4096, 70_000]
        out, at, turn = b"", 0, 0
        while at < len(data):
            piece = data[at : at + sizes[turn % len(sizes)]]
            out += b"%x;ext=1\r\n%s\r\n" % (len(piece), piece)
            at += len(piece)
            turn += 1
        return out + b"0\r\n\r\n"

    def read_chunked(stream):
        data = b""
        while True:
            length = int(stream.readline().strip(), 16)
            data += stream.read(length)
            assert stream.readline() == b"\r\n"
            if length == 0:
                return data

    def handle(connection, origin):
        stream = connection.makefile("rb")
        head = b""
        while (line := stream.readline()) not in (b"\r\n", b""):
            head += line
        got = read_chunked(stream) if chunked else stream.read(size)
        origin.received.append(head)
        if chunked:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(got))
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(got) + got)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect(10) as s:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        payload = in_chunks(body) if chunked else body
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n\r\n" % framing
        threading.Thread(target=s.sendall, args=(head + payload,)).start()
        stream = s.makefile("rb")
        while stream.readline() not in (b"\r\n", b""):
            pass
        assert (read_chunked(stream) if chunked else stream.read()) == body
    assert b";ext" not in origin.received[0]


def test_an_answer_without_framing_is_chunked_for_a_1_1_client_and_closed_for_1_0(start_origin, start_balancer, io):
    origin = start_origin(raw(b"HTTP/1.1 200 OK\r\n\r\nuntil close"))
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(GET)
        reply = read_message(s, b"0\r\n\r\n")
        assert b"transfer-encoding: chunked" in reply.lower()
        assert b"b\r\nuntil close\r\n0\r\n\r\n" in reply
    reply = balancer.exchange(b"GET /x HTTP/1.0\r\n\r\n")
    assert reply.endswith(b"\r\n\r\nuntil close")
    assert b"chunked" not in reply


def test_a_chunked_answer_is_decoded_for_a_1_0_client(start_origin, start_balancer, io):
    origin = start_origin(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n")
    )
    balancer = start_balancer([origin.port], io=io)
    assert balancer.exchange(b"GET /x HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nabcde")


def test_trailer_fields_pass_but_not_those_that_frame(start_origin, start_balancer, io):
    trailers = b"X-Sum: 42\r\nContent-Length: 9\r\nX-More: 1\r\n"
    chunks = b"3;q=1\r\nabc\r\n1\r\nd\r\n0\r\n" + trailers + b"\r\n"
    origin = start_origin(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, close=False))
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(GET)
        reply = read_message(s, b"0\r\nX-Sum: 42\r\nX-More: 1\r\n\r\n")
        assert reply.endswith(b"4\r\nabcd\r\n0\r\nX-Sum: 42\r\nX-More: 1\r\n\r\n")


def test_ab_s_keep_alive_of_http_1_0_works(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        for _ in range(2):
            s.sendall(b"GET /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            assert b"connection: keep-alive" in read_message(s, b"\r\n\r\nok").lower()


def test_a_head_answer_has_no_body_and_keeps_the_connection(start_origin, start_balancer, io):
    origin = start_origin(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", close=False))
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"content-length: 1000" in read_message(s).lower()


def test_interim_answers_pass_and_expect_is_honoured(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        body = connection.recv(4)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        first = read_message(s, b"100 Continue\r\n")
        assert b"103 Early Hints" in first
        s.sendall(b"data")
        assert read_message(s, b"data").endswith(b"data")
    assert b"expect: 100-continue" in origin.received[0].lower()


def test_websocket_passes_through_and_h2c_does_not(start_origin, start_balancer, io):
    def handle(connection, origin):
        head = origin.request(connection)
        key = next(
            (line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")), b""
        )
        if not key:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        agreed = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %s\r\n\r\nhi" % agreed
        )
        while data := connection.recv(100):
            connection.sendall(data.upper())
        connection.sendall(b"bye")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert read_message(s, b"hi").startswith(b"HTTP/1.1 101 ")
        s.sendall(b"abc")
        assert s.recv(100) == b"ABC"
        s.shutdown(socket.SHUT_WR)
        assert read_all(s) == b"bye"
    balancer.exchange(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
        timeout=1,
    )
    assert b"h2c" not in origin.received[-1]
    assert b"pgrade" not in origin.received[-1]


def test_an_upgrade_that_the_server_answers_wrongly_is_refused(start_origin, start_balancer, io):
    origin = start_origin(
        raw(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n"
        )
    )
    balancer = start_balancer([origin.port], io=io)
    reply = balancer.exchange(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        timeout=1,
    )
    assert reply.startswith(b"HTTP/1.1 502 ")


def test_a_client_that_half_closes_still_gets_its_answer(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        time.sleep(0.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    assert balancer.exchange(GET, half_close=True).endswith(b"\r\n\r\nok")


def test_a_client_that_is_gone_ends_the_server_s_work(start_origin, start_balancer, io):
    ended = threading.Event()

    def handle(connection, origin):
        origin.request(connection)
        if connection.recv(10) == b"":
            ended.set()

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    s = balancer.connect()
    s.sendall(GET)
    while not origin.received:
        time.sleep(0.01)
    s.close()
    assert ended.wait(6)


def test_a_client_that_resets_ends_the_server_s_work_at_once(start_origin, start_balancer, io):
    ended = threading.Event()

    def handle(connection, origin):
        origin.request(connection)
        if connection.recv(10) == b"":
            ended.set()

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    s = balancer.connect()
    s.sendall(GET)
    while not origin.received:
        time.sleep(0.01)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()
    assert ended.wait(0.9)


def test_an_early_answer_reaches_a_client_that_is_still_sending(start_origin, start_balancer, io):
    def handle(connection, origin):
        origin.request(connection)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        time.sleep(0.2)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
        reply = read_message(s, b"big")
        assert reply.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in reply.lower()


def test_a_request_is_tried_elsewhere_when_connecting_fails(start_origin, start_balancer, io):
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead_port = dead.getsockname()[1]
    origin = start_origin(answer())
    balancer = start_balancer([dead_port, origin.port], io=io)
    for _ in range(20):
        assert balancer.exchange(
            b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
        ).startswith(b"HTTP/1.1 200 ")


def test_one_server_that_lives_among_three_dead_answers_all(start_origin, start_balancer, io):
    dead = []
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dead.append(listener.getsockname()[1])
    origin = start_origin(answer())
    balancer = start_balancer([*dead, origin.port], io=io)
    for _ in range(20):
        reply = balancer.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 200 ")


def test_a_get_is_sent_once_more_when_the_server_closes_and_a_post_never(start_origin, start_balancer, io):
    closing = start_origin(raw(b""))
    balancer = start_balancer([closing.port], io=io)
    assert balancer.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 502 ")
    assert len(closing.received) == 2
    closing.received.clear()
    assert balancer.exchange(
        b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    ).startswith(b"HTTP/1.1 502 ")
    assert len(closing.received) == 1


def test_a_server_that_dies_in_mid_answer_never_makes_a_whole_one(start_origin, start_balancer, io):
    for reply in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        origin = start_origin(raw(reply))
        balancer = start_balancer([origin.port], io=io)
        got = balancer.exchange(GET, timeout=2)
        assert b"0\r\n\r\n" not in got.split(b"\r\n\r\n", 1)[-1]
        assert len(got.split(b"\r\n\r\n", 1)[-1]) < 100


@pytest.mark.parametrize(
    "reply",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"v" * 20000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_trusted_becomes_a_502(start_origin, start_balancer, io, reply):
    origin = start_origin(raw(reply))
    balancer = start_balancer([origin.port], io=io)
    assert balancer.exchange(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ).startswith(b"HTTP/1.1 502 ")


def test_unsolicited_bytes_take_a_connection_out_of_the_pool(start_origin, start_balancer, io):
    origin = start_origin(answer(b"ok", extra=b"X: 1\r\n"))

    def handle(connection, this):
        while this.request(connection):
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            )

    origin.handler = handle
    balancer = start_balancer([origin.port], io=io)
    with balancer.connect() as s:
        for _ in range(3):
            s.sendall(GET)
            assert b"evil" not in read_message(s, b"\r\n\r\nok")
    assert origin.connections == 3


def test_slow_heads_are_timed_out_before_any_server_hears_of_them(start_origin, start_balancer, io):
    origin = start_origin(answer())
    balancer = start_balancer([origin.port], io=io, TIMEOUT_MS=400)
    with balancer.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX")
        assert read_all(s).startswith(b"HTTP/1.1 408 ")
    assert origin.connections == 0


def test_a_server_that_never_answers_becomes_a_504(start_origin, start_balancer, io):
    origin = start_origin(raw(b"", close=False))
    balancer = start_balancer([origin.port], io=io, TIMEOUT_MS=400)
    with balancer.connect() as s:
        s.sendall(GET)
        assert read_message(s).startswith(b"HTTP/1.1 504 ")


def test_flows_wait_for_a_server_at_its_maxconn_and_time_out(start_origin, start_balancer, io):
    gate = threading.Event()

    def handle(connection, origin):
        while origin.request(connection):
            gate.wait(5)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io, SERVER_MAXCONN=1, QUEUE_MS=600)
    first, second = balancer.connect(), balancer.connect()
    first.sendall(GET)
    time.sleep(0.1)
    second.sendall(GET)
    time.sleep(0.2)
    assert len(origin.received) == 1
    gate.set()
    assert read_message(first, b"ok").endswith(b"ok")
    assert read_message(second, b"ok").endswith(b"ok")
    gate.clear()
    first.sendall(GET)
    time.sleep(0.1)
    second.sendall(GET)
    assert read_message(second).startswith(b"HTTP/1.1 503 ")
    gate.set()
    first.close()
    second.close()


def test_slow_readers_do_not_make_memory_grow(start_origin, start_balancer, io):
    body = b"x" * 4_000_000

    def handle(connection, origin):
        while origin.request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], io=io)
    balancer.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    before = balancer.resident_kb()
    slow = []
    for _ in range(40):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", balancer.port))
        s.sendall(GET)
        slow.append(s)
    time.sleep(1)
    grown = balancer.resident_kb() - before
    for s in slow:
        s.close()
    assert grown < 40 * 256, f"{grown} KB for 40 clients that do not read"


def test_tcp_mode_passes_bytes_and_half_closes_both_ways(start_origin, start_balancer, io):
    def handle(connection, origin):
        data = read_all(connection)
        connection.sendall(data[::-1])

    origin = start_origin(handle)
    balancer = start_balancer([origin.port], mode="tcp", io=io)
    payload = bytes(range(256)) * 4000
    assert balancer.exchange(payload, half_close=True) == payload[::-1]


def test_several_workers_share_a_port(start_origin, start_balancer, io):
    origins = [start_origin(answer()) for _ in range(3)]
    balancer = start_balancer([origin.port for origin in origins], io=io, workers=3)
    for _ in range(60):
        assert balancer.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").endswith(b"ok")
    assert sum(len(origin.received) for origin in origins) == 60
    assert min(len(origin.received) for origin in origins) > 0
