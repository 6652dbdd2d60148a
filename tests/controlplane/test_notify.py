"""What systemd is told, seen from the socket that it would listen on."""

import os
import socket
import time

import pytest

from controlplane.notify import Notifier
from tests.faults.running import Running, wait_until


@pytest.fixture
def heard(tmp_path, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def messages(sock: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode())
        except BlockingIOError:
            return found


def test_without_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("1 service")


def test_children_do_not_inherit_the_socket(heard):
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_the_watchdog_is_fed_twice_in_its_interval_and_only_by_the_process_it_watches(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier()
    for now in (0.1, 0.5, 1.0, 1.2, 2.3):
        notifier.watchdog(now)
    assert messages(heard) == ["WATCHDOG=1"] * 3
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_s == 0


def test_a_socket_that_is_gone_is_no_error(heard, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().ready("1 service")


def test_a_balancer_says_when_it_is_ready_reloads_and_stops(heard, tmp_path):
    with Running(tmp_path, ["127.0.0.1:1"], health="off") as running:
        said: list[str] = []

        def has(text: str) -> bool:
            said.extend(messages(heard))
            return any(text in message for message in said)

        wait_until(lambda: has("READY=1"))
        assert f"MAINPID={running.supervisor_pid}" in said[0]
        before = time.monotonic_ns() // 1000
        running.change("POST", "reload")
        wait_until(lambda: has("RELOADING=1"))
        reloading = next(message for message in said if "RELOADING" in message)
        assert before <= int(reloading.rpartition("MONOTONIC_USEC=")[2]) <= time.monotonic_ns() // 1000
        wait_until(lambda: has("STATUS=reloaded"))
    wait_until(lambda: has("STOPPING=1"))
