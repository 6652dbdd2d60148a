"""The requests of one round, the same for every balancer: when each leaves, what it asks for, on whose connection.

Arrivals are Poisson; where the load changes they are those of rate one, stretched: another load has the same requests
in the same order, closer together. Arrivals, demands, kinds and clients have random numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.compare.scenario import Class, Scenario
from testbed.demand import Floats
from testbed.load.generator import Target
from testbed.load.schedule import Schedule

_ARRIVALS, _DEMANDS, _KINDS, _CLIENTS = range(4)


@dataclass(frozen=True)
class Traffic:
    """schedule: seconds from the start of the warm-up; kind, client: of each request, an index."""

    schedule: Schedule
    kind: NDArray[np.intp]
    client: NDArray[np.intp]
    warmup_s: float

    def targets(
        self, scenario: Scenario, addresses: Sequence[tuple[str, int]]
    ) -> tuple[list[Target], NDArray[np.intp]]:
        """Where the requests go when these are the balancers: targets, and which of them each request takes.

        A client stays with one balancer; without clients the requests go to the balancers in turn. Each client has
        connections of its own.
        """
        n = len(self.schedule)
        turn = (self.client if scenario.clients else np.arange(n)) % len(addresses)
        key = (self.client * len(addresses) + turn) * len(scenario.traffic) + self.kind
        keys, choice = np.unique(key, return_inverse=True)
        targets = []
        for one in keys.tolist():
            host, port = addresses[one // len(scenario.traffic) % len(addresses)]
            targets.append(Target(host, port, path_of(scenario.traffic[one % len(scenario.traffic)])))
        return targets, choice.astype(np.intp)


def path_of(kind: Class) -> str:
    if kind.size is None:
        return kind.path
    return f"{kind.path}{'&' if '?' in kind.path else '?'}size={kind.size}"


def rates(scenario: Scenario, capacity_s: float) -> tuple[Floats, Floats]:
    """Begins of the stretches of constant rate, seconds from the start of the warm-up, and requests a second there."""
    begins = [0.0, *(scenario.warmup + step.at for step in scenario.profile)]
    loads = [scenario.load, *(step.load for step in scenario.profile)]
    return np.array(begins), np.array(loads) * capacity_s / scenario.mean_demand_s


def generate(scenario: Scenario, capacity_s: float, seed: int) -> Traffic:
    """capacity_s: seconds of work at speed 1 that the servers do in a second."""
    begins, rate = rates(scenario, capacity_s)
    end = scenario.warmup + scenario.seconds
    begins, rate = begins[begins < end], rate[begins < end]
    expected = np.concatenate([[0.0], np.cumsum(rate * np.diff([*begins, end]))])
    total = float(expected[-1])
    n = int(total + 6 * total**0.5) + 10
    unit = np.cumsum(_rng(seed, _ARRIVALS).exponential(size=n))
    unit = unit[unit < total]
    arrival_s = np.interp(unit, expected, [*begins, end])
    n = len(unit)
    shares = np.array([kind.share for kind in scenario.traffic])
    kind = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], _rng(seed, _KINDS).random(n), side="right")
    demands = [
        one.demand.demand.sample(n, np.random.default_rng([seed, _DEMANDS, i]))
        for i, one in enumerate(scenario.traffic)
    ]
    demand_ms = np.stack(demands)[kind, np.arange(n)]
    client = _rng(seed, _CLIENTS).integers(scenario.clients, size=n) if scenario.clients else np.zeros(n, np.intp)
    return Traffic(Schedule(arrival_s, demand_ms), kind.astype(np.intp), client.astype(np.intp), scenario.warmup)


def _rng(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])
