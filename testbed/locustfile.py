"""Open-loop load through locust: arrivals are those of a trace or a schedule, whatever the answers do.

    locust -f testbed/locustfile.py --headless -H http://127.0.0.1:8080 --trace poisson_for_loop_rate_150.csv --speed 2
    locust -f testbed/locustfile.py --headless -H http://127.0.0.1:8080 --rate 200 --seconds 30 --demand exponential:40

locust's users wait for an answer before they go on: a closed loop, which slows down with the server and hides its
queue. Here one user sends the whole schedule, each request in a greenlet of its own at its time, and the response
time that enters locust's statistics counts from the *scheduled* arrival. A trace is that of `vickrey replay` with the
same options, a schedule that of `python -m testbed.load`. At the end it says the completion times up to p99.9, and how
late requests left; when that was too late, the exit status is 1.

Every option may be a variable of the environment as well: --trace is VICKREY_TRACE. In the web UI they are fields of
the start form. A run that --run-time or a signal cuts short, also one that was sent but not all answered, is said to be
partial, and the exit status is 1. With workers (--processes) one of them sends.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
import locust.stats
import numpy as np
from gevent.pool import Group  # type: ignore[import-untyped]
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING, MasterRunner, WorkerRunner

from testbed.demand import SHAPES, parse_demand
from testbed.load.generator import parse_url
from testbed.load.priority import PRIORITIES, priority
from testbed.load.report import LATE_LIMIT_MS, LATE_MAX_LIMIT_MS
from testbed.load.schedule import Schedule, from_csv, poisson
from testbed.replay import capacity, source
from testbed.traces.record import TraceError

log = logging.getLogger("testbed.locust")

locust.stats.PERCENTILES_TO_CHART = [0.5, 0.99, 0.999]
locust.stats.PERCENTILES_TO_STATISTICS = [0.9, 0.99, 0.999]
_NAMES_MOST = 20  # rows in locust's table
_OVER = "replay over"  # what a worker tells its master
_TICK_S = 0.05


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("open-loop schedule")

    def add(name: str, **rest: Any) -> None:
        variable = "VICKREY_" + name.lstrip("-").replace("-", "_").upper()
        group.add_argument(name, env_var=variable, **rest)

    add("--trace", default="", help="a trace file, or KIND[:NAME=VALUE,…]; see docs/replay.md")
    add("--speed", type=float, default=1.0, help="time passes so many times as fast")
    add("--load", type=float, default=0.0, help="the speed that offers this share of --capacity; 0: --speed counts")
    add("--capacity", type=float, default=0.0, help="work that the servers do in a second")
    add("--servers", default="", help="aiohttp backends, asked for their capacity: A,B,…")
    add("--limit", type=int, default=0, help="at most so many requests of the trace; 0: all")
    add("--seconds", type=float, default=0.0, help="length of the schedule; of a trace, 0: all (default without: 10)")
    add("--request", default="auto", help="query, d, n, plain or auto")
    add("--seconds-per-work", type=float, default=0.0, help="makes the trace's work seconds; 0: it stays as it is")
    add("--connections", choices=["keepalive", "per-flow"], default="keepalive", help="kept, or one for each request")
    add("--priority", choices=list(PRIORITIES), default="normal", help="on a busy machine; needs privileges")
    add("--rate", type=float, default=100.0, help="without a trace: Poisson arrivals a second")
    add("--arrivals", default="", help="CSV with the columns arrival_s, demand_ms, instead of --rate")
    add("--demand", default="", help=f"SHAPE:MEAN_MS, sent as ?d=; SHAPE is {', '.join(SHAPES)}")
    add("--schedule-seed", type=int, default=1, help="of arrivals and demands")
    add("--path", default="/", help="what to ask for, or what stands before it")


class Replay:
    """The schedule of this run, and how it went."""

    def __init__(self) -> None:
        self.schedule: Schedule | None = None
        self.paths: list[str] = []
        self.names: list[str] = []
        self.late_s: list[float] = []
        self.fct_s: list[float] = []
        self.ended = 0  # requests that were answered or failed
        self.stall_s = 0.0  # the longest time for which this process did nothing though it should have
        self.is_sending = False  # one worker of several
        self.is_over = False

    def begin(self, options: Any, host: str) -> None:
        """Make the schedule; TraceError, ValueError or OSError when that cannot be."""
        self.schedule, self.is_sending = None, False
        self.paths, self.names = [], []
        self.late_s, self.fct_s, self.ended, self.stall_s = [], [], 0, 0.0
        if options.trace:
            self._begin_trace(options, host)
            return
        demand = parse_demand(options.demand) if options.demand else None
        self.schedule = (
            from_csv(Path(options.arrivals), options.schedule_seed, demand)
            if options.arrivals
            else poisson(options.rate, options.seconds or 10.0, options.schedule_seed, demand)
        )
        between = "&" if "?" in options.path else "?"
        self.paths = [
            f"{options.path}{between}d={demand:.4f}" if demand == demand else options.path  # not NaN
            for demand in self.schedule.demand_ms.tolist()
        ]
        self.names = [options.path] * len(self.paths)

    def _begin_trace(self, options: Any, host: str) -> None:
        wanted = source.Wanted(
            options.trace, seed=options.schedule_seed, limit=options.limit or None, speed=options.speed,
            load=options.load or None, duration=options.seconds or None, request=options.request,
            seconds_per_work=options.seconds_per_work or None,
        )  # fmt: skip
        known = options.capacity or None
        if options.load and known is None and options.servers:
            known = sum(capacity.told(address.strip()) for address in options.servers.split(","))
        if options.load and known is None:
            raise ValueError("--load is a share of a capacity: say --capacity WORK, or --servers A,B,…")
        plan = source.load(wanted).plan(parse_url(host.rstrip("/") + options.path), capacity=known)
        self.paths = [plan.path(index).decode() for index in range(len(plan.schedule))]
        names = [path.partition("?")[0] for path in self.paths]
        self.names = names if len(set(names)) <= _NAMES_MOST else [options.path] * len(names)
        self.schedule = plan.schedule

    def over(self, environment: Environment) -> None:
        if not self.is_over:
            self.is_over = True
            if isinstance(environment.runner, WorkerRunner):
                environment.runner.send_message(_OVER, self.figures())

    def figures(self) -> dict[str, list[float]]:
        """Milliseconds: lateness (p50, p99, max; a stall counts as the latter), completion times (mean, p50, p90, p99,
        p99.9, max); and counts: sent, answered, ended, planned."""
        late, fct = np.array(self.late_s) * 1e3, np.array(self.fct_s) * 1e3
        return {
            "late": [*np.percentile(late, (50, 99)), max(late.max(), self.stall_s * 1e3)] if len(late) else [],
            "fct": [float(fct.mean()), *np.percentile(fct, (50, 90, 99, 99.9, 100)).tolist()] if len(fct) else [],
            "count": [len(late), len(fct), self.ended, len(self.paths)],
        }


replay = Replay()


@events.init.add_listener  # type: ignore[untyped-decorator]
def listen(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):

        def end(msg: Any, **_: Any) -> None:
            replay.is_over = True
            if not msg.data["count"][-1]:  # nothing to send: the worker has said why
                environment.process_exit_code = 2
            say(environment, msg.data)

        environment.runner.register_message(_OVER, end)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):
        return
    replay.is_over = False
    options = environment.parsed_options
    if options is not None and (options.num_users or 1) != 1:
        log.warning("--users has no effect: one user sends the whole schedule")
    try:
        replay.begin(options, environment.host or "")
    except (TraceError, ValueError, OSError) as error:
        log.error("%s", error)
        environment.process_exit_code = 2
        replay.over(environment)


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def report(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, MasterRunner):
        if not replay.is_over:
            replay.is_over = True
            log.warning("PARTIAL: ended early, before a worker told how it went")
            environment.process_exit_code = 1
    elif replay.is_sending or not isinstance(runner, WorkerRunner):
        say(environment, replay.figures())


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def end_first(environment: Environment, **_: Any) -> None:
    """A signal: locust settles its exit status before it ends the test, and so before we know what came of it."""
    runner = environment.runner
    if runner is None or runner.state not in (STATE_SPAWNING, STATE_RUNNING):
        return
    if isinstance(runner, MasterRunner):
        report(environment)
    else:
        runner.stop()


def say(environment: Environment, figures: dict[str, list[float]]) -> None:
    sent, answered, ended, planned = figures["count"]
    if ended < planned:  # who waited longest is not among the completion times
        log.warning(
            "PARTIAL: ended early: %d of %d requests were sent, %d answered, %d failed",
            *(sent, planned, answered, ended - answered),
        )
        environment.process_exit_code = 1
    if not figures["late"]:
        return
    log.info("sent %d requests, answered %d", sent, answered)
    if figures["fct"]:
        log.info("FCT ms: mean %.2f, p50 %.2f, p90 %.2f, p99 %.2f, p99.9 %.2f, max %.2f", *figures["fct"])
    log.info("late by p50 %.2f ms, p99 %.2f ms, max %.2f ms", *figures["late"])
    _, p99, largest = figures["late"]
    if p99 > LATE_LIMIT_MS or largest > LATE_MAX_LIMIT_MS:
        log.warning(
            "INVALID: the generator was late, by more than %g ms (p99) or %g (max): too little CPU for it",
            LATE_LIMIT_MS,
            LATE_MAX_LIMIT_MS,
        )
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
        replay.is_sending = True
        options = self.environment.parsed_options
        assert options is not None
        headers = {"Connection": "close"} if options.connections == "per-flow" else {}
        start = time.perf_counter() + 0.05
        with priority(options.priority):
            self._send_all(schedule, start, headers)

    def _send_all(self, schedule: Schedule, start: float, headers: dict[str, str]) -> None:
        requests = Group()
        clock = gevent.spawn(self._watch)
        try:
            for arrival, path, name in zip(schedule.arrival_s.tolist(), replay.paths, replay.names, strict=True):
                ahead = start + arrival - time.perf_counter()
                if ahead > 0:
                    gevent.sleep(ahead)
                requests.spawn(self._send, start + arrival, path, name, headers)
            requests.join()
            gevent.sleep(_TICK_S)  # the clock may not have seen yet that we stood still
        finally:
            requests.kill()
            clock.kill()
            replay.over(self.environment)

    def _watch(self) -> None:
        """A standstill in which no request was due delays the reading of answers all the same."""
        while True:
            due = time.perf_counter() + _TICK_S
            gevent.sleep(_TICK_S)
            replay.stall_s = max(replay.stall_s, time.perf_counter() - due)

    def _send(self, scheduled: float, path: str, name: str, headers: dict[str, str]) -> None:
        replay.late_s.append(time.perf_counter() - scheduled)
        with self.client.get(
            path, name=name, headers=headers, catch_response=True, allow_redirects=False
        ) as response:  # fmt: skip
            took = time.perf_counter() - scheduled
            replay.ended += 1
            response.request_meta["response_time"] = took * 1e3
            if 200 <= (response.status_code or 0) < 400:
                replay.fct_s.append(took)


class ScheduleShape(LoadTestShape):
    """One user until the schedule has been answered or --run-time is over, then the end."""

    use_common_options = True  # else locust says that --run-time is ignored

    def reset_time(self) -> None:  # locust's word for: a test starts, perhaps not the first
        super().reset_time()  # type: ignore[no-untyped-call]
        replay.is_over = False

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options if self.runner else None
        limit_s = options.run_time if options else None
        is_cut = limit_s and self.get_run_time() >= limit_s  # type: ignore[no-untyped-call]
        return None if replay.is_over or is_cut else (1, 1.0)
