"""Whether flows that end one after the other took alike: slow minutes, and others, for all servers at once.

Late binding tells a server's workers by what it ends with few flows in flight and with many, and its speed beside the
others' by what goes there. Where times go up and down for all, a database that all ask say, there are many flows in
flight just when times are long. That looks like servers with too few workers, or too slow ones, and what is held for
these makes the slow minute longer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import Bools, Floats
from controlplane.rows import kept
from controlplane.speeds import LOG_FLOOR

# Pairs over which the past fades, and that are needed to judge.
PAIRS_KEPT, PAIRS_LEAST = 1000.0, 50.0
# A time is further from what is usual by no more than this, in logarithms: a damaged record tells nothing for long.
OFF_MOST = 5.0
# Flows of a server over which what it takes beside the others is averaged.
BESIDE_FLOWS = 100.0
# Part of the variance of a flow's logarithmic time that it has in common with the next one's, from which on times go up
# and down together: by so many standard errors of a part that is 0. With demands that are much alike it is the second.
# And the part below which they do not any more.
TOGETHER_FROM, ALIKE_FROM, BEYOND_CHANCE, TOGETHER_UNTIL = 0.13, 0.5, 2.0, 0.13
# Variance in common that is nothing to mind, whatever its part: times that are all alike have noise in common. Half
# of it ends it.
COMMON_LEAST = 0.01
# Seconds after which it is seen whether what was in common is so while flows are held, too: at first, and, each time
# that it is, twice as many, up to the last.
RETRY_SECONDS, RETRY_SECONDS_MOST = 5.0, 600.0


class Autocorrelation:
    """Lag-one autocorrelation of log times, from pairs of flows that different servers ended one after the other.

    Each is taken less what is usual on its server, so neither the servers' speeds nor what one of them does alone
    counts. Usual is its mean, but for one thing: servers that get flows in slow minutes only have longer means than the
    others, and beside these nothing is in common any more. So means are corrected until in pairs the servers are alike,
    as players are rated by whom they met.

    Times that are independent are so in the order of ending too where flows come at random (a Poisson process,
    displaced). In the order in which they began they seem not to be: of those that began long ago only the long ones
    have not been seen before. Flows that come in batches end in the order of their times, and seem to be alike.
    """

    def __init__(self) -> None:
        self._pairs: Floats = np.zeros(4)  # their number, Σ (e + e')/2, Σ e·e', Σ (e² + e'²)/2
        self._last = (-1, 0.0)  # server and deviation of the flow that ended last; -1: none
        self._beside: Floats = np.zeros(0)  # the corrections
        self.together = False
        self._since = 0.0  # when it was found, or tried again
        self._patience = RETRY_SECONDS

    def match(self, same: Bools) -> None:
        """Keep the rows whose server is still there."""
        self._beside = kept(self._beside, same)
        last = self._last[0]
        if not (0 <= last < len(same) and same[last]):
            self._last = (-1, 0.0)

    @property
    def common(self) -> float:
        """Variance that a flow's logarithmic time has in common with the next one's."""
        _, level, both, _ = self._pairs / max(self._pairs[0], 1e-9)
        return float(both - level**2)

    @property
    def share(self) -> float:
        """Part of the variance that is in common; 0 where little was seen."""
        _, level, _, each = self._pairs / max(self._pairs[0], 1e-9)
        variance = float(each - level**2)
        return self.common / variance if self._pairs[0] >= PAIRS_LEAST and variance > 0.0 else 0.0

    def update(
        self,
        rows: NDArray[np.intp],
        closed: NDArray[np.uint64],
        took: Floats,
        usual: Floats,
        now: float,
        alike: bool = False,
    ) -> None:
        """Take in flows that did not wait: their servers, when they ended, and for how many seconds.

        usual: mean of the logarithm of a flow's time at each server, (servers,), as many as `match` was told of.
        now: seconds. alike: demands vary little.
        """
        if len(rows) == 0:
            return
        order = np.argsort(closed, kind="stable")
        off = np.log(np.maximum(took, LOG_FLOOR)) - usual[rows] - self._beside[rows]
        off = np.clip(off, -OFF_MOST, OFF_MOST)
        server = np.append(self._last[0], rows[order])
        off = np.append(self._last[1], off[order])
        self._last = int(server[-1]), float(off[-1])
        pair = (server[1:] != server[:-1]) & (server[:-1] >= 0)
        before, after = off[:-1][pair], off[1:][pair]
        self._correct(server[:-1][pair], server[1:][pair], 0.5 * (after - before))
        each = 0.5 * (before @ before + after @ after)
        self._pairs *= np.exp(-len(before) / PAIRS_KEPT)
        self._pairs += len(before), 0.5 * (before.sum() + after.sum()), before @ after, each
        sure = self.share - BEYOND_CHANCE / float(np.sqrt(max(self._pairs[0], 1.0)))
        if sure > (ALIKE_FROM if alike else TOGETHER_FROM) and self.common > COMMON_LEAST:
            self._since = self._since if self.together else now
            self.together = True
        elif self.share < TOGETHER_UNTIL or self.common < 0.5 * COMMON_LEAST:
            self.together = False

    def retry(self, now: float) -> None:
        """Begin anew some time after flows were found to take alike: longer each time that they were again."""
        passed = now - self._since
        if self.together and passed > self._patience:
            self._pairs[:], self._last = 0.0, (-1, 0.0)
            self.together = False
            self._since, self._patience = now, min(2.0 * self._patience, RETRY_SECONDS_MOST)
        elif not self.together and passed > 4.0 * self._patience:
            self._patience = RETRY_SECONDS

    def _correct(self, one: NDArray[np.intp], other: NDArray[np.intp], half: Floats) -> None:
        """Move servers towards each other's middle, by half of how much longer the other one's flow took."""
        n = len(self._beside)
        met = np.bincount(one, minlength=n) + np.bincount(other, minlength=n)
        longer = np.bincount(other, half, n) - np.bincount(one, half, n)
        self._beside += longer / np.maximum(met, 1) * (1.0 - np.exp(-met / BESIDE_FLOWS))
