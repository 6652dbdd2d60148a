"""A queueing station: k workers of one speed behind one first-come-first-served queue of bounded length.

A job of demand d (seconds of work at speed 1) holds one worker for d / speed seconds. A job that waited starts when the
last one's service was over, not when the event loop came to see that it was: the station keeps its rate exactly,
however busy the loop, and only the answer is late (`late_s`). Work that burns CPU is over when it is over. A job whose
client leaves while it waits is dropped; once begun, work is finished, as a thread in a pool would.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field


class QueueFull(Exception):
    """All workers are busy and the queue is at its limit."""


class Dropped(Exception):
    """The queue was cleared."""


@dataclass(slots=True, eq=False)
class Job:
    demand_s: float
    arrived: float
    done: asyncio.Future[None]
    started: float = 0.0
    finished: float = 0.0  # set when it starts, where a timer serves it

    @property
    def wait_s(self) -> float:
        return self.started - self.arrived

    @property
    def service_s(self) -> float:
        return self.finished - self.started


@dataclass(slots=True)
class Totals:
    """Ground truth since the start or the last reset, seconds where a name ends in _s."""

    served: int = 0
    rejected: int = 0
    abandoned: int = 0
    demand_s: float = 0.0  # work asked for by the jobs that were served
    service_s: float = 0.0  # time that workers spent on them
    wait_s: float = 0.0
    late_s: float = 0.0  # from the end of a service until the event loop saw it


@dataclass(slots=True)
class Station:
    """workers, speed and limit (jobs that may wait; None: any number) may be changed at any time."""

    workers: int = 1
    speed: float = 1.0
    limit: int | None = None
    burns_cpu: bool = False  # a thread computes for the service time, instead of a timer that waits for it
    busy: int = 0
    totals: Totals = field(default_factory=Totals)
    _queue: deque[Job] = field(default_factory=deque)
    _ends: list[tuple[float, int, Job]] = field(default_factory=list)  # heap of the jobs that timers serve
    _started: itertools.count[int] = field(default_factory=itertools.count)
    _pool: ThreadPoolExecutor | None = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    def submit(self, demand_s: float) -> Job:
        """Queue a job, or start it; its `done` is set when it has been served. QueueFull when there is no room."""
        loop = asyncio.get_running_loop()
        job = Job(demand_s, loop.time(), loop.create_future())
        self._end_until(job.arrived)
        if self.busy < self.workers:
            self._start(job, job.arrived)
        elif self.limit is None or len(self._queue) < self.limit:
            self._queue.append(job)
        else:
            self.totals.rejected += 1
            raise QueueFull("queue full")
        return job

    async def serve(self, demand_s: float) -> Job:
        """Submit and wait; a caller that is cancelled while its job waits takes the job out of the queue.

        Dropped when the queue is cleared meanwhile.
        """
        job = self.submit(demand_s)
        try:
            await job.done
        except asyncio.CancelledError:
            if job in self._queue:  # else it began, or was dropped at the same moment
                self._queue.remove(job)
            self.totals.abandoned += 1
            raise
        return job

    def clear(self) -> None:
        """Forget the totals and drop every job that waits."""
        while self._queue:
            self._queue.popleft().done.set_exception(Dropped("dropped by a reset"))
        self.totals = Totals()

    def _start(self, job: Job, now: float) -> None:
        """Give it a worker that became free at `now`, which may be a little past."""
        loop = asyncio.get_running_loop()
        self.busy += 1
        job.started = max(now, job.arrived)
        service_s = job.demand_s / self.speed
        if self.burns_cpu:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="burn")
            loop.run_in_executor(self._pool, burn, service_s).add_done_callback(lambda _: self._burnt(job))
        else:
            job.finished = job.started + service_s
            heapq.heappush(self._ends, (job.finished, next(self._started), job))
            loop.call_at(job.finished, self._end_until, job.finished)

    def _end_until(self, due: float) -> None:
        """End what is over, in order: who starts in the past may be over before one that started earlier."""
        now = max(asyncio.get_running_loop().time(), due)
        while self._ends and self._ends[0][0] <= now:
            self._end(heapq.heappop(self._ends)[2], now)

    def _burnt(self, job: Job) -> None:
        job.finished = asyncio.get_running_loop().time()
        self._end(job, job.finished)

    def _end(self, job: Job, now: float) -> None:
        self.busy -= 1
        if not job.done.done():
            job.done.set_result(None)
            self.totals.served += 1
            self.totals.demand_s += job.demand_s
            self.totals.service_s += job.service_s
            self.totals.wait_s += job.wait_s
            self.totals.late_s += max(now - job.finished, 0.0)
        while self._queue and self.busy < self.workers:
            self._start(self._queue.popleft(), job.finished)


def burn(seconds: float) -> None:
    """Compute for so much CPU time of this thread; the hash lets go of the interpreter's lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"vickrey", b"testbed", 200)
