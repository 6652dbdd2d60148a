"""A learned policy: a network corrects what a base policy bids, within bounds, and fades out where it knows nothing.

Source    docs/learning.md; the correction is DESIGN's, the same C function as in the environments
Decides   the network sees what the agent saw in training (controlplane/learned/encoding.py) and remembers each server
          by its id. A correction of zero is the base policy itself, to the bit
Bounds    no bid leaves 1/16 … 16 times the base policy's, nor moves by more than `change` in one update; a healthy
          server that gets less than EXPLORE of an equal share of the flows bids 0 for its next one
Fades     by the distance of its inputs from those of training (controlplane/learned/novelty.py). With outputs that are
          not finite, with more servers than its file allows, and while the base policy holds flows back (which no
          policy is trained with; by default it does where the network has no say), the base policy decides alone
Weights   files of the paper's action sets (kinds discrete and weights) give weights, of which the file's rule makes a
          directive
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.directive import BID_MAX
from controlplane.learned import correction
from controlplane.learned.encoding import Inputs, encode
from controlplane.learned.model import Action, Model
from controlplane.learned.novelty import Novelty, blend_of
from controlplane.learned.policy_file import PolicyFileError
from controlplane.policy import CURVE_N, Bools, Directive, Floats, Ids, Observation, PolicyError

# Share of an equal share of the flows that a healthy server gets at least.
EXPLORE = 0.01
# A flow that failed delays the next such probe as so many flows would, and no server is ahead by more than so many.
PROBE_FAILED, OWED_LEAST = 10.0, -10.0
# Most that K and c may be shifted by, in parts of their bounds.
SHIFT_MAX = 0.5
# Features are cut there, as the environments cut them.
FEATURE_MAX = 1e6
FAILED = slice(1, 5)  # outcomes, as the environments count failures; 0 and 1 are completions


class Learned:
    name = "learned"

    def __init__(
        self,
        file: str = "",
        base: str | Mapping[str, Any] | None = None,
        strength: float = 1.0,
        change: float = 0.25,
        fade: bool = True,
        shift_k: float = 0.0,
        shift_c: float = 0.0,
    ) -> None:
        """file: a policy file, or shipped:NAME. base: instead of the file's. strength: factor on every correction.
        change: how much a bid may move in an update. fade: whether novelty weakens the correction. shift_k, shift_c:
        added to the network's K and c, in parts of their bounds."""
        if not isinstance(file, str) or not file:
            raise PolicyError(f"file: expected a policy file's name, or shipped:NAME, not {file!r}", "file")
        _expect("strength", strength, 0.0, 1.0)
        _expect("change", change, 1e-3, 1e3)
        for name, shift in (("shift_k", shift_k), ("shift_c", shift_c)):
            _expect(name, shift, -SHIFT_MAX, SHIFT_MAX)
        if not isinstance(fade, bool):
            raise PolicyError(f"fade: expected true or false, not {fade!r}", "fade")
        try:
            self.model = Model(file)
        except PolicyFileError as error:
            raise PolicyError(f"file: {error}", "file") from error
        self.manifest = self.model.manifest
        spec = self.manifest.base if base is None else base
        named = spec if isinstance(spec, str) else spec.get("name") if isinstance(spec, Mapping) else None
        if not isinstance(named, str) or named == self.name:
            raise PolicyError(f"base: expected another policy's name, or a mapping with one, not {spec!r}", "base")
        try:
            self.base = registry.create(spec)
        except ValueError as error:
            raise PolicyError(f"base: {error}", "base") from error
        self.strength, self.change, self.fade = float(strength), float(change), fade
        self.shift_k, self.shift_c = float(shift_k), float(shift_c)
        self.novelty = 0.0
        self.blend = self.strength  # how much of the correction is in force; 1: all
        self.alone = ""  # why the base policy decides alone, when it does
        self.invalid = 0  # outputs that were not finite numbers
        self._novelty = Novelty(self.manifest.ranges)
        self._before: Observation | None = None
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._window = 1.0
        self._allocate(0)

    @property
    def strangest(self) -> str:
        """The input by which the last look was most novel; empty: by none."""
        return self._novelty.strangest

    @property
    def tunable(self) -> dict[str, tuple[float, float]]:
        """Attributes that fine-tuning may set at any time, with their bounds."""
        shifts = {"shift_k": (-SHIFT_MAX, SHIFT_MAX), "shift_c": (-SHIFT_MAX, SHIFT_MAX)}
        return {"strength": (0.0, 1.0), **(shifts if self.model.schema.kind == "curves" else {})}

    def _allocate(self, n: int) -> None:
        self._hidden = self.model.network.initial(1, n)
        self._factor = np.ones((n, len(CURVE_N)))  # of the last update on the base curves
        self._weights = np.zeros(n)  # of the last update; 0: none yet
        self._owed = np.zeros(n)  # flows that a server is owed for EXPLORE

    def decide(self, observation: Observation) -> Directive:
        o = self._as_trained(observation)
        if not np.array_equal(self._ids, o.ids):
            self._match_rows(o)
        change = counted_since(o, self._before)
        # The window is the last action's, as in training: the base policy decides before the network looks.
        directive = correction.decide_base(self.base, o, self._window)
        assert directive.curves is not None
        curves = np.minimum(directive.curves, BID_MAX).astype(np.float32)
        features = np.clip(o.features, 0.0, FEATURE_MAX)
        inputs = encode(features[None], o.active[None], change[None], curves[None], o.interval, o.balancers)
        action = self._act(o, inputs)
        self._before = o
        if self.model.schema.kind == "curves":
            return self._correct(o, directive, curves, action, change)
        return self._weigh(o, directive, action)

    def _as_trained(self, o: Observation) -> Observation:
        """Return it with a reserve that is decided: no policy is trained with flows held back, so they are where the
        network has no say anyway, being for several balancers alone."""
        if o.reserve != "auto":
            return o
        inert = self.fade and o.balancers == 1 and self.manifest.ranges.balancers[0] > 1
        return replace(o, reserve="learned" if inert else "off")

    # --- what goes in -------------------------------------------------------------------------------------------------

    def _match_rows(self, o: Observation) -> None:
        """Let what is remembered follow its server; of a new one nothing is known."""
        old = {int(server): row for row, server in enumerate(self._ids) if server}
        pairs = [(row, old[int(server)]) for row, server in enumerate(o.ids) if int(server) in old]
        was = self._hidden, self._factor, self._weights, self._owed
        self._allocate(o.n_servers)
        self._ids = o.ids.copy()
        if pairs:
            here, there = np.array(pairs).T
            self._hidden[:, here] = was[0][:, there]
            self._factor[here], self._weights[here], self._owed[here] = was[1][there], was[2][there], was[3][there]

    # --- what comes out -----------------------------------------------------------------------------------------------

    def _act(self, o: Observation, inputs: Inputs) -> Action | None:
        """Return the network's action, or None when the base policy is to decide alone; sets novelty and blend."""
        first = self._before is None
        if not first:
            self.novelty = self._novelty.update(inputs, o.balancers, o.now)
        self.blend = self.strength * (blend_of(self.novelty) if self.fade else 1.0)
        self.alone = ""
        servers = int(o.active.sum())
        if first and self.fade:
            self.alone = "nothing was counted yet that could be judged"
        elif o.reserve == "learned":
            self.alone = "flows are held back"
        elif servers > self.manifest.servers_max:
            self.alone = f"{servers} servers, and its file allows {self.manifest.servers_max}"
        step = self.model.step(inputs, self._hidden)
        if step is None:
            self.invalid += 1
            self._hidden = self.model.network.initial(1, o.n_servers)
            self.alone = "its outputs are not finite numbers"
        else:
            self._hidden = step[1]
        if self.alone:
            self.blend = 0.0
        return None if step is None or self.blend == 0.0 else step[0]

    def _correct(
        self, o: Observation, directive: Directive, base: NDArray[np.float32], action: Action | None, change: Floats
    ) -> Directive:
        """Return the base policy's directive with its curves corrected."""
        logs, self._window = np.zeros(2 + 2 * o.n_servers), 1.0
        if action is not None:
            action[:2] += self.shift_k, self.shift_c
            logs, self._window = correction.logarithms(self.blend * action, self.model.schema.bounds)
        logs[2:].reshape(-1, 2)[~o.active] = 0.0
        if directive.reserve is not None or (not logs.any() and (self._factor == 1.0).all()):
            self._factor[:] = 1.0
            self._owed[:] = 0.0
            return directive
        corrected = correction.correct(base, logs).astype(np.float64)
        curves, self._factor = correction.bounded(base.astype(np.float64), corrected, self._factor, self.change)
        curves[self._explore(o, change), 0] = 0.0
        fitted = {**directive.fitted, "delta_mu": logs[2::2], "delta_k": logs[3::2]}
        return replace(directive, curves=curves, fitted=fitted)

    def _explore(self, o: Observation, change: Floats) -> Bools:
        """Return which servers are owed a flow, (servers,)."""
        flows, failed = change[:, 0], change[:, 3]
        equal = float(flows[o.active].sum()) / max(int(o.active.sum()), 1)
        self._owed += np.where(o.active, EXPLORE * equal, 0.0) - flows - PROBE_FAILED * failed
        np.clip(self._owed, OWED_LEAST, 1.0, out=self._owed)
        return np.asarray(o.active & (self._owed >= 1.0))

    def _weigh(self, o: Observation, base: Directive, action: Action | None) -> Directive:
        """Return the directive of the weights that a file of kind discrete or weights gives."""
        if action is None:
            self._weights[:] = 0.0
            return base
        shares = correction.shares(base, o.active)
        weights = correction.weights_of(
            self.model.schema, np.asarray(action, dtype=np.float64), o.active, self.model.limits, shares, self.blend
        )
        most = 1.0 + self.change
        known = (self._weights > 0) & o.active & (weights > 0)
        weights = np.where(known, np.clip(weights, self._weights / most, self._weights * most), weights)
        self._weights = weights
        return correction.by_weights(weights, self.manifest.rule, {"weight_given": weights})


def counted_since(o: Observation, before: Observation | None) -> Floats:
    """Return what each server's counters grew by since an observation, (servers, 4); zeros without one."""
    if before is None:
        return np.zeros((o.n_servers, 4))
    now = _counters(o)
    rows = np.flatnonzero(o.same_since(before))
    # A server that is new, or whose counters began anew, has what it counted since.
    now[rows] -= _counters(before)[rows]
    return now


def _counters(o: Observation) -> Floats:
    """Return the counters that the environments show, (servers, 4)."""
    completions = o.outcomes[:, 0] + o.outcomes[:, 1]
    return np.column_stack([o.flows, completions, o.fct_sum, o.outcomes[:, FAILED].sum(axis=1)])


def _expect(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise PolicyError(f"{name}: expected a number, {low:g} … {high:g}, not {value!r}", name)
