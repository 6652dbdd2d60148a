"""`python -m testbed.load URL`: send open-loop load at a URL and sum up the flow completion times."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from testbed import clock
from testbed.demand import SHAPES, parse_demand
from testbed.load.generator import Generator, Result, parse_url
from testbed.load.report import summarize, write_csv
from testbed.load.schedule import Schedule, from_csv, poisson


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m testbed.load",
        description="Open-loop load: requests leave at their scheduled times, whatever the answers do.",
        epilog="Exit status: 0 done, 1 the run is invalid or no request was answered, 2 bad usage.",
    )
    p.add_argument("url")
    p.add_argument("--rate", type=float, default=100.0, help="Poisson arrivals a second (default 100)")
    p.add_argument("--seconds", type=float, default=10.0, help="length of the schedule (default 10)")
    p.add_argument("--arrivals", type=Path, help="CSV with the columns arrival_s, demand_ms, instead of --rate")
    p.add_argument("--demand", help=f"SHAPE:MEAN_MS, sent as ?d=; SHAPE is {', '.join(SHAPES)} (default: none sent)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for an answer (default 30)")
    p.add_argument("--close", action="store_true", help="a new connection for every request")
    p.add_argument("--csv", type=Path, help="write one line a request")
    p.add_argument("--json", action="store_true", help="the summary as JSON")
    return p


async def send(args: argparse.Namespace, schedule: Schedule) -> Result:
    generator = Generator(parse_url(args.url), schedule, timeout_s=args.timeout, keep_alive=not args.close)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, generator.abort)
    return await generator.run()


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        demand = parse_demand(args.demand) if args.demand else None
        if args.arrivals:
            schedule = from_csv(args.arrivals, args.seed, demand)
        else:
            schedule = poisson(args.rate, args.seconds, args.seed, demand)
        parse_url(args.url)
    except (ValueError, OSError) as error:
        print(f"testbed.load: {error}", file=sys.stderr)
        return 2
    result = clock.run(send(args, schedule))
    summary = summarize(result)
    if args.csv:
        write_csv(result, args.csv)
    print(json.dumps(summary.as_dict()) if args.json else summary)
    return 0 if summary.is_valid and summary.answered else 1


if __name__ == "__main__":
    sys.exit(main())
