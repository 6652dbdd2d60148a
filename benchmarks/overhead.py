"""What forwarding costs: HAProxy, nginx and Vickrey in turn on one core, client and origin on the other.

    python benchmarks/overhead.py [--quick] [--json] [--rounds N] [--seconds S] [--only CASE …] [--subjects NAME …]

CPU per request is utime + stime of all processes of the balancer over what wrk got answered. Each round measures
every subject in every case, with a freshly started balancer; figures are medians over rounds, ratios are medians of
the ratios to HAProxy http of the same round. Latency is measured by the open-loop generator at 1,000 requests a
second, above the direct path of the same round, because a closed loop would hide what batching adds. For Vickrey the
data plane counts, as the balancer's own work; `vickrey … all` includes supervisor and controller, whose work does not
grow with the traffic.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from testbed import clock
from testbed.load.generator import Generator, Target, raise_descriptor_limit
from testbed.load.schedule import poisson
from testbed.peers import haproxy, nginx, vickrey
from testbed.peers.peer import Peer, Server
from testbed.processes import StartError, cpu_seconds, rss_bytes

REFERENCE = "haproxy http"
LATENCY_RATE = 1000.0
IDLE_CONNECTIONS = 2000


@dataclass(frozen=True)
class Case:
    name: str
    path: str
    connections: int
    closes: bool = False


CASES = [
    Case("keep-alive", "/small", 64),
    Case("new connection", "/small", 64, closes=True),
    Case("10 KB", "/10k", 64),
    Case("1 MB", "/1m", 16),
]

SUBJECTS: dict[str, Callable[[list[Server], int], Peer]] = {
    "haproxy http": lambda servers, cpu: haproxy.start(servers, mode="http", cpu=cpu),
    "vickrey http": lambda servers, cpu: vickrey.start(servers, mode="http", cpu=cpu),
    "nginx http": lambda servers, cpu: nginx.start(servers, mode="http", cpu=cpu),
    "haproxy tcp": lambda servers, cpu: haproxy.start(servers, mode="tcp", cpu=cpu),
    "vickrey tcp": lambda servers, cpu: vickrey.start(servers, mode="tcp", cpu=cpu),
    "nginx stream": lambda servers, cpu: nginx.start(servers, mode="tcp", cpu=cpu),
}

Rows = dict[str, dict[str, list[float]]]  # case: subject: one value a round


def own_pids(peer: Peer) -> list[int]:
    """The processes that forward."""
    return peer.roles()["data plane"] if isinstance(peer, vickrey.Vickrey) else peer.pids()


def wrk(port: int, case: Case, seconds: int) -> tuple[int, int]:
    """Requests answered, and errors."""
    command = ["wrk", "-t1", f"-c{case.connections}", f"-d{seconds}s", "--timeout", "10s"]
    if case.closes:
        command += ["-H", "Connection: close"]
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{case.path}"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"(\d+) requests in", output)
    if not found:
        raise RuntimeError(f"wrk said: {output}")
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", output))
    # A connection that the server closes after its answer, as it was asked to, counts as a read error with some
    # servers.
    if case.closes:
        errors = sum(int(n) for n in re.findall(r"(?:connect|write|timeout) (\d+)", output))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return int(found[1]), errors + (int(bad[1]) if bad else 0)


def cost_us(peer: Peer, case: Case, seconds: int) -> tuple[float, float, float, int]:
    """CPU microseconds a request (own, all), requests a second, errors."""
    wrk(peer.port, case, 1)
    own, everything = own_pids(peer), peer.pids()
    own_before, all_before, begun = cpu_seconds(own), cpu_seconds(everything), time.monotonic()
    requests, errors = wrk(peer.port, case, seconds)
    took = time.monotonic() - begun
    own_s, all_s = cpu_seconds(own) - own_before, cpu_seconds(everything) - all_before
    return own_s / requests * 1e6, all_s / requests * 1e6, requests / took, errors


def latency_us(port: int, seconds: float, seed: int) -> tuple[float, float, float]:
    """p50 and p99 from sending to the last byte, and the p99 of the generator's lateness, at LATENCY_RATE."""
    schedule = poisson(LATENCY_RATE, seconds, seed)
    result = clock.run(Generator(Target("127.0.0.1", port, "/small"), schedule, warm_connections=32).run())
    records = result.records[result.records["status"] == 200]
    # From sending, not from the schedule: the generator's own wake-up is the same for all and larger than what is
    # measured.
    took = (records["done_s"] - records["sent_s"]) * 1e6
    p50, p99 = np.percentile(took, (50, 99)).tolist()
    return p50, p99, float(np.percentile((records["sent_s"] - records["scheduled_s"]) * 1e6, 99))


