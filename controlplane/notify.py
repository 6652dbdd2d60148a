"""Tell systemd how the service does (sd_notify): one datagram each to the socket that NOTIFY_SOCKET names.

Protocol: sd_notify(3). Without NOTIFY_SOCKET every call does nothing, and no failure to notify is an error of ours.
"""

from __future__ import annotations

import os
import socket
import time


class Notifier:
    """systemd's view of this process. Takes the variables out of the environment: children must not notify."""

    def __init__(self) -> None:
        self.address = os.environ.pop("NOTIFY_SOCKET", "")
        interval_us = os.environ.pop("WATCHDOG_USEC", "0")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        ours = pid == str(os.getpid()) and interval_us.isdigit()
        # systemd asks for a sign of life at least twice within its interval.
        self.watchdog_s = int(interval_us) / 2e6 if ours else 0.0
        self._watchdog_due = 0.0
        if self.address.startswith("@"):
            self.address = "\0" + self.address[1:]

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={status}")

    def watchdog(self, now: float) -> None:
        """Give the sign of life when it is due; now is the monotonic clock in seconds."""
        if self.watchdog_s and now >= self._watchdog_due:
            self._watchdog_due = now + self.watchdog_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.connect(self.address)
                sock.send(text.encode())
        except OSError:
            pass
