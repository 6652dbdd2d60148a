"""The figures of a run, and how two balancers compare: ratios of what belongs together, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.simulation.intervals import student
from testbed.compare.measure import Run
from testbed.compare.runner import Comparison, Reference
from testbed.demand import Floats
from testbed.load.connection import ABORTED, OK
from testbed.telemetry import jain

TIMES = ("mean", "p50", "p90", "p99", "p999")
_PERCENTILES = (50.0, 90.0, 99.0, 99.9)
SLOWDOWN_FLOOR_MS = 1.0  # demands below count as this: else the mean is that of a few requests for nothing
_BLOCK_S = 1.0  # requests within a second wait for one another: they are drawn together
_RESAMPLES = 300
_ROUNDS_FOR_T = 3
_BLOCKS_LEAST = 8  # seconds of which a bootstrap can say anything


@dataclass(frozen=True)
class Figures:
    """Of the counted requests of one run; times in milliseconds. slowdown: FCT over the time that the fastest server
    needs for the request when it has nothing else to do. cpu_us: of the balancer, a request; NaN: not known."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    slowdown: float
    slowdown_p99: float
    jain: float = float("nan")
    cpu_us: float = float("nan")
    cpu_data_us: float = float("nan")
    requests: int = 0
    errors: int = 0
    unanswered: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Times:
    """FCTs of one round in milliseconds, with the number of the request and its arrival."""

    index: NDArray[np.intp]
    arrival_s: Floats
    fct_ms: Floats


def times_of(run: Run | Reference, *, from_start: bool = False) -> Times:
    """Of the counted requests; from_start: of those of the warm-up, too.

    Who still waited at the end counts with the age reached; who failed does not count.
    """
    schedule, warmup = run.traffic.schedule, run.traffic.warmup_s
    if isinstance(run, Reference):
        index = np.flatnonzero(schedule.arrival_s >= warmup)
        return Times(index, schedule.arrival_s[index], run.fct_s[index] * 1e3)
    records = run.result.records
    good = (records["error"] == OK) & (records["status"] >= 200) & (records["status"] < 400)
    waiting = (records["error"] == ABORTED) & ~np.isnan(records["sent_s"])
    done = np.where(waiting, run.result.ended_s, records["done_s"])
    index = np.flatnonzero((good | waiting) & (run.is_counted | from_start))
    return Times(index, schedule.arrival_s[index], (done[index] - schedule.arrival_s[index]) * 1e3)


def figures_of(run: Run | Reference, fastest: float) -> Figures:
    """fastest: the speed of the fastest server."""
    times = times_of(run)
    if not len(times.fct_ms):
        return Figures(*(float("nan"),) * 7)
    least_ms = np.maximum(run.traffic.schedule.demand_ms[times.index] / fastest, SLOWDOWN_FLOOR_MS)
    slowdown = np.maximum(times.fct_ms / least_ms, 1.0)
    mean, p50, p90, p99, p999 = _values(times.fct_ms).tolist()
    shape = (float(slowdown.mean()), float(np.percentile(slowdown, 99)))
    if isinstance(run, Reference):
        return Figures(mean, p50, p90, p99, p999, *shape, requests=len(times.fct_ms))
    summary, end = run.summary, run.traffic.schedule.duration_s
    answered = max(int((run.result.records["error"] == OK).sum()), 1)
    use = run.telemetry.utilisation(run.traffic.warmup_s, end) if len(run.telemetry) else np.array([np.nan])
    return Figures(
        mean,
        p50,
        p90,
        p99,
        p999,
        *shape,
        jain=jain(use),
        cpu_us=run.cpu_s["all"] / answered * 1e6 if "all" in run.cpu_s else float("nan"),
        cpu_data_us=run.cpu_s.get("data plane", float("nan")) / answered * 1e6,
        requests=summary.requests,
        errors=sum(summary.errors.values()),
        unanswered=summary.unanswered,
    )


def together(rounds: Sequence[Figures]) -> Figures:
    """Of several rounds: geometric means of times (so that their ratios are the means of the rounds' ratios), means of
    the rest, sums of counts."""

    def geometric(name: str) -> float:
        return math.exp(float(np.mean([math.log(max(getattr(one, name), 1e-9)) for one in rounds])))

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in rounds]))

    values: dict[str, Any] = {name: geometric(name) for name in (*TIMES, "slowdown", "slowdown_p99")}
    values |= {name: mean(name) for name in ("jain", "cpu_us", "cpu_data_us")}
    values |= {name: sum(getattr(one, name) for one in rounds) for name in ("requests", "errors", "unanswered")}
    return Figures(**values)


