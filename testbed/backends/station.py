"""A queueing station: k workers of one speed behind one first-come-first-served queue of bounded length.

A job of demand d (seconds of work at speed 1) holds one worker for d / speed seconds. A job that waited starts when the
last one's service was over, not when the event loop came to see that it was: the station keeps its rate exactly,
however busy the loop. To wake up and to write an answer is part of the service, as in any server: a job is told to be
done a little earlier than it is (`lead_s`, learned), so that its answer leaves as the service ends. Work that burns CPU
is over when it is over. A job whose client leaves while it waits is dropped; once begun, work is finished, as a thread
in a pool would.
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

LEAD_MOST_S = 0.0005  # longer than a machine that is not overloaded takes
_LEAD_STEP = 0.05  # of what an answer was late


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
    late_s: float = 0.0  # from the end of a service until its answer, if short, left; below 0 where it left before


@dataclass(slots=True)
class Station:
    """speed and limit (jobs that may wait; None: any number) may be changed at any time."""

    workers: int = 1
    speed: float = 1.0
    limit: int | None = None
    burns_cpu: bool = False  # a thread computes for the service time, instead of a timer that waits for it
    lead_s: float = 0.0  # how much earlier than it is done a job is told so
    totals: Totals = field(default_factory=Totals)
    _idle_since: list[float] = field(init=False)  # heap, of the workers that have nothing to do
    _queue: deque[Job] = field(default_factory=deque)
    _ends: list[tuple[float, int, Job]] = field(default_factory=list)  # heap of the jobs that timers serve
    _started: itertools.count[int] = field(default_factory=itertools.count)
    _pool: ThreadPoolExecutor | None = None

    def __post_init__(self) -> None:
        self._idle_since = [0.0] * self.workers

    @property
    def busy(self) -> int:
        return self.workers - len(self._idle_since)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def submit(self, demand_s: float, arrived: float | None = None) -> Job:
        """Queue a job, or start it; its `done` is set when it has been served. QueueFull when there is no room.

        arrived: loop time, a little past; None: now.
        """
        loop = asyncio.get_running_loop()
        job = Job(demand_s, loop.time() if arrived is None else arrived, loop.create_future())
        self._end_until(job.arrived)
        if self._idle_since:
            self._start(job, heapq.heappop(self._idle_since))
        elif self.limit is None or len(self._queue) < self.limit:
            self._queue.append(job)
        else:
            self.totals.rejected += 1
            raise QueueFull("queue full")
        return job

    async def serve(self, demand_s: float, arrived: float | None = None) -> Job:
        """Submit and wait; a caller that is cancelled while its job waits takes the job out of the queue.

        Dropped when the queue is cleared meanwhile.
        """
        job = self.submit(demand_s, arrived)
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

    def answered(self, job: Job, now: float) -> None:
        """The answer to a job left now: learn how much earlier the next should be told."""
        late_s = now - job.finished
        self.totals.late_s += late_s
        if not self.burns_cpu and job.service_s >= 2 * LEAD_MOST_S:  # in less there is no time to be told before
            step = _LEAD_STEP * min(max(late_s, -LEAD_MOST_S), LEAD_MOST_S)  # who stood still once changes little
            self.lead_s = min(max(self.lead_s + step, 0.0), LEAD_MOST_S)

    def _start(self, job: Job, free: float) -> None:
        """Give it a worker that is free from `free` on, which may be a little past, or to come."""
        loop = asyncio.get_running_loop()
        service_s = job.demand_s / self.speed
        if self.burns_cpu:
            job.started = loop.time()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="burn")
            loop.run_in_executor(self._pool, burn, service_s).add_done_callback(lambda _: self._burnt(job))
        else:
            job.started = max(free, job.arrived)
            job.finished = job.started + service_s
            heapq.heappush(self._ends, (job.finished, next(self._started), job))
            loop.call_at(job.finished - self.lead_s, self._end_until, job.finished)

    def _end_until(self, due: float) -> None:
        """End what is over, or so nearly that it is time to say so, in order: who starts in the past may be over before
        one that started earlier."""
        now = max(asyncio.get_running_loop().time() + self.lead_s, due)
        while self._ends and self._ends[0][0] <= now:
            self._end(heapq.heappop(self._ends)[2])

    def _burnt(self, job: Job) -> None:
        job.finished = asyncio.get_running_loop().time()
        self._end(job)

    def _end(self, job: Job) -> None:
        if not job.done.done():
            job.done.set_result(None)
            self.totals.served += 1
            self.totals.demand_s += job.demand_s
            self.totals.service_s += job.service_s
            self.totals.wait_s += job.wait_s
        if self._queue:
            self._start(self._queue.popleft(), job.finished)
        else:
            heapq.heappush(self._idle_since, job.finished)


def burn(seconds: float) -> None:
    """Compute for so much CPU time of this thread; the hash lets go of the interpreter's lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"vickrey", b"testbed", 200)
