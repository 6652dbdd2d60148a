"""Which form of the truthful bids is best on this farm: tried in the simulator, on the servers and the load as they are
now known.

The truthful bid is exact for a server that gets its share of the arrivals whatever the others do. Under the auction it
gets more while it is free and none while it is dear, so what the bid charges for the flows to come is right on the
whole and wrong in places: it decides from which queue length on a fast server is dearer than an idle slow one, and one
flow more or less there is worth up to a sixth of the mean. No closed form is best everywhere; which is, a simulator
tells in milliseconds.

Form      (θ, c): Δ(n) for θ times the share, less (1 − c) times the first bid. (1, 1) is the truthful bid; for one
          worker a form is (n + c)/(μ − θλ)
Round     every form meets the same arrivals and demands, one form a decision, so that no decision is late
Evidence  log(mean) + TAIL·log(p99) by form, of the last ROUNDS rounds at this load and this farm; another form is
          taken where its advantage is above what chance gives
Source    rollout of heuristics on a model: Bertsekas, Castanon, "Rollout algorithms for stochastic scheduling
          problems", J. Heuristics 5, 1999
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from controlplane.bids import UTILISATION_MAX, truthful
from controlplane.policy import Directive, Fixed, Floats, Observation
from dataplane.simulator import Exponential, Poisson, Server, Simulation, SimulationError, World

# (θ, c). The first holds where nothing is known.
FORMS = ((1.0, 1.0), (0.8, 1.0), (0.8, 0.5), (0.8, 0.25), (1.0, 0.75), (0.5, 0.25))
# Flows of one trial; its first tenth does not count.
FLOWS = 20_000
# A server is taken for so many times as fast or slow as the median one at most.
SPEEDS = 1e3
# A larger farm is tried on so many of its servers, evenly chosen by capacity.
SERVERS = 64
# What the 99th percentile counts beside the mean, by objective.
TAIL = {"mean": 0.05, "tail": 1.0}
# Rounds that count, those that follow each other at once, and the seconds from one to the next after that.
ROUNDS, FEW, LATER = 16, 4, 10.0
# Least advantage that is worth a change, and the deviation of a round's that is assumed beside what is seen.
ADVANTAGE, DEVIATION = 0.002, 0.02
# Loads this close together share their evidence; below the least there is nothing to choose.
LOAD_STEP, LOAD_LEAST = 0.05, 0.2
# Mean change of log capacity, weighted by capacity, that makes another farm.
OTHER_FARM = 0.1
# A form so far behind the best is not tried again on this farm at this load.
HOPELESS = 0.03


def bids(form: tuple[float, float], lam: Floats, mu: Floats, k: Floats) -> Floats:
    """Return the bid curves of a form, (servers, CURVE_POINTS) seconds, not falling, above 0."""
    theta, c = form
    curves = truthful(theta * lam, mu, k)
    return np.asarray(curves - (1.0 - c) * curves[:, :1])


class Rehearsal:
    """Call `form` at every decision; it tries one form of a round now and then, and says which holds."""

    def __init__(self) -> None:
        self.chosen = 0
        self.rounds = 0  # so far, and the seed of the present one
        self._farm: Floats | None = None  # log capacities for which the evidence holds
        self._evidence: dict[int, deque[Floats]] = {}
        self._choice: dict[int, int] = {}
        self._next = 0.0
        self._trial: _Trial | None = None

    def form(self, o: Observation, lam: Floats, mu: Floats, k: Floats) -> tuple[float, float]:
        """Return (θ, c) for servers that take flows, each with its share lam; all (servers,), of o.active alone."""
        capacity = mu * k
        load = float(lam.sum()) / max(float(capacity.sum()), 1e-300)
        if len(mu) < 2 or not LOAD_LEAST <= load < UTILISATION_MAX:
            return FORMS[0]
        self._match(capacity)
        at = round(load / LOAD_STEP)
        self._rehearse(o, at, lam, mu, k)
        self.chosen = self._choice_at(at)
        return FORMS[self.chosen]

    def _match(self, capacity: Floats) -> None:
        """Forget what was found on another farm; what was chosen there holds until something better is found."""
        farm, share = np.log(capacity), capacity / capacity.sum()
        if self._farm is None or len(farm) != len(self._farm) or float(share @ np.abs(farm - self._farm)) > OTHER_FARM:
            self._farm = farm
            self._evidence.clear()
            self._trial = None

    def _choice_at(self, at: int) -> int:
        """Return what was chosen at this load, or at the nearest one."""
        nearest = min(self._choice, key=lambda other: abs(other - at), default=at)
        return self._choice.get(nearest, 0)

    def _rehearse(self, o: Observation, at: int, lam: Floats, mu: Floats, k: Floats) -> None:
        if self._trial is None:
            if o.now < self._next and at in self._evidence:
                return
            self.rounds += 1
            self._trial = _Trial(at, self._hopeful(at), self.rounds, lam, mu, k)
        trial = self._trial
        try:
            trial.step(TAIL.get(o.objective, TAIL["mean"]))
        except SimulationError:  # rates beyond what can be simulated: what holds goes on
            self._trial, self._next = None, o.now + LATER
            return
        if not trial.forms:
            self._trial = None
            evidence = self._evidence.setdefault(trial.at, deque(maxlen=ROUNDS))
            evidence.append(_filled(trial.scores, evidence))
            self._choice[trial.at] = _better(np.array(evidence), self._choice_at(trial.at))
            self._next = o.now if len(evidence) < FEW else o.now + LATER

    def _hopeful(self, at: int) -> list[int]:
        """Return the forms to try."""
        evidence = self._evidence.get(at, ())
        if len(evidence) < 2:
            return list(range(len(FORMS)))
        mean = np.mean(evidence, axis=0)
        return [int(i) for i in np.flatnonzero((mean < mean.min() + HOPELESS) | (np.arange(len(FORMS)) == self.chosen))]


def _filled(scores: Floats, before: Iterable[Floats]) -> Floats:
    """Return scores (forms,) in which a form that was not tried is as far behind the best as it was before."""
    missing = np.isnan(scores)
    if not missing.any():
        return scores
    mean = np.mean(list(before), axis=0)
    return np.where(missing, np.nanmin(scores) + mean - mean.min(), scores)


def _better(scores: Floats, chosen: int) -> int:
    """Return the form to take by scores (rounds, forms): the present one unless the best is better beyond chance."""
    rounds = len(scores)
    gain = scores[:, chosen, None] - scores
    mean = gain.mean(axis=0)
    spread = ((gain - mean) ** 2).sum(axis=0)
    error = np.sqrt((spread + DEVIATION**2) / rounds / rounds)
    best = int(np.argmax(mean))
    return best if mean[best] > max(ADVANTAGE, 2.0 * float(error[best])) else chosen


class _Trial:
    """One round: the farm as it was when it began, and what the forms made of it so far."""

    def __init__(self, at: int, forms: list[int], seed: int, lam: Floats, mu: Floats, k: Floats) -> None:
        self.at, self.forms, self.scores = at, forms, np.full(len(FORMS), np.nan)
        if len(mu) > SERVERS:
            some = np.argsort(mu * k)[np.linspace(0, len(mu) - 1, SERVERS).astype(np.intp)]
            lam, mu, k = lam[some], mu[some], k[some]
        # Which form is best does not depend on the unit of time: the median service takes 1/100 of one.
        unit = 100.0 / float(np.median(mu))
        self.lam, self.mu, self.k = lam * unit, mu * unit, k
        self.capacity = self.mu * k
        workers = np.maximum(np.rint(k), 1.0)
        speeds = np.clip(self.capacity / workers / 100.0, 1.0 / SPEEDS, SPEEDS)
        rate = float(self.lam.sum())
        self.world = World(
            [Server(speed=float(s), workers=int(w)) for s, w in zip(speeds, workers, strict=True)],
            Poisson(rate),
            Exponential(0.01),
            seed=seed,
            flows=FLOWS,
            warmup=0.1 * FLOWS / rate,
        )

    def step(self, tail: float) -> None:
        """Try the next form."""
        form = self.forms.pop(0)
        curves = bids(FORMS[form], self.lam, self.mu, self.k)
        directive = Directive(rule="bids", weights=self.capacity, curves=curves)
        fct = Simulation(self.world).run(Fixed(directive), interval=1e6).fct
        if not len(fct):
            raise SimulationError("no flow ended")
        self.scores[form] = np.log(fct.mean()) + tail * np.log(np.quantile(fct, 0.99))
