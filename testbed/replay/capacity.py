"""What servers can do, in work a second: as the backends of the testbed tell it, or as it is measured.

Measured means: so many connections ask as fast as they are answered (a closed loop), for some seconds, and the work of
what was answered well is counted. Requests and works are those of the trace, in its order, over and over.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from testbed.demand import Floats
from testbed.load.connection import ERROR_NAMES, Answer, Connection
from testbed.load.generator import Target
from testbed.traces.record import TraceError

RAMP_SHARE = 0.25  # of the time, at its beginning, is not counted: queues fill, caches warm
PATIENCE = 10.0  # times as long as asked for at most, until each connection was answered once: before that queues fill
_ASK_S = 5.0


def told(address: str) -> float:
    """Ask a backend of the testbed (testbed/backends): workers times speed, seconds of work a second."""
    url = f"{address if '//' in address else f'http://{address}'}".rstrip("/") + "/stats"
    try:
        with urllib.request.urlopen(url, timeout=_ASK_S) as answer:
            stats: Any = json.loads(answer.read(1 << 20))
        return float(stats["workers"]) * float(stats["speed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error if isinstance(error, OSError) else "the answer names no workers and speed"
        raise TraceError(f"{url} does not tell a capacity ({why}): give --capacity WORK, or measure") from None


def measured(
    target: Target, request: Callable[[int], bytes], work: Floats, *, seconds: float = 5.0, connections: int = 64
) -> float:
    """Return the work a second that the target does when it is saturated, in the unit of `work`."""
    from testbed import clock  # not where locust's gevent has taken epoll away, and told() is all that is needed

    saturation = _Saturation(target, request, work.tolist(), connections)
    done, took = clock.run(saturation.run(seconds))
    if took and done:
        return done / took
    passed = f"{saturation.passed_s:.1f} s" + (f" ({saturation.last_error})" if saturation.last_error else "")
    if not saturation.answered:
        raise TraceError(f"the capacity could not be measured: nothing was answered in {passed}")
    raise TraceError(
        f"the capacity could not be measured: {saturation.answered} answers came in {passed}; it takes"
        f" {2 * connections}, two for each of {connections} connections: --measure-for gives it longer, --capacity"
        " needs no measuring"
    )


class _Saturation:
    """Connections that ask again as soon as they are answered; the owner of each (connection.Owner)."""

    def __init__(
        self, target: Target, request: Callable[[int], bytes], works: Sequence[float], connections: int
    ) -> None:
        self.last_error = ""
        self.answered = 0  # well
        self.passed_s = 0.0  # from the first connection to the end of it all
        self._target = target
        self._request = request
        self._works = works
        self._count = connections
        self._next = 0
        self._done = 0.0
        self._is_over = False
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> tuple[float, float]:
        """Work that was answered after the ramp, and the time that it took; 0 when too few answers came.

        Of connections that begin together on servers that share their time among them nobody is answered for long, and
        then all at nearly the same time: both the ramp and what is counted have an answer a connection at least.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(self._count):
            self._open()
        enough = await self._wait(seconds * RAMP_SHARE, self._count, seconds)
        before, begun = self._done, loop.time()
        enough = enough and await self._wait(seconds * (1 - RAMP_SHARE), self.answered + self._count, seconds)
        done, took = self._done - before, loop.time() - begun if enough else 0.0
        self._is_over, self.passed_s = True, loop.time() - started
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)
        return done, took

    async def _wait(self, least_s: float, answers: int, seconds: float) -> bool:
        """Wait for so long, and until there are so many answers; False when these do not come.

        Who has answered nothing after `seconds` will not; others have PATIENCE times that.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (passed := loop.time() - begun) < least_s or self.answered < answers:
            if passed > seconds * (PATIENCE if self.answered else 1.0):
                return False
            await asyncio.sleep(max(min(least_s - passed, 0.5), 0.02))
        return True

    def _open(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._target.host, self._target.port
                )
            except OSError as error:
                self.last_error = str(error)
                await asyncio.sleep(0.05)  # a server that refuses is not hammered
                continue
            self._connections.add(connection)
            self._ask(connection)
            return

    def _ask(self, connection: Connection) -> None:
        if self._is_over or connection.transport is None or connection.transport.is_closing():
            return
        index, self._next = self._next, (self._next + 1) % len(self._works)
        connection.send(index, self._request(index))

    def first_byte(self, index: int) -> None:
        pass

    def finished(self, connection: Connection, answer: Answer) -> None:
        if 200 <= answer.status < 400:
            self._done += self._works[connection.index]
            self.answered += 1
        else:
            self.last_error = f"status {answer.status}"
        connection.index = -1
        if answer.status >= 500:  # a full queue answers at once: do not make a flood of that
            asyncio.get_running_loop().call_later(0.01, self._ask, connection)
        elif answer.keeps_alive:
            self._ask(connection)

    def failed(self, connection: Connection, error: int) -> None:
        connection.index = -1
        if not self._is_over:  # then it was we who closed it
            self.last_error = ERROR_NAMES[error]

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._is_over:
            self._open()
