"""The bids of the classic auction in the simulator: its units, its learning modes, the price of untrue bids.

    python benchmarks/auction_bids.py                    # the tables of docs/auction.md, some minutes
    python benchmarks/auction_bids.py --part units       # the formula in other units of load, without its two flaws
    python benchmarks/auction_bids.py --part modes       # what learning gains, with 95 % intervals
    python benchmarks/auction_bids.py --part reserve     # flows held back by the classic reserve
    python benchmarks/auction_bids.py --part price       # bids that are not the marginal social cost
    python benchmarks/auction_bids.py --quick --json

Eight servers of speeds 1, 1, 1, 1, 2, 2, 4, 4 with four workers each, exponential work of 40 ms at speed 1, Poisson
arrivals. All meet the same flows of a seed. Figures are means over the seeds; ± is half a 95 % interval (Student's t),
of the paired difference where one is shown.
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
from controlplane.bids import split, truthful
from controlplane.policy import CURVE_N, ClassicParameters, Directive, Fixed, Floats
from controlplane.simulation.intervals import estimate
from dataplane.simulator import Exponential, Poisson, Server, Simulation, World
from dataplane.simulator.references import central_queue

SPEEDS = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
WORKERS, MEAN = 4, 0.04
MU, K = SPEEDS / MEAN, np.full(len(SPEEDS), float(WORKERS))
FAST, SLOW = slice(6, 8), slice(0, 4)


class Lab:
    """Runs of one load, by seed."""

    def __init__(self, rho: float, flows: int, seeds: int) -> None:
        self.rho, self.flows, self.seeds = rho, flows, range(1, seeds + 1)
        self.rate = rho * WORKERS * float(SPEEDS.sum()) / MEAN

    def world(self, seed: int, told: bool = False) -> World:
        servers = [Server(speed=s, workers=WORKERS, weight=int(s) if told else 1) for s in SPEEDS]
        warmup = 0.15 * self.flows / self.rate
        return World(servers, Poisson(self.rate), Exponential(MEAN), seed=seed, flows=self.flows, warmup=warmup)

    def run(self, policy: Callable[[], Any], *, told: bool = False, reserve: str = "off") -> Floats:
        """Return mean and p99 FCT in ms, (seeds, 2)."""
        runs = (Simulation(self.world(s, told)).run(policy(), interval=0.2, reserve=reserve) for s in self.seeds)
        return np.array([figures(run.fct) for run in runs])

    def named(self, name: str, *, told: bool = False, reserve: str = "off", **options: Any) -> Floats:
        return self.run(lambda: registry.create({"name": name, **options}), told=told, reserve=reserve)

    def curves(self, curves: Floats) -> Floats:
        return self.run(lambda: Fixed(Directive(rule="bids", curves=curves)))

    def central(self) -> Floats:
        found = []
        for seed in self.seeds:
            world = self.world(seed)
            r = Simulation(world).run().records
            fct = central_queue(r["arrival_ns"], r["work_ns"] * 1e-9, SPEEDS.tolist(), [WORKERS] * len(SPEEDS))
            found.append(figures(fct[np.searchsorted(r["arrival_ns"], np.uint64(round(world.warmup * 1e9))) :]))
        return np.array(found)


def figures(fct: Floats) -> tuple[float, float]:
    return float(fct.mean()) * 1e3, float(np.percentile(fct, 99)) * 1e3


def shown(found: Floats, base: Floats | None = None) -> dict[str, float]:
    """Return means over the seeds, and the half interval of the mean, or of its difference to the base."""
    mean, p99 = found.mean(axis=0)
    difference = found[:, 0] if base is None else found[:, 0] - base[:, 0]
    entry = {"mean_ms": round(float(mean), 2), "p99_ms": round(float(p99), 1)}
    if base is not None:
        entry["difference_ms"] = round(float(difference.mean()), 2)
    return entry | {"half_ms": round(float(estimate(difference).half), 2)}


# --- units ------------------------------------------------------------------------------------------------------------


def classic(unit: float, sensitivity: float, *, dampened: bool) -> Directive:
    """The formula with true capacities, 32 flows in all, where a mean flow is `unit` of load."""
    capacity = SPEEDS / SPEEDS.sum() * len(SPEEDS) * WORKERS * unit
    ones = np.ones(len(SPEEDS))
    parameters = ClassicParameters(
        capacity=capacity,
        sensitivity=ones * sensitivity,
        risk_aversion=ones * 0.5,
        target_load_ratio=ones * 0.5,
        # The bid is multiplied by 1 + c/200 at its end: this takes it away.
        neural=ones if dampened else 1.0 / (1.0 + capacity / 200.0),
        coalition=np.zeros(len(SPEEDS)),
    )
    return Directive(rule="classic", weights=ones, classic=parameters, loads=np.array([unit]))


def units(lab: Lab) -> dict[str, Any]:
    """What becomes of the same farm when load is measured in other units."""
    found: dict[str, Any] = {}
    for unit in (1.0, 5.0, 20.0, 100.0):

        def auction(sensitivity: float, dampened: bool, unit: float = unit) -> dict[str, float]:
            return shown(lab.run(lambda: Fixed(classic(unit, sensitivity, dampened=dampened))))

        found[f"a flow is {unit:g}"] = {
            "as written, s = 1": auction(1.0, True),
            "s in load units": auction(unit, True),
            "no capacity factor, s = 1": auction(1.0, False),
            "neither": auction(unit, False),
        }
    return found


# --- modes ------------------------------------------------------------------------------------------------------------


def modes(lab: Lab) -> dict[str, Any]:
    """What learning gains the live policy; differences are to `off`, on the same flows."""
    off = lab.named("auction", learning="off")
    found: dict[str, Any] = {"off": shown(off)}
    for mode in ("continuous", "qlearning", "bandit", "ucb1", "thompson", "dqn"):
        for epsilon in (0.0, 0.1):
            if mode == "continuous" and epsilon:
                continue
            try:
                runs = lab.named("auction", learning=mode, epsilon=epsilon)
            except ValueError as error:  # dqn without torch
                found[mode] = {"not_measured": str(error)}
                break
            found[f"{mode}{', epsilon 0.1' if epsilon else ''}"] = shown(runs, off)
    others = {
        "central queue": lab.central(),
        "adaptive": lab.named("adaptive"),
        "gsed (told)": lab.named("gsed", told=True),
        "least connections": lab.named("lsq"),
    }
    return found | {name: shown(runs, off) for name, runs in others.items()}


def reserve(lab: Lab) -> dict[str, Any]:
    """What holding flows back by the classic reserve gains; differences are to dispatching at once."""
    found: dict[str, Any] = {}
    for mode in ("off", "continuous"):
        at_once = lab.named("auction", learning=mode)
        found[f"{mode}, at once"] = shown(at_once)
        found[f"{mode}, held"] = shown(lab.named("auction", learning=mode, reserve="learned"), at_once)
    return found


# --- the price of untrue bids -----------------------------------------------------------------------------------------


def own_delay(mu: Floats, k: Floats) -> Floats:
    """The flow's own expected time, (n + 1)/r(n + 1): what it costs itself, not what it costs the others."""
    n = CURVE_N + 1.0
    curves: Floats = n / (np.minimum(n, k[:, None]) * mu[:, None])
    return curves


