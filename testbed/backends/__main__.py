"""`python -m testbed.backends`: serve one backend, or several of one process, until TERM or Ctrl-C.

Several backends may share the event loop of one process (--spec, a JSON list): that costs less CPU than a process
each, and at the rates of the testbed it delays an answer by some ten microseconds. When all listen, one line of JSON
on standard output names their ports.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import sys
from dataclasses import fields

from testbed import clock
from testbed.backends.backend import Backend, Spec
from testbed.demand import SHAPES


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m testbed.backends", description="An HTTP server of known capacity.")
    p.add_argument("--name", default="server")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=0, help="0: any free port")
    p.add_argument("--control", type=int, default=0, help="port that faults leave alone; 0: any free port")
    p.add_argument("--workers", type=int, default=1, help="requests served at once")
    p.add_argument("--speed", type=float, default=1.0, help="work done in a second, in seconds of work at speed 1")
    p.add_argument("--limit", type=int, help="requests that may wait before 503 (default: any number)")
    p.add_argument("--demand", default="fixed:0", help=f"SHAPE:MEAN_MS without ?d=; SHAPE is {', '.join(SHAPES)}")
    p.add_argument("--size", type=int, default=64, help="bytes of body without ?size=")
    p.add_argument("--cpu", action="store_true", help="burn CPU for the service time instead of waiting")
    p.add_argument("--turn-ns", type=float, default=5.0, help="work of one of ?n=, in ns (default 5)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--spec", help="JSON list of objects with these options as keys: several backends in one process")
    return p


def specs(args: argparse.Namespace) -> list[Spec]:
    if args.spec is None:
        return [Spec(**{field.name: getattr(args, field.name) for field in fields(Spec)})]
    return [Spec(**entry) for entry in json.loads(args.spec)]


async def serve(wanted: list[Spec]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    backends = [Backend(spec) for spec in wanted]
    try:
        for backend in backends:
            await backend.start()
        ports = [{"name": b.spec.name, "port": b.port, "control": b.control_port} for b in backends]
        print(json.dumps(ports), flush=True)
        gc.freeze()  # what start-up made stays; collections look at requests only
        await stop.wait()
    finally:
        await asyncio.gather(*(backend.stop() for backend in backends))


def main() -> int:
    args = parser().parse_args()
    try:
        wanted = specs(args)
    except (TypeError, ValueError) as error:
        print(f"testbed.backends: {error}", file=sys.stderr)
        return 2
    try:
        clock.run(serve(wanted))
    except OSError as error:
        print(f"testbed.backends: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
