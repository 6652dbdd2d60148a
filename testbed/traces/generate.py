"""Made-up traces: nine kinds, each drawn from a seed, the same bytes on every machine (arithmetic.py tells how).

Arrivals are a Poisson process whose rate changes in time, by thinning: candidates come at the highest rate, and one at
time t is kept with probability rate(t) / highest. Gaps, works, keys and balancers have streams of their own: at another
rate the same flows come in the same order. Works are seconds at speed 1, in whole nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.traces.arithmetic import Draws, Floats, exp, log, power
from testbed.traces.digits import mixed
from testbed.traces.rates import DiurnalRate, FlashRate, MmppRate, OnOffRate, Rate, SineRate, SteadyRate
from testbed.traces.record import T_NS_LIMIT, Records, TraceError, join, records_from
from testbed.traces.transform import first_rows

# Part of what a kind is: with another number the streams would be cut elsewhere.
_CANDIDATES = 1 << 14

Columns = tuple[NDArray[np.int64], Floats, Floats, NDArray[np.uint64]]  # t_ns, work, bytes, key


@dataclass(frozen=True)
class Recipe:
    """What a made-up trace depends on. shape: parameters of the kind that differ from KINDS[kind].shape."""

    kind: str
    flows: int = 100_000
    seed: int = 1
    rate: float = 100.0  # arrivals a second; flash crowd: before it
    mean_work: float = 0.01  # seconds at speed 1
    clients: int = 0  # distinct keys, of equal activity; 0: every flow has its own
    balancers: int = 1  # each flow arrives at one of them at random
    shape: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TraceError(f"no kind of trace is called '{self.kind}': there are {', '.join(KINDS)}")
        for name in ("rate", "mean_work"):
            _check(name, getattr(self, name))
        if self.flows < 0 or not 0 <= self.clients < 2**32 or not 1 <= self.balancers < 2**32:
            raise TraceError("flows and clients must not be negative, and balancers at least 1")
        known = KINDS[self.kind].shape
        for name, value in self.shape.items():
            if name not in known:
                raise TraceError(f"{self.kind} has no '{name}': it has {', '.join(known) or 'no parameters'}")
            _check(name, value)

    @property
    def parameters(self) -> dict[str, float]:
        return {**KINDS[self.kind].shape, **self.shape}

    def draws(self, purpose: str) -> Draws:
        return Draws(self.seed, purpose)


# What parameters may be: within these nothing overflows and nothing takes forever. Others: a microsecond to 30 years.
_BOUNDS = {
    "rate": (1e-4, 1e9),
    "mean_work": (1e-9, 1e9),
    "factor": (1.0, 1000.0),
    "share": (0.001, 0.999),
    "elephants": (0.001, 0.999),
    "amplitude": (0.001, 0.999),
    "sojourn": (1e-6, 1e6),
    "alpha": (0.1, 30.0),
    "tail_ratio": (1.01, 1e9),
    "objects": (0.01, 100.0),
    "gap": (1e-6, 100.0),
    "pages": (1.0, 1e7),
    "zipf": (0.001, 10.0),
    "page_factor": (0.001, 1e6),
}


def _check(name: str, value: float) -> None:
    low, high = _BOUNDS.get(name, (1e-6, 1e9))
    if not low <= value <= high:
        raise TraceError(f"{name} must be between {low:g} and {high:g}")


def generate(recipe: Recipe) -> Iterator[Records]:
    """Yield the records of a made-up trace, in order of time."""
    yield from first_rows(_endless(recipe), recipe.flows)


def generated(kind: str, **recipe: Any) -> Records:
    """Return a made-up trace as one array: generated("poisson", flows=1000, rate=50.0)."""
    return join(generate(Recipe(kind, **recipe)))


def _endless(recipe: Recipe) -> Iterator[Records]:
    split = recipe.draws("balancers")
    columns = _wiki(recipe) if recipe.kind == "wiki" else _independent(recipe)
    for t_ns, work, size, key in columns:
        if len(t_ns) == 0:
            continue
        if t_ns[-1] >= T_NS_LIMIT:
            raise TraceError("the times are out of range: the rate is too low for so many flows")
        balancer: Any = 0
        if recipe.balancers > 1:
            balancer = (split.uniform(len(t_ns)) * recipe.balancers).astype(np.uint32)
        yield records_from(t_ns, np.rint(work * 1e9) / 1e9, np.rint(size).astype(np.uint64), key, balancer)


def _arrivals(rate: Rate, recipe: Recipe) -> Iterator[NDArray[np.int64]]:
    gaps, lots = recipe.draws("gaps"), recipe.draws("thinning")
    now_ns = 0
    while True:
        # Whole nanoseconds: sums of integers are exact.
        gap_ns = np.rint(gaps.exponential(_CANDIDATES) / rate.highest * 1e9)
        if now_ns + float(gap_ns.sum()) >= T_NS_LIMIT:
            raise TraceError("the times are out of range: the rate is too low for so many flows")
        t_ns = now_ns + np.cumsum(gap_ns.astype(np.int64))
        now_ns = int(t_ns[-1])
        if not isinstance(rate, SteadyRate):
            t_ns = t_ns[lots.uniform(len(t_ns)) * rate.highest < rate.at(t_ns)]
        yield t_ns


def _independent(recipe: Recipe) -> Iterator[Columns]:
    """Flows that know nothing of each other."""
    p, mean = recipe.parameters, recipe.mean_work
    works, clients = recipe.draws("works"), recipe.draws("clients")
    for t_ns in _arrivals(KINDS[recipe.kind].rate(recipe), recipe):
        n = len(t_ns)
        size = np.zeros(n)
        if recipe.kind == "pareto":
            work = bounded_pareto(works, n, p["alpha"], p["tail_ratio"]) * mean
        elif recipe.kind == "mice":
            u = works.uniform(2 * n).reshape(n, 2)
            of_mouse = mean * (1 - p["share"]) / (1 - p["elephants"])
            of_elephant = mean * p["share"] / p["elephants"]
            work = -log(1.0 - u[:, 1]) * np.where(u[:, 0] < p["elephants"], of_elephant, of_mouse)
            size = work / mean * p["bytes"]
        else:
            work = works.exponential(n) * mean
        key = clients.words(n)
        if recipe.clients:
            key = mixed((clients_of(key) * recipe.clients).astype(np.uint64))
        yield t_ns, work, size, key


def clients_of(words: NDArray[np.uint64]) -> Floats:
    """Return numbers of [0, 1) made of random words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bounded_pareto(draws: Draws, n: int, alpha: float, ratio: float) -> Floats:
    """Draw from the Pareto distribution cut at `ratio` times its least value, of mean 1."""
    tail = power(ratio, -alpha)
    if abs(alpha - 1) < 1e-6:
        mean_over_least = log(ratio) / (1 - tail)
    else:
        mean_over_least = alpha / (1 - tail) * (power(ratio, 1 - alpha) - 1) / (1 - alpha)
    return power(1 - draws.uniform(n) * (1 - tail), -1 / alpha) / mean_over_least


