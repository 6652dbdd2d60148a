"""What the form of the truthful bid is worth on a farm, and what `adaptive` gains by rehearsing it, told nothing.

    python benchmarks/rehearsal.py                  # the table of docs/adaptive.md, some minutes
    python benchmarks/rehearsal.py --seeds 2 --flows 100000
    python benchmarks/rehearsal.py --only 64

Columns are mean / p99 FCT as ratios to the truthful bid's, on the same arrivals and demands: each form with the true
rates and arrivals, then `adaptive` to itself with the truthful form alone, both from a cold start, over SECONDS of
which the first tenth does not count, with a 95 % confidence interval over seeds.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.bids import split
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import Directive, Fixed, Floats
from controlplane.rehearsal import FORMS, bids
from controlplane.simulation.intervals import relative
from dataplane.simulator import Exponential, Poisson, Server, Simulation, World

MEAN = 0.02
SECONDS = 100.0
FARMS: dict[str, tuple[list[int], list[int]]] = {  # speeds, workers
    "2: 4, 1": ([4, 1], [1, 1]),
    "16: 4 of speed 4": ([4] * 4 + [1] * 12, [1] * 16),
    "16: 4 of speed 10": ([10] * 4 + [1] * 12, [1] * 16),
    "64: 16 of speed 4": ([4] * 16 + [1] * 48, [1] * 64),
    "8 of four workers: 1, 1, 1, 1, 2, 2, 4, 4": ([1] * 4 + [2] * 2 + [4] * 2, [4] * 8),
}
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)


class Truthful(Adaptive):
    """adaptive with the first form alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rehearsal.form = lambda *_: FORMS[0]  # type: ignore[method-assign]


@dataclass(frozen=True)
class Job:
    farm: str
    load: float
    column: int  # a form; then Truthful and Adaptive
    seed: int
    flows: int

    def run(self) -> Floats:
        """Return mean and p99 FCT, seconds."""
        speeds, workers = FARMS[self.farm]
        mu, k = np.array(speeds) / MEAN, np.array(workers, dtype=float)
        rate = self.load * float(mu @ k)
        learned = self.column >= len(FORMS)
        flows = round(SECONDS * rate) if learned else self.flows
        world = World(
            [Server(speed=s, workers=w) for s, w in zip(speeds, workers, strict=True)],
            Poisson(rate),
            Exponential(MEAN),
            seed=self.seed,
            flows=flows,
            warmup=0.1 * flows / rate,
        )
        if learned:
            fct = Simulation(world).run((Truthful, Adaptive)[self.column - len(FORMS)]()).fct
        else:
            curves = bids(FORMS[self.column], split(rate, mu, k), mu, k)
            fct = Simulation(world).run(Fixed(Directive(rule="bids", weights=mu * k, curves=curves)), interval=1e6).fct
        return np.array([fct.mean(), np.quantile(fct, 0.99)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--flows", type=int, default=300_000, help="of a run with fixed bids")
    parser.add_argument("--only", help="farms whose name begins so")
    options = parser.parse_args()
    cases = [(farm, load) for farm in FARMS if farm.startswith(options.only or "") for load in LOADS]
    columns = range(len(FORMS) + 2)
    jobs = [
        Job(*case, column, seed, options.flows)
        for case in cases
        for column in columns
        for seed in range(1, 1 + options.seeds)
    ]
    with ProcessPoolExecutor() as pool:
        found = np.array(list(pool.map(Job.run, jobs))).reshape(len(cases), len(columns), options.seeds, 2)
    print(
        "| farm | load | truthful, ms | " + " | ".join(f"{theta:g}, {c:g}" for theta, c in FORMS[1:]) + " | adaptive |"
    )
    print("|---|---" + "|---" * (len(FORMS) + 1) + "|")
    for (farm, load), fct in zip(cases, found, strict=True):
        mean, p99 = fct.mean(axis=1).T
        forms = [f"{mean[i] / mean[0]:.3f} / {p99[i] / p99[0]:.2f}" for i in range(1, len(FORMS))]
        gain = relative(fct[-1, :, 0], fct[-2, :, 0])
        learned = f"{1 + gain.mean:.3f} ±{gain.half:.3f} / {p99[-1] / p99[-2]:.2f}"
        print(
            f"| {farm} | {load:g} | {mean[0] * 1e3:.2f} / {p99[0] * 1e3:.0f} | " + " | ".join(forms) + f" | {learned} |"
        )


if __name__ == "__main__":
    main()
