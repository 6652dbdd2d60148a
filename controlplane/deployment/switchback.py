"""Switchback measurement: two ways of deciding take turns on live traffic, in blocks of time, compared pairwise.

Blocks come in pairs, one of each way, the order of each pair drawn by lot: what drifts slowly hits both alike, and a
rhythm of the traffic cannot fall in step with the turns. The first fifth of a block is dropped (washout): what is in
flight then was begun under the other way. Of the rest the mean FCT, the p99 and the share of failed flows are taken;
per pair the difference (of logarithms, for the times) is one number, and over pairs Student's t gives its interval.

Decided is after at most three looks; the error of 5 % is divided among the looks and, for finding it worse, among the
three measures. The candidate is taken when it is surely faster in the mean, or surely no worse than the margin allows;
doubt keeps the incumbent.

Source    Bojinov, Simchi-Levi, Zhao, "Design and Analysis of Switchback Experiments", Management Science 69(7), 2023
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.deployment.options import SwitchbackOptions
from controlplane.deployment.paired import interval, looks
from controlplane.guard import Totals, percentile, regression

WASHOUT = 0.2  # part of a block
INTERVALS_LEAST = 5  # control intervals in a block
FLOWS_LEAST = 20  # in a block, or its pair does not count
ERROR = 0.05
# How much worse than the margin of the mean those of p99 (times) and errors (a share of the flows) may be.
P99_MARGIN_TIMES, ERRORS_MARGIN = 4.0, 0.005
# It ends at once when the candidate's block fails clearly more, or half of its flows take longer than the incumbent's
# p99, for so many looks in a row, a twentieth of a block apart. Queues make bursts: less is left to the pairs.
HARM_LOOKS, HARM_FLOWS, HARM_TAIL = 5, 200, 0.5
MEASURES = ("mean", "p99", "errors")
TAKES = ("better", "no worse")


@dataclass
class Block:
    """One turn: begin, who decides, the totals when its washout was over."""

    candidate: bool
    begin: float
    first: Totals | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a block showed: seconds, seconds, share of the flows."""

    mean: float
    p99: float
    errors: float


def measured(first: Totals, last: Totals) -> Measured | None:
    """Return what happened between two totals; None: too little, or the counters began anew."""
    completed, closed = last.completed - first.completed, last.closed - first.closed
    if last.opened < first.opened or completed < FLOWS_LEAST or last.fct_sum <= first.fct_sum:
        return None
    p99 = percentile(last.histogram - first.histogram, 0.99)
    return Measured((last.fct_sum - first.fct_sum) / completed, p99, (last.failed - first.failed) / max(closed, 1.0))


