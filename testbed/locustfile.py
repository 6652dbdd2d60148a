"""Open-loop load through locust: arrivals replay a schedule, whatever the answers do.

    locust -f testbed/locustfile.py --headless -H http://127.0.0.1:8080 --rate 200 --seconds 30 --demand exponential:40

locust's users wait for an answer before they go on: a closed loop, which slows down with the server and hides its
queue. Here one user sends the whole schedule, each request in a greenlet of its own at its time, and the response
time that enters locust's statistics counts from the *scheduled* arrival. The schedule is that of `python -m
testbed.load` with the same options. At the end it says how late requests left.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
import numpy as np
from gevent.pool import Group  # type: ignore[import-untyped]
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from testbed.demand import SHAPES, parse_demand
from testbed.load.report import LATE_LIMIT_MS
from testbed.load.schedule import Schedule, from_csv, poisson

log = logging.getLogger("testbed.locust")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("open-loop schedule")
    group.add_argument("--rate", type=float, default=100.0, help="Poisson arrivals a second")
    group.add_argument("--seconds", type=float, default=10.0, help="length of the schedule")
    group.add_argument("--arrivals", default="", help="CSV with the columns arrival_s, demand_ms, instead of --rate")
    group.add_argument("--demand", default="", help=f"SHAPE:MEAN_MS, sent as ?d=; SHAPE is {', '.join(SHAPES)}")
    group.add_argument("--schedule-seed", type=int, default=1)
    group.add_argument("--path", default="/", help="what to ask for")


class Replay:
    """The schedule of this run, and how it went."""

    def __init__(self) -> None:
        self.schedule: Schedule | None = None
        self.late_s: list[float] = []
        self.is_over = False


replay = Replay()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def make_schedule(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    demand = parse_demand(options.demand) if options.demand else None
    replay.schedule = (
        from_csv(Path(options.arrivals), options.schedule_seed, demand)
        if options.arrivals
        else poisson(options.rate, options.seconds, options.schedule_seed, demand)
    )
    replay.late_s.clear()
    replay.is_over = False


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def report_lateness(environment: Environment, **_: Any) -> None:
    if not replay.late_s:
        return
    p50, p99, largest = np.percentile(replay.late_s, (50, 99, 100)) * 1e3
    log.info("sent %d requests, late by p50 %.2f ms, p99 %.2f ms, max %.2f ms", len(replay.late_s), p50, p99, largest)
    if p99 > LATE_LIMIT_MS:
        log.warning("INVALID: the generator was late by more than %g ms (p99): too little CPU for it", LATE_LIMIT_MS)
        environment.process_exit_code = 1


class OpenLoopUser(FastHttpUser):
    """Sends the schedule. One such user is enough, on one worker: greenlets do the waiting."""

    wait_time = constant(0)
    concurrency = 10_000  # connections; FastHttpUser would queue requests behind ten
    network_timeout = 60.0
    connection_timeout = 5.0

    @task
    def send_schedule(self) -> None:
        schedule = replay.schedule
        if schedule is None or replay.is_over:
            gevent.sleep(0.1)
            return
        options = self.environment.parsed_options
        assert options is not None
        requests = Group()
        start = time.perf_counter() + 0.05
        try:
            for arrival, demand in zip(schedule.arrival_s.tolist(), schedule.demand_ms.tolist(), strict=True):
                ahead = start + arrival - time.perf_counter()
                if ahead > 0:
                    gevent.sleep(ahead)
                path = options.path
                if demand == demand:  # not NaN
                    path += f"{'&' if '?' in path else '?'}d={demand:.4f}"
                requests.spawn(self._send, start + arrival, path, options.path)
            requests.join()
        finally:
            requests.kill()
            replay.is_over = True

    def _send(self, scheduled: float, path: str, name: str) -> None:
        replay.late_s.append(time.perf_counter() - scheduled)
        with self.client.get(path, name=name, catch_response=True) as response:
            response.request_meta["response_time"] = (time.perf_counter() - scheduled) * 1e3


class ScheduleShape(LoadTestShape):
    """One user until the schedule has been answered, then the end."""

    def tick(self) -> tuple[int, float] | None:
        return None if replay.is_over else (1, 1.0)
