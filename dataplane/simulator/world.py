"""What is simulated: servers, arrival process, demand, balancers and scheduled events, as plain frozen values.

Times are seconds, rates flows per second, work seconds on a server of speed 1. `World.at_load(rho)` sets the arrival
rate to a share of the servers' capacity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UNLIMITED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Server:
    """One server. `workers` is k: workers of a FIFO queue, or cores that all its flows share."""

    speed: float = 1.0
    workers: int = 1
    service: Literal["fifo", "sharing"] = "fifo"
    backlog: int | None = None  # flows beyond k that it holds, more are turned away; None: no limit
    delay: float = 0.0  # of the link, each way
    weight: int = 1  # as configured at the balancers
    maxconn: int = 0  # as configured at the balancers; 0: no limit
    backup: bool = False
    present: bool = True  # False: a Join event brings it in

    @property
    def capacity(self) -> float:
        return self.speed * self.workers


# Arrival processes. `mean_rate` is over a long time, `peak_rate` the greatest at any; `scaled(factor)` multiplies the
# rate and keeps the shape.


@dataclass(frozen=True, slots=True)
class Poisson:
    rate: float

    @property
    def mean_rate(self) -> float:
        return self.rate

    @property
    def peak_rate(self) -> float:
        return self.rate

    def scaled(self, factor: float) -> Poisson:
        return Poisson(self.rate * factor)


@dataclass(frozen=True, slots=True)
class Sine:
    """Poisson of rate base + amplitude·sin(2πt/period), zero where negative."""

    base: float
    amplitude: float
    period: float

    @property
    def mean_rate(self) -> float:
        a = abs(self.amplitude)
        if a <= self.base:
            return self.base
        # The part below zero is cut off: integrate from -θ to π + θ with sin θ = base / a.
        theta = math.asin(self.base / a)
        return (self.base * (math.pi + 2 * theta) + 2 * a * math.cos(theta)) / (2 * math.pi)

    @property
    def peak_rate(self) -> float:
        return self.base + abs(self.amplitude)

    def scaled(self, factor: float) -> Sine:
        return Sine(self.base * factor, self.amplitude * factor, self.period)


@dataclass(frozen=True, slots=True)
class MMPP:
    """Markov-modulated Poisson process of two states: bursts of random length."""

    rates: tuple[float, float]
    sojourns: tuple[float, float]  # mean time in each state

    @property
    def mean_rate(self) -> float:
        return float(np.dot(self.rates, self.sojourns) / np.sum(self.sojourns))

    @property
    def peak_rate(self) -> float:
        return max(self.rates)

    def scaled(self, factor: float) -> MMPP:
        return MMPP((self.rates[0] * factor, self.rates[1] * factor), self.sojourns)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson of two rates in turn, each for a fixed time."""

    rates: tuple[float, float]
    durations: tuple[float, float]

    @property
    def mean_rate(self) -> float:
        return float(np.dot(self.rates, self.durations) / np.sum(self.durations))

    @property
    def peak_rate(self) -> float:
        return max(self.rates)

    def scaled(self, factor: float) -> OnOff:
        return OnOff((self.rates[0] * factor, self.rates[1] * factor), self.durations)


@dataclass(frozen=True, slots=True)
class Profile:
    """Poisson of a rate that goes through a table over and over, `step` seconds each: a day, say."""

    rates: tuple[float, ...]
    step: float

    @property
    def mean_rate(self) -> float:
        return float(np.mean(self.rates))

    @property
    def peak_rate(self) -> float:
        return max(self.rates)

    def scaled(self, factor: float) -> Profile:
        return Profile(tuple(rate * factor for rate in self.rates), self.step)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Arrivals at given times, nanoseconds since the start, never falling; keys and balancers as recorded, or drawn."""

    times_ns: NDArray[np.uint64]
    keys: NDArray[np.uint64] | None = None
    balancers: NDArray[np.uint32] | None = None

    @property
    def mean_rate(self) -> float:
        span_ns = float(self.times_ns[-1]) if len(self.times_ns) else 0.0
        return len(self.times_ns) / (span_ns * 1e-9) if span_ns > 0 else 0.0

    def scaled(self, factor: float) -> Trace:
        times = np.rint(self.times_ns / factor).astype(np.uint64)
        return Trace(times, self.keys, self.balancers)


Arrivals = Poisson | Sine | MMPP | OnOff | Profile | Trace


# Demands. `mean` is seconds on a server of speed 1; `second_moment` is for the formulae of theory.


@dataclass(frozen=True, slots=True)
class Exponential:
    mean: float

    @property
    def second_moment(self) -> float:
        return 2 * self.mean**2


@dataclass(frozen=True, slots=True)
class Deterministic:
    mean: float

    @property
    def second_moment(self) -> float:
        return self.mean**2


@dataclass(frozen=True, slots=True)
class Lognormal:
    mean: float
    cv: float  # standard deviation over mean

    @property
    def second_moment(self) -> float:
        return self.mean**2 * (1 + self.cv**2)


@dataclass(frozen=True, slots=True)
class Hyperexponential:
    """Exponential of mean `first` with probability p, else of mean `second`: mice and elephants."""

    p: float
    first: float
    second: float

    @classmethod
    def balanced(cls, mean: float, cv: float) -> Hyperexponential:
        """Return the one of this mean and coefficient of variation (> 1) in which both kinds make half of the work."""
        if cv <= 1:
            raise ValueError(f"a hyperexponential's cv is above 1, not {cv}")
        p = 0.5 * (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1)))
        return cls(p, mean / (2 * p), mean / (2 * (1 - p)))

    @property
    def mean(self) -> float:
        return self.p * self.first + (1 - self.p) * self.second

    @property
    def second_moment(self) -> float:
        return 2 * (self.p * self.first**2 + (1 - self.p) * self.second**2)


@dataclass(frozen=True, slots=True)
class BoundedPareto:
    """Pareto of shape alpha cut at `ratio` times its least value."""

    mean: float
    alpha: float = 1.5
    ratio: float = 1000.0

    def _moment(self, m: float) -> float:
        """Return E[X^m] in units of the least value."""
        a, h = self.alpha, self.ratio
        scale = a / (1 - math.pow(h, -a))
        integral = math.log(h) if a == m else (math.pow(h, m - a) - 1) / (m - a)
        return scale * integral

    @property
    def least(self) -> float:
        return self.mean / self._moment(1)

    @property
    def second_moment(self) -> float:
        return self.least**2 * self._moment(2)


@dataclass(frozen=True, slots=True, eq=False)
class Works:
    """Given works, seconds at speed 1, in turn and over and over; beside a Trace of as many arrivals, row by row."""

    works: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(np.mean(self.works))

    @property
    def second_moment(self) -> float:
        return float(np.mean(np.square(self.works)))


Demand = Exponential | Deterministic | Lognormal | Hyperexponential | BoundedPareto | Works


# Scheduled events: at, seconds since the start.


@dataclass(frozen=True, slots=True)
class SpeedChange:
    at: float
    server: int
    speed: float


@dataclass(frozen=True, slots=True)
class Crash:
    """Its flows are lost and new ones refused; balancers mark it down `World.detect` later."""

    at: float
    server: int


@dataclass(frozen=True, slots=True)
class Recover:
    at: float
    server: int


@dataclass(frozen=True, slots=True)
class Join:
    at: float
    server: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Taken out of the configuration; its flows finish."""

    at: float
    server: int


