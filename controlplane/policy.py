"""What a policy is: `decide(observation) -> directive`, called every control interval, without I/O or a clock of
its own.

A policy is a class with a `name` and a `decide`. It may keep state between calls (what it learned), keyed by the
server's id, since rows come and go. Everything it needs is in the observation, everything it does is in the directive:

    class LeastConnections:
        name = "lsq"

        def decide(self, observation: Observation) -> Directive:
            return Directive(rule="bids", curves=np.tile(CURVE_N, (observation.n_servers, 1)))

Third parties register theirs in the entry-point group `vickrey.policies`; the options of the configuration
(`policy: {name: x, option: 1}`) become keyword arguments of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shm_layout.layout import CURVE_LOW

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ids = NDArray[np.uint64]


# Flows in flight at each point of a curve, (CURVE_POINTS,): 0 … 63, then four to an octave, as segment.h has it.
CURVE_N: Floats = CURVE_LOW.astype(np.float64)
# The middle of each bin of an occupancy profile, which holds the n from its point to before the next.
CURVE_MIDDLE: Floats = CURVE_N + np.diff(CURVE_N, append=2 * CURVE_N[-1] - CURVE_N[-2]) / 2 - 0.5


class PolicyError(ValueError):
    """A policy that does not exist, or whose options make no sense. option: the one at fault, if it is one."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Profile:
    """What servers did at each number of flows in flight, (servers, CURVE_POINTS) each; cumulative in an
    observation."""

    time: Floats  # seconds with n in flight, the running stretch included
    completions: Floats  # flows that ended from n in flight
    arrivals: Floats  # flows that had found n in flight, counted when they completed
    found_fct: Floats  # seconds: summed FCT of these

    def __sub__(self, other: Profile) -> Profile:
        return Profile(
            self.time - other.time,
            self.completions - other.completions,
            self.arrivals - other.arrivals,
            self.found_fct - other.found_fct,
        )


@dataclass(frozen=True)
class Observation:
    """One service as the controller saw it, one row a server slot (free ones included: `active` is False there).

    Counters are cumulative since the server's slot was taken; a policy that wants a rate keeps the observation
    before, and `same_since` tells which rows may be subtracted. Times are seconds.
    """

    now: float  # CLOCK_MONOTONIC (or the simulator's clock)
    interval: float  # between decisions
    balancers: int  # that share these servers, this one included
    objective: str  # "mean" or "tail"
    ids: Ids  # (servers,) 0: free slot
    names: tuple[str, ...]
    active: Bools  # (servers,) may take new flows: ready, up, weight > 0, and no backup while another is up
    weight: Floats  # (servers,) as configured, 0 … 256
    maxconn: Floats  # (servers,) inf: no limit
    in_flight: Floats  # (servers,) over all workers
    profile: Profile
    flows: Floats  # (servers,) opened
    outcomes: Floats  # (servers, OUTCOMES) closed, by enum outcome
    fct_sum: Floats  # (servers,) over flows closed OK or 5xx
    auctions_won: Floats  # (servers,)
    bid_sum: Floats  # (servers,) of the winning bids
    reserve: str = "off"  # "auto", "off", "classic" or "learned": whether, and how, flows are held back
    waiting: float = 0.0  # flows held or queued now, over all workers
    load_in_flight: Floats | None = None  # (servers,) summed estimated loads of the flows in flight, over all workers
    priced: Floats | None = None  # (servers,) auctions won against another bid
    margin_sum: Floats | None = None  # (servers,) second price minus winning bid, over these
    capacity: Floats | None = None  # (servers,) as configured for the classic rule; 0: to be learned
    coalition: Floats | None = None  # (servers,) as configured; 0: of none
    route_loads: Floats | None = None  # (routes + 1,) as configured; 0: to be learned
    classes_differ: bool = False  # a header puts flows of one route into several SLA classes
    read_records: Callable[[], NDArray[np.void]] | None = field(
        default=None, repr=False
    )  # flows finished since a policy last asked; all who ask in one observation are told the same
    read_features: Callable[[], Floats] | None = field(default=None, repr=False)
    read_histogram: Callable[[], Floats] | None = field(default=None, repr=False)

    @property
    def n_servers(self) -> int:
        return len(self.ids)

    @cached_property
    def features(self) -> Floats:
        """The 11 features (servers, 11), read from the reservoirs when first asked for; zeros where none were taken."""
        return np.zeros((self.n_servers, 11)) if self.read_features is None else self.read_features()

    @cached_property
    def histogram(self) -> Floats:
        """FCT counts (servers, HISTOGRAM_BUCKETS), cumulative, read when first asked for."""
        return np.zeros((self.n_servers, 0)) if self.read_histogram is None else self.read_histogram()

    def same_since(self, before: Observation | None) -> Bools:
        """Return which rows hold the same server as before, with counters that went on (a restart zeroes them)."""
        same = np.zeros(self.n_servers, dtype=bool)
        if before is not None:
            m = min(self.n_servers, before.n_servers)
            same[:m] = (
                (self.ids[:m] == before.ids[:m])
                & (self.flows[:m] >= before.flows[:m])
                & (self.outcomes[:m].sum(axis=1) >= before.outcomes[:m].sum(axis=1))
            )
        return same


@dataclass(frozen=True)
class ClassicParameters:
    """The classic rule's parameters, (servers,) each; see the directive in segment.h."""

    capacity: Floats
    sensitivity: Floats
    risk_aversion: Floats
    target_load_ratio: Floats
    neural: Floats
    coalition: Floats
    noise: float = 0.0
    reserve: float = 0.0
    shapley: Floats | None = None  # hand-offs draw lots in this ratio; None: evenly
    coalition_above: float = 0.0  # load ratio above which a winner looks for partners …
    coalition_below: float = 0.0  # … that have a lower one than this; 0: no hand-offs


@dataclass(frozen=True)
class Directive:
    """What a policy decided. Row i is server slot i, as in the observation."""

    rule: str  # "maglev", "alias", "wrr", "bids" or "classic"
    weights: Floats | None = (
        None  # (servers,) shares: the lotteries need them; elsewhere the learned capacities, for show
    )
    curves: Floats | None = None  # (servers, CURVE_POINTS): rule bids
    aging: Floats | None = None  # (servers, 2): with so many flows in flight or more, a bid grows by so many times
    # itself a second since a flow last came or left there
    choices: int = 0  # bids: servers sampled for one auction; 0: all bid
    classic: ClassicParameters | None = None
    reserve: Floats | None = None  # (CURVE_POINTS,) by flows waiting: a flow whose lowest bid is above it waits too
    sla_reserve: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor on it for gold, silver, bronze
    loads: Floats | None = None  # (routes + 1, SLA classes) estimated load of a flow, > 0
    fitted: Mapping[str, Floats] = field(default_factory=dict)  # (servers,) each: what `vickrey policy show` prints


@runtime_checkable
class Policy(Protocol):
    """What the controller calls. `decide` must return within the decision deadline and must not do I/O."""

    @property
    def name(self) -> str: ...

    def decide(self, observation: Observation) -> Directive: ...


class Fixed:
    """A policy that decides the same always: for trials in the simulator."""

    name = "fixed"

    def __init__(self, directive: Directive) -> None:
        self.directive = directive

    def decide(self, _: Observation) -> Directive:
        return self.directive