def marginal(cost: Callable[[Floats], Floats], lam: Floats, mu: Floats, k: Floats) -> Floats:
    """Δ(n) for any cost rate of n flows in flight, from the sums over the stationary distribution."""
    states = np.arange(2000.0)
    curves = np.empty((len(mu), len(CURVE_N)))
    for i in range(len(mu)):
        rate = np.minimum(states[1:], k[i]) * mu[i]
        log_pi = np.concatenate([[0.0], np.cumsum(np.log(lam[i] / rate))])
        pi = np.exp(log_pi - log_pi.max())
        pi /= pi.sum()
        excess = pi * (cost(states) - float((pi * cost(states)).sum()))
        above = np.cumsum(excess[::-1])[::-1]  # Σ_{m ≥ n}
        with np.errstate(divide="ignore", invalid="ignore"):
            delta = above[1:] / (lam[i] * pi[:-1])
        good = np.flatnonzero(pi[:-1] > 1e-12)[-1]
        delta[good:] = delta[good] + (delta[good] - delta[good - 1]) * np.arange(len(delta) - good)
        curves[i] = np.interp(CURVE_N, states[:-1], delta)
        beyond = states[-2] < CURVE_N
        curves[i, beyond] = delta[-1] + (delta[-1] - delta[-2]) * (CURVE_N[beyond] - states[-2])
    found: Floats = np.maximum.accumulate(np.maximum(curves, 0.0), axis=1)
    return found


def reported(lab: Lab, mu: Floats) -> Floats:
    """Curves of servers that say their workers have these rates."""
    return truthful(split(lab.rate, mu, K), mu, K)