def lognormal(draws: Draws, n: int, cv: float) -> Floats:
    """Draw from the lognormal distribution of mean 1."""
    variance = log(1.0 + cv * cv)
    return exp(np.sqrt(variance) * draws.normal(n) - variance / 2)


def _wiki(recipe: Recipe) -> Iterator[Columns]:
    """Page views as of an encyclopedia: an expensive page, then cheap objects of it, one soon after the other."""
    p = recipe.parameters
    objects, share = p["objects"], 1 / (1 + p["objects"])
    of_object = recipe.mean_work / (share * p["page_factor"] + 1 - share)
    counts, popular, gaps = recipe.draws("objects"), recipe.draws("pages"), recipe.draws("object gaps")
    page_works, page_sizes = recipe.draws("page works"), recipe.draws("page sizes")
    object_works, object_sizes = recipe.draws("works"), recipe.draws("object sizes")
    popularity = np.cumsum(power(np.arange(1.0, int(p["pages"]) + 1), -p["zipf"]))
    log_more = log(objects / (1 + objects))
    held: list[NDArray[Any]] = [np.empty(0, dtype=t) for t in (np.int64, np.float64, np.float64, np.uint64)]
    for page_ns in _arrivals(SteadyRate(recipe.rate * share), recipe):
        n = len(page_ns)
        page = np.searchsorted(popularity, popular.uniform(n) * popularity[-1], side="right").astype(np.uint64)
        count = np.minimum(np.floor(log(1.0 - counts.uniform(n)) / log_more), 1000).astype(np.int64)
        total = int(count.sum())
        of_page = np.repeat(np.arange(n), count)
        before = np.cumsum(count) - count
        number = np.arange(total) - before[of_page]
        # Times from the page on: a running sum within each page.
        sums = np.concatenate([[0], np.cumsum(np.rint(gaps.exponential(total) * p["gap"] * 1e9).astype(np.int64))])
        object_ns = page_ns[of_page] + sums[1:] - sums[before[of_page]]
        batch = (
            np.concatenate([page_ns, object_ns]),
            np.concatenate(
                [
                    lognormal(page_works, n, 1.0) * of_object * p["page_factor"],
                    object_works.exponential(total) * of_object,
                ]
            ),
            np.concatenate(
                [lognormal(page_sizes, n, 1.0) * 20e3, bounded_pareto(object_sizes, total, 1.2, 1000.0) * 10e3]
            ),
            mixed(
                np.concatenate([page, page[of_page]]) * np.uint64(1024)
                + np.concatenate([page * 0, number + 1]).astype(np.uint64)
            ),
        )
        held = [np.concatenate(pair) for pair in zip(held, batch, strict=True)]
        order = np.argsort(held[0], kind="stable")
        held = [column[order] for column in held]
        # Later pages come after the last one here, and their objects after them.
        done = int(np.searchsorted(held[0], page_ns[-1]))
        yield held[0][:done], held[1][:done], held[2][:done], held[3][:done]
        held = [column[done:] for column in held]


