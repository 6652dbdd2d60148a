"""Constant corrections of what `adaptive` bids with several balancers: where there is room for a learned policy at all.

    python benchmarks/several_balancers.py                       # the table of docs/learning.md, half an hour
    python benchmarks/several_balancers.py --quick               # two seeds, shorter runs
    python benchmarks/several_balancers.py --only farm-by-four-85 --corrections 'c=2;K=0.5,c=2'

A correction is the environments': bid'(n) = e^−μ · (bid(K·n) + (c − 1)·bid(0)). `mu` and `k` are told as exponents of
the servers' capacity over its geometric mean, as `adaptive` estimates it; `window` is a factor on its memory. Ratios of
means (and of p99) to `adaptive`'s, paired by seed: per cent, geometric means ± half of the 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.agents.surfaces import relative_of
from controlplane.command import print_json
from controlplane.directive import BID_MAX
from controlplane.evaluation.statistics import paired_ratio
from controlplane.evaluation.suite import Entry, load
from controlplane.learned import correction
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import Directive, Floats, Observation
from controlplane.simulation.runs import RING_SLOTS
from controlplane.simulation.scenario import Policy
from controlplane.table import print_table
from dataplane.simulator import Simulation
from dataplane.simulator.results import OUTCOME_OK

# Not those of the evaluation (101 …), of tuning (9001 …), nor of `vickrey sim` (1 …).
FIRST_SEED = 51

# More of several balancers than the default suite has: what a policy must hold on too.
OWN = Path(__file__).parent / "scenarios" / "several-balancers.yaml"
SHORT = 0.4
CORRECTIONS = "K=0.5;K=0.71;K=1.41;K=2;c=0.5;c=1.5;c=2;c=3;K=0.5,c=2;window=0.5;window=2;mu=0.15;mu=-0.15;k=0.2;k=-0.2"


class Constant:
    """adaptive, corrected alike at every look."""

    def __init__(self, **correction: float) -> None:
        self.name = "constant"
        self.base = Adaptive()
        self.of = {"K": 1.0, "c": 1.0, "window": 1.0, "mu": 0.0, "k": 0.0} | correction

    def decide(self, observation: Observation) -> Directive:
        directive = correction.decide_base(self.base, observation, self.of["window"])
        assert directive.curves is not None
        assert directive.weights is not None
        relative = relative_of(np.asarray(directive.weights), observation.active)
        logs = np.zeros(2 + 2 * observation.n_servers)
        logs[:2] = np.log([self.of["K"], self.of["c"]])
        logs[2::2], logs[3::2] = self.of["mu"] * relative, self.of["k"] * relative
        base = np.minimum(directive.curves, BID_MAX).astype(np.float32)
        curves = np.maximum.accumulate(correction.correct(base, logs).astype(np.float64), axis=1)
        return changed(directive, curves=curves)


def run(entry: Entry, policy: Any, seed: int) -> tuple[float, float]:
    """Return mean and p99 of the completion times, seconds."""
    world = entry.scenario.world(seed, Policy(name="adaptive"))
    result = Simulation(world, ring_slots=RING_SLOTS).run(policy, interval=entry.scenario.interval)
    records = result.records[result.records["outcome"] == OUTCOME_OK]
    records = records[records["arrival_ns"] >= world.warmup * 1e9]
    fct: Floats = (records["closed_ns"] - records["arrival_ns"]) * 1e-9
    return float(fct.mean()), float(np.quantile(fct, 0.99))


def parse(text: str) -> dict[str, float]:
    return {key: float(value) for key, _, value in (part.partition("=") for part in text.split(","))}


def entries() -> list[Entry]:
    return [
        entry for entry in (*load("default").entries, *load(str(OWN)).entries) if entry.scenario.balancers.count > 1
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="these scenarios, by commas")
    parser.add_argument("--corrections", default=CORRECTIONS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None
    seeds = range(FIRST_SEED, FIRST_SEED + (2 if args.quick else args.seeds))
    corrections = args.corrections.split(";")
    found = []
    for entry in entries():
        if only is not None and entry.name not in only:
            continue
        began = time.process_time()
        entry = entry.shortened(SHORT) if args.quick else entry
        base = np.array([run(entry, Adaptive(), seed) for seed in seeds])
        print(f"{entry.name}: {1e3 * base[:, 0].mean():.2f} ms, p99 {1e3 * base[:, 1].mean():.1f} ms", file=sys.stderr)
        for text in corrections:
            theirs = np.array([run(entry, Constant(**parse(text)), seed) for seed in seeds])
            mean, tail = (paired_ratio(theirs[:, i], base[:, i]) for i in (0, 1))
            row = {"scenario": entry.name, "correction": text}
            row |= {"mean": mean.value, "low": mean.low, "high": mean.high, "p99": tail.value}
            found.append(row)
            print(f"  {text:14s} {_percent(mean.value)} p99 {_percent(tail.value)}", file=sys.stderr, flush=True)
        print(f"  {time.process_time() - began:.0f} s", file=sys.stderr)
    if args.json:
        print_json(found)
        return
    names = list(dict.fromkeys(row["scenario"] for row in found))
    cells = {(row["scenario"], row["correction"]): row for row in found}
    rows = []
    for name in names:
        values = [cells[name, text] for text in corrections]
        rows.append([name, *(f"{_percent(v['mean'])} ±{50 * (v['high'] - v['low']):.1f}" for v in values)])
    print_table(["SCENARIO", *(f">{text}" for text in corrections)], rows)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"


if __name__ == "__main__":
    main()
