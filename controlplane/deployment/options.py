"""The options of a policy that are the controller's own: what they may be. Needs no numpy: every command can check.

enforcing   0 … 100, the share that follows the policy           mode        enforce, or shadow: a share of 0
incumbent   who decides the rest: a policy (its name, or a mapping with options), or `fallback`: the data plane's
            own rule, which is all that is left for a policy that a file begins with
switchback  measure against the incumbent in alternating blocks: their seconds, or {seconds, pairs, margin}
adapt       fine-tune while in force: true, or the seconds of a block of its measurements
guard       roll back on a regression          force       set in spite of a cool-down
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FALLBACK = "fallback"
SECONDS, PAIRS, MARGIN = 10.0, 24, 0.05
# Keys that say how a policy is deployed, not what it is.
DEPLOYMENT = frozenset({"mode", "enforcing", "incumbent", "switchback", "adapt", "guard", "force"})


@dataclass(frozen=True, slots=True)
class SwitchbackOptions:
    """seconds: of a block; pairs of blocks at most; margin: how much worse a mean may be at most to be no worse."""

    seconds: float = SECONDS
    pairs: int = PAIRS
    margin: float = MARGIN


def _number(key: str, value: Any, least: float, most: float, *, whole: bool = False) -> Any:
    if not isinstance(value, bool) and isinstance(value, int if whole else (int, float)) and least <= value <= most:
        return value
    raise ValueError(f"{key}: expected {least:g} … {most:g}, not {value!r}")


def enforcing(spec: Mapping[str, Any]) -> int:
    """Return the share in percent that follows the policy; raises ValueError."""
    if spec.get("mode", "enforce") not in ("enforce", "shadow"):
        raise ValueError(f"policy mode: expected enforce or shadow, not {spec['mode']!r}")
    percent: int = _number("policy enforcing", spec.get("enforcing", 100), 0, 100, whole=True)
    return 0 if spec.get("mode") == "shadow" else percent


def switchback(spec: Mapping[str, Any]) -> SwitchbackOptions | None:
    """Return how to measure, None: not at all; raises ValueError."""
    given = spec.get("switchback")
    if given is None or given is False:
        return None
    if given is True:
        return SwitchbackOptions()
    if not isinstance(given, Mapping):
        given = {"seconds": given}
    unknown = sorted(set(given) - {"seconds", "pairs", "margin"})
    if unknown:
        raise ValueError(f"switchback: unknown key '{unknown[0]}': it takes seconds, pairs and margin")
    if enforcing(spec) < 100:
        raise ValueError("switchback: its turns have all of the traffic: it goes with neither share nor shadow")
    return SwitchbackOptions(
        float(_number("switchback seconds", given.get("seconds", SECONDS), 0.05, 3600.0)),
        _number("switchback pairs", given.get("pairs", PAIRS), 2, 1000, whole=True),
        float(_number("switchback margin", given.get("margin", MARGIN), 0.0, 1.0)),
    )


def incumbent(spec: Mapping[str, Any]) -> str | Mapping[str, Any] | None:
    """Return who decides what the policy does not, None: not said; raises ValueError."""
    given = spec.get("incumbent")
    if given is None or (isinstance(given, str) and given):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f"incumbent: expected a policy like {{name: gsed, c: 0.3}} or its name, not {given!r}")
    beside = sorted(DEPLOYMENT & set(given))
    if beside:
        raise ValueError(f"incumbent: '{beside[0]}' is an option of the policy on trial, not of its incumbent")
    return given


def adapt(spec: Mapping[str, Any]) -> float | None:
    """Return the seconds of a block of the measurements by which a policy adapts, None: it does not; ValueError."""
    given = spec.get("adapt", False)
    if given is False or given is None:
        return None
    return SECONDS if given is True else float(_number("adapt", given, 0.05, 3600.0))


def flag(spec: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return an option that is on or off; raises ValueError."""
    value = spec.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, not {value!r}")
    return value


def plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a policy is, less how it is deployed."""
    return {key: value for key, value in spec.items() if key not in DEPLOYMENT}


def check(spec: Mapping[str, Any]) -> None:
    """Raise ValueError when one of the options makes no sense."""
    enforcing(spec)
    switchback(spec)
    incumbent(spec)
    adapt(spec)
    if not isinstance(spec.get("sha256", ""), str):
        raise ValueError(f"sha256: expected the digest of a policy file, not {spec['sha256']!r}")
    for key, default in (("guard", True), ("force", False)):
        flag(spec, key, default)