@dataclass(frozen=True)
class Kind:
    summary: str
    shape: dict[str, float]
    make_rate: Any = None

    def rate(self, recipe: Recipe) -> Rate:
        if self.make_rate is None:
            return SteadyRate(recipe.rate)
        rate: Rate = self.make_rate(recipe)
        return rate


def _mmpp(r: Recipe) -> Rate:
    p = r.parameters
    return MmppRate(r.rate, p["factor"], p["share"], p["sojourn"], r.draws("phases"))


KINDS: dict[str, Kind] = {
    "poisson": Kind("independent arrivals at a steady rate, exponential work", {}),
    "mmpp2": Kind(
        "bursts of random length: Poisson, `factor` times as fast for `share` of the time, a burst lasting `sojourn` s",
        {"factor": 8.0, "share": 0.1, "sojourn": 1.0},
        _mmpp,
    ),
    "sine": Kind(
        "a rate that swings by `amplitude` (a share of it) with a `period` in s",
        {"amplitude": 0.5, "period": 60.0},
        lambda r: SineRate(r.rate, r.parameters["amplitude"], r.parameters["period"]),
    ),
    "diurnal": Kind(
        "a day as web sites have it, night to evening peak, in `period` s",
        {"period": 240.0},
        lambda r: DiurnalRate(r.rate, r.parameters["period"]),
    ),
    "onoff": Kind(
        "silence and load in turn: on for `share` of each `period` in s",
        {"share": 0.3, "period": 10.0},
        lambda r: OnOffRate(r.rate, r.parameters["share"], r.parameters["period"]),
    ),
    "flash": Kind(
        "a flash crowd: at `at` s the rate climbs within `ramp` s to `factor` times, then decays in `decay` s",
        {"at": 60.0, "ramp": 5.0, "factor": 10.0, "decay": 20.0},
        lambda r: FlashRate(r.rate, *(r.parameters[name] for name in ("at", "ramp", "factor", "decay"))),
    ),
    "pareto": Kind(
        "Poisson arrivals, heavy-tailed work: Pareto of shape `alpha`, cut at `tail_ratio` times its least",
        {"alpha": 1.5, "tail_ratio": 1000.0},
    ),
    "mice": Kind(
        "Poisson arrivals, few elephants: a share `elephants` of the flows has `share` of the work; mean size `bytes`",
        {"elephants": 0.05, "share": 0.8, "bytes": 50_000.0},
    ),
    "wiki": Kind(
        "page views: a page of Zipf popularity (exponent `zipf`, of `pages`) has `page_factor` times the work of each"
        " of its `objects` (their mean number), which follow one `gap` s after the other",
        {"objects": 9.0, "gap": 0.05, "pages": 10_000.0, "zipf": 1.0, "page_factor": 30.0},
    ),
}
