"""`vickrey replay`: a trace against a running server or balancer, open loop, with a report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from testbed.load.generator import Target
    from testbed.replay.results import Folder, Replay
    from testbed.replay.source import Plan, Trace

DESCRIPTION = """\
Send a trace to a server or a balancer, open loop: each request leaves at its time whatever the answers do, and its
completion time counts from that time. TRACE is a file of any format that `vickrey trace` reads, - for standard input,
or a made-up trace: KIND or KIND:NAME=VALUE,… (poisson, mmpp2, sine, diurnal, onoff, flash, pareto, mice, wiki; rate,
mean_work, flows, clients and what is the kind's own). Exit status: 0 done; 1 invalid (the generator was late), partial
(Ctrl-C), or nothing was answered; 2 bad usage."""

EXAMPLES = """
  vickrey replay poisson:rate=200,mean_work=0.02 --target http://127.0.0.1:8080/ --duration 30s
  vickrey replay poisson_for_loop_rate_150.csv --target http://127.0.0.1:8080/ --limit 3000 --out run1
  vickrey replay poisson_for_loop_rate_150.csv --target http://127.0.0.1:9001/ --seconds-per-work 2e-9 \\
      --load 0.8 --servers 127.0.0.1:9001 --duration 1m
  vickrey replay wiki.1190146243.gz --target http://127.0.0.1/ --load 0.7 --capacity measure
  vickrey replay bursts.npy --target http://127.0.0.1:8080/ --connections per-flow --json > result.json
"""

_MEASURE = "measure"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    parser.add_argument("trace", metavar="TRACE", help="a file, -, or KIND[:NAME=VALUE,…]")
    parser.add_argument("--target", required=True, metavar="URL", help="http://host:port/path")
    pace = parser.add_argument_group("part and pace")
    pace.add_argument("--speed", type=float, default=1.0, metavar="X", help="time passes X times as fast (default 1)")
    pace.add_argument("--load", type=float, metavar="RHO", help="the speed that offers this share of the capacity")
    pace.add_argument(
        "--capacity", metavar="WORK",
        help="work that the servers do in a second: seconds at speed 1 (sum of speed times workers), turns for MARLLB's"
        " n, requests for a trace without work; `measure` saturates the target first, to find out",
    )  # fmt: skip
    pace.add_argument(
        "--servers", metavar="A,B,…", help="aiohttp backends behind the target, asked for their capacity at /stats"
    )
    pace.add_argument("--measure-for", type=_duration, default=5.0, metavar="TIME", help="how long (default 5s)")
    pace.add_argument("--measure-connections", type=_count, default=64, metavar="N", help="how many (default 64)")
    pace.add_argument("--duration", type=_duration, metavar="TIME", help="send for so long")
    pace.add_argument("--limit", type=_count, metavar="ROWS", help="at most so many requests")
    pace.add_argument("--from", dest="start", type=_duration, metavar="TIME", help="begin so far into the trace")
    pace.add_argument("--to", dest="end", type=_duration, metavar="TIME", help="end so far into the trace")
    pace.add_argument("--seed", type=int, default=1, help="of a made-up trace (default 1)")
    asking = parser.add_argument_group("requests")
    asking.add_argument(
        "--request", default="auto", metavar="HOW",
        help="query: what the row asks for; d: ?d=MILLISECONDS; n: ?n=TURNS; plain: the target as it stands; auto"
        " (default): query for MARLLB and WikiBench, d where the work is a time, else plain",
    )  # fmt: skip
    asking.add_argument(
        "--seconds-per-work", type=float, metavar="X", help="makes the trace's work seconds (2e-9 for a turn, say)"
    )
    asking.add_argument(
        "--connections", choices=("keepalive", "per-flow"), default="keepalive",
        help="kept and used again, as many as needed; or one for each request",
    )  # fmt: skip
    asking.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="sent with each request")
    asking.add_argument("--timeout", type=_duration, default=30.0, metavar="TIME", help="for an answer (default 30s)")
    asking.add_argument(
        "--priority", choices=("normal", "high", "realtime"), default="normal",
        help="of the generator, on a busy machine; needs privileges",
    )  # fmt: skip
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", default="auto", help="do not guess: marllb, wikibench, azure2021, azure2019, …")
    reading.add_argument("--column", action="append", default=[], metavar="FIELD=NAME[:UNIT]", help="of CSV and JSONL")
    reading.add_argument("--durations", metavar="FILE", help="azure2019: the durations that belong to the invocations")
    reading.add_argument("--strict", action="store_true", help="refuse the file at the first bad row")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", metavar="DIR", help="write report.html, requests.csv, latency.hgrm, latency.hlog and result.json there"
    )
    results.add_argument(
        "--requests", choices=("csv", "parquet", "both", "none"), default="csv", help="a row a request (default csv)"
    )
    results.add_argument(
        "--late-p99", type=_duration, metavar="TIME", help="lateness above which the run is invalid (default 5ms)"
    )
    results.add_argument("--late-max", type=_duration, metavar="TIME", help="the same of the worst (default 200ms)")
    results.add_argument("--quiet", action="store_true", help="no progress on standard error")
    add_json(parser)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _duration(text: str) -> float:
    from controlplane.config_values import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return seconds


def _refuse(message: str) -> NoReturn:
    from controlplane.command import CommandError

    raise CommandError(message, status=2)


def run(args: argparse.Namespace) -> int:
    import signal

    from controlplane.command import CommandError
    from testbed.replay.source import UsageError
    from testbed.traces.record import TraceError

    # TERM is the same as Ctrl-C; INT counts also where a shell had it ignored, as for what a script runs behind itself.
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _replay(args)
    except UsageError as error:
        raise CommandError(str(error), status=2) from None
    except TraceError as error:
        raise CommandError(str(error)) from None
    except ImportError as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted before the first request left: there is nothing to report") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _replay(args: argparse.Namespace) -> int:
    import sys

    from controlplane.command import CommandError
    from testbed.replay import source

    target = _target(args)
    _check(args)
    folder = _folder(args)
    wanted = source.Wanted(
        args.trace, format=args.format, columns=tuple(args.column), durations=args.durations, strict=args.strict,
        seed=args.seed, start=args.start, end=args.end, limit=args.limit, speed=args.speed, load=args.load,
        duration=args.duration, request=args.request, seconds_per_work=args.seconds_per_work,
    )  # fmt: skip
    if args.load is not None and args.capacity is None and args.servers is None:
        _refuse(
            f"--load {args.load:g} is a share of a capacity, and that is not known: say --capacity WORK, name the"
            " backends with --servers, or have it measured with --capacity measure"
        )
    trace = source.load(wanted)
    if trace.problems.bad:
        print(trace.problems, file=sys.stderr)
    keep_alive = args.connections == "keepalive"
    plan = trace.plan(target, capacity=_capacity(args, trace, target), keep_alive=keep_alive)
    try:
        replay, written, found = _run(args, trace, plan, folder)
    except OSError as error:
        raise CommandError(f"{error.filename or args.out}: {(error.strerror or str(error)).lower()}") from None
    return _say(args, replay, written, found)


def _target(args: argparse.Namespace) -> Target:
    from dataclasses import replace

    from controlplane.command import CommandError
    from testbed.load.generator import parse_url

    headers = []
    for header in args.header:
        name, colon, value = (part.strip() for part in header.partition(":"))
        if not colon or not name or not name.isascii() or any(c <= " " or c == "\x7f" for c in name):
            _refuse(f"--header '{header}': expected NAME:VALUE")
        if not value.isprintable():
            _refuse(f"--header '{name}': the value holds what no header may")
        headers.append((name, value))
    try:
        return replace(parse_url(args.target), headers=tuple(headers))
    except ValueError as error:
        _refuse(f"--target: {error}")
    except OSError as error:
        raise CommandError(f"--target: {error}") from None


def _check(args: argparse.Namespace) -> None:
    from testbed.traces.columns import parse_columns
    from testbed.traces.record import TraceError

    if args.timeout <= 0 or args.measure_for <= 0:
        _refuse("--timeout and --measure-for must be above 0")
    if args.capacity not in (None, _MEASURE):
        try:
            if not 0 < float(args.capacity) < float("inf"):
                raise ValueError
        except ValueError:
            _refuse(f"--capacity: expected work a second above 0, or `{_MEASURE}`, not '{args.capacity}'")
    if args.capacity is not None and args.servers is not None:
        _refuse("--capacity and --servers both tell the capacity: give one")
    try:
        parse_columns(args.column)
    except TraceError as error:
        _refuse(f"--column: {error}")


def _folder(args: argparse.Namespace) -> Folder | None:
    from pathlib import Path

    from controlplane.command import CommandError
    from testbed.replay.results import Folder

    if args.out is None:
        return None
    try:
        return Folder(Path(args.out), args.requests)
    except OSError as error:
        raise CommandError(f"--out {args.out}: {(error.strerror or str(error)).lower()}") from None


def _capacity(args: argparse.Namespace, trace: Trace, target: Target) -> float | None:
    """Work a second, in the unit of the trace; None when nobody asked for a load and nobody told."""
    import sys

    from testbed.replay import capacity, source

    if args.servers is not None:
        if trace.unit != "s":
            _refuse("--servers tell seconds of work a second, and the trace's work is none: add --seconds-per-work")
        return sum(capacity.told(address.strip()) for address in args.servers.split(","))
    if args.capacity == _MEASURE:
        print(f"measuring the capacity for {args.measure_for:g} s", file=sys.stderr)
        keep_alive = args.connections == "keepalive"
        request = source.wired(target, trace.paths(target, len(trace.records)), keep_alive)
        found = capacity.measured(
            target, request, trace.load_work, seconds=args.measure_for, connections=args.measure_connections
        )
        print(f"capacity: {found:,.6g} {trace.unit} a second", file=sys.stderr)
        return found
    return None if args.capacity is None else float(args.capacity)


def _run(
    args: argparse.Namespace, trace: Trace, plan: Plan, folder: Folder | None
) -> tuple[Replay, list[str], dict[str, Any]]:
    """Send, and write what came of it; a signal ends the sending, and never the writing."""
    import contextlib
    import os
    import sys

    from testbed.load.priority import priority
    from testbed.load.report import LATE_LIMIT_MS, LATE_MAX_LIMIT_MS, summarize
    from testbed.replay.live import Live
    from testbed.replay.origin import origin
    from testbed.replay.results import Replay, document
    from testbed.replay.run import Interrupts, run

    settings = _settings(args)
    came_from = origin({**settings, "sha256": plan.sha256})
    with Interrupts() as interrupts:
        with contextlib.nullcontext() if args.quiet else Live(plan) as live, priority(args.priority) as got:
            outcome = run(plan, interrupts, live, keep_alive=args.connections == "keepalive", timeout_s=args.timeout)
        if got != args.priority:
            print(f"--priority {args.priority} was not allowed; the generator had {got}", file=sys.stderr)
        came_from["priority"] = got
        came_from["load_average_after"] = os.getloadavg()[0]
        summary = summarize(
            outcome.result,
            late_limit_ms=LATE_LIMIT_MS if args.late_p99 is None else args.late_p99 * 1e3,
            late_max_limit_ms=LATE_MAX_LIMIT_MS if args.late_max is None else args.late_max * 1e3,
        )
        replay = Replay(trace, plan, outcome, summary, came_from, settings)
        found = document(replay)
        written = folder.write(replay, found) if folder is not None else []
    return replay, written, found


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on; not where they go."""
    left_out = {"out", "requests", "quiet", "json"}
    return {name: value for name, value in sorted(vars(args).items()) if name not in left_out}


def _say(args: argparse.Namespace, replay: Replay, written: list[str], found: dict[str, Any]) -> int:
    import sys

    from controlplane.command import print_json
    from testbed.replay.results import text

    if args.json:
        print_json({**found, "files": written})
        for problem in replay.failed:
            print(f"vickrey replay: {problem}", file=sys.stderr)
    else:
        print(text(found))
        if written:
            print("\n" + "\n".join(written))
    return 1 if replay.failed else 0