def idle_bytes(peer: Peer, connections: int) -> float:
    """Resident memory that an idle keep-alive connection costs: after one request each."""
    request = b"GET /small HTTP/1.1\r\nHost: idle\r\n\r\n"

    def open_one() -> socket.socket:
        client = socket.create_connection(("127.0.0.1", peer.port), timeout=10)
        client.sendall(request)
        if not client.recv(4096).startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{peer.name}: an idle connection was refused")
        return client

    clients = [open_one() for _ in range(50)]  # what the first ones cost is the program's own
    try:
        time.sleep(0.3)
        before = rss_bytes(own_pids(peer))
        clients += [open_one() for _ in range(connections)]
        time.sleep(0.5)
        return (rss_bytes(own_pids(peer)) - before) / connections
    finally:
        for client in clients:
            client.close()


class Overhead:
    """The measurement: rounds of cases of subjects."""

    def __init__(self, args: argparse.Namespace, origin: Peer, proxy_cpu: int) -> None:
        self.args = args
        self.servers = [Server(f"127.0.0.1:{origin.port}")]
        self.origin = origin
        self.proxy_cpu = proxy_cpu
        self.cpu: Rows = {}
        self.rate: Rows = {}
        self.p50: dict[str, list[float]] = {}
        self.p99: dict[str, list[float]] = {}
        self.late_us: list[float] = []
        self.idle: dict[str, list[float]] = {}
        self.errors: dict[str, int] = {}
        self.missing: dict[str, str] = {}

    def start(self, subject: str) -> Peer | None:
        if subject in self.missing:
            return None
        try:
            return SUBJECTS[subject](self.servers, self.proxy_cpu)
        except (StartError, OSError) as error:
            self.missing[subject] = str(error)
            return None

    def note(self, rows: Rows, case: str, subject: str, value: float) -> None:
        rows.setdefault(case, {}).setdefault(subject, []).append(value)

    def run(self) -> None:
        wanted = [case for case in CASES if not self.args.only or case.name in self.args.only]
        for number in range(self.args.rounds):
            order = list(self.args.subjects)
            order = order[number % len(order) :] + order[: number % len(order)]
            for case in wanted:
                for subject in order:
                    self.cost(case, subject)
            if not self.args.only or "latency" in self.args.only:
                self.latency(order, number)
        if not self.args.only or "memory" in self.args.only:
            self.memory()

    def cost(self, case: Case, subject: str) -> None:
        peer = self.start(subject)
        if peer is None:
            return
        with peer:
            own, everything, rate, errors = cost_us(peer, case, self.args.seconds)
            self.note(self.cpu, case.name, subject, own)
            if isinstance(peer, vickrey.Vickrey):
                self.note(self.cpu, case.name, f"{subject} all", everything)
            self.note(self.rate, case.name, subject, rate)
            if errors:
                self.errors[f"{subject}, {case.name}"] = self.errors.get(f"{subject}, {case.name}", 0) + errors
            self.progress(f"{case.name:<15} {subject:<14} {own:8.1f} µs {rate:9.0f}/s")

    def latency(self, order: list[str], seed: int) -> None:
        direct50, direct99, late = latency_us(self.origin.port, self.args.seconds, seed)
        self.late_us.append(late)
        for subject in order:
            peer = self.start(subject)
            if peer is None:
                continue
            with peer:
                latency_us(peer.port, 0.5, seed)
                p50, p99, late = latency_us(peer.port, self.args.seconds, seed)
                self.late_us.append(late)
                self.p50.setdefault(subject, []).append(p50 - direct50)
                self.p99.setdefault(subject, []).append(p99 - direct99)
                self.progress(f"latency         {subject:<14} {p50 - direct50:+8.0f} µs p50 {p99 - direct99:+.0f} p99")

    def memory(self) -> None:
        for _ in range(min(self.args.rounds, 3)):
            for subject in self.args.subjects:
                peer = self.start(subject)
                if peer is not None:
                    with peer:
                        self.idle.setdefault(subject, []).append(idle_bytes(peer, IDLE_CONNECTIONS))

    def progress(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def document(self) -> dict[str, Any]:
        return {
            "cpu_us_per_request": {c: {s: statistics.median(v) for s, v in row.items()} for c, row in self.cpu.items()},
            "cpu_ratio": {c: {s: paired(v, row.get(REFERENCE)) for s, v in row.items()} for c, row in self.cpu.items()},
            "requests_per_second": {c: {s: statistics.median(v) for s, v in r.items()} for c, r in self.rate.items()},
            "added_p50_us": {s: statistics.median(v) for s, v in self.p50.items()},
            "added_p99_us": {s: statistics.median(v) for s, v in self.p99.items()},
            "generator_late_p99_us": max(self.late_us, default=0.0),
            "idle_connection_kb": {s: statistics.median(v) / 1024 for s, v in self.idle.items()},
            "errors": self.errors,
            "not_measured": self.missing,
            "rounds": self.args.rounds,
            "seconds": self.args.seconds,
            "load_average": os.getloadavg()[0],
        }


def paired(values: list[float], reference: list[float] | None) -> float | None:
    """Median of the ratios of one round each."""
    if not reference or len(reference) != len(values):
        return None
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def table(document: dict[str, Any], subjects: list[str]) -> str:
    measured = {s for row in document["cpu_us_per_request"].values() for s in row}
    measured |= set(document["added_p50_us"]) | set(document["idle_connection_kb"])
    columns = [s for subject in subjects for s in (subject, f"{subject} all") if s in measured]
    width = max((len(column) for column in columns), default=0) + 2
    lines = ["CPU µs a request (ratio to HAProxy http)", " " * 26 + "".join(f"{column:>{width}}" for column in columns)]

    def line(name: str, cells: dict[str, str]) -> None:
        lines.append(f"{name:<26}" + "".join(f"{cells.get(column, '–'):>{width}}" for column in columns))

    for case, row in document["cpu_us_per_request"].items():
        ratio = document["cpu_ratio"][case]
        line(case, {s: f"{us:.1f}" + (f" ({ratio[s]:.2f})" if ratio[s] else "") for s, us in row.items()})
    for case, row in document["requests_per_second"].items():
        line(f"requests/s, {case}", {s: f"{rate:.0f}" for s, rate in row.items()})
    for name, key, digits in (
        ("added p50 µs at 1,000/s", "added_p50_us", 0),
        ("added p99 µs at 1,000/s", "added_p99_us", 0),
        ("KB per idle connection", "idle_connection_kb", 2),
    ):
        if document[key]:
            line(name, {s: f"{value:.{digits}f}" for s, value in document[key].items()})
    for what, count in document["errors"].items():
        lines.append(f"INVALID  {what}: {count} requests failed")
    for subject, why in document["not_measured"].items():
        lines.append(f"not measured: {subject}: {why}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement (default 3)")
    parser.add_argument("--quick", action="store_true", help="one round of one second each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        choices=[*(case.name for case in CASES), "latency", "memory"],
        help="of: %(choices)s",
    )
    parser.add_argument("--subjects", nargs="+", metavar="NAME", choices=list(SUBJECTS), default=list(SUBJECTS))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 1
    for program, found in (("wrk", shutil.which("wrk")), ("nginx", nginx.program())):
        if found is None:
            print(f"overhead: {program} is not installed (Debian: apt-get install {program})", file=sys.stderr)
            return 1
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("overhead: two cores are needed, one for the balancer, one for client and origin", file=sys.stderr)
        return 1
    raise_descriptor_limit()
    os.sched_setaffinity(0, {cores[1]})
    with nginx.start_origin(cpu=cores[1]) as origin:
        overhead = Overhead(args, origin, cores[0])
        if "nginx stream" in args.subjects and not nginx.has_stream():
            overhead.missing["nginx stream"] = "no stream module (Debian: apt-get install libnginx-mod-stream)"
        overhead.run()
    document = overhead.document()
    print(json.dumps(document) if args.json else table(document, args.subjects))
    return 0


if __name__ == "__main__":
    sys.exit(main())