@dataclass(frozen=True, slots=True)
class Drain:
    at: float
    server: int


@dataclass(frozen=True, slots=True)
class WeightChange:
    at: float
    server: int
    weight: int


@dataclass(frozen=True, slots=True)
class RateChange:
    """From now on arrivals come at `factor` times the configured rate."""

    at: float
    factor: float


Event = SpeedChange | Crash | Recover | Join | Leave | Drain | WeightChange | RateChange


@dataclass(frozen=True)
class World:
    """Everything that a run depends on, but the policy."""

    servers: Sequence[Server]
    arrivals: Arrivals
    demand: Demand
    seed: int = 0
    flows: int | None = None  # arrivals end after so many, and the run when all are closed
    duration: float | None = None  # or the run ends here, with the flows that are still open
    warmup: float = 0.0  # flows that arrive before are left out of the summary
    balancers: int = 1
    view: Literal["own", "shared"] = "own"  # shared: the balancers are workers of one segment and see all flows
    split: Literal["random", "hash", "trace"] = "random"
    clients: int = 0  # distinct clients of equal activity; 0: every flow is its own
    events: Sequence[Event] = ()
    detect: float = 1.0  # from a crash or recovery until the health checks have seen it
    retries: int = 3
    queue_slots: int = UNLIMITED  # flows that a balancer holds while servers are full, or too dear for the reserve
    gold: float = 0.0  # shares of the flows that are of these SLA classes, the others are silver
    bronze: float = 0.0
    fallback: Literal["lsq", "sed", "gsed", "maglev", "alias", "wrr"] = "lsq"
    stale_after: float | None = None  # None: the directive stays in force without a sign of life
    sample: float = 0.05  # the balancers' tick: refresh, and samples of open flows' durations
    load_per_second: float = 0.0  # a flow's load to the classic rule per second of work; 0: every load is 1
    records: int | None = None  # how many flows are recorded; None: all that are to be expected
    rings: bool = False  # also write the segments' flow records

    def __post_init__(self) -> None:
        if self.flows is None and self.duration is None and not isinstance(self.arrivals, Trace):
            raise ValueError("a world needs flows or a duration to come to an end")
        if not self.servers:
            raise ValueError("a world needs servers")

    @property
    def capacity(self) -> float:
        """Work done a second when all that are there at the start are busy."""
        return sum(server.capacity for server in self.servers if server.present)

    @property
    def load(self) -> float:
        """Offered load as a share of the capacity."""
        return self.arrivals.mean_rate * self.demand.mean / self.capacity

    def at_load(self, rho: float) -> World:
        """Return this world with its arrivals scaled to the offered load rho."""
        return replace(self, arrivals=self.arrivals.scaled(rho / self.load))

    @property
    def records_expected(self) -> int:
        """How many records to make room for (memory that is not written costs nothing)."""
        if self.records is not None:
            return self.records
        most = self.flows if self.flows is not None else 2**62
        if isinstance(self.arrivals, Trace):
            most = min(most, len(self.arrivals.times_ns))
        elif self.duration is not None:
            factor = max([1.0, *(event.factor for event in self.events if isinstance(event, RateChange))])
            # A run may be shorter than the phase of the greatest rate.
            flows = max(2 * self.arrivals.mean_rate, self.arrivals.peak_rate) * factor * self.duration
            most = min(most, int(flows + 10 * math.sqrt(flows) + 1000))
        return most
