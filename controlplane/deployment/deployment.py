"""Who decides for a service, and how that changes: a policy takes over, shares, is measured, given up, rolled back.

The control loop (controlplane/control_loop.py) calls `decide` with each observation and publishes what comes of it;
operators call `swap` and `rollback`. Everything that happens is told to `on_event`, for the audit log, and a change of
the policy in force to `on_change`. No segment, no thread and no clock in here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane import registry
from controlplane.auction.live_ledger import check_writable
from controlplane.deployment import options
from controlplane.deployment.adapt import Tuner
from controlplane.deployment.agreement import Agreement, agreement
from controlplane.deployment.chosen import REJECTED_MAX, Chosen, Decider, Spec, deadline
from controlplane.deployment.history import History
from controlplane.deployment.trial import Trial
from controlplane.deployment.watch import Watch
from controlplane.guard import CoolDown, Totals
from controlplane.policy import Directive, Observation

log = logging.getLogger("vickrey.controller")

DEMOTED_BY = "lsq"
SHADOW_CYCLES = 5
# Of these, how many may come late: they may meet a pause of the machine.
SHADOW_LATE = 2
# Times that a demoted service writes in the log what its policy did wrong.
LOG_EVERY = 50
# What is told of a policy that did not come to decide.
ROLLED_BACK = "it was rolled back meanwhile"
# Below this blend a learned policy mostly does as its heuristic; above the second it is itself again.
BLEND_LOW, BLEND_BACK = 0.5, 0.6


@dataclass
class Swap:
    """A policy that waits, in shadow, to take over; done is called with None or with why it was refused."""

    decider: Decider
    done: Callable[[str | None], None]
    who: str
    why: str = "set"
    cycles: int = 0
    late: int = 0  # of these cycles, the first not counted
    agreement: Agreement = field(default_factory=Agreement)


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


class Deployment:
    """The policy of one service, its incumbent and its history."""

    def __init__(
        self,
        service: str,
        policy: str | Mapping[str, Any],
        interval: float,
        history: Iterable[Spec],
        cooling: Iterable[tuple[str, float, str]],
        seed: int | None,
    ) -> None:
        self.service, self.interval = service, interval
        self.history = History(history)
        self.counts = Counts()
        self.watch = Watch(service)
        self.demoted = ""  # why, when it is
        self.on_change: Callable[[Spec, str], None] = lambda spec, why: None
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self.shadow_report: dict[str, Any] = {}  # of the policy that was set last
        self.measured: dict[str, Any] | None = None  # the last switchback's result
        self._rng = np.random.default_rng(seed)
        self._now = 0.0
        self.cooling = CoolDown(cooling)
        self._swap: Swap | None = None
        self._waiting: list[Callable[[str | None], None]] = []  # to be told once a change is published
        self._blend_low = False
        self.decider = Decider(Chosen(policy))
        self.trial = self._trial_of(self.chosen, None)
        if self.trial is not None and not (self.history and _alike(self.history.last_spec(), self.trial)):
            self.history.append(self.trial.incumbent.chosen)
        self.tuner = Tuner.of(self.chosen, self._rng)

    @property
    def chosen(self) -> Chosen:
        """The policy that was set; on trial, it has a share of the cycles only."""
        return self.decider.chosen

    @property
    def last(self) -> Directive | None:
        """What the policy that was set decided last."""
        return self.decider.last

    # --- deciding -----------------------------------------------------------------------------------------------------

    def decide(self, o: Observation, *, lenient: bool) -> tuple[Decider, Directive | None]:
        """Return whose turn it is and what it decided; None: nothing of use. lenient: however late."""
        self._now = o.now
        self.watch.add(o)
        self._tune(o)
        decider = self.decider
        directive = self._decide(decider, o, lenient)
        trial = self.trial
        if trial is not None:
            other = self._decide(trial.incumbent, o, lenient)
            trial.compare(directive, other, o)
            if not trial.turn(o):
                decider, directive = trial.incumbent, other
            if trial is self.trial and trial.switchback is not None and trial.switchback.verdict:
                self._end_switchback(trial)
        self._watch_blend()
        return decider, directive

    def advance(self, o: Observation) -> tuple[Decider, Directive | None]:
        """Take the next step of what is under way; returns whom it put in charge, and what that one decided."""
        if self._swap is not None:
            directive = self._try_swap(self._swap, o)
            return self.decider, directive
        self._watch()
        return self.decider, None

    @property
    def in_flux(self) -> bool:
        """Whether something was changed that is not published yet."""
        return self._swap is not None or bool(self._waiting)

    def answer(self) -> None:
        """Tell those who wait that what they wanted is published."""
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(None)

    def refused(self, decider: Decider, why: str) -> None:
        """A directive of this policy could not be published."""
        self.counts.failed += 1
        decider.refuse(f"not published: {why}")
        log.warning("%s: policy %s: not published: %s", self.service, decider.chosen.name, why)
        if decider.failing:
            self._give_up(decider, decider.failing)

    @property
    def enforcing_percent(self) -> int:
        """The share of the flows for the directive: with an incumbent all flows follow whose turn it is."""
        return 100 if self.trial is not None else self.chosen.enforcing_percent

    def _decide(self, decider: Decider, o: Observation, lenient: bool) -> Directive | None:
        """Return the policy's directive if it came in time and validates; count, and give it up, if not."""
        late, refused = decider.late, decider.refused
        directive = decider.decide(o, np.inf if lenient else deadline(self.interval))
        self.counts.late += decider.late - late
        self.counts.failed += decider.refused - refused
        if decider.refused > refused and (decider.refused_row <= REJECTED_MAX or decider.refused % LOG_EVERY == 0):
            log.warning("%s: policy %s: %s", self.service, decider.chosen.name, decider.error)
        if directive is None and decider.failing:
            self._give_up(decider, decider.failing)
        return directive

    def _give_up(self, decider: Decider, why: str) -> None:
        """Demote a policy that cannot decide: the incumbent takes its place, or least connections."""
        self.counts.demotions += 1
        self.cooling.begin(decider.chosen.key, self._now, f"demoted: {why}")
        trial = self.trial
        if trial is not None and decider is trial.incumbent:
            name = decider.chosen.name
            log.error("%s: incumbent %s demoted to %s: %s", self.service, name, DEMOTED_BY, why)
            self._tell("demoted", "controller", decider.chosen, why=why, to=DEMOTED_BY)
            in_history = bool(self.history) and _alike(self.history.last_spec(), trial)
            trial.incumbent = Decider(Chosen(DEMOTED_BY))
            if in_history:  # and not one that was named beside the policy on trial
                self.history.drop()
                self.history.append(trial.incumbent.chosen)
            self.chosen.spec["incumbent"] = trial.incumbent.chosen.plain
            self.on_change(self.chosen.spec, f"incumbent demoted: {why}")
            return
        self._tell("demoted", "controller", why=why, to=DEMOTED_BY if trial is None else trial.incumbent.chosen.name)
        if trial is not None:
            log.error("%s: policy %s on trial is given up: %s", self.service, self.chosen.name, why)
            self._revert(f"rolled back, demoted: {why}")
            return
        log.error("%s: policy %s demoted to %s: %s", self.service, self.chosen.name, DEMOTED_BY, why)
        self.demoted = why
        self._install(Decider(Chosen(DEMOTED_BY)), f"demoted: {why}", keep=True)

    # --- changing the policy ------------------------------------------------------------------------------------------

    def swap(
        self,
        spec: str | Mapping[str, Any],
        done: Callable[[str | None], None],
        who: str = "operator",
        made: Chosen | Exception | None = None,
    ) -> None:
        """Let another policy take over after it decided in shadow, or change how the one in force is deployed.

        A mapping without a name, or with the policy in force, changes the latter at once. Raises ValueError when there
        is no such policy, it cools down, or its options make no sense. made: of this specification, by who could wait,
        or why it cannot be set: that is put on record, and raised.
        """
        given: Spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        try:
            if isinstance(made, Exception):
                raise made
            self._begin(given, done, who, made)
        except Exception as error:
            told = {"policy": given.get("name", self.chosen.name), "spec": given, "sha256": None}
            self.on_event({"what": "refused", "who": who, **told, "why": str(error)})
            raise

    def _begin(self, given: Spec, done: Callable[[str | None], None], who: str, made: Chosen | None) -> None:
        chosen = made or (Chosen(given) if "name" in given else Chosen(self._changed(given), self.chosen.policy))
        if chosen.ledger is not None and chosen.spec.get("ledger") != self.chosen.spec.get("ledger"):
            check_writable(chosen.ledger[0])
        if chosen.key == self.chosen.key and not self.demoted:
            self._change(chosen, who)
            self._waiting.append(done)
            return
        left, why = self.cooling.left(chosen.key, self._now)
        if left > 0 and not options.flag(given, "force", False):
            text = f"policy {chosen.name} cools down for {left:.0f} s more ({why}); --force sets it at once"
            raise ValueError(text)
        self._trial_of(chosen, self._decides_now())  # may refuse
        Tuner.of(chosen, self._rng)  # likewise
        self._begin_swap(Swap(Decider(chosen), done, who))

    def _changed(self, given: Spec) -> Spec:
        """Return the specification in force with these options of deployment changed."""
        unknown = sorted(set(given) - options.DEPLOYMENT)
        if unknown or not given:
            what = f"'{unknown[0]}' cannot be changed in place" if unknown else "nothing to change"
            raise ValueError(f"policy: {what}: without a name, {', '.join(sorted(options.DEPLOYMENT))} can")
        spec = {key: value for key, value in self.chosen.spec.items() if key != "switchback"}
        if "enforcing" in given:
            spec.pop("mode", None)
        if "switchback" in given:
            spec |= {"mode": "enforce", "enforcing": 100}
        return spec | given

    def _change(self, chosen: Chosen, who: str) -> None:
        """Change share, switchback, adaptation or guard of the policy in force, which goes on with what it knows."""
        before, trial = self.chosen, self.trial
        Tuner.of(chosen, self._rng)  # may refuse
        chosen.policy = before.policy
        incumbent = trial.incumbent if trial is not None else None
        if incumbent is None and chosen.partial and chosen.incumbent is None and self.history:
            before_it = self.history.last()
            incumbent = Decider(Chosen(before_it.plain, before_it.policy))
        self.trial = self._trial_of(chosen, incumbent)
        self.decider.chosen = chosen
        if self.trial is None and trial is not None:
            self._settle()
        elif chosen.switchback is not None or not chosen.guarded or chosen.enforcing_percent == 0:
            self.watch.end()
        elif chosen.enforcing_percent > before.enforcing_percent:
            self.watch.begin(chosen.name, wanted=True)
        was = "switchback" if before.switchback is not None else f"{before.enforcing_percent} %"
        now = "switchback" if chosen.switchback is not None else f"{chosen.enforcing_percent} %"
        if was != now:
            self.watch.changed()
        self._tell("share", who, before=was, now=now, incumbent=self._incumbent_name())
        self._taken(f"share {was} -> {now}")

    def rollback(self, done: Callable[[str | None], None], who: str = "operator", *, cancelled: bool = False) -> None:
        """Go back to the policy before, at once when it still decides beside; ValueError: there is none.

        That is the policy in force, if one that was to follow it is still in shadow, or (cancelled) being made.
        """
        if self._swap is not None:
            swap, self._swap, cancelled = self._swap, None, True
            self._tell("refused", swap.who, swap.decider.chosen, why=ROLLED_BACK)
            swap.done(ROLLED_BACK)
        if self.trial is not None:
            self._tell("rolled back", who, to=self.trial.incumbent.chosen.name, why="asked for")
            self._revert("rolled back")
            self._waiting.append(done)
            return
        if cancelled:
            self._waiting.append(done)
            return
        if not self.history:
            raise ValueError("there is no policy to go back to")
        self._begin_swap(Swap(Decider(self.history.last()), done, who, why="rolled back"))

    def _begin_swap(self, swap: Swap) -> None:
        if self._swap is not None:
            self._swap.done("another policy was set meanwhile")
        self._swap = swap

    def _try_swap(self, swap: Swap, o: Observation) -> Directive | None:
        """One shadow cycle of the policy that waits; after the last one it is in charge, and its directive returned."""
        chosen, decider = swap.decider.chosen, swap.decider
        directive = decider.decide(o, np.inf)
        # The first decision may load what it needs; most of the others must keep the deadline.
        error = decider.error if directive is None else ""
        swap.late += directive is not None and swap.cycles > 0 and decider.took > deadline(self.interval)
        if swap.late > SHADOW_LATE:
            error = f"DirectiveError: it decided in {decider.took * 1e3:.0f} ms"
        in_force = self.last if self.trial is None else self.trial.incumbent.last
        if directive is not None and in_force is not None:
            swap.agreement.add(agreement(directive, in_force, o))
        report = decider.show() | {"agreement": round(swap.agreement.mean, 4) if swap.agreement.decisions else None}
        if error or directive is None:
            self._swap = None
            log.warning("%s: policy %s refused in shadow: %s", self.service, chosen.name, error)
            self._tell("refused", swap.who, chosen, why=f"in shadow: {error}", shadow=report)
            swap.done(f"policy {chosen.name} was refused in shadow: {error}")
            return None
        swap.cycles += 1
        if swap.cycles < SHADOW_CYCLES:
            return None
        self._swap = None
        self.shadow_report = report
        self._tell("shadowed", swap.who, chosen, shadow=report)
        try:
            self._succeed(swap)
        except ValueError as gone:  # a file of its incumbent
            self._tell("refused", swap.who, chosen, why=str(gone))
            swap.done(str(gone))
            return None
        self._waiting.append(swap.done)
        return directive if self.trial is None else None

    def _succeed(self, swap: Swap) -> None:
        """Put a policy in charge that did well in shadow; ValueError: its incumbent cannot be made."""
        trial = self._trial_of(swap.decider.chosen, self._decides_now()) if swap.why == "set" else None
        self.demoted = ""
        if swap.why == "set":
            self._install(swap.decider, swap.why, keep=True, trial=trial)
            return
        self.history.drop()
        self._tell("rolled back", swap.who, to=swap.decider.chosen.name, why="asked for")
        self._install(swap.decider, swap.why, keep=False)

    def _decides_now(self) -> Decider:
        """Return who would be the incumbent of a policy that is set now."""
        return self.trial.incumbent if self.trial is not None else self.decider

    def _trial_of(self, chosen: Chosen, incumbent: Decider | None) -> Trial | None:
        """Return the trial that a policy asks for; None: it has all of the traffic, or shares it with the fallback."""
        if not chosen.partial or chosen.incumbent == options.FALLBACK:
            return None
        if chosen.incumbent is not None:
            given = {"name": chosen.incumbent} if isinstance(chosen.incumbent, str) else dict(chosen.incumbent)
            given["name"] = registry.canonical(given["name"])
            if incumbent is None or given != incumbent.chosen.plain:
                incumbent = Decider(Chosen(given))
        if incumbent is None:
            if chosen.switchback is not None:
                raise ValueError("switchback: there is no incumbent to compare with (incumbent: NAME names one)")
            return None
        trial = Trial(chosen, incumbent, self.interval, self._rng)
        chosen.spec["incumbent"] = incumbent.chosen.plain
        return trial

    def _install(self, decider: Decider, why: str, *, keep: bool, trial: Trial | None = None) -> None:
        """Put a policy in charge, or on trial; keep: the one before goes into the history, and is compared with."""
        before = self.decider
        if keep and self.trial is None:
            self.history.append(before.chosen)
        self.trial = trial
        log.info("%s: policy %s -> %s (%s)", self.service, before.chosen.name, decider.chosen.name, why)
        self.decider = decider
        self.measured = None
        decider.late_row = decider.refused_row = 0
        compare = keep and decider.chosen.guarded and not self.demoted and decider.chosen.enforcing_percent > 0
        compare = compare and (self.trial is None or self.trial.switchback is None)
        self.watch.begin(decider.chosen.name, wanted=compare)
        self._taken(why)

    def _settle(self) -> None:
        """The policy on trial has all of the traffic from now on."""
        self.trial = None
        self.chosen.spec.pop("incumbent", None)
        self.watch.begin(self.chosen.name, wanted=self.chosen.guarded)

    def _revert(self, why: str) -> None:
        """The incumbent of the policy on trial takes all of the traffic again."""
        assert self.trial is not None
        incumbent, self.trial = self.trial.incumbent, None
        self.history.drop()
        self._install(incumbent, why, keep=False)

    def _taken(self, why: str) -> None:
        """What follows every change: tell who is in force, and begin or end its adaptation."""
        if self.tuner is None or self.tuner.policy is not self.chosen.policy or self.chosen.adapt is None:
            if self.tuner is not None:
                self.tuner.stop()
            self.tuner = Tuner.of(self.chosen, self._rng)
        self._tell(
            "enforced",
            "controller",
            why=why,
            enforcing=self.chosen.enforcing_percent,
            incumbent=self._incumbent_name(),
            guard=self.watch.why or self.watch.state,
        )
        self.on_change(self.chosen.spec, why)

    # --- watching it --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        verdict = self.watch.judge(self.chosen.name)
        if not verdict or not self.history:
            return
        log.warning("%s: policy %s is worse than before: %s", self.service, self.chosen.name, verdict)
        self.counts.rollbacks += 1
        self.cooling.begin(self.chosen.key, self._now, f"rolled back by the guard: {verdict}")
        self._tell("rolled back", "guard", to=str(self.history.last_spec()["name"]), why=verdict)
        if self.trial is not None:
            self._revert(f"rolled back by the guard: {verdict}")
        else:
            before = self._version_before()
            self.history.drop()
            self._install(Decider(before), f"rolled back by the guard: {verdict}", keep=False)

    def _version_before(self) -> Chosen:
        """Return the version to go back to, or what stands in when its file is gone."""
        try:
            return self.history.last()
        except ValueError as error:
            log.error("%s: %s; %s stands in", self.service, error, DEMOTED_BY)
            return Chosen(DEMOTED_BY)

    def _end_switchback(self, trial: Trial) -> None:
        """Keep the winner."""
        assert trial.switchback is not None
        result, takes = trial.switchback.show(), trial.switchback.takes
        result |= {"candidate": self.chosen.name, "incumbent": trial.incumbent.chosen.name}
        why = f"switchback: {trial.switchback.verdict}, {trial.switchback.why}"
        log.info("%s: policy %s: %s", self.service, self.chosen.name, why)
        self._tell("switchback", "switchback", result=result, keeps=result["candidate" if takes else "incumbent"])
        if takes:
            spec = {key: value for key, value in self.chosen.spec.items() if key not in ("switchback", "incumbent")}
            self.decider.chosen = Chosen(spec, self.chosen.policy)
            self._settle()
            self._taken(why)
        else:
            self._tell("rolled back", "switchback", to=trial.incumbent.chosen.name, why=why)
            if trial.switchback.verdict != "undecided":
                self.counts.rollbacks += 1
                self.cooling.begin(self.chosen.key, self._now, why)
            self._revert(f"rolled back, {why}")
        self.measured = result

    def _tune(self, o: Observation) -> None:
        """Let the tuner of a policy that adapts set its parameters for this cycle, and keep what proved better."""
        if self.tuner is None:
            return
        if self.trial is not None or self.watch.guard is not None or self._swap is not None:
            self.tuner.stop()
            return
        step = self.tuner.step(o.now, lambda: Totals.of(o))
        if step is None:
            return
        self._tell("adapted", "adapt", **step)
        if step["kept"]:
            self.chosen.spec |= step["values"]
            self.on_change(self.chosen.spec, f"adapted: {step['why']}")

    def _watch_blend(self) -> None:
        """Tell when a learned policy begins, and when it ends, to trust its heuristic more than itself."""
        blend = self.decider.blend
        if blend is None or not (blend < BLEND_LOW if not self._blend_low else blend > BLEND_BACK):
            return
        self._blend_low = not self._blend_low
        what = "novel" if self._blend_low else "familiar"
        self._tell(what, "controller", blend=round(blend, 4), novelty=self.decider.novelty)

    def _incumbent_name(self) -> str | None:
        return None if self.trial is None else self.trial.incumbent.chosen.name

    def _tell(self, what: str, who: str, chosen: Chosen | None = None, **more: Any) -> None:
        chosen = self.chosen if chosen is None else chosen
        told = {"what": what, "who": who, "policy": chosen.name, "spec": dict(chosen.spec), "sha256": chosen.sha256}
        self.on_event(told | more)


def _alike(spec: Spec, trial: Trial) -> bool:
    return options.plain(spec) == trial.incumbent.chosen.plain
