"""The balancer's own log, made so that nobody ever waits for it: lines go through a bounded queue to a thread that
writes.

When the reader of standard error sleeps (a blocked pipe, a full disk), lines are dropped and counted; the supervisor,
which also checks health and answers the admin API, goes on.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import threading
from collections.abc import Iterator

LINES_MAX = 2000
FLUSH_S = 1.0


class DroppingHandler(logging.handlers.QueueHandler):
    """Queues records; counts those that find the queue full."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(records)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(threading.Thread):
    """Hands records to the handlers that were there before. A daemon: a stuck one does not keep the process."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None], handlers: list[logging.Handler]) -> None:
        super().__init__(name="log", daemon=True)
        self._records = records
        self._handlers = handlers

    def run(self) -> None:
        while (record := self._records.get()) is not None:
            for handler in self._handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)


@contextlib.contextmanager
def never_blocking() -> Iterator[DroppingHandler]:
    """Put the queue before the root logger's handlers for as long as the block runs."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(LINES_MAX)
    dropping = DroppingHandler(records)
    writer = _Writer(records, handlers)
    root.handlers[:] = [dropping]
    # A handler that cannot write must not print about it: that would block in the same place.
    raise_exceptions, logging.raiseExceptions = logging.raiseExceptions, False
    writer.start()
    try:
        yield dropping
    finally:
        with contextlib.suppress(queue.Full):
            records.put_nowait(None)
        writer.join(FLUSH_S)
        root.handlers[:] = handlers
        logging.raiseExceptions = raise_exceptions
