"""Does a replay measure a queue as theory has it? Poisson arrivals and exponential work at one real server, M/M/k.

    python benchmarks/replay_mmk.py [--quick] [--json] [--case k,rho …]

The trace is a made-up one, sent by the code of `vickrey replay` over HTTP to an aiohttp backend with k workers. Its
mean completion time stands beside Erlang's formula and beside the same arrivals and works in a simulated queue. A run
of finite length scatters about the formula by itself: `range` holds 95 % of simulated runs of that length, from other
seeds. The gap to the same arrivals has no such scatter: it is what the network, the server's loop and the generator
add. Both processes get a real-time priority where that is allowed, as what is asked is not what other programs of a
busy machine do to a server's timers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from testbed.farm import Farm
from testbed.load.generator import parse_url
from testbed.load.priority import priority
from testbed.load.report import summarize
from testbed.reference import central_queue, mmk_mean_s
from testbed.replay import source
from testbed.replay.run import Interrupts, run

MEAN_S = 0.02
CASES = ((4, 0.5), (8, 0.6), (16, 0.7))
SECONDS, QUICK_SECONDS = 150.0, 20.0
REPLICAS = 200


def plan_of(k: int, rho: float, seconds: float, seed: int, url: str) -> source.Plan:
    rate = rho * k / MEAN_S
    wanted = source.Wanted(f"poisson:rate={rate:.9g},mean_work={MEAN_S}", duration=seconds, seed=seed)
    return source.load(wanted).plan(parse_url(url), capacity=float(k))


def simulated_s(plan: source.Plan, k: int) -> float:
    return float(central_queue(plan.schedule.arrival_s, plan.work, [1.0], k).mean())


def measure(k: int, rho: float, seconds: float, seed: int) -> dict[str, Any]:
    with Farm.of_speeds([1.0], workers=k) as farm:
        plan = plan_of(k, rho, seconds, seed, f"http://{farm.addresses[0]}/")
        for pid in farm.pids:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
        with Interrupts() as interrupts, priority("realtime"):
            outcome = run(plan, interrupts)
        if outcome.interrupted:
            raise KeyboardInterrupt
        stats = farm.stats()[0]
    summary = summarize(outcome.result)
    theory = mmk_mean_s(k, rho, MEAN_S)
    others = np.array(
        [simulated_s(plan_of(k, rho, seconds, 1000 + i, "http://127.0.0.1/"), k) for i in range(REPLICAS)]
    )
    low, high = np.percentile(others / theory - 1, (2.5, 97.5)).tolist()
    measured = summary.mean / 1e3
    return {
        "k": k,
        "rho": rho,
        "flows": summary.requests,
        "errors": summary.requests - summary.answered,
        "theory_ms": theory * 1e3,
        "simulated_ms": simulated_s(plan, k) * 1e3,
        "measured_ms": summary.mean,
        "gap_to_simulated": measured / simulated_s(plan, k) - 1,
        "gap_to_theory": measured / theory - 1,
        "range_of_such_runs": [low, high],
        "service_late_ms": stats["late_ms"] / max(stats["served"], 1),
        "generator_late_p99_ms": summary.late_p99,
        "generator_cpu_us": summary.cpu_us,
        "valid": summary.is_valid,
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s a case instead of {SECONDS:g}")
    parser.add_argument("--case", action="append", metavar="k,rho", help="workers and load (default: three)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        cases = [(int(k), float(rho)) for k, rho in (c.split(",") for c in args.case)] if args.case else list(CASES)
        if not all(k >= 1 and 0 < rho < 1 and math.isfinite(rho) for k, rho in cases):
            raise ValueError
    except ValueError:
        parser.error("a case is k,rho: workers, and a load between 0 and 1")
    rows = []
    try:
        for k, rho in cases:
            rows.append(measure(k, rho, QUICK_SECONDS if args.quick else SECONDS, args.seed))
            print(line(rows[-1]), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("ended early", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(line(row) for row in rows))
    return 0 if all(abs(row["gap_to_simulated"]) < 0.05 and row["valid"] for row in rows) else 1


def line(row: dict[str, Any]) -> str:
    low, high = row["range_of_such_runs"]
    return (
        f"M/M/{row['k']} rho {row['rho']:.2f}  {row['flows']:6,} flows  mean ms: theory {row['theory_ms']:.2f}"
        f"  same arrivals {row['simulated_ms']:.2f}  measured {row['measured_ms']:.2f}"
        f"  gap {row['gap_to_simulated']:+.2%} to the same arrivals, {row['gap_to_theory']:+.2%} to theory"
        f" (range {low:+.1%} to {high:+.1%})  generator late p99 {row['generator_late_p99_ms']:.2f} ms,"
        f" {row['generator_cpu_us']:.0f} µs a request" + ("" if row["valid"] else "  INVALID")
    )


if __name__ == "__main__":
    sys.exit(main())
