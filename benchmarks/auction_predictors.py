"""Predictors of a flow's completion time on held-out recordings: single weight, analytic, network.

    python benchmarks/auction_predictors.py           # the table of docs/auction.md, about a minute
    python benchmarks/auction_predictors.py --one-farm
    python benchmarks/auction_predictors.py --quick --json

Trained on four farms at loads 0.5, 0.7 and 0.9 under an even round robin, the power of two choices and gsed. Held out
are other seeds of the first of them (8 servers of speeds 1, 1, 1, 1, 2, 2, 4, 4 with four workers); a farm never seen
(speeds 0.5, 1, 3, 8 with 1, 2, 8 and 4 workers); that farm at twelve times the speed; and servers that share their
cores among all flows, which no training farm does. Two routes, of 15 and 150 ms at speed 1, exponential each; nobody is
told rates, workers or loads.

Errors are of log time: a root mean square of 0.69 is a factor of two. `fitted` means: after the one constant factor
that suits the training data best, which the analytic predictions (times if all were average) and the weight, fitted to
seconds, do not have of themselves. ± is half a 95 % interval over the seeds of the paired difference to the network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane import registry
from controlplane.auction import predictors
from controlplane.auction.completions import record
from controlplane.auction.predictors import CompletionPredictor, Floats, NeuralBidPredictor
from controlplane.simulation.intervals import estimate
from dataplane.simulator import Exponential, Poisson, Server, World

LIGHT, HEAVY, SHARE_HEAVY = 0.015, 0.15, 0.2
POLICIES, LOADS = ("wrr", "p2c", "gsed"), (0.5, 0.7, 0.9)
FARM = tuple(Server(speed=s, workers=4) for s in (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0))
OTHER = tuple(Server(speed=s, workers=k) for s, k in ((0.5, 1), (1.0, 2), (3.0, 8), (8.0, 4)))
FAST = tuple(Server(speed=12.0 * s.speed, workers=s.workers) for s in OTHER)
# The network learns from several farms: on one alone, the worker count tells it which servers these are, and what it
# learned is untrue elsewhere.
TRAINING = (
    FARM,
    tuple(Server(speed=s, workers=k) for s, k in ((1.0, 1), (2.0, 1), (4.0, 1), (1.0, 2), (2.0, 2))),
    tuple(Server(speed=s, workers=k) for s, k in ((1.0, 8), (2.0, 2), (6.0, 2), (1.0, 6))),
    tuple(Server(speed=s, workers=k) for s, k in ((20.0, 1), (10.0, 3), (5.0, 8))),
)
SHARING = tuple(Server(speed=s.speed, workers=s.workers, service="sharing") for s in FARM)
HELD_OUT = {"same farm": FARM, "other farm": OTHER, "other, 12 x": FAST, "sharing": SHARING}

Predict = Callable[[Floats], Floats]


def recording(servers: tuple[Server, ...], flows: int, seed: int) -> tuple[Floats, Floats]:
    """Return features and seconds of one seed: every policy at every load, `flows` each."""
    found = []
    for p, policy in enumerate(POLICIES):
        for i, rho in enumerate(LOADS):
            rng = np.random.default_rng((seed, p, i))
            routes = 1 + (rng.random(flows) < SHARE_HEAVY).astype(np.int64)
            works = rng.exponential(np.where(routes == 2, HEAVY, LIGHT))
            mean = LIGHT + SHARE_HEAVY * (HEAVY - LIGHT)
            rate = rho * sum(s.capacity for s in servers) / mean
            if policy == "wrr":  # evenly, so that slow servers are seen full; at a load that the slowest bears
                rate *= min(s.capacity for s in servers) * len(servers) / sum(s.capacity for s in servers)
            # The policy acts every ten mean services, and the first fifth of the flows is warm-up.
            n, warmup = 1000 * seed + i, 0.2 * flows / rate
            world = World(servers, Poisson(rate), Exponential(mean), seed=n, flows=flows, warmup=warmup)
            interval = 0.2 * FARM[-1].speed / max(s.speed for s in servers)
            found.append(record(world, registry.create(policy), works, routes, interval))
    return np.concatenate([f for f, _ in found]), np.concatenate([s for _, s in found])


def white_paper(features: Floats) -> Floats:
    """Return the white paper's features: load ratio, task load, sensitivity, risk aversion."""
    ratio = np.minimum(features[:, 0] / features[:, 3], 1.0)
    return np.stack((ratio, features[:, 4], np.ones(len(features)), np.full(len(features), 0.5)), axis=1)


