"""Rates of arrivals as functions of time, for the generators: arrivals a second at nanoseconds from the start."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from testbed.traces.arithmetic import Draws, Floats, exp, sine
from testbed.traces.record import TraceError

Times = NDArray[np.int64]

# Relative rates at the full hours, from midnight on.
_DAY = np.array(
    [
        *(0.55, 0.45, 0.38, 0.35, 0.36, 0.42, 0.55, 0.75, 0.95, 1.10, 1.20, 1.28),
        *(1.32, 1.30, 1.28, 1.26, 1.25, 1.28, 1.35, 1.45, 1.50, 1.40, 1.10, 0.80),
    ]
)


class Rate(Protocol):
    highest: float

    def at(self, t_ns: Times) -> Floats:
        """Return the rate at ascending times, which never go back from call to call."""


class SteadyRate:
    def __init__(self, rate: float) -> None:
        self.highest = rate

    def at(self, t_ns: Times) -> Floats:
        return np.full(len(t_ns), self.highest)


class SineRate:
    """rate · (1 + amplitude · sin 2πt / period)."""

    def __init__(self, rate: float, amplitude: float, period: float) -> None:
        self._rate, self._amplitude, self._period_ns = rate, amplitude, _ns(period)
        self.highest = rate * (1 + amplitude)

    def at(self, t_ns: Times) -> Floats:
        turns = (t_ns % self._period_ns) / self._period_ns
        rates: Floats = self._rate * (1 + self._amplitude * sine(turns))
        return rates


class DiurnalRate:
    """A day in `period`, linear between the hours; the mean over a day is rate."""

    def __init__(self, rate: float, period: float) -> None:
        self._hours = np.append(_DAY, _DAY[0]) * (rate * len(_DAY) / float(np.cumsum(_DAY)[-1]))
        self._period_ns = _ns(period)
        self.highest = float(self._hours.max())

    def at(self, t_ns: Times) -> Floats:
        hour = (t_ns % self._period_ns) * len(_DAY) / self._period_ns
        whole = np.minimum(np.floor(hour).astype(np.int64), len(_DAY) - 1)
        low = self._hours[whole]
        rates: Floats = low + (self._hours[whole + 1] - low) * (hour - whole)
        return rates


class OnOffRate:
    """rate / share for the first `share` of each period, then nothing."""

    def __init__(self, rate: float, share: float, period: float) -> None:
        self._period_ns = _ns(period)
        self._on_ns = max(round(self._period_ns * share), 1)
        self.highest = rate * self._period_ns / self._on_ns

    def at(self, t_ns: Times) -> Floats:
        is_on = t_ns % self._period_ns < self._on_ns
        return is_on.astype(np.float64) * self.highest


class MmppRate:
    """Exponential sojourns in two states: a burst, `factor` times as fast, for `share` of the time. Begins without."""

    def __init__(self, rate: float, factor: float, share: float, sojourn: float, draws: Draws) -> None:
        low = rate / (1 - share + share * factor)
        self._rates = np.array([low, low * factor])
        self._sojourns_ns = np.array([sojourn * (1 - share) / share, sojourn]) * 1e9
        # Very many sojourns between two arrivals would be drawn and not be seen; very long ones leave the clock.
        if min(self._sojourns_ns) * 1e-9 * low * factor < 0.01 or max(self._sojourns_ns) > 1e15:
            raise TraceError("the bursts are too short or too long to be seen at this rate: change sojourn")
        self._draws = draws
        # Ends of sojourns not yet passed, and the state before the first of them.
        self._ends: Times = np.empty(0, dtype=np.int64)
        self._state = 0
        self._last_ns = 0
        self.highest = low * factor

    def at(self, t_ns: Times) -> Floats:
        drawn = [self._ends]
        while self._last_ns <= t_ns[-1]:
            pairs = self._draws.exponential(512).reshape(256, 2) * self._sojourns_ns
            drawn.append(self._last_ns + np.cumsum(np.rint(pairs.ravel()).astype(np.int64) + 1))
            self._last_ns = int(drawn[-1][-1])
        self._ends = np.concatenate(drawn)
        passed = np.searchsorted(self._ends, t_ns, side="right")
        rates: Floats = self._rates[(self._state + passed) % 2]
        gone = int(passed[0])
        self._ends, self._state = self._ends[gone:], (self._state + gone) % 2
        return rates


class FlashRate:
    """rate, and from `at` on a climb to `factor` times it within `ramp`, then back with time constant `decay`."""

    def __init__(self, rate: float, at: float, ramp: float, factor: float, decay: float) -> None:
        self._rate, self._at_ns, self._ramp_ns, self._decay_ns = rate, _ns(at), _ns(ramp), _ns(decay)
        self._more = factor - 1
        self.highest = rate * factor

    def at(self, t_ns: Times) -> Floats:
        since = t_ns - self._at_ns
        climb = np.minimum(np.maximum(since, 0) / self._ramp_ns, 1.0)
        fallen = np.minimum(np.maximum(since - self._ramp_ns, 0) / self._decay_ns, 600.0)
        return self._rate * (1 + self._more * climb * exp(-fallen))


def _ns(seconds: float) -> int:
    return max(round(seconds * 1e9), 1)
