"""The policy underneath: it decides as it would alone, and its bid curves are what an agent corrects.

Each row has a policy of its own, as separate machines would. Policies whose curves depend on the server table alone
decide when that changes; those that learn decide every `every` steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.directive import BID_MAX, check
from controlplane.env.orders import Orders
from controlplane.learned.correction import decide_base
from controlplane.policy import Directive, Observation, Policy

# Their curves follow from weights and the number of servers and balancers.
STATIC = frozenset({"lsq", "sed", "gsed"})


class Base:
    """One policy a row."""

    def __init__(
        self,
        spec: str | Mapping[str, Any] | Policy,
        rows: int,
        observe: Callable[[int], Observation],
        orders: Orders,
        every: int = 1,
    ) -> None:
        if every < 1:
            raise ValueError(f"base_every: expected 1 or more steps, not {every}")
        self._prototype = registry.create(spec) if isinstance(spec, str | Mapping) else spec
        self.name = self._prototype.name
        self._static = self.name in STATIC
        self._observe, self._orders, self._every = observe, orders, every
        self._policies: list[Policy] = [self._prototype] * rows
        self.directives: list[Directive | None] = [None] * rows  # what each decided last
        self._steps = np.zeros(rows, dtype=np.int64)
        self._version = np.zeros(rows, dtype=np.uint64)

    def begin(self, rows: Iterable[int], versions: NDArray[np.uint64]) -> None:
        """Begin episodes in these rows with fresh policies; versions: (rows,) of the settings in force."""
        for row in rows:
            self._policies[row] = copy.deepcopy(self._prototype)
            self._steps[row] = 0
            self._decide(row)
            self._version[row] = versions[row]

    def prepare(self, rows: NDArray[np.intp], versions: NDArray[np.uint64]) -> None:
        """Bring the curves of these rows up to date, before a step is published."""
        stale = self._version[rows] != versions[rows]
        if not self._static:
            # What began an episode has just decided.
            stale |= (self._steps[rows] > 0) & (self._steps[rows] % self._every == 0)
            self._steps[rows] += 1
        if stale.any():
            for row in rows[stale]:
                self._decide(int(row))
            self._version[rows] = versions[rows]

    def _decide(self, row: int) -> None:
        observation = self._observe(row)
        directive = decide_base(self._policies[row], observation, float(self._orders.window[row]))
        check(directive, observation.n_servers)
        assert directive.curves is not None
        self.directives[row] = directive
        self._orders.base[row, : observation.n_servers] = np.minimum(directive.curves, BID_MAX)
