"""From a network's outputs to curves and weights as the environments make them, and the bounds that hold in service.

correction   bid'_i(n) = e^−δμ_i · (bid_i(n · K · e^−δk_i) + (c − 1) · bid_i(0)), by the environments' own C function
bounds       a corrected curve stays within FLOOR … CAP of the base curve, and moves by no more than a given share
             from one update to the next
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.directive import BID_MAX
from controlplane.learned.schema import CORRECTIONS, GLOBALS, ActionSchema
from controlplane.policy import CURVE_N, Bools, Directive, Floats, Observation, Policy, PolicyError
from controlplane.weights import WeightLimits
from dataplane._dataplane import ffi, lib

# A corrected bid is no less and no more than so many times the base policy's.
FLOOR, CAP = 1.0 / 16.0, 16.0
# c of (n + c)/w, by rule; the lotteries take the weights as they are.
CONSTANT: Final = {"sed": 1.0, "gsed": 0.5}

Singles = NDArray[np.float32]


def decide_base(policy: Policy, observation: Observation, window: float = 1.0) -> Directive:
    """Return what a base policy decides; window: factor on the memory of one that learns. PolicyError: not every server
    bids by a curve there, so nothing could be corrected."""
    learner = getattr(policy, "learner", None)
    usual = getattr(learner, "window", None)
    if learner is None or usual is None:
        directive = policy.decide(observation)
    else:
        learner.window = usual * window
        try:
            directive = policy.decide(observation)
        finally:
            learner.window = usual
    if directive.rule != "bids" or directive.curves is None or directive.choices:
        raise PolicyError(f"base policy {policy.name}: only rules in which all servers bid by curves can be corrected")
    return directive


def logarithms(action: Floats, bounds: Mapping[str, float]) -> tuple[Floats, float]:
    """Return the correction (2 + 2·servers,) that curves_correct() takes, and the window's factor, of one action
    (3 + 2·servers,) in [−1, 1]: K, c, window, then δμ and δk of each server."""
    a = np.clip(action.astype(np.float64), -1.0, 1.0)
    out = np.empty(len(a) - 1)
    out[:2] = a[:2] * (bounds[GLOBALS[0]], bounds[GLOBALS[1]])
    for i, name in enumerate(CORRECTIONS):
        out[2 + i :: len(CORRECTIONS)] = a[3 + i :: len(CORRECTIONS)] * bounds[name]
    return out, float(np.exp(a[2] * bounds[GLOBALS[2]]))


def correct(base: Singles, correction: Floats) -> Singles:
    """Return corrected curves; base: (servers, CURVE_POINTS), contiguous."""
    out = np.empty_like(base)
    read, given = ffi.from_buffer("float[]", base), ffi.from_buffer("double[]", correction)
    lib.curves_correct(read, given, len(base), ffi.from_buffer("float[]", out))
    return out


def bounded(base: Floats, corrected: Floats, before: Floats, change: float) -> tuple[Floats, Floats]:
    """Return curves within the bounds and their factors on the base, for the next update; (servers, CURVE_POINTS) each.

    before: the factors of the update before. A bid is no more than 1 + change times, no less than 1/(1 + change) times
    what the factor before gives on today's base curve. Curves never fall.
    """
    some = base > 0
    factor = np.divide(corrected, base, out=np.ones_like(base), where=some)
    factor = np.minimum(np.maximum(factor, before / (1.0 + change)), before * (1.0 + change))
    np.clip(factor, FLOOR, CAP, out=factor)
    curves = np.maximum.accumulate(base * factor, axis=1)
    np.minimum(curves, BID_MAX, out=curves)
    return curves, np.divide(curves, base, out=np.ones_like(base), where=some)


def weights_of(
    schema: ActionSchema, chosen: Floats, active: Bools, limits: WeightLimits, base: Floats, blend: float
) -> Floats:
    """Return weights (servers,) as the environments' kinds `discrete` and `weights` mean what was chosen (servers,),
    blended geometrically with the base policy's (mean 1 over the active servers)."""
    if schema.kind == "discrete":
        raw = schema.grid[np.clip(np.rint(chosen), 0, len(schema.levels) - 1).astype(np.intp)]
    else:
        raw = limits.low * (limits.high / limits.low) ** ((np.clip(chosen, -1.0, 1.0) + 1.0) / 2.0)
    some = active if active.any() else np.ones_like(active)
    weights = limits.apply(raw[None], some[None])[0]
    if blend < 1.0:
        mean = max(float(weights[some].mean()), 1e-300)
        weights = np.where(weights > 0, mean * np.maximum(weights / mean, 1e-300) ** blend * base ** (1.0 - blend), 0.0)
    return np.asarray(weights)


def shares(directive: Directive, active: Bools) -> Floats:
    """Return the base policy's weights (servers,), mean 1 over the active servers and within FLOOR … CAP of it."""
    if directive.weights is None:
        return np.ones(len(active))
    weights = np.asarray(directive.weights, dtype=np.float64)
    some = active if active.any() else np.ones_like(active)
    mean = float(weights[some].mean()) if len(weights) else 1.0
    return np.asarray(np.clip(weights / max(mean, 1e-300), FLOOR, CAP))


def by_weights(weights: Floats, rule: str, fitted: Mapping[str, Any]) -> Directive:
    """Return the directive that a rule makes of weights, as dataplane/sim/vector.c does; a weight of 0 takes none."""
    if rule not in CONSTANT:
        return Directive(rule=rule, weights=weights, fitted=fitted)
    each = np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)[:, None]
    curves = np.where(each > 0, (CURVE_N + CONSTANT[rule]) * each, BID_MAX)
    return Directive(rule="bids", curves=curves, weights=weights, fitted=fitted)