class Switchback:
    """Whose turn it is, and what came of it. Call `turn` every control cycle until there is a verdict."""

    def __init__(self, options: SwitchbackOptions, rng: np.random.Generator, *, least: int = 5) -> None:
        self.options = options
        self.pairs: list[tuple[Measured, Measured]] = []  # (candidate, incumbent)
        self.void = 0
        self.verdict = ""  # "better", "no worse", "worse", "harm", "undecided"; empty: not yet
        self.why = ""
        self._rng = rng
        self._looks = looks(options.pairs, least=least)
        self._block: Block | None = None
        self._pair: dict[bool, Measured | None] = {}
        self._incumbent: tuple[Totals, Totals] | None = None  # of its last block
        self._harm = 0
        self._looked = -math.inf

    def turn(self, now: float, read: Callable[[], Totals]) -> bool:
        """Return whether the candidate decides from now on; read gives the service's totals of this moment."""
        block, seconds = self._block, self.options.seconds
        if block is None:
            block = self._block = Block(self._draw(), now)
        elif now >= block.begin + seconds:
            # A loop that slept over the end (no traffic, a pause of the machine) did not keep the turns.
            self._end(block, None if now > block.begin + 1.5 * seconds else read())
            block = self._block = Block(not block.candidate if len(self._pair) == 1 else self._draw(), now)
        elif now >= block.begin + WASHOUT * seconds:
            if block.first is None:
                block.first = read()
            elif block.candidate and now - self._looked >= seconds / 20:
                self._looked = now
                self._look_for_harm(block.first, read())
        return block.candidate and not (self.verdict and self.verdict not in TAKES)

    def _draw(self) -> bool:
        return bool(self._rng.integers(2))

    def _end(self, block: Block, last: Totals | None) -> None:
        found = None
        if block.first is not None and last is not None:
            found = measured(block.first, last)
            if not block.candidate:
                self._incumbent = (block.first, last)
        self._harm = 0
        self._pair[block.candidate] = found
        if len(self._pair) < 2:
            return
        candidate, incumbent = self._pair[True], self._pair[False]
        self._pair = {}
        if candidate is None or incumbent is None:
            self.void += 1
            if self.void > self.options.pairs:
                self._decide("undecided", f"{self.void} pairs of blocks had too few flows")
            return
        self.pairs.append((candidate, incumbent))
        if len(self.pairs) in self._looks:
            self._judge()

    def _look_for_harm(self, first: Totals, now: Totals) -> None:
        """End it at once when the candidate's block is far worse than the incumbent's last."""
        if self._incumbent is None or self.verdict:
            return
        found = regression(*self._incumbent, first, now, seconds=0.0, flows=HARM_FLOWS, tail=HARM_TAIL)
        self._harm = self._harm + 1 if found else 0
        if self._harm >= HARM_LOOKS:
            self._decide("harm", found)

    def differences(self, measure: str) -> list[float]:
        """Return candidate less incumbent of each pair: of logarithms for the times, of shares for errors."""
        each = [(getattr(c, measure), getattr(i, measure)) for c, i in self.pairs]
        if measure == "errors":
            return [c - i for c, i in each]
        return [math.log(c / i) for c, i in each if c > 0 and i > 0]

    def _judge(self) -> None:
        level = ERROR / len(self._looks)
        strict = {m: interval(self.differences(m), level / len(MEASURES)) for m in MEASURES}
        worse = [m for m in MEASURES if strict[m].low > 0]
        wide = {m: interval(self.differences(m), level) for m in MEASURES}
        margin = math.log1p(self.options.margin)
        most = {"mean": margin, "p99": P99_MARGIN_TIMES * margin, "errors": ERRORS_MARGIN}
        if worse:
            self._decide("worse", self._text(worse[0]))
        elif wide["mean"].high < 0:
            self._decide("better", self._text("mean"))
        elif all(wide[m].high <= most[m] for m in MEASURES):
            self._decide("no worse", f"{self._text('mean')}: within the margin of {self.options.margin:.0%}")
        elif len(self.pairs) >= self.options.pairs:
            self._decide("undecided", f"{self._text('mean')}: not sure after {len(self.pairs)} pairs")

    def _decide(self, verdict: str, why: str) -> None:
        self.verdict, self.why = verdict, why

    def _text(self, measure: str) -> str:
        e = self.effect(measure)
        return f"{measure} {e['change']:+.1%} ({e['low']:+.1%} … {e['high']:+.1%})"

    @property
    def takes(self) -> bool:
        """Whether the candidate is to stay; only with a verdict."""
        return self.verdict in TAKES

    def effect(self, measure: str) -> dict[str, float]:
        """Return the change of a measure and its 95 % interval: relative for the times, absolute for errors."""
        found = interval(self.differences(measure))
        values = [found.mean, found.low, found.high]
        if measure != "errors":
            values = [math.expm1(min(v, 700.0)) for v in values]
        return dict(zip(("change", "low", "high"), values, strict=True))

    def show(self) -> dict[str, Any]:
        """Return the state, as JSON takes it; null where nothing is known yet."""
        block = self._block
        shown: dict[str, Any] = {
            "state": self.verdict or "running",
            "why": self.why or None,
            "block_s": self.options.seconds,
            "pairs": len(self.pairs),
            "pairs_max": self.options.pairs,
            "pairs_void": self.void,
            "turn": None if self.verdict or block is None else "candidate" if block.candidate else "incumbent",
        }
        for measure in MEASURES:
            effect = self.effect(measure)
            shown[measure] = {k: round(v, 5) if math.isfinite(v) else None for k, v in effect.items()}
        return shown
