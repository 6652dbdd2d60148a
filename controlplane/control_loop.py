"""The control loop of one service: observe, decide, check, publish, give a sign of life. No thread and no clock in
here; the ledger, for a policy that asks for one, has its own (controlplane/auction/live_ledger.py).

The controller runs `cycle` on a live segment every interval; simulator and benchmarks call it with their own clock.
What may go wrong with a policy, and what follows:

    decides too late                 the decision is dropped; ten in a row: demoted
    raises, or does not validate     the last good directive stays in force; five in a row: demoted
    demoted                          its incumbent takes its place; without one, least connections, until an operator
                                     sets a policy
    swapped in                       decides in shadow for a few cycles first; refused when one of them fails
    given a share of the traffic     decides every cycle, beside its incumbent (controlplane/deployment/trial.py)
    worse than the one before        rolled back by the guard (controlplane/guard.py), and kept out for a minute
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from controlplane.auction.live_ledger import LiveLedger
from controlplane.deployment.chosen import LATE_MAX, REJECTED_MAX, Decider, Spec
from controlplane.deployment.deployment import SHADOW_CYCLES, Deployment
from controlplane.deployment.shown import shown_policy, shown_servers
from controlplane.directive import DirectiveError, to_data
from controlplane.observation import Observer
from controlplane.policy import Directive, Observation
from shm_layout.payload import DirectiveData
from shm_layout.segment import ControllerSupersededError, PayloadRejectedError, Segment, SegmentEmptyError

__all__ = ["LATE_MAX", "REJECTED_MAX", "SHADOW_CYCLES", "ControlLoop", "Spec"]

# A change of policy waits no longer than this for the ledger that it ends.
LEDGER_SECONDS = 0.2


class ControlLoop(Deployment):
    """One service: who decides for it (deployment.py), between its segment's observations and directives.

    Call `begin` once, then `cycle` every interval.
    """

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
        history: Iterable[Spec] = (),
        cooling: Iterable[tuple[str, float, str]] = (),
        seed: int | None = None,
    ) -> None:
        super().__init__(service, policy, interval, history, cooling, seed)
        self.segment, self.reserve = segment, reserve
        self.observer = Observer(segment, interval, balancers, objective, reserve)
        self.observation: Observation | None = None
        self.ledger: LiveLedger | None = None
        self._sequence = 0
        self._published: DirectiveData | None = None
        self._signature: tuple[int, ...] = ()

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
        if signature == self._signature and signature[1] == 0 and not self.in_flux and self._published is not None:
            self.counts.idle += 1
            return
        begun = time.perf_counter()
        self._signature = signature
        o = self.observation = self.observer.read(now_ns)
        if o.n_servers == 0:
            return
        decider, directive = self.decide(o, lenient=self._published is None)
        if directive is not None:
            self._publish(o, directive, now_ns, decider)
            if self.ledger is not None:
                self.ledger.round(o, directive, decider.chosen.name)
        decider, directive = self.advance(o)
        if directive is not None:
            self._publish(o, directive, now_ns, decider)
        self._keep_ledger()
        self.answer()
        self.counts.cycle_seconds.append(time.perf_counter() - begun)

    def _publish(self, o: Observation, directive: Directive, now_ns: int, decider: Decider) -> None:
        """Publish it, unless the very same is in force."""
        table = self.observer.table()
        if self.reserve in ("off", "auto") and directive.classic is not None:
            directive = replace(directive, classic=replace(directive.classic, reserve=0.0))
        try:
            data = to_data(
                directive,
                o.ids,
                table_room=self.segment.limits.table_slots,
                policy=decider.chosen.name,
                sequence=self._sequence + 1,
                issued_ns=now_ns,
                settings_version=table.version,
                enforcing_percent=self.enforcing_percent,
            )
            if self._published is not None and _same(data, self._published):
                return
            self.segment.publish_directive(data)
        except ControllerSupersededError:
            raise
        except (PayloadRejectedError, DirectiveError, ValueError) as error:
            self.refused(decider, str(error))
            return
        self._published = data
        self._sequence += 1
        self.counts.published += 1

    def _keep_ledger(self) -> None:
        """Let the ledger be the one that the policy in charge asks for; one that goes on is not touched."""
        wanted = self.chosen.ledger
        now = (self.ledger.path, self.ledger.sample) if self.ledger is not None else None
        if wanted == now:
            return
        self.close(LEDGER_SECONDS)
        if wanted is not None:
            self.ledger = LiveLedger(wanted[0], self.segment, self.service, wanted[1])

    def show(self) -> dict[str, Any]:
        """Return policy, history, the last decision and what it learned, as JSON takes it."""
        shown = shown_policy(self)
        if self.observation is not None and self.last is not None:
            shown |= {"rule": self.last.rule, "servers": shown_servers(self.observation, self.last)}
        return shown


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
