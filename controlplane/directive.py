"""From a policy's decision to what the data plane reads: checks it, builds its tables, makes the payload.

The tables of the lotteries are built by the same C functions that the tests of the data plane hold to their papers. A
decision that does not validate is refused whole; the last good one stays in force.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from controlplane.policy import ClassicParameters, Directive, Ids
from dataplane.core import alias_table, maglev_table
from shm_layout.layout import CLASSIC_SERVER, CURVE_POINTS, NAME_BYTES, ROUTES_MAX, RULES, SLA_CLASSES
from shm_layout.payload import DirectiveData

# Bids are written as 32-bit floats: greater ones than this become it.
BID_MAX = 1e30
# Least slots of a Maglev table for a server, which bounds how uneven it is (Maglev, section 5.3).
SLOTS_PER_SERVER = 100


class DirectiveError(ValueError):
    """A policy's decision that may not be published, and why."""


def check(directive: Directive, n_servers: int) -> None:
    """Raise DirectiveError unless the directive is whole, finite and of these rows."""
    if not isinstance(directive, Directive):
        raise DirectiveError(f"decide() returned {type(directive).__name__}, not a Directive")
    if directive.rule not in RULES:
        raise DirectiveError(f"rule {directive.rule!r}: not one of {', '.join(RULES)}")
    if directive.weights is not None:
        _check_array("weights", directive.weights, (n_servers,))
        if n_servers and not np.sum(directive.weights, dtype=np.float64) > 0:
            raise DirectiveError("weights: all zero")
    elif directive.rule in ("maglev", "alias", "wrr"):
        raise DirectiveError(f"rule {directive.rule}: weights are needed")
    if directive.rule == "bids":
        if directive.curves is None:
            raise DirectiveError("rule bids: curves are needed")
        _check_array("curves", directive.curves, (n_servers, CURVE_POINTS))
        if (np.diff(directive.curves, axis=1) < 0).any():
            raise DirectiveError("curves: a bid falls as flows in flight grow")
        if directive.aging is not None:
            _check_array("aging", directive.aging, (n_servers, 2))
    _check_reserve(directive)
    if not 0 <= directive.choices <= 2**32 - 1:
        raise DirectiveError(f"choices: {directive.choices}")
    if directive.rule == "classic":
        if directive.classic is None:
            raise DirectiveError("rule classic: its parameters are needed")
        _check_classic(directive.classic, n_servers)


def _check_reserve(directive: Directive) -> None:
    if directive.reserve is not None:
        if directive.rule not in ("bids", "classic"):
            raise DirectiveError(f"rule {directive.rule}: has no bids that a reserve could be compared with")
        _check_array("reserve", directive.reserve, (CURVE_POINTS,))
        if (np.diff(directive.reserve) < 0).any():
            raise DirectiveError("reserve: it falls as waiting flows grow in number")
    _check_array("sla_reserve", np.asarray(directive.sla_reserve), (len(SLA_CLASSES),))
    if directive.loads is not None:
        _check_array("loads", directive.loads, (*np.shape(directive.loads)[:1], len(SLA_CLASSES)))
        if not 0 < len(directive.loads) <= ROUTES_MAX + 1 or not (directive.loads > 0).all():
            raise DirectiveError(f"loads: expected 1 … {ROUTES_MAX + 1} rows of numbers above 0")


def _check_array(name: str, values: Any, shape: tuple[int, ...]) -> None:
    array = np.asarray(values)
    if array.shape != shape:
        raise DirectiveError(f"{name}: shape {array.shape}, expected {shape}")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DirectiveError(f"{name}: not finite numbers")
    if (array < 0).any():
        raise DirectiveError(f"{name}: negative")


def _check_classic(classic: ClassicParameters, n_servers: int) -> None:
    for name in ("capacity", "sensitivity", "risk_aversion", "target_load_ratio", "neural", "coalition"):
        _check_array(f"classic {name}", getattr(classic, name), (n_servers,))
    if not (np.asarray(classic.capacity) > 0).all():
        raise DirectiveError("classic capacity: not above 0")
    if (np.asarray(classic.target_load_ratio) > 1).any():
        raise DirectiveError("classic target_load_ratio: above 1")
    if classic.shapley is not None:
        _check_array("classic shapley", classic.shapley, (n_servers,))
    for name in ("noise", "reserve", "coalition_above", "coalition_below"):
        if not (math.isfinite(getattr(classic, name)) and getattr(classic, name) >= 0):
            raise DirectiveError(f"classic {name}: {getattr(classic, name)}")


def table_size(n_servers: int, room: int) -> int:
    """Return the greatest fitting of a few primes that has 100 slots a server, or the greatest that fits."""
    fitting = [p for p in (251, 1021, 4093, 16381, 65537, 262139, 1048573) if p <= room]
    if not fitting:
        raise DirectiveError(f"the segment has room for a Maglev table of {room} slots, 251 are needed")
    return next((p for p in fitting if p >= SLOTS_PER_SERVER * n_servers), fitting[-1])


def to_data(directive: Directive, ids: Ids, *, table_room: int, policy: str, **head: int) -> DirectiveData:
    """Return a checked directive as the segment's payload. head: sequence, issued_ns, settings_version and the like."""
    data = DirectiveData(ids=ids, rule=directive.rule, policy=policy[: NAME_BYTES // 4])
    for name, value in head.items():
        setattr(data, name, value)
    if directive.weights is not None:
        # A share may be too small for a 32-bit float, their sum may not.
        weights = np.asarray(directive.weights, dtype=np.float64)
        data.weights = weights / weights.max()
        if directive.rule == "alias":
            data.alias_keep, data.alias_other = alias_table(data.weights)
        elif directive.rule == "maglev":
            data.table = maglev_table(data.weights, ids, table_size(len(ids), table_room))
    if directive.rule == "bids":
        data.curves = np.minimum(directive.curves, BID_MAX) if directive.curves is not None else None
        data.aging = np.minimum(directive.aging, BID_MAX) if directive.aging is not None else None
        data.choices = min(directive.choices, len(ids))
    elif directive.rule == "classic" and directive.classic is not None:
        rows = np.zeros(len(ids), dtype=CLASSIC_SERVER)
        for name in ("capacity", "sensitivity", "risk_aversion", "target_load_ratio", "neural", "coalition"):
            rows[name] = getattr(directive.classic, name)
        rows["shapley"] = 1.0 if directive.classic.shapley is None else directive.classic.shapley
        data.classic = rows
        classic = directive.classic
        data.classic_noise, data.classic_reserve = classic.noise, classic.reserve
        data.coalition_above, data.coalition_below = classic.coalition_above, classic.coalition_below
    if directive.reserve is not None:
        data.reserve = np.minimum(directive.reserve, BID_MAX)
    data.sla_reserve, data.loads = np.minimum(directive.sla_reserve, BID_MAX), directive.loads
    return data
