"""A scenario: servers, traffic and what happens to them, and the balancers to compare. The models of its file's keys.

Time counts from the end of the warm-up; what comes before counts for nobody. Durations carry their unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from controlplane.config_values import duration, format_duration
from testbed.backends.backend import MAX_BODY_BYTES, Spec
from testbed.compare import variant
from testbed.compare.variant import Variant
from testbed.demand import Demand
from testbed.peers import peer

_seconds = PlainSerializer(format_duration, return_type=str)
Seconds = Annotated[float, PlainValidator(duration(0.0)), _seconds]
Span = Annotated[float, PlainValidator(duration(1e-6)), _seconds]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Named = Annotated[Variant, PlainValidator(variant.parse), PlainSerializer(lambda v: v.name, return_type=str)]

WARMUP_LEAST_S, WARMUP_MOST = 2.0, 0.5  # of a shorter run: at least, and as a part of what is counted at most


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Servers(Model):
    """A group of equal servers; they are called s1, s2, … through all groups."""

    count: int = Field(default=1, ge=1, le=64)
    speed: Positive = 1.0
    workers: int = Field(default=1, ge=1, le=1024)
    limit: int | None = Field(default=None, ge=0)  # requests that may wait before 503
    cpu: bool = False  # burn CPU instead of waiting


class Work(Model):
    """How much work a request brings, as the time that it takes at speed 1."""

    shape: Literal["exponential", "pareto", "fixed"] = "exponential"
    mean: Seconds = 0.04

    @property
    def demand(self) -> Demand:
        return Demand(self.shape, self.mean * 1e3)


class Class(Model):
    """One kind of requests among the traffic."""

    name: str = "requests"
    share: Positive = 1.0  # of the requests, against the other kinds' shares
    demand: Work = Work()
    size: int | None = Field(
        default=None, ge=0, le=MAX_BODY_BYTES
    )  # bytes of the answer's body; null: as the server likes
    path: str = Field(default="/", pattern=r"^/[^\s#]*$")


class Step(Model):
    """From `at` on the load is this."""

    at: Seconds
    load: float = Field(ge=0, allow_inf_nan=False)


class Event(Model):
    """Something that happens to a server at `at`, and ends at `until` (none: never)."""

    at: Seconds
    until: Seconds | None = None
    server: str
    kind: Literal["slow", "hang", "refuse", "500", "close", "close-mid-body", "kill"]
    factor: Positive = 4.0  # of slow: the speed is divided by it
    share: float = Field(default=1.0, ge=0, le=1)  # of the requests that it strikes

    @property
    def fault(self) -> dict[str, Any]:
        """The fault as a backend takes it."""
        more = {"factor": self.factor} if self.kind == "slow" else {"share": self.share}
        return {"kind": self.kind, **more}

    @property
    def what(self) -> str:
        """What becomes of the server, in words."""
        return (
            f"{self.factor:g} times slower" if self.kind == "slow" else "killed" if self.kind == "kill" else self.kind
        )


class Checks(Model):
    """Health checks, and that a request whose connection failed may go to another server."""

    path: str = "/health"
    inter: Span = 1.0
    fall: int = Field(default=2, ge=1)
    rise: int = Field(default=2, ge=1)

    @property
    def health(self) -> peer.Health:
        return peer.Health(self.path, self.inter, self.fall, self.rise)


class Scenario(Model):
    title: str
    shows: str  # a paragraph: what it shows, and why
    aim: Literal["ahead", "level", "none"] = "none"  # of Vickrey beside the others' best: ahead of all, within 2 %
    servers: tuple[Servers, ...] = Field(default=(), max_length=64)
    topology: str | None = None  # instead of servers: a file as `vickrey testbed up` takes it
    traffic: tuple[Class, ...] = Field(default=(Class(),), min_length=1, max_length=16)
    load: Positive = 0.8  # share of the servers' capacity
    profile: tuple[Step, ...] = ()  # other loads later
    keep_alive: bool = True  # false: a connection for each request
    clients: int = Field(default=0, ge=0, le=4096)  # each with one long-lived connection; 0: a pool as large as needed
    balancers: int = Field(default=1, ge=1, le=16)
    health: Checks | None = None
    events: tuple[Event, ...] = ()
    seconds: Span = 20.0
    warmup: Seconds = 5.0
    rounds: int = Field(default=3, ge=1, le=100)
    seed: int = Field(default=1, ge=0)
    variants: tuple[Named, ...] = Field(default=variant.DEFAULT, min_length=1, max_length=32)
    service: dict[str, Any] = Field(default_factory=dict)  # more keys of Vickrey's service

    @property
    def specs(self) -> list[Spec]:
        """The servers one by one."""
        groups = [group for group in self.servers for _ in range(group.count)]
        return [
            Spec(name=f"s{i}", speed=g.speed, workers=g.workers, limit=g.limit, cpu=g.cpu, seed=i)
            for i, g in enumerate(groups, 1)
        ]

    @property
    def mean_demand_s(self) -> float:
        shares = np.array([kind.share for kind in self.traffic])
        return float(np.average([kind.demand.mean for kind in self.traffic], weights=shares))

    @property
    def is_heterogeneous(self) -> bool:
        return len({(group.speed, group.workers) for group in self.servers}) > 1

    def lasting(self, seconds: float) -> Self:
        """The same in another length: what happens in it happens at the same part of it."""
        scale = seconds / self.seconds

        def scaled(entry: Any) -> Any:
            times = {"at": entry.at * scale}
            if getattr(entry, "until", None) is not None:
                times["until"] = entry.until * scale
            return entry.model_copy(update=times)

        return self.model_copy(
            update={
                "seconds": seconds,
                # Whoever has to learn needs as long as ever.
                "warmup": min(self.warmup, max(WARMUP_LEAST_S, WARMUP_MOST * seconds)),
                "events": tuple(map(scaled, self.events)),
                "profile": tuple(map(scaled, self.profile)),
            }
        )


def mistakes(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What no single key is to blame for: where, and what."""
    if bool(scenario.servers) == bool(scenario.topology):
        yield ("servers",), "expected either 'servers' or a 'topology'"
    if scenario.servers and len(scenario.specs) > 256:
        yield ("servers",), f"expected at most 256 servers, not {len(scenario.specs)}"
    names = [spec.name for spec in scenario.specs]
    for i, event in enumerate(scenario.events):
        if scenario.servers and event.server not in names:
            yield ("events", i, "server"), f"no server is called so: {names[0]} … {names[-1]}"
        if event.until is not None and event.until <= event.at:
            yield ("events", i, "until"), "expected a time after 'at'"
        if event.at >= scenario.seconds:
            yield ("events", i, "at"), "expected a time before the end of the run"
    for i, step in enumerate(scenario.profile):
        if i and step.at <= scenario.profile[i - 1].at:
            yield ("profile", i, "at"), "expected a time after that of the step before"
    if scenario.mean_demand_s <= 0:
        yield ("traffic",), "expected some demand: without any there is no load"
    if len({kind.name for kind in scenario.traffic}) < len(scenario.traffic):
        yield ("traffic",), "expected a name of its own for each kind of requests"
    if scenario.clients and not scenario.keep_alive:
        yield ("clients",), "expected 'keep_alive: true' with clients that keep their connections"
    seen: set[str] = set()
    for i, one in enumerate(scenario.variants):
        if one.name in seen:
            yield ("variants", i), f"'{one.name}' is there already"
        seen.add(one.name)
