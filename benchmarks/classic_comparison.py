"""The classic comparison: sixteen servers, every fourth one four times as fast, load 0.9; one balancer, and several.

    python benchmarks/classic_comparison.py                       # the table of docs/simulator.md, some minutes
    python benchmarks/classic_comparison.py --quick               # a tenth of the flows: wider intervals
    python benchmarks/classic_comparison.py --plot docs/images/classic-comparison.svg

Mean and 99th percentile of the completion time in mean service times of the average server, with 95 % intervals of the
mean over the seeds. Several balancers see only their own flows. The worlds are the scenarios heterogeneous-4x and
balancers-2, -4 and -6, with more flows; EXPECTED is what was known before, from a throw-away simulator. Exit status 1
when a figure is not what was expected.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.simulation import svg
from controlplane.simulation.outcome import document
from controlplane.simulation.pool import cores, execute_all
from controlplane.simulation.runs import jobs_of
from controlplane.simulation.scenario import Policy
from controlplane.simulation.scenario_file import load

UNIT = 0.010  # seconds: mean service time of a server of average speed in these scenarios

POLICIES = tuple(
    Policy.model_validate(policy)
    for policy in (
        {"name": "lsq", "label": "least connections"},
        {"name": "sed", "label": "SED, (n + 1)/w"},
        {"name": "gsed", "c": 0.0, "label": "(K·n + 0)/w"},
        {"name": "gsed", "c": 0.5, "label": "(K·n + ½)/w"},
        {"name": "adaptive", "weights": "equal", "label": "adaptive, told nothing"},
    )
)
FARMS = {1: "heterogeneous-4x", 2: "balancers-2", 4: "balancers-4", 6: "balancers-6"}

# By number of balancers and policy: where the mean must lie.
EXPECTED = {
    (1, "least connections"): (1.8, 2.0),
    (1, "SED, (n + 1)/w"): (1.85, 2.1),
    (1, "(K·n + 0)/w"): (1.45, 1.65),
    (1, "(K·n + ½)/w"): (1.45, 1.65),
    (1, "adaptive, told nothing"): (1.4, 1.6),
    (4, "least connections"): (3.3, 3.7),
    (4, "SED, (n + 1)/w"): (4.5, 4.9),
    (4, "(K·n + ½)/w"): (2.1, 2.4),
    (4, "adaptive, told nothing"): (1.8, 2.0),
}


def outcomes(flows: int, seeds: int) -> dict[int, dict[str, Any]]:
    """Return the document of each farm, by its number of balancers."""
    changes = {"policies": POLICIES, "seeds": tuple(range(1, seeds + 1)), "flows": flows}
    found = {}
    for k, name in FARMS.items():
        farm = load(name).model_copy(update=changes)
        found[k] = document(name, farm, list(execute_all(jobs_of(farm), cores())))
        print(f"{name} done", file=sys.stderr)
    return found


def figures(found: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Return mean, its half width and p99 of each policy, in service times."""
    return {
        row["policy"]: (
            row["mean"]["mean"] / UNIT,
            row["mean"].get("half", 0.0) / UNIT,
            row["p99"]["mean"] / UNIT,
        )
        for row in found["policies"]
    }


def plot(by_balancers: dict[int, dict[str, Any]]) -> str:
    numbers = [float(k) for k in by_balancers]
    series = [
        svg.Series(p.label, numbers, [figures(found)[p.label][0] for found in by_balancers.values()]) for p in POLICIES
    ]
    bound = by_balancers[1]["reference"]["mean"]["mean"] / UNIT
    series.append(svg.Series("birth-death bound", numbers, [bound] * len(numbers), dashed=True))
    return svg.lines(
        "Mean completion time where every balancer sees its own flows alone",
        series,
        svg.Axis("balancers", low=1.0, high=6.0, whole=True),
        svg.Axis("in mean service times", low=0.0),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60,000 flows and three seeds")
    parser.add_argument("--flows", type=int, default=0, help="a run (default 600,000)")
    parser.add_argument("--seeds", type=int, default=0, help="(default 5)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE", help="write the plot, an SVG, there")
    args = parser.parse_args()
    found = outcomes(args.flows or (60_000 if args.quick else 600_000), args.seeds or (3 if args.quick else 5))
    if args.plot:
        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
        Path(args.plot).write_text(plot(found), encoding="utf-8")
    if args.json:
        print(json.dumps({k: {p: list(v) for p, v in figures(d).items()} for k, d in found.items()}, indent=2))
    else:
        print("| mean / p99, in mean service times |" + "".join(f" {k} balancer{'s' * (k > 1)} |" for k in found))
        print("|---|" + "---|" * len(found))
        for policy in POLICIES:
            cells = [figures(document)[policy.label] for document in found.values()]
            print(f"| {policy.label} |" + "".join(f" {m:.2f} ±{h:.2f} / {t:.1f} |" for m, h, t in cells))
        print(f"\nbirth-death bound with all seen: {found[1]['reference']['mean']['mean'] / UNIT:.3f}")
    wrong = 0
    for (k, label), (low, high) in EXPECTED.items():
        mean, half, _ = figures(found[k])[label]
        if mean + half < low or mean - half > high:
            print(f"{label} of {k}: {mean:.2f} ±{half:.2f}, expected {low} … {high}", file=sys.stderr)
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
