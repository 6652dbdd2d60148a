"""A policy's hand on simulated balancers: observe each segment, decide, publish, as the controller does for a live one.

Every balancer has its own copy of the policy and sees its own segment, as separate machines would.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from dataplane.core import alias_table, maglev_table
from dataplane.simulator.memory import MemorySegment
from shm_layout.features import read_features
from shm_layout.layout import CLASSIC_SERVER, SERVER_HEALTH, SERVER_STATES
from shm_layout.segment import CURVE_LOW, DirectiveData, SettingsView

if TYPE_CHECKING:
    from controlplane.policy import Directive, Observation, Policy

MAGLEV_SLOTS_MIN, MAGLEV_SLOTS_MAX = 1031, 65537


class PolicyControl:
    """One policy over the balancers of a simulation."""

    def __init__(self, policy: Policy, segments: list[MemorySegment], balancers: int, interval: float) -> None:
        self.policies = [copy.deepcopy(policy) for _ in segments]
        self.segments = segments
        self.balancers = balancers
        self.interval = interval
        self.sequence = 0

    def __call__(self) -> None:
        self.sequence += 1
        for policy, segment in zip(self.policies, self.segments, strict=True):
            settings = segment.read_settings()
            observation = observe(segment, settings, self.balancers, self.interval)
            directive = policy.decide(observation)
            data = encode(directive, observation, segment.limits.table_slots)
            data.policy, data.sequence, data.issued_ns = policy.name, self.sequence, segment.clock()
            data.settings_version = int(settings.head["version"])
            segment.publish_directive(data)


def observe(segment: MemorySegment, settings: SettingsView, balancers: int, interval: float) -> Observation:
    """Return what a controller would see of the segment now."""
    from controlplane.policy import Observation, Profile

    servers, ids = settings.servers, settings.ids
    n, now_ns = len(ids), segment.clock()
    stats, words = segment.read_stats(0, n, ids=ids), segment.read_words(0, n)
    taken = ids != 0
    time = stats["time_ns"] * 1e-9
    # The stretch that runs now has not been charged by anybody yet.
    bins = np.searchsorted(CURVE_LOW, words.in_flight, side="right") - 1
    running = np.where(stats["last_open_ns"] > 0, now_ns - np.minimum(words.changed_ns, np.uint64(now_ns)), 0)
    time[np.arange(n), bins] += running * 1e-9
    fit = (
        taken
        & (servers["state"] == SERVER_STATES.index("ready"))
        & (servers["health"] == SERVER_HEALTH.index("up"))
        & (servers["weight"] > 0)
    )
    backup = servers["backup"] != 0
    active = fit & ~backup if (fit & ~backup).any() else fit
    return Observation(
        now=now_ns * 1e-9,
        interval=interval,
        balancers=balancers if balancers > 1 else 1,
        objective="mean",
        ids=ids,
        names=tuple(settings.names),
        active=active,
        weight=servers["weight"].astype(np.float64),
        maxconn=np.where(servers["maxconn"] > 0, servers["maxconn"], np.inf).astype(np.float64),
        in_flight=words.in_flight.astype(np.float64),
        profile=Profile(
            time=time,
            completions=stats["completions"].astype(np.float64),
            arrivals=stats["arrivals"].astype(np.float64),
            found_fct=stats["found_fct_ns"] * 1e-9,
        ),
        flows=stats["flows_total"].astype(np.float64),
        outcomes=stats["outcomes"].astype(np.float64),
        fct_sum=stats["fct_sum_ns"] * 1e-9,
        read_features=lambda: read_features(segment, ids).values,
        read_histogram=lambda: stats["fct_histogram"].astype(np.float64),
    )


def _maglev_slots(n: int, room: int) -> int:
    """Return a prime of at least 100 slots a server, as the paper has it, within the room."""
    wanted = min(max(100 * n, MAGLEV_SLOTS_MIN), MAGLEV_SLOTS_MAX, room)
    while wanted > 2 and any(wanted % d == 0 for d in range(2, int(wanted**0.5) + 1)):
        wanted -= 1
    return wanted


def encode(directive: Directive, observation: Observation, table_room: int) -> DirectiveData:
    """Return the directive as the segment has it, with the tables that its rule needs."""
    data = DirectiveData(ids=observation.ids, rule=directive.rule, choices=directive.choices)
    data.weights = directive.weights
    data.curves = directive.curves
    if directive.rule == "alias" and directive.weights is not None:
        data.alias_keep, data.alias_other = alias_table(directive.weights)
    if directive.rule == "maglev" and directive.weights is not None:
        data.table = maglev_table(directive.weights, observation.ids, _maglev_slots(observation.n_servers, table_room))
    if directive.classic is not None:
        classic = np.zeros(observation.n_servers, dtype=CLASSIC_SERVER)
        for name in CLASSIC_SERVER.names or ():
            classic[name] = getattr(directive.classic, name)
        data.classic = classic
        data.classic_noise, data.classic_reserve = directive.classic.noise, directive.classic.reserve
    return data
