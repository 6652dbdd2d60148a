"""Ctrl-C that waits: while something is half made, a signal is only noted, and acted upon where it is safe.

    with Deferred() as signals:
        make_one_thing()
        signals.check()              # KeyboardInterrupt here, not in the middle of the line above

Without it, a KeyboardInterrupt may come between the making of a thing and the noting that it was made, and what nobody
noted nobody removes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """Within the block INT, TERM and HUP are noted; one that nobody acted upon comes at its end.

    In a thread other than the main one, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # nohup's wish stands
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None
        if self.number and kind is None:
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):  # thousands of signals: one is enough
                os.write(self._pipe[1], b"!")

    def check(self) -> None:
        """Raise KeyboardInterrupt when a signal has come."""
        if self.number:
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Sleep; return at once, and true, when a signal has come."""
        if not self.number and self._pipe is not None:
            select.select([self._pipe[0]], [], [], seconds)
        return bool(self.number)

    def forget(self) -> None:
        """The signal has been acted upon: it does not come again at the end."""
        self.number = 0
