"""How fast environments step: full control steps a second on one core, features read and directives adopted.

    python benchmarks/env_speed.py [--quick] [--json] [--rounds N]

Sixteen servers, every fourth 4x faster, 80 % load, about 50 flows a step, 128-slot reservoirs, all features; a random
action each step. The base policy is gsed, whose curves are known beforehand; the last rows have `adaptive`, which
learns in Python, underneath. A step of one environment out of many counts as one. CPU time of this process; medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.env import LoadBalance, LoadBalanceVector
from dataplane.simulator import Exponential, Poisson, Server, World

MEAN, LOAD, FLOWS = 0.01, 0.8, 50


def world(servers: int = 16) -> World:
    farm = [Server(speed=4.0 if i % 4 == 0 else 1.0, weight=40 if i % 4 == 0 else 10) for i in range(servers)]
    return World(farm, Poisson(1.0), Exponential(MEAN), duration=1e7).at_load(LOAD)


def settings(servers: int, **more: object) -> dict[str, object]:
    chosen = world(servers)
    return {"world": chosen, "interval": FLOWS / chosen.arrivals.mean_rate, "base": "gsed", **more}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def vector(replicas: int, servers: int = 16, **more: object) -> Callable[[int], tuple[float, float]]:
    def run(steps: int) -> tuple[float, float]:
        envs = LoadBalanceVector(replicas, **settings(servers, **more))
        envs.reset(seed=1)
        generator = np.random.default_rng(1)
        space = envs.single_action_space
        actions = [_sample(generator, space, replicas) for _ in range(16)]
        for i in range(30):  # the reservoirs fill
            envs.step(actions[i % 16])
        flows, begin = 0.0, cpu_seconds()
        calls = max(steps // replicas, 1)
        for i in range(calls):
            *_, infos = envs.step(actions[i % 16])
            flows += infos["flows"].sum()
        spent = cpu_seconds() - begin
        envs.close()
        return calls * replicas / spent, flows / (calls * replicas)

    return run


def single(**more: object) -> Callable[[int], tuple[float, float]]:
    def run(steps: int) -> tuple[float, float]:
        env = LoadBalance(**settings(16, **more))
        env.reset(seed=1)
        generator = np.random.default_rng(1)
        actions = [_sample(generator, env.action_space, 1)[0] for _ in range(16)]
        flows, begin = 0, cpu_seconds()
        for i in range(steps):
            *_, info = env.step(actions[i % 16])
            flows += info["flows"]
        spent = cpu_seconds() - begin
        env.close()
        return steps / spent, flows / steps

    return run


def _sample(generator: np.random.Generator, space: object, n: int) -> np.ndarray:
    shape = getattr(space, "shape", ()) or ()
    if hasattr(space, "nvec"):
        return generator.integers(3, size=(n, *shape))
    return generator.uniform(-0.3, 0.3, (n, *shape)).astype(np.float32)


CASES: dict[str, tuple[Callable[[int], tuple[float, float]], float]] = {
    # name: (run, share of the steps)
    "vector of 16, curves": (vector(16), 1.0),
    "vector of 64, curves": (vector(64), 1.0),
    "vector of 16, weights": (vector(16, action="weights"), 1.0),
    "vector of 16, discrete": (vector(16, action="discrete"), 1.0),
    "vector of 16, curves, reward fct_tail": (vector(16, reward="fct_tail"), 1.0),
    "vector of 16, curves, 4 servers": (vector(16, servers=4), 1.0),
    "vector of 16, curves, 64 servers": (vector(16, servers=64), 0.3),
    "one environment, curves": (single(), 0.3),
    "one environment, base adaptive": (single(base="adaptive"), 0.02),
    "vector of 16, base adaptive every 10th step": (vector(16, base="adaptive", base_every=10), 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps, three rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    steps = 10_000 if arguments.quick else 50_000
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (run, share) in CASES.items():
            figures[name].append(run(int(steps * share)))
    shown = {
        name: {
            "steps_per_second": statistics.median(speed for speed, _ in values),
            "flows_per_step": statistics.median(flows for _, flows in values),
        }
        for name, values in figures.items()
    }
    if arguments.json:
        print(json.dumps({"rounds": rounds, "cases": shown}, indent=2))
        return
    for name, value in shown.items():
        print(f"{name:45} {value['steps_per_second']:7.0f} steps a second, {value['flows_per_step']:.0f} flows each")


if __name__ == "__main__":
    main()
