"""Agents on exact routing problems: how far the learned policies are above the optimum, which value iteration knows.

    python benchmarks/exact_mdp.py [--agents sac,dqn,ppo] [--seeds 3] [--quick] [--json]
                                   [--speeds 4,1 --load 0.7 --room 30]

Poisson arrivals, exponential demands, servers of unlike speed, first come first served; every flow is a step. A learned
policy is judged by the chain itself, so a gap has no noise. Beside: bids (n + c)/μ with the best c, and with c = 1,
shortest expected delay. The exit status is 1 when an agent's median over the seeds is more than 1 % above the optimum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.env.routing import Chain, Farm, RoutingVector
from controlplane.table import print_table

FARMS = (Farm((4.0, 1.0), 0.7, 30), Farm((10.0, 1.0), 0.7, 30), Farm((4.0, 2.0, 1.0), 0.7, 18))
BOUND = 0.01


def fixed(chain: Chain) -> dict[str, float]:
    """Return the gaps of the bids that are not learned."""
    best = chain.optimum()[0]
    gaps = {c: chain.mean_time(chain.farm.by_bids(c)) / best - 1 for c in np.round(np.arange(0.05, 1.01, 0.05), 2)}
    c = min(gaps, key=lambda c: gaps[c])
    return {f"bids (n + {c:g})/μ, the best c": gaps[c], "shortest expected delay": gaps[1.0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", default="sac,dqn,ppo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speeds", help="flows a second of each server, e.g. 4,2,1")
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--room", type=int, default=30, help="flows that a server can have")
    parser.add_argument("--quick", action="store_true", help="one farm, one seed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import torch

    from controlplane.agents.exact import RECIPES, gap, train

    torch.set_num_threads(1)
    farms, seeds = (FARMS[:1], 1) if args.quick else (FARMS, args.seeds)
    names = args.agents.split(",")
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"--agents: {unknown[0]!r} is not one of {', '.join(RECIPES)}")
    if args.speeds:
        try:
            farms = (Farm(tuple(float(x) for x in args.speeds.split(",")), args.load, args.room),)
        except ValueError as error:
            parser.error(str(error))
    rows, over = [], 0
    for farm in farms:
        chain = Chain(farm)
        best, policy = chain.optimum()
        print(f"{farm}: optimum {best:.4f} s, lost {chain.lost(policy):.0e}", file=sys.stderr, flush=True)
        rows += [{"farm": _name(farm), "policy": name, "gaps": [value]} for name, value in fixed(chain).items()]
        for name in names:
            recipe, gaps, seconds = RECIPES[name], [], []
            for seed in range(seeds):
                agent, began = recipe.agent(name, seed), time.process_time()
                train(agent, RoutingVector(farm, recipe.envs), recipe.steps, seed=seed)
                gaps.append(gap(agent, chain))
                seconds.append(time.process_time() - began)
                print(f"{name} seed {seed}: {gaps[-1]:.2%} after {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
            over += statistics.median(gaps) > BOUND
            rows.append({"farm": _name(farm), "policy": name, "gaps": gaps, "cpu_seconds": statistics.mean(seconds)})
    if args.json:
        print(json.dumps({"bound": BOUND, "rows": rows}, indent=2))
    else:
        cells = [
            [
                str(row["farm"]),
                str(row["policy"]),
                f"{statistics.median(row['gaps']):.2%}",
                " ".join(f"{value:.2%}" for value in row["gaps"]),
                f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "",
            ]
            for row in rows
        ]
        print_table(["farm", "policy", ">above the optimum", ">each seed", ">CPU s"], cells)
    return 1 if over else 0


def _name(farm: Farm) -> str:
    return f"{':'.join(f'{x:g}' for x in farm.speeds)} at {farm.load:g}"


if __name__ == "__main__":
    sys.exit(main())
