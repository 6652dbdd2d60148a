"""Whether the policy in force is watched by the guard (controlplane/guard.py), and in words why not."""

from __future__ import annotations

import logging
from typing import Any

from controlplane.guard import Guard, Windows
from controlplane.policy import Observation

log = logging.getLogger("vickrey.controller")


class Watch:
    """The guard of one service's policy. Call `add` every control cycle, `begin` at every change of who decides."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.guard: Guard | None = None
        self.why = ""  # the policy that was set last is not watched, or could not be judged
        self._windows = Windows()

    @property
    def state(self) -> str:
        return "off" if self.guard is None else "watching"

    def add(self, o: Observation) -> None:
        """Take in what the service did until now."""
        self._windows.add(o)

    def begin(self, name: str, *, wanted: bool) -> None:
        """Somebody else decides from now on: watch it, if that is wanted and there is enough to compare with."""
        found = self._windows.guard() if wanted else ""
        self.guard, self.why = (None, found) if isinstance(found, str) else (found, "")
        self.changed()
        self._tell(name)

    def changed(self) -> None:
        """The policies' shares are others from now on."""
        self._windows.changed()

    def end(self) -> None:
        """Watch no longer."""
        self.guard, self.why = None, ""

    def judge(self, name: str) -> str:
        """Return what is worse; empty: nothing, or not yet."""
        verdict = self.guard.judge(self._windows) if self.guard is not None else None
        if self.guard is None or verdict is None:
            return ""
        self.why = "" if verdict else self.guard.lacking
        self.guard = None
        self._tell(name)
        return verdict

    def _tell(self, name: str) -> None:
        if self.why:
            log.warning("%s: policy %s: guard off: %s", self.service, name, self.why)

    def show(self) -> dict[str, Any]:
        """Return its state, as JSON takes it."""
        return {"guard": self.state} | ({"guard_why": self.why} if self.why else {})
