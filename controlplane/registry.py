"""Policies by name: ours, the names that HAProxy and nginx users know, and third parties' by entry point.

Nothing is imported before it is asked for: listing names costs no numpy.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.deployment import options as deployment_options

if TYPE_CHECKING:
    from controlplane.policy import Policy

GROUP = "vickrey.policies"

# name: (module:class, one line for `vickrey policy list`)
BUILT_IN: dict[str, tuple[str, str]] = {
    "adaptive": (
        "adaptive:Adaptive",
        "truthful bids, learned: each server bids the marginal cost of one more flow (default)",
    ),
    "lsq": ("lsq:LeastConnections", "least connections: the server with the fewest flows in flight"),
    "sed": ("sed:ShortestExpectedDelay", "shortest expected delay: (n + 1) / weight"),
    "gsed": ("gsed:GeneralisedShortestExpectedDelay", "(K·n + c) / weight; c = 0.5, K = number of balancers"),
    "gsed_estimated": (
        "gsed_estimated:GeneralisedShortestExpectedDelayEstimated",
        "gsed with rates estimated from completions; decay = 0.98, c = 0.5, K = number of balancers",
    ),
    "p2c": ("p2c:PowerOfTwo", "least connections of two servers drawn at random"),
    "peak_ewma": ("peak_ewma:PeakEwma", "Finagle's latency-weighted load, decayed from its peaks, over all servers"),
    "wrr": ("wrr:WeightedRoundRobin", "smooth weighted round robin"),
    "wcmp": ("wcmp:WeightedRandom", "weighted random (WCMP; equal weights are ECMP)"),
    "awcmp": ("awcmp:ActiveWeightedRandom", "weighted random, weights inverse to the observed load (active WCMP)"),
    "maglev": ("maglev:Maglev", "weighted consistent hashing of the client (Maglev)"),
    "auction": ("auction:Auction", "the classic auction: load-dependent bids with learned sensitivities"),
    "learned": ("learned:Learned", "a trained network's correction of a base policy, from a policy file"),
}

# Policies that come as files, and what a file's name may end in or begin with.
SHIPPED = Path(__file__).resolve().parent / "policies" / "shipped"
SUFFIX, PREFIX = ".safetensors", "shipped:"

# What others call them.
ALIASES: dict[str, str] = {
    "roundrobin": "wrr",
    "round_robin": "wrr",
    "static-rr": "wrr",
    "leastconn": "lsq",
    "least_conn": "lsq",
    "least_request": "p2c",
    "random": "p2c",
    "ecmp": "wcmp",
    "source": "maglev",
    "ewma": "peak_ewma",
}

# Keys of `policy:` that belong to the controller, not to the policy.
CONTROLLER_OPTIONS = frozenset({"name", "ledger", "ledger_sample", "sha256"}) | deployment_options.DEPLOYMENT

# Share of the flows whose auctions the ledger has, beside its rounds.
LEDGER_SAMPLE = 0.001


class UnknownPolicyError(ValueError):
    """No policy of that name; the text names the nearest."""


def canonical(name: str) -> str:
    """Return the policy's own name for any of its names."""
    return ALIASES.get(name, name)


def shipped() -> dict[str, Path]:
    """Return the policy files that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}


def spec_of(name: str) -> dict[str, Any]:
    """Return what a name stands for: a policy file, also one that comes with the package, is `learned` with it."""
    if name.endswith(SUFFIX) or name.startswith(PREFIX):
        return {"name": "learned", "file": name}
    if canonical(name) not in BUILT_IN and name in shipped():
        return {"name": "learned", "file": PREFIX + name}
    return {"name": name}


def absolute(spec: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return a specification whose policy file is named by its absolute path; relative to the folder it is given."""
    file = spec.get("file")
    if spec.get("name") != "learned" or not isinstance(file, str) or not file or file.startswith(PREFIX):
        return dict(spec)
    return {**spec, "file": os.path.abspath(os.path.join(folder, file))}


def third_party() -> dict[str, EntryPoint]:
    """Return the policies that installed packages registered, by name. Ours cannot be replaced."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN}


def names() -> dict[str, str]:
    """Return every policy with its one-line description."""
    listed = {name: text for name, (_, text) in BUILT_IN.items()}
    listed.update({name: f"from {entry.value}" for name, entry in third_party().items()})
    return listed


def factory(name: str) -> Callable[..., Policy]:
    """Return the class of a policy; raises UnknownPolicyError."""
    name = canonical(name)
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name][0].partition(":")
        found: Callable[..., Policy] = getattr(import_module(f"controlplane.policies.{module}"), attribute)
        return found
    others = third_party()
    if name in others:
        loaded: Callable[..., Policy] = others[name].load()
        return loaded
    near = difflib.get_close_matches(name, [*BUILT_IN, *ALIASES, *others], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise UnknownPolicyError(f"unknown policy '{name}'{hint}; `vickrey policy list` shows all")


def options(name: str) -> tuple[str, ...]:
    """Return the options that a policy takes."""
    return tuple(
        p.name
        for p in inspect.signature(factory(name)).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def create(spec: str | Mapping[str, Any]) -> Policy:
    """Make a policy from its name or from `{"name": …, option: …}`; raises ValueError naming what is wrong."""
    if isinstance(spec, str):
        spec = {"name": spec}
    name = spec.get("name")
    if not isinstance(name, str):
        raise UnknownPolicyError("policy: a name is needed")
    spec = {**spec, **spec_of(name)}
    name = spec["name"]
    _check_ledger(spec)
    deployment_options.check(spec)
    arguments = {key: value for key, value in spec.items() if key not in CONTROLLER_OPTIONS}
    try:
        make = factory(name)
        known = options(name)
    except UnknownPolicyError:
        raise
    except Exception as error:  # somebody else's module may raise anything while it is imported
        raise ValueError(f"policy {name} cannot be loaded: {type(error).__name__}: {error}") from error
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else f" (it takes: {', '.join(known) or 'none'})"
            raise ValueError(f"policy {canonical(name)}: unknown option '{key}'{hint}")
    try:
        policy = make(**arguments)
    except Exception as error:  # likewise
        raise ValueError(f"policy {canonical(name)}: {error}") from error
    if not callable(getattr(policy, "decide", None)):
        raise ValueError(f"policy {canonical(name)}: it has no decide()")
    return policy


def _check_ledger(spec: Mapping[str, Any]) -> None:
    path, sample = spec.get("ledger"), spec.get("ledger_sample", LEDGER_SAMPLE)
    if path is not None and (not isinstance(path, str) or not path or "\0" in path):
        raise ValueError(f"ledger: expected the path of a file, not {path!r}")
    if isinstance(sample, bool) or not isinstance(sample, (int, float)) or not 0 <= sample <= 1:
        raise ValueError(f"ledger_sample: expected a share from 0 to 1, not {sample!r}")
