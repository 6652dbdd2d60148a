"""The control loop of one service: observe, decide, check, publish, give a sign of life. No thread and no clock in
here; the ledger, for a policy that asks for one, has its own (controlplane/auction/live_ledger.py).

The controller runs `cycle` on a live segment every interval; simulator and benchmarks call it with their own clock.
What may go wrong with a policy, and what follows:

    decides too late                 the decision is dropped; ten in a row: demoted
    raises, or does not validate     the last good directive stays in force; five in a row: demoted
    demoted                          least connections takes its place until an operator sets a policy
    swapped in                       decides in shadow for a few cycles first; refused when one of them fails
    worse than the one before        rolled back by the guard (controlplane/guard.py)
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from controlplane import registry
from controlplane.auction.live_ledger import LiveLedger, check_writable
from controlplane.directive import DirectiveError, check, to_data
from controlplane.guard import Guard
from controlplane.observation import Observer
from controlplane.policy import Directive, Observation, Policy
from shm_layout.payload import DirectiveData
from shm_layout.segment import ControllerSupersededError, PayloadRejectedError, Segment, SegmentEmptyError

log = logging.getLogger("vickrey.controller")

DEMOTED_BY = "lsq"
REJECTED_MAX = 5
LATE_MAX = 10
SHADOW_CYCLES = 3
HISTORY = 3
# A decision may take half the interval, but no less than this, seconds.
DEADLINE_LEAST = 0.02
# A change of policy waits no longer than this for the ledger that it ends.
LEDGER_SECONDS = 0.2
# Times that a demoted service writes in the log what its policy did wrong.
LOG_EVERY = 50

Spec = dict[str, Any]


class Chosen:
    """A policy with the options that are the controller's own."""

    def __init__(self, spec: str | Mapping[str, Any]) -> None:
        given: Spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        # `options` may stand beside the name or in a mapping of their own.
        given = {**given.pop("options", {}), **given}
        self.policy: Policy = registry.create(given)
        self.shadow = given.get("mode", "enforce") == "shadow"
        if given.get("mode", "enforce") not in ("enforce", "shadow"):
            raise ValueError(f"policy mode: expected enforce or shadow, not {given['mode']!r}")
        enforcing = given.get("enforcing", 100)
        if not isinstance(enforcing, int) or isinstance(enforcing, bool) or not 0 <= enforcing <= 100:
            raise ValueError(f"policy enforcing: expected 0 … 100, not {enforcing!r}")
        self.enforcing_percent = 0 if self.shadow else enforcing
        self.guarded = bool(given.get("guard", True))
        self.ledger: tuple[Path, float] | None = None  # where, and share of the flows in it
        if given.get("ledger") is not None:
            self.ledger = Path(given["ledger"]), float(given.get("ledger_sample", registry.LEDGER_SAMPLE))
        self.spec = given | {"name": registry.canonical(given["name"])}


@dataclass
class Swap:
    """A policy that waits, in shadow, to take over; done is called with None or with why it was refused."""

    chosen: Chosen
    done: Callable[[str | None], None]
    why: str = "set"
    cycles: int = 0


@dataclass
class Counts:
    """Totals since the controller started."""

    cycles: int = 0
    idle: int = 0  # cycles without a change: nothing was read
    published: int = 0
    late: int = 0
    failed: int = 0  # decisions that raised or did not validate
    rollbacks: int = 0
    demotions: int = 0
    cycle_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=256))  # of those that read