def times(features: Floats) -> Floats:
    """Return the best that a sum was found to make of what the network is given: three times in seconds."""
    n, held, mu, k, x, _ = features.T
    return np.stack((x / mu, np.maximum(held - k, 0.0) / (k * mu), np.maximum(n + 1.0 - k, 0.0) / (k * mu)), axis=1)


def train(features: Floats, seconds: Floats, epochs: int) -> dict[str, Predict]:
    """Return the predictors by name, those that learn fitted."""
    paper = NeuralBidPredictor().fit(white_paper(features), seconds)
    best = NeuralBidPredictor().fit(times(features), seconds)
    network = CompletionPredictor().fit(features, seconds, epochs=epochs)
    return {
        "single weight, white paper's features": lambda f: paper.predict(white_paper(f)),
        "single weight, times": lambda f: best.predict(times(f)),
        "analytic (n+1)/r(n+1)": predictors.analytic,
        "analytic, queue and load": predictors.analytic_queue,
        "network": network.predict,
    }


def errors(predicted: Floats, seconds: Floats, shift: float) -> tuple[float, float, float]:
    """Return root mean square and mean absolute error of log time after the shift, and the former without it."""
    error = np.log(np.maximum(predicted, 1e-9)) - np.log(seconds)
    fitted = error - shift
    return float(np.sqrt(np.mean(fitted**2))), float(np.mean(np.abs(fitted))), float(np.sqrt(np.mean(error**2)))


def measure(flows: int, seeds: int, epochs: int, farms: int = len(TRAINING)) -> dict[str, Any]:
    learned = [recording(servers, flows, 1 + i) for i, servers in enumerate(TRAINING[:farms])]
    features, seconds = np.concatenate([f for f, _ in learned]), np.concatenate([y for _, y in learned])
    fitted = train(features, seconds, epochs)
    shift = {n: float(np.mean(np.log(np.maximum(p(features), 1e-9)) - np.log(seconds))) for n, p in fitted.items()}
    found: dict[str, Any] = {"training": {"rows": len(features)}}
    for farm, servers in HELD_OUT.items():
        by_seed = {name: np.zeros((seeds, 3)) for name in fitted}
        for seed in range(seeds):
            f, y = recording(servers, flows, 101 + seed)
            for name, predict in fitted.items():
                by_seed[name][seed] = errors(predict(f), y, shift[name])
        found[farm] = {}
        for name, e in by_seed.items():
            entry = dict(zip(("rmse_fitted", "mae_fitted", "rmse"), e.mean(axis=0).round(3).tolist(), strict=True))
            if name != "network":
                apart = estimate(e[:, 0] - by_seed["network"][:, 0])
                entry |= {"above_network": round(float(apart.mean), 3), "half": round(float(apart.half), 3)}
            found[farm][name] = entry
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=6000, help="of each recording (default 6000)")
    parser.add_argument("--seeds", type=int, default=5, help="held out, of each farm (default 5)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--one-farm", action="store_true", help="train on the first farm only")
    parser.add_argument("--quick", action="store_true", help="1,500 flows, 3 seeds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flows, seeds = (1500, 3) if args.quick else (args.flows, args.seeds)
    if flows < 200 or seeds < 2 or args.epochs < 1:
        parser.error("expected at least 200 flows, 2 seeds and 1 epoch")
    found = measure(flows, seeds, args.epochs, 1 if args.one_farm else len(TRAINING))
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"trained on {found.pop('training')['rows']} flows")
    print(f"{'farm':12} {'predictor':38} {'RMSE fitted':>11} {'MAE fitted':>10} {'RMSE':>6}  above the network")
    for farm, rows in found.items():
        for name, e in rows.items():
            apart = f"{e['above_network']:+.3f} ± {e['half']:.3f}" if "half" in e else ""
            print(f"{farm:12} {name:38} {e['rmse_fitted']:11.3f} {e['mae_fitted']:10.3f} {e['rmse']:6.3f}  {apart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
