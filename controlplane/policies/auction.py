"""The classic auction, live: the published bid for every flow, its inputs learned from what the servers did.

Source    the proof of concept and its white paper (docs/auction.md); dataplane/core/classic.c computes the bids
Round     one control interval; one in which no flow came teaches nothing
Capacity  c, in mean flows in flight: as configured, else the server's share of the estimated rates kμ, where all
          together are full at their Σ k workers, or at ROOM times what is in flight, if that is more (to ROOM_MAX Σ k)
Load      L, in flight over all workers, summed by the data plane; here its mean over the round gives ρ = min(L/c, 1)
Flow      x, the mean load of its route's and class's flows (controlplane/auction/live_loads.py)
Learns    the sensitivity s, each round, by one of the modes of controlplane/auction/learning.py. Exploration is off,
          and bounded when it is asked for: EPSILON_MAX of the rounds, steps of 10 %, s within 1/2 … 2
Hand-off  a winner whose ρ is above coalition_above shares with the servers of its coalition that are below
          coalition_below, in the ratio of their Shapley values
Reserve   1.5 times the mean winning bid of the last round. `reserve: classic` flags winners above it; with
          `reserve: learned` flows are held until a completion brings the lowest bid below it, gold ones last
State is kept by the server's id: a slot with another server starts anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction import learning as modes
from controlplane.auction.live_loads import FlowLoads
from controlplane.auction.live_shapley import GAMES, Contributions
from controlplane.auction.mechanism import OVERLOAD, PARTNER_BELOW, RESERVE_FACTOR
from controlplane.learner import Learner
from controlplane.policy import (
    CURVE_MIDDLE,
    CURVE_N,
    ClassicParameters,
    Directive,
    Floats,
    Ids,
    Observation,
    PolicyError,
)

# All servers together count as full at so many times what is in flight, if that is more than their workers, but at no
# more than so many times their workers: capacities that grow with a queue raise the bids of the fast, who get less.
ROOM, ROOM_MAX = 2.0, 4.0
# Random actions at most, and how far from 1 a sensitivity may go, in live traffic.
EPSILON_MAX = 0.1
SENSITIVITY_RANGE = (0.5, 2.0)
# reserve: learned: gold flows are held from twice the reserve on, bronze ones from three quarters of it.
SLA_RESERVE = (2.0, 1.0, 0.75)
# An idle server's bid must not be held back by rounding.
SLACK = 1.001
CAPACITY_LEAST = 1e-3
# Most that a counter is believed to grow in a round.
COUNT_MAX = 1e12


class Auction:
    name = "auction"

    def __init__(
        self,
        learning: str | bool = "continuous",
        risk_aversion: float = 0.5,
        target_load_ratio: float = 0.5,
        noise: float = 0.0,
        learning_rate: float = 0.1,
        epsilon: float = 0.0,
        neural_rate: float = 0.1,
        coalition_above: float = OVERLOAD,
        coalition_below: float = PARTNER_BELOW,
        shapley: str = "spare",
        seed: int = 1,
    ) -> None:
        mode = "off" if learning is False else learning  # YAML 1.1 readers make false of off
        _expect("risk_aversion", risk_aversion, 0.0, np.inf)
        _expect("noise", noise, 0.0, np.inf)
        for name, value in (("target_load_ratio", target_load_ratio), ("learning_rate", learning_rate)):
            _expect(name, value, 0.0, 1.0)
        for name, value in (("coalition_above", coalition_above), ("coalition_below", coalition_below)):
            _expect(name, value, 0.0, 1.0)
        _expect("epsilon", epsilon, 0.0, EPSILON_MAX)
        _expect("neural_rate", neural_rate, 0.0, 0.5)
        if mode not in modes.MODES:
            raise PolicyError(f"learning: expected one of {', '.join(modes.MODES)}, not {mode!r}")
        if shapley not in GAMES:
            raise PolicyError(f"shapley: expected one of {', '.join(GAMES)}, not {shapley!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise PolicyError(f"seed: expected a whole number of at least 0, not {seed!r}")
        self.risk_aversion, self.target, self.noise = risk_aversion, target_load_ratio, noise
        self.coalition_above, self.coalition_below = coalition_above, coalition_below
        self.estimator, self.flow_loads = Learner(), FlowLoads()
        self.contributions = Contributions(shapley)
        try:
            self.agents = modes.make(
                str(mode),
                0,
                np.random.default_rng(seed),
                learning_rate=learning_rate,
                epsilon=epsilon,
                tries_most=epsilon,
                neural_rate=neural_rate,
                sensitivity_range=SENSITIVITY_RANGE,
            )
        except RuntimeError as error:  # dqn without torch
            raise PolicyError(f"learning: {error}") from None
        if mode == "dqn":
            _one_thread()
        self.reserve = 0.0
        self._before: Observation | None = None
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._rows: dict[str, Floats] = {"sensitivity": np.ones(0), "bid": np.zeros(0), "margin": np.zeros(0)}

    def decide(self, observation: Observation) -> Directive:
        o = observation
        self._match_rows(o)
        fit = self.estimator.update(o)
        rate = np.maximum(fit.capacity, 1e-9)
        configured = np.zeros(o.n_servers) if o.capacity is None else o.capacity
        loads = self._learn_loads(o, fit.s, fit.k)
        typical = 1.0 if loads is None else self.flow_loads.typical(loads)
        load = self._mean_load(o)
        capacity = self._capacities(o, rate, fit.k, load, configured)
        ratio = np.minimum(load / capacity, 1.0)
        ones = np.ones(o.n_servers)
        if self._learn_bids(o):
            self._rows["sensitivity"] = self.agents.update(
                self._rows["sensitivity"],
                ratio,
                ones * self.target,
                task_load=typical,
                risk_aversion=ones * self.risk_aversion,
                active=o.active,
            )
        self._before = o
        coalition = np.zeros(o.n_servers) if o.coalition is None else o.coalition
        arrivals = self._shares(o, rate)
        phi = self.contributions.update(o.now, capacity, load, fit.mu, fit.k, arrivals, o.active, coalition)
        classic = ClassicParameters(
            capacity=capacity,
            sensitivity=self._rows["sensitivity"],
            risk_aversion=ones * self.risk_aversion,
            target_load_ratio=ones * self.target,
            neural=self.agents.neural,
            coalition=coalition,
            noise=self.noise,
            reserve=self.reserve,
            shapley=phi,
            coalition_above=self.coalition_above,
            coalition_below=self.coalition_below if (coalition > 0).any() else 0.0,
        )
        held = self._held_above(o, classic, loads)
        fitted = {
            "sensitivity": classic.sensitivity,
            "capacity": capacity,
            "load_ratio": ratio,
            "shapley": phi,
            "bid": self._rows["bid"],
            "price": self._rows["bid"] + self._rows["margin"],
            "margin": self._rows["margin"],
            "reserve": ones * (self.reserve if held is None else float(held[0])),
            "mu": fit.mu,
            "k": fit.k,
            "arrivals": arrivals,
            "samples": fit.samples,
        }
        return Directive(
            rule="classic",
            weights=rate,
            classic=classic,
            reserve=held,
            sla_reserve=SLA_RESERVE if held is not None else (1.0, 1.0, 1.0),
            loads=loads,
            fitted=fitted,
        )

    def _match_rows(self, o: Observation) -> None:
        """Let state follow its server's id; a server that is new knows nothing."""
        if np.array_equal(self._ids, o.ids):
            return
        old = {int(server): row for row, server in enumerate(self._ids) if server}
        same = np.array([old.get(int(server), -1) if server else -1 for server in o.ids], dtype=np.intp)
        self.agents.rows(same)
        for name, fill in (("sensitivity", 1.0), ("bid", np.nan), ("margin", np.nan)):
            self._rows[name] = modes.moved(self._rows[name], same, fill)
        self._ids = o.ids.copy()

    def _learn_loads(self, o: Observation, s: Floats, k: Floats) -> Floats | None:
        """Return the estimated load of a flow by route and class; None where all flows are of one."""
        if o.route_loads is None or (len(o.route_loads) < 2 and not o.classes_differ):
            return None
        if o.read_records is not None and (o.classes_differ or not (o.route_loads[1:] > 0).all()):
            self.flow_loads.learn(o.read_records(), o.ids, s, k)
        return self.flow_loads.loads(o.route_loads)

    def _mean_load(self, o: Observation) -> Floats:
        """Return each server's mean load in flight over the round: mean flows in flight, times what each weighs now."""
        flows = np.clip(np.nan_to_num(o.in_flight), 0.0, COUNT_MAX)
        same = o.same_since(self._before)
        if self._before is not None and o.now > self._before.now:
            rows = np.flatnonzero(same)
            passed = _added(o.profile.time, self._before.profile.time, rows)
            flows[rows] = (passed @ CURVE_MIDDLE) / np.maximum(passed.sum(axis=1), o.now - self._before.now)
        if o.load_in_flight is None:
            return flows
        held = np.clip(np.nan_to_num(o.load_in_flight), 0.0, COUNT_MAX)
        weighs = np.where(o.in_flight > 0, held / np.maximum(o.in_flight, 1.0), 1.0)
        load: Floats = np.clip(flows * weighs, 0.0, COUNT_MAX)
        return load

    def _capacities(self, o: Observation, rate: Floats, k: Floats, load: Floats, configured: Floats) -> Floats:
        """Return capacities, (servers,): the unconfigured ones in the ratio of the rates."""
        told = configured > 0
        may = o.active if o.active.any() else np.ones(o.n_servers, dtype=bool)
        if told.any():
            scale = float(configured[told].sum() / rate[told].sum())
        else:
            workers = float(k[may].sum()) if o.n_servers else 1.0
            room = min(max(workers, ROOM * float(load[may].sum())), ROOM_MAX * workers)
            scale = room / max(float(rate[may].sum()), 1e-300)
        return np.clip(np.where(told, configured, rate * scale), CAPACITY_LEAST, 1e12)

    def _learn_bids(self, o: Observation) -> bool:
        """Take in the round's winning bids and margins; False: no flow came, or nothing is known of the time before."""
        before, rows = self._before, np.flatnonzero(o.same_since(self._before))
        if before is None or not len(rows):
            return False
        won, bids = _added(o.auctions_won, before.auctions_won, rows), _added(o.bid_sum, before.bid_sum, rows)
        if not won.sum() > 0:
            return False
        some = won > 0
        self._rows["bid"][rows[some]] = bids[some] / won[some]
        if o.priced is not None and o.margin_sum is not None and before.priced is not None:
            assert before.margin_sum is not None
            priced, margin = _added(o.priced, before.priced, rows), _added(o.margin_sum, before.margin_sum, rows)
            some = priced > 0
            self._rows["margin"][rows[some]] = margin[some] / priced[some]
        self.reserve = min(RESERVE_FACTOR * float(bids.sum() / won.sum()), 1e9)
        return True

    def _held_above(self, o: Observation, classic: ClassicParameters, loads: Floats | None) -> Floats | None:
        """Return the reserve that holds, (CURVE_POINTS,), for `reserve: learned`; None: it holds nobody.

        Never below what the dearest flow is asked by the dearest idle server: a flow is held because servers are busy,
        not because it is heavy.
        """
        if o.reserve != "learned" or self.reserve <= 0 or not o.active.any():
            return None
        heaviest = 1.0 if loads is None else float(loads.max())
        tail = 1.0 + classic.capacity[o.active] / 200.0
        idle = float(((heaviest * classic.neural[o.active] + self.noise) * tail).max())
        return np.full(len(CURVE_N), max(self.reserve, SLACK * idle / SLA_RESERVE[2]))

    def _shares(self, o: Observation, rate: Floats) -> Floats:
        """Return the arrivals a second of each server, as the rates share them."""
        weight = np.where(o.active, rate, 0.0)
        shared: Floats = self.estimator.arrival_rate * (weight / max(float(weight.sum()), 1e-9))
        return shared


def _added(new: Floats, old: Floats, rows: NDArray[np.intp]) -> Floats:
    """Return what these rows added since; counters of a damaged segment may say anything."""
    with np.errstate(invalid="ignore", over="ignore"):
        added: Floats = np.clip(np.nan_to_num(new[rows] - old[rows]), 0.0, COUNT_MAX)
    return added


def _expect(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == np.inf:
        bounds = f"at least {low:g}" if high == np.inf else f"{low:g} … {high:g}"
        raise PolicyError(f"{name}: expected a number, {bounds}, not {value!r}")


def _one_thread() -> None:
    """The controller shares its machine with the data plane: torch must not take every core."""
    from controlplane.auction.dqn import import_torch

    import_torch().set_num_threads(1)