@dataclass(frozen=True)
class Ratio:
    """A paired ratio with its 95 % interval; NaN where there is too little for one."""

    ratio: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @property
    def is_clear(self) -> bool:
        """Does the interval exclude 1?"""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if self.low == self.low else ""
        return f"{self.ratio:.2f}{interval}"


NO_RATIO = Ratio(float("nan"), float("nan"), float("nan"))


def paired(ours: Sequence[Run | Reference], theirs: Sequence[Run | Reference]) -> dict[str, Ratio]:
    """Ratios ours / theirs of mean, p50, … over the rounds that both have.

    From three rounds on by Student's t on the logarithms of the rounds' ratios. Fewer tell nothing of what differs
    between rounds; then whole seconds of the pairs of requests are drawn anew (a block bootstrap), which tells how far
    chance within the runs goes. Of less than _BLOCKS_LEAST seconds in all there is no interval.
    """
    pairs = [(times_of(a), times_of(b)) for a in ours for b in theirs if a.round == b.round]
    if not pairs or not all(len(a.fct_ms) and len(b.fct_ms) for a, b in pairs):
        return dict.fromkeys(TIMES, NO_RATIO)
    logs = np.log([_values(a.fct_ms) / _values(b.fct_ms) for a, b in pairs])  # (rounds, figures)
    ratios = np.exp(logs.mean(axis=0))
    n = len(pairs)
    if n >= _ROUNDS_FOR_T:
        half = student(n - 1) * logs.std(axis=0, ddof=1) / math.sqrt(n)
        low, high = ratios * np.exp(-half), ratios * np.exp(half)
    else:
        low, high = _bootstrap(pairs)
    return {name: Ratio(*map(float, (ratios[i], low[i], high[i]))) for i, name in enumerate(TIMES)}


def _values(fct_ms: Floats) -> Floats:
    """Mean and percentiles, in the order of TIMES."""
    values: Floats = np.maximum(np.array([fct_ms.mean(), *np.percentile(fct_ms, _PERCENTILES)]), 1e-9)
    return values


def _bootstrap(pairs: Sequence[tuple[Times, Times]]) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(1)
    blocks = []
    for a, b in pairs:
        edges = np.arange(min(a.arrival_s[0], b.arrival_s[0]), max(a.arrival_s[-1], b.arrival_s[-1]), _BLOCK_S)
        at = [np.split(t.fct_ms, np.searchsorted(t.arrival_s, edges[1:])) for t in (a, b)]
        blocks.append(list(zip(*at, strict=True)))
    if sum(map(len, blocks)) < _BLOCKS_LEAST:
        unknown = np.full(len(TIMES), np.nan)
        return unknown, unknown
    drawn = np.empty((_RESAMPLES, len(TIMES)))
    for k in range(_RESAMPLES):
        logs = []
        for of_round in blocks:
            chosen = rng.integers(len(of_round), size=len(of_round))
            ours, theirs = (np.concatenate([of_round[i][side] for i in chosen]) for side in (0, 1))
            some = len(ours) and len(theirs)
            logs.append(np.log(_values(ours) / _values(theirs)) if some else np.zeros(len(TIMES)))
        drawn[k] = np.mean(logs, axis=0)
    low, high = np.exp(np.percentile(drawn, (2.5, 97.5), axis=0))
    return low, high


def common_rounds(found: Comparison) -> set[int]:
    """The rounds of which all balancers have a valid run, those without any left aside."""
    valid = {name: {run.round for run in found.of(name) if run.is_valid} for name in {r.variant for r in found.runs}}
    return set.intersection(*(rounds for rounds in valid.values() if rounds)) if any(valid.values()) else set()


def usable(found: Comparison, variant: str) -> list[Run]:
    """The runs of a balancer that count: valid ones, of rounds in which all balancers have one.

    So all have met the same arrivals. A balancer without any valid run binds the others to no round, and has all of
    its own.
    """
    common = common_rounds(found)
    runs = [run for run in found.of(variant) if run.is_valid] or found.of(variant)
    return [run for run in runs if run.round in common] or runs


def references(found: Comparison, name: str) -> list[Reference]:
    """Of the rounds that count for the balancers, too; of all where none does."""
    common = common_rounds(found)
    rounds = [one for one in found.references if one.name == name]
    return [one for one in rounds if one.round in common] or rounds
