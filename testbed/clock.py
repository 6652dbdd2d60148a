"""An asyncio event loop whose timers are exact to microseconds.

asyncio hands its timeouts to epoll_wait, which counts in whole milliseconds and rounds up: a sleep of 10 ms takes
10.6 on average. A backend that serves in 10 ms, and a generator that promises arrival times, cannot live with that.
Here the next deadline is a timerfd among the watched descriptors, and epoll waits without a timeout.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class _Timerspec(ctypes.Structure):
    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


class PreciseSelector(selectors.EpollSelector):
    """epoll whose timeout is a timerfd."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._when = _Timerspec()
        self._when_pointer = ctypes.byref(self._when)
        self._armed = False
        self.register(self._timer, selectors.EVENT_READ)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            ready = super().select(0)
        else:
            self._arm(timeout)
            ready = super().select(None)
        return [event for event in ready if event[0].fd != self._timer]

    def _arm(self, timeout: float | None) -> None:
        """Set the timer anew, which also takes back an expiry that was not read; None disarms it."""
        if timeout is None and not self._armed:
            return
        whole = int(timeout or 0)
        self._when.value_s = whole
        self._when.value_ns = 0 if timeout is None else max(1, int((timeout - whole) * 1e9))
        if _libc.timerfd_settime(self._timer, 0, self._when_pointer, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._armed = timeout is not None

    def close(self) -> None:
        super().close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1


def precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(PreciseSelector())


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run on a precise loop."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main)
