"""What is replayed: a trace file or a made-up one, the part and the pace that are wanted, the request of each row.

    trace = load(Wanted("poisson_for_loop_rate_150.csv", load=0.8))
    plan = trace.plan(parse_url("http://127.0.0.1:8080/"), capacity=2e9)
    Generator(plan.target, plan.schedule, request=plan.request)

Load is work offered a second over the work that the servers can do in a second, both in one unit: seconds on a server
of speed 1 where the trace's work is a time or `seconds_per_work` makes it one; turns of the loop for MARLLB's `n`;
requests where the trace says nothing of work. It is the mean over the part that is replayed, before `duration` cuts it.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.config_errors import did_you_mean
from testbed.demand import Floats
from testbed.load.generator import Target
from testbed.load.schedule import Schedule
from testbed.replay.queries import HAVE_QUERIES, MAY_HAVE_QUERIES, path_of, texts
from testbed.traces.generate import KINDS, Recipe, generate
from testbed.traces.lines import STDIN
from testbed.traces.reader import FORMATS, Options, TraceFile
from testbed.traces.record import Problems, Records, TraceError, checksum, join
from testbed.traces.transform import Change

REQUESTS = ("auto", "query", "d", "n", "plain")
MAX_DEMAND_MS = 600_000.0
_COMMON = {"flows": int, "rate": float, "mean_work": float, "seed": int, "clients": int}


class UsageError(TraceError):
    """What is wanted cannot be, whatever is in the file."""


@dataclass(frozen=True)
class Wanted:
    """A trace, and what becomes of it. Times in seconds.

    trace: a file, "-", or KIND[:NAME=VALUE,…] for a made-up one.
    start, end, limit: the part; the clock of the trace counts from its first arrival.
    speed: so many times as fast. load: the speed at which this load is offered. duration: of the replay, at its pace.
    request: query (what the row asks for), d (?d=milliseconds), n (?n=turns), plain (the target as it stands), auto.
    """

    trace: str
    format: str = "auto"
    columns: tuple[str, ...] = ()
    durations: str | None = None
    strict: bool = False
    seed: int = 1
    start: float | None = None
    end: float | None = None
    limit: int | None = None
    speed: float = 1.0
    load: float | None = None
    duration: float | None = None
    request: str = "auto"
    seconds_per_work: float | None = None

    def __post_init__(self) -> None:
        for name in ("speed", "load", "duration", "seconds_per_work"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name.replace('_', '-')} must be above 0")
        if self.load is not None and self.speed != 1:
            raise UsageError("load and speed both set the pace: give one")
        if self.request not in REQUESTS:
            raise UsageError(f"no request is called '{self.request}': there are {', '.join(REQUESTS)}")
        if self.format not in ("auto", *FORMATS):
            raise UsageError(f"no format is called '{self.format}': there are {', '.join(FORMATS)}")


@dataclass(frozen=True)
class Plan:
    """A replay, ready to run. work: row by row, in `unit`; NaN: not known."""

    target: Target
    schedule: Schedule
    request: Callable[[int], bytes]  # of a row, as it goes over the wire
    path: Callable[[int], bytes]  # its path and query
    kind: str  # of request
    work: Floats
    unit: str  # "s", "turns" or "requests"
    speed: float
    offered: float | None  # work a second that is offered, in `unit`; None: there is only one time
    capacity: float | None
    sha256: str  # of the rows as they stand in the trace

    @property
    def load(self) -> float | None:
        return None if self.offered is None or self.capacity is None else self.offered / self.capacity


class Trace:
    """A trace in memory, at its own pace."""

    def __init__(self, wanted: Wanted, records: Records, form: str, unit: str, problems: Problems, path: str) -> None:
        if len(records) == 0:
            raise TraceError(f"{problems.name}: nothing to replay: no row is left")
        self.wanted = wanted
        self.records = records
        self.form = form
        self.problems = problems
        self._path = path
        work = np.asarray(records["work"], dtype=np.float64)
        self.is_timed = unit != "n" or wanted.seconds_per_work is not None
        has_work = ~np.isnan(work)
        self.has_work = bool(has_work.any())
        if self.is_timed:
            work = work * (wanted.seconds_per_work or 1.0)
        self.work = work
        self.unit = "requests" if not self.has_work else "s" if self.is_timed else "turns"
        self.kind = self._kind()

    def _kind(self) -> str:
        """Which kind of request is made of the rows."""
        wanted = self.wanted.request
        if wanted == "auto":
            timed = self.has_work and self.is_timed
            wanted = "query" if self.form in HAVE_QUERIES and not timed else "d" if self.has_work else "plain"
        if wanted == "query" and self.form not in MAY_HAVE_QUERIES:
            raise UsageError(f"a {self.form} trace has no queries: ask for d, n or plain")
        if wanted in ("d", "n") and not self.has_work:
            raise UsageError("the trace does not tell the work of its rows: ask for query or plain")
        if wanted == "d" and not self.is_timed:
            raise UsageError("the trace's work is turns of a loop: say how long one takes, with --seconds-per-work")
        if wanted == "d" and (longest := float(np.nanmax(self.work)) * 1e3) > MAX_DEMAND_MS:
            raise UsageError(
                f"a work of {longest / 1e3:g} s is more than a request may ask for ({MAX_DEMAND_MS / 1e3:g} s): is it"
                " in seconds? --seconds-per-work makes it so, --request n sends it as turns"
            )
        if wanted == "n" and float(np.nanmax(self.work)) < 0.5:
            raise UsageError("the trace's work rounds to no turn of a loop: is it in seconds? --request d sends it so")
        return wanted

    @property
    def load_work(self) -> Floats:
        """Work of each row as a load counts it: 1 where the trace says nothing of work."""
        if self.unit == "requests":
            return np.ones(len(self.records))
        if np.isnan(self.work).any():
            raise TraceError("a load needs the work of every row, and this trace has it for some only")
        return self.work

    def _offered(self, times_s: Floats) -> float | None:
        if len(times_s) < 2 or times_s[-1] == times_s[0]:
            return None
        try:
            mean = float(self.load_work.mean())
        except TraceError:
            return None
        return (len(times_s) - 1) / float(times_s[-1] - times_s[0]) * mean

    def plan(self, target: Target, *, capacity: float | None = None, keep_alive: bool = True) -> Plan:
        """Set the pace and make the requests. capacity: work a second, in `unit`; UsageError when a load lacks it."""
        wanted = self.wanted
        t_ns = self.records["t_ns"]
        own_s = np.asarray((t_ns - t_ns[0]) * 1e-9, dtype=np.float64)
        speed = wanted.speed
        if wanted.load is not None:
            if capacity is None:
                raise UsageError("a load is a share of a capacity, and that is not known")
            self.load_work  # noqa: B018  says what is missing
            offered = self._offered(own_s)
            if not offered:
                raise TraceError("a load needs arrivals at two times, and work")
            speed = wanted.load * capacity / offered
        arrival_s = own_s / speed
        rate = self._offered(arrival_s)
        kept = len(arrival_s)
        if wanted.duration is not None:
            kept = int(np.searchsorted(arrival_s, wanted.duration))
        work = self.work[:kept]
        demand_ms = work * 1e3 if self.is_timed and self.has_work else np.full(kept, np.nan)
        path = self.paths(target, kept)
        return Plan(
            target, Schedule(arrival_s[:kept], demand_ms), wired(target, path, keep_alive), path, self.kind, work,
            self.unit, speed, rate, capacity, checksum([self.records[:kept]]),
        )  # fmt: skip

    def paths(self, target: Target, count: int) -> Callable[[int], bytes]:
        """Return what makes path and query of a row's request."""
        path = target.path.encode()
        query = b"&" if b"?" in path else b"?"
        if self.kind == "plain":
            return lambda index: path
        if self.kind == "query":
            keys = self.records["key"][:count].tolist()
            said = texts(self._path, self.form, options_of(self.wanted), set(keys))
            before, asks, more = path.partition(b"?")
            found = {key: before.rstrip(b"/") + path_of(text).encode("ascii") for key, text in said.items()}
            if asks:
                found = {key: text + (b"&" if b"?" in text else b"?") + more for key, text in found.items()}
            return lambda index: found[keys[index]]
        if self.kind == "n":
            turns = np.asarray(self.records["work"][:count], dtype=np.float64).tolist()
            return lambda index: path + query + b"n=%d" % round(turns[index]) if turns[index] == turns[index] else path
        works, sizes = self.work[:count].tolist(), self.records["bytes"][:count].tolist()

        def with_demand(index: int) -> bytes:
            work, size = works[index], sizes[index]
            asked = [b"d=%.4f" % (work * 1e3)] if work == work else []
            if size:
                asked.append(b"size=%d" % size)
            return path + query + b"&".join(asked) if asked else path

        return with_demand

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.problems.name,
            "format": self.form,
            "rows": len(self.records),
            "work_unit": self.unit,
            "bad_rows": self.problems.as_json(),
        }


