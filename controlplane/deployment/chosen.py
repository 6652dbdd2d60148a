"""A policy that was chosen, with the controller's own options; and how well it decides: in time, and right."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from controlplane import registry
from controlplane.background import waited_for_core
from controlplane.deployment import options
from controlplane.directive import check
from controlplane.policy import Directive, Observation, Policy

Spec = dict[str, Any]

REJECTED_MAX = 5
LATE_MAX = 10
# A decision may take half the interval, but no less than this, seconds.
DEADLINE_LEAST = 0.02


def deadline(interval: float) -> float:
    """Return how long a decision may take, seconds."""
    return max(interval / 2, DEADLINE_LEAST)


class Chosen:
    """A policy from its specification; raises ValueError naming what is wrong with that."""

    def __init__(self, spec: str | Mapping[str, Any], policy: Policy | None = None) -> None:
        """policy: that goes on, instead of a new one of this specification."""
        given: Spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        # `options` may stand beside the name or in a mapping of their own.
        given = {**given.pop("options", {}), **given}
        options.check(given)
        given.pop("force", None)
        self.policy: Policy = registry.create(given) if policy is None else policy
        self.shadow = given.get("mode", "enforce") == "shadow"
        self.enforcing_percent = options.enforcing(given)
        self.guarded = options.flag(given, "guard", True)
        self.adapt = options.adapt(given)  # seconds of a block; None: it does not
        self.switchback = options.switchback(given)
        self.incumbent = options.incumbent(given)
        self.ledger: tuple[Path, float] | None = None  # where, and share of the flows in it
        if given.get("ledger") is not None:
            self.ledger = Path(given["ledger"]), float(given.get("ledger_sample", registry.LEDGER_SAMPLE))
        self.spec = given | {"name": registry.canonical(given["name"])}
        if self.sha256 is not None:
            wanted = self.spec.setdefault("sha256", self.sha256)
            if wanted != self.sha256:
                what = f"it is not the file that is meant, whose SHA-256 is {wanted}, but {self.sha256}"
                raise ValueError(f"policy {self.name}: {what}")

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def partial(self) -> bool:
        """Whether a part of the traffic is to follow somebody else."""
        return self.enforcing_percent < 100 or self.switchback is not None

    @property
    def sha256(self) -> str | None:
        """Of the file that it was made from; None: of none."""
        manifest = getattr(self.policy, "manifest", None)
        found = manifest.get("sha256") if isinstance(manifest, Mapping) else getattr(manifest, "sha256", None)
        return found if isinstance(found, str) else None

    @property
    def plain(self) -> Spec:
        """The specification of what it is, less how it is deployed."""
        return options.plain(self.spec)

    @property
    def key(self) -> str:
        """The same for two specifications of one policy, however they are deployed."""
        return json.dumps(self.plain, sort_keys=True, default=str)


def prepare(spec: str | Mapping[str, Any]) -> Chosen | None:
    """Return the policy, where there is time to import what it, and the incumbent it names, need: later that is there.

    None: no name, options of the policy in force are to be changed. ValueError as of Chosen.
    """
    given: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
    chosen = Chosen(given) if "name" in given else None
    named = options.incumbent(given) if chosen is None else chosen.incumbent
    if named is not None and named != options.FALLBACK:
        Chosen(named)
    return chosen


class Decider:
    """Lets a policy decide and keeps count of it."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen
        self.decisions = self.late = self.refused = 0
        self.late_row = self.refused_row = 0
        self.last: Directive | None = None  # of use
        self.error = ""  # why its last decision was refused
        self.took = 0.0  # seconds, its last decision
        self.seconds: deque[float] = deque(maxlen=256)

    def decide(self, o: Observation, within: float) -> Directive | None:
        """Return its directive if that validates and came within so many seconds; else None, counted.

        Waiting for a core does not count: the controller gives way to the workers, and no policy is to blame for that.
        """
        begun, waited = time.perf_counter(), waited_for_core()

        def took() -> float:
            return max(time.perf_counter() - begun - (waited_for_core() - waited), 0.0)

        try:
            directive = self.chosen.policy.decide(o)
            self.took = took()
            check(directive, o.n_servers)
        except Exception as error:  # whatever a policy raises must not end the loop
            self.took = took()
            self.refuse(f"{type(error).__name__}: {error}")
            return None
        self.decisions += 1
        self.seconds.append(self.took)
        if self.took > within:
            self.late += 1
            self.late_row += 1
            return None
        self.late_row = self.refused_row = 0
        self.last = directive
        return directive

    def refuse(self, why: str) -> None:
        """Count a decision that was of no use."""
        self.refused += 1
        self.refused_row += 1
        self.error = why

    @property
    def failing(self) -> str:
        """Why it must be given up; empty: it need not."""
        if self.refused_row >= REJECTED_MAX:
            return f"{REJECTED_MAX} decisions in a row were refused, the last: {self.error}"
        if self.late_row >= LATE_MAX:
            return f"{LATE_MAX} decisions in a row came late, the last after {self.took * 1e3:.0f} ms"
        return ""

    @property
    def novelty(self) -> float | None:
        """How far what it sees is from what it was trained on, 0 … 1; None: it does not tell."""
        return _part(self.chosen.policy, "novelty")

    @property
    def blend(self) -> float | None:
        """How much of its correction is in force, 0: the heuristic alone … 1; None: it does not tell."""
        return _part(self.chosen.policy, "blend")

    def show(self) -> dict[str, Any]:
        """Return the counts, as JSON takes them."""
        seconds = np.array(self.seconds) if self.seconds else np.zeros(1)
        return {
            "decisions": self.decisions,
            "late": self.late,
            "refused": self.refused,
            "decision_ms_mean": round(float(seconds.mean()) * 1e3, 3),
            "decision_ms_max": round(float(seconds.max()) * 1e3, 3),
        }


def _part(policy: Policy, name: str) -> float | None:
    value = getattr(policy, name, None)
    try:
        number = float(value) if value is not None else np.nan
    except (TypeError, ValueError):
        return None
    return min(max(number, 0.0), 1.0) if np.isfinite(number) else None
