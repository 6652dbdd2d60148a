"""How far what a policy sees is from what it was trained on: 0 as in training, 1 as strange as can be.

    column   how far its value lies beyond the 1 … 99 % range of training, in widths of that range, at most 1; of
             columns that each server has, the mean over the servers
    count    of servers and of balancers: the logarithm of the ratio to the trained range's end; one balancer, which
             sees all flows, where training had none such, and several where it had but one, are all strange
    score    the greatest of these, smoothed over SMOOTH seconds: a policy is as lost as by its strangest input

Single values beyond the range are nothing strange: 2 % were in training too, which is why columns are averaged over
servers and time. The score is a distance, so that a policy fades out (`blend`) as a farm departs from what it knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.manifest import Ranges

SMOOTH = 5.0
# Inputs are logarithms: a range of less than this width counts as so wide.
WIDTH_LEAST = 0.5
# Ratios of servers, of balancers, to what was trained, that count as all strange.
SERVERS_STRANGE, BALANCERS_STRANGE = 64.0, 2.0
# The policy acts in full below the first score, and not at all above the second.
FULL, NONE = 0.25, 0.75
# Their own ranges count instead.
_COUNTS = (GLOBAL_COLUMNS.index("servers"), GLOBAL_COLUMNS.index("balancers"))

Floats = NDArray[np.float64]


class Novelty:
    """The score of one service; call `update` with every observation."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self._rows = _ends([ranges.rows[name] for name in SERVER_COLUMNS])
        self._whole = _ends([ranges.whole[name] for name in GLOBAL_COLUMNS])
        self.score = 0.0
        self.strangest = ""  # the input that gave the last raw score
        self._seen: float | None = None

    def update(self, inputs: Inputs, balancers: int, now: float) -> float:
        """Return the score after another observation; inputs of one balancer, now in seconds."""
        raw = self._raw(inputs, balancers)
        if self._seen is None:
            self.score = raw
        else:
            keep = float(np.exp(-max(now - self._seen, 0.0) / SMOOTH))
            self.score = keep * self.score + (1.0 - keep) * raw
        self._seen = now
        return self.score

    def _raw(self, inputs: Inputs, balancers: int) -> float:
        active = inputs.active[0]
        servers = int(active.sum())
        if servers == 0:
            return 0.0
        rows = _beyond(inputs.rows[0][active], *self._rows).mean(axis=0)
        whole = _beyond(inputs.whole[0], *self._whole)
        whole[list(_COUNTS)] = (
            _ratio(servers, self.ranges.servers, SERVERS_STRANGE),
            self._balancers(balancers),
        )
        both = np.concatenate([rows, whole])
        worst = int(both.argmax())
        self.strangest = (*SERVER_COLUMNS, *GLOBAL_COLUMNS)[worst] if both[worst] > 0 else ""
        return float(both[worst])

    def _balancers(self, number: int) -> float:
        """Return how strange so many are. One alone sees every flow, of several each a part: another problem."""
        least, most = self.ranges.balancers
        if (number == 1 and least > 1) or (number > 1 and most == 1):
            return 1.0
        return _ratio(number, self.ranges.balancers, BALANCERS_STRANGE)


def blend_of(score: float) -> float:
    """Return how much of the policy's correction is in force, 1 … 0."""
    return float(np.clip((NONE - score) / (NONE - FULL), 0.0, 1.0))


def _ends(ranges: list[Any]) -> tuple[Floats, Floats, Floats]:
    low, high = np.array([r.low for r in ranges]), np.array([r.high for r in ranges])
    return low, high, np.maximum(high - low, WIDTH_LEAST)


def _beyond(x: NDArray[np.float32], low: Floats, high: Floats, width: Floats) -> Floats:
    """Return how far values are out of their ranges, in widths, at most 1."""
    return np.asarray(np.minimum(np.maximum(np.maximum(low - x, x - high), 0.0) / width, 1.0))


def _ratio(number: int, trained: tuple[int, int], strange: float) -> float:
    outside = max(number / trained[1], trained[0] / number, 1.0)
    return min(float(np.log(outside) / np.log(strange)), 1.0)
