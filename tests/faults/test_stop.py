"""The end: gracefully, at once, while starting (row 15)."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.faults.running import ROOT, Load, is_alive, wait_until


def request(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return sock


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_term_lets_what_is_open_finish_and_takes_nothing_new(balancer):
    """Row 15: the answer of 600 ms arrives, a new connection is refused meanwhile, exit status 0."""
    with balancer() as running:
        children = running.children()
        with request(running.port, "/?d=600") as sock:
            wait_until(lambda: running.in_flight() == 1)
            running.signal(signal.SIGTERM)
            wait_until(lambda: running.get("health")["draining"])
            wait_until(lambda: refuses(running.port), 0.4)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        assert running.wait_for_exit() == 0
        assert [pid for pid in children if is_alive(pid)] == []


def test_idle_connections_do_not_hold_up_the_end(balancer):
    with balancer() as running, request(running.port, "/") as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.wait_for_exit() == 0
        assert time.monotonic() - began < 5


def test_the_drain_timeout_bounds_the_end(balancer):
    with balancer(drain_timeout="500ms") as running, request(running.port, "/?d=20000"):
        wait_until(lambda: running.in_flight() == 1)
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.wait_for_exit() == 0
        assert 0.4 < time.monotonic() - began < 4


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
def test_int_or_a_second_term_ends_at_once_and_cleanly(balancer, numbers):
    with balancer() as running, request(running.port, "/?d=20000"):
        wait_until(lambda: running.in_flight() == 1)
        began = time.monotonic()
        for number in numbers:
            running.signal(number)
            time.sleep(0.2)
        assert running.wait_for_exit() == 0
        assert time.monotonic() - began < 4


def test_graceful_ends_under_load_answer_all_that_was_accepted(balancer):
    """Row 15: no request that was begun goes unanswered; only connections after the end are refused."""
    with balancer() as running:
        with Load(running.port) as load:
            load.run_for(200)
            running.signal(signal.SIGTERM)
            assert running.wait_for_exit() == 0
        assert set(load.statuses) == {200}
        lost = [error for error in load.errors if "Refused" not in error]
        assert lost == []


def test_a_signal_while_starting_ends_it(balancer):
    for delay_s in (0.05, 0.2, 0.4):
        running = balancer()
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli", "run", str(running.file)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)  # the latter: before it could listen for signals
        assert running.segments() == []


@pytest.mark.parametrize("killed", [["controller"], ["dataplane"], ["controller", "dataplane"]])
@pytest.mark.parametrize("delay_s", [0, 0.002, 0.02, 0.1])
def test_an_end_while_children_are_being_restarted_is_clean(balancer, killed, delay_s):
    with balancer() as running:
        for name in killed:
            os.kill(running.pid(name), signal.SIGKILL)
        time.sleep(delay_s)
        running.signal(signal.SIGTERM)
        assert running.wait_for_exit() == 0


def test_quit_writes_the_state_to_the_log(balancer):
    with balancer() as running:
        running.signal(signal.SIGQUIT)
        wait_until(lambda: '"services":{"web"' in running.log())