def wired(target: Target, path: Callable[[int], bytes], keep_alive: bool) -> Callable[[int], bytes]:
    """Return what makes requests, as they go over the wire, of paths."""
    head, _, tail = target.get("\0", keep_alive).partition(b"\0")
    return lambda index: head + path(index) + tail


def options_of(wanted: Wanted) -> Options:
    return Options(
        format=wanted.format, strict=wanted.strict, columns=wanted.columns, durations=wanted.durations, seed=wanted.seed
    )


def load(wanted: Wanted) -> Trace:
    """Read or make the trace; TraceError when it cannot be, UsageError when that is for what was asked."""
    end = wanted.end
    if wanted.duration is not None and wanted.load is None:  # no need to read what will not be sent
        last = (wanted.start or 0.0) + wanted.duration * wanted.speed
        end = last if end is None else min(end, last)
    change = Change(start=wanted.start, end=end, limit=wanted.limit)
    recipe = recipe_of(wanted)
    if recipe is not None:
        made = join(change.apply(lambda: generate(recipe)))
        return Trace(wanted, made, recipe.kind, "s", Problems(wanted.trace), "")
    path = wanted.trace
    if path == STDIN:
        path = _spooled()
    file = TraceFile(path, options_of(wanted))
    if wanted.trace == STDIN:
        file.name = "standard input"
    try:
        records = join(change.apply(file.blocks))
    finally:
        file.close()
    return Trace(wanted, records, file.format, file.work_unit, file.problems, path)


