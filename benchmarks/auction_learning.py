"""The round-based auction simulation: what learning does, and what holds of the white paper's results.

    python benchmarks/auction_learning.py [--parts modes,sla,split,paper] [--quick] [--json]

Every mode runs with the same seeds, hence the same servers and tasks: differences from mode `off` are paired, with 95 %
intervals (Student's t over the seeds). Figures are means over the last four fifths of the rounds. Four parts:

modes     each learning mode, with 8 and with 50 servers, sensitivities free (0.01 … 100) and bounded (2 … 40)
sla       SLA levels counted in the auctions, and ignored
split     tasks of overloaded winners shared equally, by Shapley values, or not at all
paper     does the reserve settle; when do coalitions appear; how fast 200 servers and 10,000 rounds are
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.auction.learning import MODES
from controlplane.auction.rounds import Simulation
from controlplane.auction.scenario import Scenario
from controlplane.auction.tasks import CLASSES
from controlplane.simulation.intervals import Estimate, estimate

SKIP = 0.2
FIGURES = ("welfare", "fairness_std", "jain", "completion", "miss_share")
DIGITS = {"welfare": 0, "fairness_std": 1, "jain": 3, "completion": 2, "miss_share": 4}
BOUNDED = (2.0, 40.0)


def figures(simulation: Simulation) -> dict[str, float]:
    summary = simulation.run().summary(SKIP)
    found = {name: float(summary[name]) for name in FIGURES}
    for sla in CLASSES:
        of_class = summary["classes"][sla]
        found[f"misses_{sla}"] = of_class["miss_share"]
        found[f"completion_{sla}"] = of_class["completion"]
        found[f"deferrals_{sla}"] = of_class["deferrals_per_task"]
    found["coalitions"] = summary["events"]["coalitions"] / summary["events"]["awarded"]
    found["outbid"] = summary["events"]["outbid"] / max(summary["classes"]["gold"]["awarded"], 1)
    return found


def runs(seeds: int, **scenario: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return each figure over the seeds, (seeds,)."""
    rows = [figures(Simulation(Scenario(seed=seed, **scenario))) for seed in range(1, seeds + 1)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def text(e: Estimate, digits: int, signed: bool = False) -> str:
    return f"{e.mean:{'+' if signed else ''},.{digits}f} ± {e.half:,.{digits}f}"


def table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def modes(seeds: int, rounds: int, as_text: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        import torch  # noqa: F401

        names = list(MODES)
    except ImportError:
        names = [mode for mode in MODES if mode != "dqn"]
        print("mode dqn is left out: torch is not installed (vickrey[rl])", file=sys.stderr)
    for servers, learning in (
        (8, {}),
        (8, {"sensitivity_range": BOUNDED}),
        (50, {}),
        (50, {"sensitivity_range": BOUNDED}),
    ):
        bounds = "bounded" if learning else "free"
        base: dict[str, np.ndarray[Any, Any]] = {}
        lines = [["mode", *FIGURES]]
        for mode in names:
            values = runs(seeds, rounds=rounds, servers=servers, mode=mode, learning=learning)
            base = base or values
            means = {name: estimate(values[name]) for name in FIGURES}
            changes = {name: estimate(values[name] - base[name]) for name in FIGURES}
            found.append(
                {
                    "servers": servers,
                    "sensitivity": bounds,
                    "mode": mode,
                    **{name: [means[name].mean, means[name].half] for name in FIGURES},
                    **(
                        {f"{name}_change": [changes[name].mean, changes[name].half] for name in FIGURES}
                        if mode != "off"
                        else {}
                    ),
                }
            )
            if mode == "off":
                lines.append([mode, *(text(means[name], DIGITS[name]) for name in FIGURES)])
            else:
                lines.append([mode, *(text(changes[name], DIGITS[name], signed=True) for name in FIGURES)])
        if as_text:
            print(f"\n{servers} servers, sensitivity {bounds}: off, and each mode's difference from it")
            table(lines)
    return found


def compare(
    title: str, seeds: int, choices: dict[str, dict[str, Any]], names: Sequence[str], as_text: bool
) -> dict[str, Any]:
    """Run several scenarios on the same seeds: the first's figures, and the others' differences from them."""
    found: dict[str, Any] = {}
    base: dict[str, np.ndarray[Any, Any]] = {}
    lines = [["", *choices]]
    columns = []
    for label, scenario in choices.items():
        values = runs(seeds, **scenario)
        first, base = not base, base or values
        shown = {name: estimate(values[name] if first else values[name] - base[name]) for name in names}
        found[label] = {name: [e.mean, e.half] for name, e in shown.items()}
        columns.append([text(shown[name], DIGITS.get(name, 3), signed=not first) for name in names])
    lines += [[name, *(column[i] for column in columns)] for i, name in enumerate(names)]
    if as_text:
        print(f"\n{title}: the first, and the others' differences from it")
        table(lines)
    return found


def paper(rounds: int, as_text: bool) -> dict[str, Any]:
    """Does the reserve settle (how its means over periods differ)? When do coalitions appear? How long is a run?"""
    found: dict[str, Any] = {}
    for mode in ("off", "continuous"):
        rows = Simulation(Scenario(rounds=rounds, mode=mode, servers=20, seed=1)).run().rows
        periods = rows["reserve"][: rounds // 50 * 50].reshape(-1, 50)
        means, half = periods.mean(axis=1), periods.shape[0] // 2
        overloaded = rows["overloaded"] > 0
        found[mode] = {
            "reserve": float(means[half:].mean()),
            "between_periods": float(means[half:].std() / means[half:].mean()),
            "within_a_period": float((periods[half:].std(axis=1) / means[half:]).mean()),
            "coalitions_when_overloaded": float(rows["coalitions"][overloaded].mean()),
            "coalitions_otherwise": float(rows["coalitions"][~overloaded].mean()) if (~overloaded).any() else None,
        }
    began = time.perf_counter()
    Simulation(Scenario(rounds=rounds * 10, servers=200, mode="qlearning")).run()
    found["seconds_200_servers"] = {"rounds": rounds * 10, "tasks": 400, "seconds": time.perf_counter() - began}
    if as_text:
        print()
        for mode in ("off", "continuous"):
            print(
                f"{mode}: " + ", ".join(f"{k} {v:.3f}" if v is not None else f"{k} -" for k, v in found[mode].items())
            )
        speed = found["seconds_200_servers"]
        print(f"200 servers, {speed['rounds']:,} rounds of 400 tasks on average, qlearning: {speed['seconds']:.1f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 seeds, 300 rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parts", default="modes,sla,split,paper", help="only these (default all)")
    args = parser.parse_args()
    seeds, rounds, shown = (4, 300, not args.json) if args.quick else (12, 1000, not args.json)
    parts = args.parts.split(",")
    found: dict[str, Any] = {"seeds": seeds, "rounds": rounds}
    base = {"rounds": rounds, "servers": 8, "learning": {"sensitivity_range": BOUNDED}}
    if "modes" in parts:
        found["modes"] = modes(seeds, rounds, shown)
    if "sla" in parts:
        by_class = [f"{what}_{sla}" for what in ("misses", "completion") for sla in CLASSES]
        choices = {f"levels {on}": {**base, "auction": {"sla": on == "count"}} for on in ("ignored", "count")}
        names = [*by_class, "deferrals_bronze", "outbid", "welfare"]
        found["sla"] = compare("SLA levels, mode continuous", seeds, choices, names, shown)
    if "split" in parts:
        splits: dict[str, dict[str, Any]] = {
            "no coalitions": {"partners": 0},
            "equal": {"split": "equal"},
            "shapley": {"split": "shapley"},
            "equal, 3 partners": {"split": "equal", "partners": 3},
            "shapley, 3 partners": {"split": "shapley", "partners": 3},
        }
        choices = {label: {**base, "mode": "off", "auction": auction} for label, auction in splits.items()}
        found["split"] = compare("Coalitions, mode off", seeds, choices, [*FIGURES, "coalitions"], shown)
    if "paper" in parts:
        found["paper"] = paper(rounds, shown)
    if args.json:
        print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
