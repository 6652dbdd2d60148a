"""What a machine does to the engine: pauses, garbage in the segment, too little memory: rows 11, 17 and 22."""

import os
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from tests.socket.conftest import IO_BACKENDS, answer, free_port, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = 1_000_000_000


def test_timers_do_not_count_a_pause_of_the_machine(start_origin, start_balancer, service, io):
    """Many connections, all kinds of timers of 3 s, and a pause of 4 s: nobody is timed out on waking up."""
    gate = threading.Event()

    def handle(connection, origin):
        while origin.request(connection):
            gate.wait(20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin = start_origin(handle)
    three = 3 * SECOND
    service.publish(
        [origin.port],
        timeout_http_request_ns=three,
        timeout_http_keep_alive_ns=three,
        timeout_client_ns=three,
        timeout_server_ns=three,
        timeout_queue_ns=three,
    )
    balancer = start_balancer([0], io=io, workers=2, SEGMENT=service.segment.name)
    clients = [balancer.connect(10) for _ in range(60)]
    for number, s in enumerate(clients):  # a third waits for the server, a third is in mid-head, a third in mid-body
        s.sendall([GET, GET[:10], b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"][number % 3])
    time.sleep(0.3)
    balancer.pause()
    time.sleep(4)
    gate.set()
    balancer.process.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    for number, s in enumerate(clients):
        s.sendall([b"", GET[10:], b"cd"][number % 3])
        assert read_message(s, b"ok").startswith(b"HTTP/1.1 200 ")
        s.close()
    stats = service.segment.read_stats()[0]
    assert int(stats["failures_in_a_row"]) == 0


def test_garbage_in_the_settings_and_the_directive_is_never_believed(start_origin, start_balancer, service, io):
    origins = [start_origin(answer()) for _ in range(3)]
    service.publish([origin.port for origin in origins])
    balancer = start_balancer([0], io=io, workers=2, SEGMENT=service.segment.name)
    header = service.segment.read_header()
    memory = np.frombuffer(service.segment.memory, dtype=np.uint8)
    draw = random.Random(5)
    until = time.monotonic() + 3
    served, bad = [0], []

    def client() -> None:
        with balancer.connect() as s:
            while time.monotonic() < until:
                s.sendall(GET)
                reply = read_message(s, b"ok")
                served[0] += 1
                if not reply.startswith(b"HTTP/1.1 200 "):
                    bad.append(reply)
                    return

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    first, last = int(header["off_settings"]), int(header["off_words"])
    while time.monotonic() < until:
        service.publish()  # something to read, and soon something wrong with it
        for _ in range(draw.choice([0, 1, 1, 50])):
            memory[draw.randrange(first, last)] ^= np.uint8(1 << draw.randrange(8))
        time.sleep(0.002)
    for thread in clients:
        thread.join()
    del memory
    assert not bad, bad[:3]
    assert served[0] > 100


@pytest.mark.parametrize("most_mb", [1, 8, 64])
def test_too_little_memory_is_a_failure_to_start_and_no_crash(engine_program, io, most_mb):
    """The engine takes its memory at start; what it cannot have it says. The sanitizer fails the allocations."""
    options = f"max_allocation_size_mb={most_mb}:allocator_may_return_null=1:detect_leaks=1"
    process = subprocess.Popen(
        [str(engine_program), "http", io, "1", str(free_port()), "1"],
        env={**os.environ, "ASAN_OPTIONS": options, "MAXCONN": "65000"},
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=10)
    assert process.returncode in (0, 1), text
    assert "Sanitizer:" not in text, text
