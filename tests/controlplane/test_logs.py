"""The balancer's own log never makes anybody wait."""

import logging
import threading
import time

from controlplane.logs import LINES_MAX, never_blocking


class Stuck(logging.Handler):
    """A handler whose writing hangs, as standard error does when nobody reads the pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.gate.wait(10)
        self.lines.append(record.getMessage())


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch):
    stuck, log = Stuck(), logging.getLogger("test.logs")
    monkeypatch.setattr(logging.getLogger(), "handlers", [stuck])
    began = time.monotonic()
    with never_blocking() as dropping:
        for i in range(LINES_MAX + 500):
            log.warning("line %d", i)
        assert time.monotonic() - began < 5
        assert dropping.dropped >= 499
        stuck.gate.set()
    assert stuck.lines[0] == "line 0"
    assert logging.getLogger().handlers == [stuck]


def test_lines_are_written_before_the_end(monkeypatch):
    handler = Stuck()
    handler.gate.set()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with never_blocking():
        logging.getLogger("test.logs").warning("the last word")
    assert handler.lines == ["the last word"]