def _spooled() -> str:
    """Copy standard input to a file, which is read twice; it goes with this process."""
    spool = tempfile.NamedTemporaryFile(prefix="vickrey-trace-")  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    _spools.append(spool)
    return spool.name


_spools: list[Any] = []  # closed, and so removed, at exit


def recipe_of(wanted: Wanted) -> Recipe | None:
    """Return the recipe that KIND[:NAME=VALUE,…] means; None when a file is meant."""
    kind, _, rest = wanted.trace.partition(":")
    if kind not in KINDS or os.path.exists(wanted.trace):
        meant = did_you_mean(kind, KINDS) if kind.isalnum() else ""
        if meant and not os.path.exists(wanted.trace):
            raise UsageError(f"{wanted.trace}: no such file, and no kind of trace is called '{kind}'{meant}")
        return None
    common: dict[str, Any] = {"seed": wanted.seed}
    shape: dict[str, float] = {}
    for pair in _pairs(rest):
        name, _, value = pair.partition("=")
        try:
            if name in _COMMON:
                common[name] = _COMMON[name](value)
            elif name in KINDS[kind].shape:
                shape[name] = float(value)
            else:
                known = [*KINDS[kind].shape, *_COMMON]
                hint = did_you_mean(name, known) or f": {', '.join(known)}"
                raise UsageError(f"{wanted.trace}: {kind} has no parameter '{name}'{hint}")
        except ValueError:
            raise UsageError(f"{wanted.trace}: expected NAME=VALUE with a number, not '{pair}'") from None
    if "flows" not in common and wanted.duration is not None and wanted.load is None:
        common["flows"] = 2**40  # as many as come in that time
    try:
        return Recipe(kind, shape=shape, **common)
    except TraceError as error:
        raise UsageError(f"{wanted.trace}: {error}") from None


def _pairs(text: str) -> Iterator[str]:
    return (pair.strip() for pair in text.split(",") if pair.strip())
