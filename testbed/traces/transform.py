"""What can be done to a trace on the way: another pace, another load, a part of it.

All take and give blocks of records in order of time. Times are seconds from the trace's first arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from testbed.traces.record import T_NS_LIMIT, WORK_LIMIT, Records, TraceError

Source = Callable[[], Iterable[Records]]  # gives the trace from its start


@dataclass(frozen=True)
class Change:
    """What becomes of a trace, in this order. load: offered work over capacity, in units of work a second."""

    start: float | None = None
    end: float | None = None
    balancer: int | None = None
    scale_work: float = 1.0
    limit: int | None = None
    speed: float = 1.0
    load: float | None = None
    capacity: float | None = None
    rebase: bool = False  # the first arrival is at 0

    def __post_init__(self) -> None:
        for name in ("speed", "scale_work", "load", "capacity"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TraceError(f"{name} must be above 0")
        if (self.load is None) != (self.capacity is None):
            raise TraceError("load and capacity go together: the work a second that the servers can do")
        if self.load is not None and self.speed != 1:
            raise TraceError("load and speed both set the pace: give one")
        if self.limit is not None and self.limit < 0:
            raise TraceError("limit must not be negative")

    @property
    def passes(self) -> int:
        """How often the trace is read."""
        return 1 if self.load is None else 2

    def apply(self, source: Source) -> Iterator[Records]:
        speed = self.speed
        if self.load is not None and self.capacity is not None:
            speed = self.load / offered_load(self._selected(source()), self.capacity)
        blocks = self._selected(source())
        if speed != 1:
            blocks = at_speed(blocks, speed)
        return rebased(blocks) if self.rebase else blocks

    def _selected(self, blocks: Iterable[Records]) -> Iterator[Records]:
        out = between(blocks, self.start, self.end)
        if self.balancer is not None:
            out = of_balancer(out, self.balancer)
        if self.scale_work != 1:
            out = scaled_work(out, self.scale_work)
        return out if self.limit is None else first_rows(out, self.limit)


def between(blocks: Iterable[Records], start: float | None, end: float | None) -> Iterator[Records]:
    """Keep arrivals from start up to but not including end; read no further."""
    low_ns = high_ns = None
    origin = None
    for block in blocks:
        t = block["t_ns"]
        if origin is None and len(block):
            origin = int(t[0])
            low_ns = None if start is None else origin + round(start * 1e9)
            high_ns = None if end is None else origin + round(end * 1e9)
        low = 0 if low_ns is None else int(np.searchsorted(t, low_ns))
        high = len(t) if high_ns is None else int(np.searchsorted(t, high_ns))
        if high > low:
            yield block[low:high]
        if high < len(t):
            return


def first_rows(blocks: Iterable[Records], limit: int) -> Iterator[Records]:
    if limit == 0:
        return
    for block in blocks:
        yield block[:limit]
        limit -= len(block)
        if limit <= 0:
            return


def of_balancer(blocks: Iterable[Records], balancer: int) -> Iterator[Records]:
    for block in blocks:
        kept = block[block["balancer"] == balancer]
        if len(kept):
            yield kept


def scaled_work(blocks: Iterable[Records], factor: float) -> Iterator[Records]:
    """Multiply work: MARLLB's loop turns become seconds, say."""
    for block in blocks:
        out = block.copy()
        with np.errstate(over="ignore"):
            out["work"] *= factor
        if (out["work"] > WORK_LIMIT).any():
            raise TraceError("the scaled work is out of range")
        yield out


def at_speed(blocks: Iterable[Records], speed: float) -> Iterator[Records]:
    """Let time pass so many times as fast, from the first arrival on: all gaps shrink alike, bursts stay bursts."""
    origin: int | None = None
    for block in filter(len, blocks):
        out = block.copy()
        if origin is None:
            origin = int(block["t_ns"][0])
        with np.errstate(over="ignore"):
            t_ns = (block["t_ns"] - origin) / speed
        if origin + float(t_ns[-1]) >= T_NS_LIMIT:
            raise TraceError(f"at speed {speed:g} the times are out of range")
        out["t_ns"] = origin + np.rint(t_ns).astype(np.int64)
        yield out


def rebased(blocks: Iterable[Records]) -> Iterator[Records]:
    """Let the first arrival be at 0."""
    origin: int | None = None
    for block in filter(len, blocks):
        out = block.copy()
        if origin is None:
            origin = int(block["t_ns"][0])
        out["t_ns"] -= origin
        yield out


def with_balancer(blocks: Iterable[Records], balancer: int) -> Iterator[Records]:
    """Let all arrive at this balancer."""
    for block in blocks:
        out = block.copy()
        out["balancer"] = balancer
        yield out


def offered_load(blocks: Iterable[Records], capacity: float) -> float:
    """Return work offered a second, over capacity: mean work times the rate of arrivals."""
    rows, work, first, last = 0, 0.0, 0, 0
    for block in blocks:
        if np.isnan(block["work"]).any():
            raise TraceError("a load needs the work of every row, and this trace does not have it")
        if rows == 0 and len(block):
            first = int(block["t_ns"][0])
        rows += len(block)
        work += float(block["work"].sum())
        last = int(block["t_ns"][-1]) if len(block) else last
    if rows < 2 or last == first or work == 0:
        raise TraceError("a load needs arrivals at two times, and work")
    rate = (rows - 1) / ((last - first) * 1e-9)
    return rate * (work / rows) / capacity
