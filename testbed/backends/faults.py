"""Faults that a backend shows on demand: what may be asked for, and when it ends.

    {"kind": "slow", "factor": 4}            speed divided by factor, for work that starts from now on
    {"kind": "hang"}                         requests (and /health) are taken and not answered until the fault ends
    {"kind": "refuse"}                       the port is closed; "drop": true also closes the open connections
    {"kind": "500", "status": 503}           an error answer at once, without work
    {"kind": "close"}                        the connection closes before the first byte of the answer
    {"kind": "close-mid-body"}               the head and half of the body, then the connection closes
    {"kind": "none"}                         well again

Each may have "seconds" (it ends by itself), "share" (fraction of the requests that it strikes, default 1) and "health"
(true: /health fails too; default only for hang).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

KINDS = ("none", "slow", "hang", "refuse", "500", "close", "close-mid-body")


@dataclass(frozen=True)
class Fault:
    kind: str = "none"
    seconds: float = 0.0  # 0: until another one is set
    share: float = 1.0
    factor: float = 1.0
    status: int = 500
    health: bool = False
    drop: bool = False


def parse_fault(wanted: Any) -> Fault:
    """Check a decoded JSON document; ValueError says what is wrong."""
    if not isinstance(wanted, dict):
        raise ValueError("a fault is a JSON object")
    kind = wanted.get("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    unknown = set(wanted) - {"kind", "seconds", "share", "factor", "status", "health", "drop"}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    return Fault(
        kind=kind,
        seconds=_number(wanted, "seconds", 0.0, 0.0, 86_400.0),
        share=_number(wanted, "share", 1.0, 0.0, 1.0),
        factor=_number(wanted, "factor", 4.0 if kind == "slow" else 1.0, 1e-3, 1e6),
        status=int(_number(wanted, "status", 500, 400, 599)),
        health=bool(wanted.get("health", kind == "hang")),
        drop=bool(wanted.get("drop", False)),
    )


def _number(wanted: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = wanted.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number")
    if not low <= value <= high:
        raise ValueError(f"{key} must be between {low:g} and {high:g}")
    return float(value)