class ControlLoop:
    """One service. Call `begin` once, then `cycle` every interval."""

    def __init__(
        self,
        segment: Segment,
        service: str,
        policy: str | Mapping[str, Any] = "adaptive",
        *,
        interval: float = 0.2,
        balancers: int = 1,
        objective: str = "mean",
        reserve: str = "off",
    ) -> None:
        self.segment, self.service, self.interval = segment, service, interval
        self.reserve = reserve
        self.observer = Observer(segment, interval, balancers, objective, reserve)
        self.chosen = Chosen(policy)
        self.history: deque[Spec] = deque(maxlen=HISTORY)
        self.counts = Counts()
        self.guard: Guard | None = None
        self.demoted = ""  # why, when it is
        self.on_change: Callable[[Spec, str], None] = lambda spec, why: None
        self.last: Directive | None = None
        self.observation: Observation | None = None
        self._swap: Swap | None = None
        self._late = self._rejected = 0
        self._sequence = 0
        self._published: DirectiveData | None = None
        self._signature: tuple[int, ...] = ()
        self._windows = Guard.new_windows()
        self.ledger: LiveLedger | None = None

    def begin(self, *, takeover: bool = False) -> None:
        """Become the segment's controller; ControllerLockedError: another one is."""
        self.segment.begin_controller(takeover=takeover)
        self._sequence = self.segment.directives_published
        self._keep_ledger()

    def close(self, seconds: float = 2.0) -> None:
        """End what runs beside the loop, the ledger's writer, or leave it behind after so long. The segment stays."""
        if self.ledger is not None:
            self.ledger.close(seconds)
            self.ledger = None

    # --- one cycle ----------------------------------------------------------------------------------------------------

    def cycle(self, now_ns: int) -> None:
        """Observe, decide, publish; ControllerSupersededError: a newer controller took over."""
        begun = time.perf_counter()
        with contextlib.suppress(SegmentEmptyError):  # no settings yet
            self._work(now_ns)
        self.counts.cycles += 1
        elapsed = time.perf_counter() - begun
        self.segment.beat_controller(int(elapsed * 1e9), self.counts.late, self.counts.failed)

    def _work(self, now_ns: int) -> None:
        signature = self.observer.signature()
        if signature == self._signature and signature[1] == 0 and self._swap is None and self._published is not None:
            self.counts.idle += 1
            return
        begun = time.perf_counter()
        self._signature = signature
        o = self.observation = self.observer.read(now_ns)
        if o.n_servers == 0:
            return
        self._windows.add(o)
        directive = self._decide(self.chosen, o)
        if directive is not None:
            self.last = directive
            self._publish(o, directive, now_ns)
            if self.ledger is not None:
                self.ledger.round(o, directive, self.chosen.spec["name"])
        if self._swap is not None:
            self._try_swap(self._swap, o, now_ns)
        elif self.guard is not None:
            self._watch(self.guard, now_ns)
        self.counts.cycle_seconds.append(time.perf_counter() - begun)

    def _decide(self, chosen: Chosen, o: Observation) -> Directive | None:
        """Return the policy's directive if it came in time and validates; count, and demote, if not."""
        begun = time.perf_counter()
        try:
            directive = chosen.policy.decide(o)
            took = time.perf_counter() - begun
            check(directive, o.n_servers)
        except Exception as error:  # whatever a policy raises must not end the loop
            self.counts.failed += 1
            self._rejected += 1
            if self._rejected <= REJECTED_MAX or self.counts.failed % LOG_EVERY == 0:
                log.warning("%s: policy %s: %s: %s", self.service, chosen.spec["name"], type(error).__name__, error)
            if self._rejected >= REJECTED_MAX:
                self._demote(f"{REJECTED_MAX} decisions in a row were refused, the last: {error}")
            return None
        if took > max(self.interval / 2, DEADLINE_LEAST) and self._published is not None:
            self.counts.late += 1
            self._late += 1
            if self._late >= LATE_MAX:
                self._demote(f"{LATE_MAX} decisions in a row came late, the last after {took * 1e3:.0f} ms")
            return None
        self._late = self._rejected = 0
        return directive

    def _demote(self, why: str) -> None:
        log.error("%s: policy %s demoted to %s: %s", self.service, self.chosen.spec["name"], DEMOTED_BY, why)
        self.counts.demotions += 1
        self.demoted = why
        self._take(Chosen(DEMOTED_BY), f"demoted: {why}", keep=True)

    def _publish(self, o: Observation, directive: Directive, now_ns: int) -> None:
        """Publish it, unless the very same is in force."""
        table = self.observer.table()
        if self.reserve == "off" and directive.classic is not None:
            directive = replace(directive, classic=replace(directive.classic, reserve=0.0))
        try:
            data = to_data(
                directive,
                o.ids,
                table_room=self.segment.limits.table_slots,
                policy=self.chosen.spec["name"],
                sequence=self._sequence + 1,
                issued_ns=now_ns,
                settings_version=table.version,
                enforcing_percent=self.chosen.enforcing_percent,
            )
            if self._published is not None and _same(data, self._published):
                return
            self.segment.publish_directive(data)
        except ControllerSupersededError:
            raise
        except (PayloadRejectedError, DirectiveError, ValueError) as error:
            self.counts.failed += 1
            self._rejected += 1
            log.warning("%s: policy %s: not published: %s", self.service, self.chosen.spec["name"], error)
            if self._rejected >= REJECTED_MAX:
                self._demote(f"{REJECTED_MAX} directives in a row were refused, the last: {error}")
            return
        self._published = data
        self._sequence += 1
        self.counts.published += 1

    # --- changing the policy ------------------------------------------------------------------------------------------

    def swap(self, spec: str | Mapping[str, Any], done: Callable[[str | None], None]) -> None:
        """Let another policy take over after it decided in shadow; raises ValueError when there is no such policy."""
        chosen = Chosen(spec)
        if chosen.ledger is not None:
            check_writable(chosen.ledger[0])
        self._begin_swap(Swap(chosen, done))

    def rollback(self, done: Callable[[str | None], None]) -> None:
        """Go back to the policy before; ValueError: there is none."""
        if not self.history:
            raise ValueError("there is no policy to go back to")
        self._begin_swap(Swap(Chosen(self.history[-1]), done, why="rolled back"))

    def _begin_swap(self, swap: Swap) -> None:
        if self._swap is not None:
            self._swap.done("another policy was set meanwhile")
        self._swap = swap

    def _try_swap(self, swap: Swap, o: Observation, now_ns: int) -> None:
        """One shadow cycle of the policy that waits; the last one publishes."""
        name = swap.chosen.spec["name"]
        begun = time.perf_counter()
        try:
            directive = swap.chosen.policy.decide(o)
            took = time.perf_counter() - begun
            check(directive, o.n_servers)
            # The first decision may load what it needs; the others must keep the deadline.
            if swap.cycles > 0 and took > max(self.interval / 2, DEADLINE_LEAST):
                raise DirectiveError(f"it decided in {took * 1e3:.0f} ms")
        except Exception as error:  # whatever a policy raises must not end the loop
            self._swap = None
            log.warning("%s: policy %s refused in shadow: %s: %s", self.service, name, type(error).__name__, error)
            swap.done(f"policy {name} was refused in shadow: {type(error).__name__}: {error}")
            return
        swap.cycles += 1
        if swap.cycles < SHADOW_CYCLES:
            return
        self._swap = None
        self.demoted = ""
        self._take(swap.chosen, swap.why, keep=swap.why == "set")
        if swap.why != "set" and self.history:
            self.history.pop()
        self.last = directive
        self._publish(o, directive, now_ns)
        swap.done(None)

    def _take(self, chosen: Chosen, why: str, *, keep: bool) -> None:
        """Put a policy in charge; keep: the one before goes into the history, and the guard compares with it."""
        before = self.chosen
        if keep:
            self.history.append(before.spec)
        log.info("%s: policy %s -> %s (%s)", self.service, before.spec["name"], chosen.spec["name"], why)
        self.chosen = chosen
        self._keep_ledger()
        self._late = self._rejected = 0
        compare = keep and chosen.guarded and not self.demoted and chosen.enforcing_percent > 0
        self.guard = self._windows.guard() if compare else None
        self.on_change(chosen.spec, why)

    def _keep_ledger(self) -> None:
        """Let the ledger be the one that the policy in charge asks for; one that goes on is not touched."""
        wanted = self.chosen.ledger
        now = (self.ledger.path, self.ledger.sample) if self.ledger is not None else None
        if wanted == now:
            return
        self.close(LEDGER_SECONDS)
        if wanted is not None:
            self.ledger = LiveLedger(wanted[0], self.segment, self.service, wanted[1])

    def _watch(self, guard: Guard, now_ns: int) -> None:
        verdict = guard.judge(self._windows)
        if verdict is None:
            return
        self.guard = None
        if verdict and self.history:
            log.warning("%s: policy %s is worse than before: %s", self.service, self.chosen.spec["name"], verdict)
            self.counts.rollbacks += 1
            self._take(Chosen(self.history.pop()), f"rolled back by the guard: {verdict}", keep=False)

    # --- what is shown ------------------------------------------------------------------------------------------------

    def show(self) -> dict[str, Any]:
        """Return policy, history, the last decision and what it learned, as JSON takes it."""
        seconds = np.array(self.counts.cycle_seconds) if self.counts.cycle_seconds else np.zeros(1)
        shown: dict[str, Any] = {
            "policy": self.chosen.spec["name"],
            "spec": self.chosen.spec,
            "mode": "shadow" if self.chosen.shadow else "enforce",
            "enforcing": self.chosen.enforcing_percent,
            "history": list(self.history),
            "demoted": self.demoted or None,
            "guard": "watching" if self.guard is not None else "off",
            "interval": self.interval,
            "cycles": self.counts.cycles,
            "cycles_idle": self.counts.idle,
            "published": self.counts.published,
            "late": self.counts.late,
            "failed": self.counts.failed,
            "rollbacks": self.counts.rollbacks,
            "demotions": self.counts.demotions,
            "cycle_ms_mean": round(float(seconds.mean()) * 1e3, 3),
            "cycle_ms_max": round(float(seconds.max()) * 1e3, 3),
            "servers": [],
        }
        if self.ledger is not None:
            shown["ledger"] = self.ledger.state
        o, last = self.observation, self.last
        if o is None or last is None:
            return shown
        shown["rule"] = last.rule
        same_rows = last.weights is None or len(last.weights) == o.n_servers
        total = float(last.weights[o.active].sum()) if last.weights is not None and same_rows else 0.0
        for row in np.flatnonzero(o.ids):
            server: dict[str, Any] = {"id": int(o.ids[row]), "name": o.names[row], "active": bool(o.active[row])}
            if last.weights is not None and same_rows and total > 0:
                server["weight"] = _round(last.weights[row] / total * o.active[row])
            if last.curves is not None and row < len(last.curves):
                server["bids"] = [_round(bid) for bid in last.curves[row, :8]]
            for name, values in last.fitted.items():
                if row < len(values):
                    server[name] = _round(values[row])
            shown["servers"].append(server)
        return shown


def _round(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.5g}") if np.isfinite(number) else None


def _same(a: DirectiveData, b: DirectiveData) -> bool:
    """Whether two directives differ in nothing but number and time."""
    for name in DirectiveData.__slots__:
        if name in ("sequence", "issued_ns", "epoch"):
            continue
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            if not np.array_equal(x, y):
                return False
        elif x is not y and x != y:
            return False
    return True