def price(lab: Lab) -> dict[str, Any]:
    """Mean FCT when bids are not the marginal social cost; differences are to truthful bids."""
    lam = split(lab.rate, MU, K)
    curves = truthful(lam, MU, K)
    true = lab.curves(curves)

    def scaled(which: slice, factor: float) -> Floats:
        mu = MU.copy()
        mu[which] *= factor
        return mu

    def shaded(which: slice, factor: float) -> Floats:
        bids = curves.copy()
        bids[which] *= factor
        return bids

    untrue = {
        "own delay only": own_delay(MU, K),
        "social cost of n²": marginal(np.square, np.maximum(lam, 1e-3 * MU), MU, K),
        "all report 2μ": reported(lab, 2.0 * MU),
        "all report μ/2": reported(lab, 0.5 * MU),
        "a slow server reports 2μ": reported(lab, scaled(slice(0, 1), 2.0)),
        "a slow server reports μ/2": reported(lab, scaled(slice(0, 1), 0.5)),
        "a fast server reports 2μ": reported(lab, scaled(slice(7, 8), 2.0)),
        "a fast server reports μ/2": reported(lab, scaled(slice(7, 8), 0.5)),
        "slow servers report 2μ": reported(lab, scaled(SLOW, 2.0)),
        "fast servers report μ/2": reported(lab, scaled(FAST, 0.5)),
        "a fast server halves its bids": shaded(slice(7, 8), 0.5),
        "a fast server doubles its bids": shaded(slice(7, 8), 2.0),
    }
    found: dict[str, Any] = {"truthful": shown(true)}
    return found | {name: shown(lab.curves(bids), true) for name, bids in untrue.items()}


def surplus(lab: Lab) -> dict[str, Any]:
    """What a fast server earns a second, price less true cost, when it bids its true cost times a factor.

    True cost is in seconds of everybody's time: seconds earned a second is a pure number.
    """
    curves = truthful(split(lab.rate, MU, K), MU, K)
    runs: dict[float, list[tuple[float, float]]] = {}
    for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
        bids = curves.copy()
        bids[7] *= factor
        for seed in lab.seeds:
            simulation = Simulation(lab.world(seed))
            result = simulation.run(Fixed(Directive(rule="bids", curves=bids)), interval=0.2)
            stats = simulation.segments[0].read_stats(0, len(SPEEDS))[7]
            seconds = lab.flows / lab.rate
            earned = (float(stats["price_sum"]) - float(stats["bid_sum"]) / factor) / seconds
            runs.setdefault(factor, []).append((earned, float(stats["auctions_won"]) / seconds))
            del result
    true = np.array(runs[1.0])[:, 0]
    found = {}
    for factor, rows in runs.items():
        earned = np.array(rows)
        difference = earned[:, 0] - true
        found[f"bids {factor:g} times its cost"] = {
            "earned": round(float(earned[:, 0].mean()), 3),
            "difference": round(float(difference.mean()), 3),
            "half": round(float(estimate(difference).half), 3) if factor != 1.0 else 0.0,
            "flows_per_s": round(float(earned[:, 1].mean()), 1),
        }
    return found


PARTS: dict[str, Callable[[Lab], dict[str, Any]]] = {
    "units": units,
    "modes": modes,
    "reserve": reserve,
    "price": price,
    "surplus": surplus,
}


def text(found: dict[str, Any], indent: str = "  ") -> str:
    """One line an entry."""
    lines = []
    for name, entry in found.items():
        if any(isinstance(value, dict) for value in entry.values()):
            lines += [f"{indent}{name}", text(entry, indent + "  ")]
            continue
        lines.append(f"{indent}{name:<34}" + "  ".join(f"{key} {value}" for key, value in entry.items()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.85, 0.95])
    parser.add_argument("--flows", type=int, default=60_000, help="a run (default 60,000)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="10,000 flows, two seeds, one load")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.flows, args.seeds, args.loads = 10_000, 2, args.loads[:1]
    if args.seeds < 2 or args.flows < 1000 or not all(0 < rho < 1 for rho in args.loads):
        parser.error("expected --seeds >= 2, --flows >= 1000 and loads between 0 and 1")
    document: dict[str, Any] = {}
    for part in args.part or PARTS:
        for rho in args.loads:
            found = PARTS[part](Lab(rho, args.flows, args.seeds))
            document.setdefault(part, {})[f"{rho:g}"] = found
            if not args.json:
                print(f"{part}, load {rho:g}\n{text(found)}\n", flush=True)
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
