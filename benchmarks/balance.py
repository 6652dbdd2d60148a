"""How well flows are spread: Vickrey, HAProxy and nginx before eight real servers of unequal speed, on the same
arrivals, over a grid of worker counts, loads and demands.

    python benchmarks/balance.py [--quick] [--json] [--workers 1 4] [--loads 50 70 85 95] [--demand exponential pareto]
                                 [--seconds S] [--rounds N] [--quiet MINUTES] [--balancers NAME …]

Servers have speeds 1, 1, 1, 1, 2, 2, 4, 4 and one or four workers; a request brings 40 ms of work at speed 1,
exponential or bounded Pareto (shape 1.5, largest 100 times the smallest). Each point of the grid is a scenario as
`vickrey compare` runs it (testbed/compare): freshly started balancers, told nothing but what their names say, the same
arrivals and demands in each round, and as the yardstick a central queue simulated on the same arrivals; beside it one
that is as far from the servers as a balancer is, whose workers wait for the way of an answer and of the next request.
Figures are geometric means over rounds, and ratios those of the ratios of one round each; their 95 % interval is
Student's t from three rounds on. Ctrl-C ends it with the figures of the rounds that had ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.commands.compare import takes_s
from testbed.compare import machine, variant
from testbed.compare.figures import Ratio, paired, references, usable
from testbed.compare.outcome import document, ratio_of
from testbed.compare.runner import CENTRAL, OVER_PATH, Runner
from testbed.compare.scenario import Scenario
from testbed.compare.variant import OURS, Variant
from testbed.demand import SHAPES
from testbed.interrupts import Deferred

GROUPS = ((4, 1.0), (2, 2.0), (2, 4.0))
FIGURES = ("mean", "p50", "p90", "p99")
YARDSTICKS = (CENTRAL, OVER_PATH)
DEFAULT = (
    OURS,
    "haproxy leastconn",
    "haproxy random",
    "haproxy roundrobin",
    "haproxy leastconn+W+Q",
    "nginx least_conn",
)


def named(text: str) -> Variant:
    """A balancer by its name; +W and +Q stand for +weights and +maxconn."""
    try:
        return variant.parse(text.replace("+W", "+weights").replace("+Q", "+maxconn"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def scenario(args: argparse.Namespace, workers: int, shape: str, load: float) -> Scenario:
    return Scenario.model_validate(
        {
            "title": f"{workers} worker{'s' * (workers > 1)} a server, {shape} demand, {load:g}% of capacity",
            "shows": "",
            "servers": tuple({"count": count, "speed": speed, "workers": workers} for count, speed in GROUPS),
            "traffic": ({"demand": {"shape": shape, "mean": f"{args.mean}ms"}},),
            "load": load / 100,
            "seconds": f"{args.seconds}s",
            "warmup": f"{args.warmup}s",
            "rounds": args.rounds,
            "seed": args.seed,
            "variants": tuple(args.balancers),
        }
    )


def measure(args: argparse.Namespace, workers: int, shape: str, load: float) -> dict[str, Any]:
    """One point of the grid."""
    wanted = scenario(args, workers, shape, load)
    progress(wanted.title)
    with Deferred() as signals:
        runner = Runner(wanted, say=progress, direct_s=args.direct, ready=ready(args.quiet))
        invalid = []
        try:
            runner.run(signals)
        except TimeoutError as error:  # what was measured before counts
            invalid.append(str(error))
    found = runner.found
    if found.interrupted:
        if not found.runs:
            raise KeyboardInterrupt
        invalid.append("interrupted: what had ended before counts")
    outcome = document(wanted.title, found)
    invalid += [f"{run.variant}: {what}" for run in found.runs for what in run.invalid]
    invalid += [f"{run.variant}: CPU {run.busy:.0%} busy" for run in found.runs if run.busy > machine.BUSY_LIMIT]
    rows = {}
    over_path = references(found, OVER_PATH)
    for one in [*(one for one in outcome["references"] if one["name"] in YARDSTICKS), *outcome["balancers"]]:
        is_reference = one["name"] in YARDSTICKS
        to_central = one["to_central"].get("mean", {})
        runs = [] if is_reference else usable(found, one["name"])
        to_path = paired(references(found, one["name"]) if is_reference else runs, over_path) if over_path else {}
        rows[one["name"]] = {
            **{f"{figure}_ms": one[figure] for figure in FIGURES},
            **{f"{figure}_ratio": one["to_central"].get(figure, {}).get("ratio") for figure in FIGURES},
            "mean_interval": [to_central.get("low"), to_central.get("high")],
            "over_path_ratio": to_path["mean"].as_dict()["ratio"] if to_path else None,
            "unanswered": one["unanswered"],
            "errors": one["errors"],
            "generator_late_p99_ms": max((run.summary.late_p99 for run in runs), default=0.0),
            "rounds": len(references(found, one["name"]) if is_reference else runs),
        }
    return {
        "title": wanted.title,
        "workers": workers,
        "demand": shape,
        "load": load / 100,
        "direct_overhead_ms": outcome["direct_overhead_ms"],
        "service_late_ms": outcome["service_late_ms"],
        "balancers": rows,
        "verdict": outcome["verdict"],
        "invalid": invalid,
        "interrupted": found.interrupted,
        "not_measured": {**found.absent, **found.failed},
    }


def ready(minutes: float | None) -> Callable[[Deferred], None]:
    """What a run waits for: nothing, or a quiet machine."""
    if minutes is None:
        return Deferred.check
    return lambda signals: machine.await_quiet(signals, progress, 60 * minutes)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(point: dict[str, Any]) -> str:
    lines = [
        "",
        f"{point['title']}; FCT ms (ratio to the central queue); direct path {point['direct_overhead_ms'] or 0:.2f} ms",
        f"{'':<42}"
        + "".join(f"{figure:>17}" for figure in FIGURES)
        + f"{'mean, 95 %':>17}{'mean, over path':>17}{'unanswered':>12}{'errors':>8}",
    ]
    for name, row in point["balancers"].items():
        cells = (f"{row[f'{figure}_ms']:.1f} ({row[f'{figure}_ratio'] or 0:.2f})" for figure in FIGURES)
        low, high = row["mean_interval"]
        interval = f"{low:.3f} … {high:.3f}" if low and high else "-"
        lines.append(
            f"{name:<42}"
            + "".join(f"{cell:>17}" for cell in cells)
            + f"{interval:>17}{row['over_path_ratio'] or 0:>17.2f}{row['unanswered']:>12}{row['errors']:>8}"
        )
    lines += [f"INVALID  {what}" for what in point["invalid"]]
    return "\n".join(lines)


def verdict(points: list[dict[str, Any]]) -> list[str]:
    """Against the aims: below every other balancer that was told as little, and within 10 % of the central queue."""
    if any(point["interrupted"] for point in points):
        return ["interrupted: no verdict"]
    if not any(OURS in point["balancers"] for point in points):
        return [f"{OURS} was not measured: no verdict"]
    missed, told_ones = [], []
    for point in points:
        for line in point["verdict"]:
            ratio: Ratio = ratio_of(line)
            what = f"{point['title']}: {line['figure']} {ratio} of {line['theirs']}'s"
            if line["told"]:
                told_ones.append(f"{what}, which was told")
            elif not ratio.ratio < 1:  # also where they have no round in common
                missed.append(f"missed: {what}")
        ours = point["balancers"].get(OURS, {}).get("mean_ratio")
        if ours is not None and ours > 1.10:
            missed.append(f"missed: {point['title']}: mean {ours:.2f} of the central queue's, aim 1.10")
    met = (
        "all aims met: mean and p99 below every balancer's that was told nothing, mean within 10 % of the central queue"
    )
    return [*(missed or [met]), *told_ones]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="workers a server (default 1 4)")
    parser.add_argument("--loads", type=float, nargs="+", default=[50, 70, 85, 95], help="percent of capacity")
    parser.add_argument("--demand", nargs="+", choices=list(SHAPES), default=["exponential", "pareto"])
    parser.add_argument(
        "--mean", type=float, default=40.0, help="work of a request, ms on a server of speed 1 (default 40)"
    )
    parser.add_argument("--balancers", nargs="+", type=named, default=[*map(named, DEFAULT)], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=30.0, help="counted part of a run (default 30)")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before it (default 5)")
    parser.add_argument("--direct", type=float, default=6.0, help="length of the direct measurement (default 6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--quiet",
        type=float,
        metavar="MINUTES",
        help="begin each run only when host and other processes leave the machine in peace; give up after so long",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of 8 s at 70 and 85 %%, one worker, exponential"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.workers, args.loads, args.demand = [1], [70, 85], ["exponential"]
        args.seconds, args.warmup, args.direct, args.rounds = 8.0, 3.0, 3.0, 1
    grid = [(workers, shape, load) for workers in args.workers for shape in args.demand for load in args.loads]
    progress(f"this takes about {len(grid) * takes_s(scenario(args, *grid[0])) / 60:.0f} minutes")
    begun = time.time()
    points = []
    for workers, shape, load in grid:
        points.append(measure(args, workers, shape, load))
        progress(table(points[-1]))
        if points[-1]["interrupted"]:
            break
    missing = {name: why for point in points for name, why in point["not_measured"].items()}
    if args.json:
        result = {
            "points": points,
            "verdict": verdict(points),
            "not_measured": missing,
            "seconds": args.seconds,
            "rounds": args.rounds,
            "seed": args.seed,
            "took_s": time.time() - begun,
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(result))
    else:
        print("\n".join(map(table, points)))
        print("\n" + "\n".join(verdict(points)))
        for name, why in missing.items():
            print(f"not measured: {name}: {why}")
    return 1 if any(point["invalid"] for point in points) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(1)
