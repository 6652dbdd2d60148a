"""A scenario: a world to simulate, the policies to compare in it, and how often. The models of its file's keys.

Keys are those of the configuration where they mean the same (`weight`, `maxconn`, `backup`, `balancers`, `interval`);
durations carry their unit. `Scenario.world(seed)` is what the simulator runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, field_validator, model_validator

from controlplane import registry
from controlplane.config_errors import did_you_mean
from controlplane.config_values import duration, format_duration, shown
from dataplane.simulator import world as sim

SERVERS_MAX = 4096  # SERVERS_LIMIT of the segment
BALANCERS_MAX = 64
FLOWS_MAX = 100_000_000  # 3.2 GB of records a run
SEEDS_MAX = 10_000
FLOWS_DEFAULT = 200_000

_seconds = PlainSerializer(format_duration, return_type=str)
Seconds = Annotated[float, PlainValidator(duration(0.0)), _seconds]
Span = Annotated[float, PlainValidator(duration(1e-6)), _seconds]  # one that cannot be nothing
Interval = Annotated[float, PlainValidator(duration(0.001, 3600.0)), _seconds]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Reference = Literal["central-queue", "least-work-left", "srpt", "birth-death", "none"]


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Servers(Model):
    """A group of equal servers."""

    name: str = ""
    count: int = Field(default=1, ge=1, le=SERVERS_MAX)
    speed: Positive = 1.0
    workers: int = Field(default=1, ge=1, le=65535)
    service: Literal["fifo", "sharing"] = "fifo"
    backlog: int | None = Field(default=None, ge=0, le=2**32 - 2)
    delay: Seconds = 0.0  # of the link, each way
    weight: int = Field(default=1, ge=0, le=256)
    maxconn: int = Field(default=0, ge=0, le=65535)
    backup: bool = False
    present: bool = True  # false: a `join` brings them in

    def build(self) -> sim.Server:
        return sim.Server(**self.model_dump(exclude={"name", "count", "delay"}), delay=self.delay)


# Demand: work of a flow, as the time that a server of speed 1 needs for it.


class Exponential(Model):
    kind: Literal["exponential"]
    mean: Span

    def build(self) -> sim.Demand:
        return sim.Exponential(self.mean)


class Deterministic(Model):
    kind: Literal["deterministic"]
    mean: Span

    def build(self) -> sim.Demand:
        return sim.Deterministic(self.mean)


class Lognormal(Model):
    kind: Literal["lognormal"]
    mean: Span
    cv: Positive  # standard deviation over mean

    def build(self) -> sim.Demand:
        return sim.Lognormal(self.mean, self.cv)


class Hyperexponential(Model):
    kind: Literal["hyperexponential"]
    mean: Span
    cv: float = Field(gt=1, allow_inf_nan=False)

    def build(self) -> sim.Demand:
        return sim.Hyperexponential.balanced(self.mean, self.cv)


class Mixed(Model):
    """Two kinds of flows, each exponential: a share of `first`, the rest `second`."""

    kind: Literal["mixed"]
    share: float = Field(ge=0, le=1)
    first: Span
    second: Span

    def build(self) -> sim.Demand:
        return sim.Hyperexponential(self.share, self.first, self.second)


class Pareto(Model):
    """Bounded: the greatest demand is `ratio` times the least."""

    kind: Literal["pareto"]
    mean: Span
    shape: Positive = 1.5
    ratio: float = Field(default=1000.0, gt=1, allow_inf_nan=False)

    def build(self) -> sim.Demand:
        return sim.BoundedPareto(self.mean, self.shape, self.ratio)


Demand = Annotated[
    Exponential | Deterministic | Lognormal | Hyperexponential | Mixed | Pareto, Field(discriminator="kind")
]


# Arrivals: their shape. Rates are relative; `load` or `rate` sets the mean.


class Poisson(Model):
    kind: Literal["poisson"]

    def build(self) -> sim.Arrivals:
        return sim.Poisson(1.0)


class Sine(Model):
    """Poisson, its rate a sine around the mean."""

    kind: Literal["sine"]
    amplitude: NotNegative  # over the mean
    period: Span

    def build(self) -> sim.Arrivals:
        return sim.Sine(1.0, self.amplitude, self.period)


class Bursts(Model):
    """MMPP-2: Poisson of two rates, each for a time of random length."""

    kind: Literal["mmpp"]
    rates: tuple[NotNegative, NotNegative]
    sojourns: tuple[Span, Span]  # means

    def build(self) -> sim.Arrivals:
        return sim.MMPP(self.rates, self.sojourns)


class OnOff(Model):
    """Poisson of two rates in turn, each for a fixed time."""

    kind: Literal["on-off"]
    rates: tuple[NotNegative, NotNegative]
    durations: tuple[Span, Span]

    def build(self) -> sim.Arrivals:
        return sim.OnOff(self.rates, self.durations)


class Profile(Model):
    """Poisson of a rate that goes through a table over and over: a day, say."""

    kind: Literal["profile"]
    rates: tuple[NotNegative, ...] = Field(min_length=1)
    step: Span

    def build(self) -> sim.Arrivals:
        return sim.Profile(self.rates, self.step)


Arrivals = Annotated[Poisson | Sine | Bursts | OnOff | Profile, Field(discriminator="kind")]


# Events. `server` is a slot (from 0), a list of them, or the name of a group.

Which = int | tuple[int, ...] | str


class SpeedEvent(Model):
    kind: Literal["speed"]
    at: Seconds
    server: Which
    speed: NotNegative  # 0 stops it with its flows

    def build(self, slots: list[int]) -> list[sim.Event]:
        return [sim.SpeedChange(self.at, i, self.speed) for i in slots]


class WeightEvent(Model):
    kind: Literal["weight"]
    at: Seconds
    server: Which
    weight: int = Field(ge=0, le=256)

    def build(self, slots: list[int]) -> list[sim.Event]:
        return [sim.WeightChange(self.at, i, self.weight) for i in slots]


class ServerEvent(Model):
    """Crash: its flows are lost, and the balancers see it only `detect` later. Leave and drain: its flows finish."""

    kind: Literal["crash", "recover", "join", "leave", "drain"]
    at: Seconds
    server: Which

    def build(self, slots: list[int]) -> list[sim.Event]:
        classes: dict[str, Callable[[float, int], sim.Event]] = {
            "crash": sim.Crash,
            "recover": sim.Recover,
            "join": sim.Join,
            "leave": sim.Leave,
            "drain": sim.Drain,
        }
        return [classes[self.kind](self.at, i) for i in slots]


class RateEvent(Model):
    """From now on flows arrive at `factor` times the scenario's rate."""

    kind: Literal["rate"]
    at: Seconds
    factor: NotNegative

    def build(self, slots: list[int]) -> list[sim.Event]:
        return [sim.RateChange(self.at, self.factor)]


Event = Annotated[SpeedEvent | WeightEvent | ServerEvent | RateEvent, Field(discriminator="kind")]


class Balancers(Model):
    count: int = Field(default=1, ge=1, le=BALANCERS_MAX)
    view: Literal["own", "shared"] = "own"  # shared: workers of one balancer, that see all flows
    split: Literal["random", "hash"] = "random"  # hash: a client keeps its balancer
    clients: int = Field(default=0, ge=0)  # distinct ones; 0: every flow is its own


class Sla(Model):
    """Shares of the flows that are gold and bronze; the others are silver."""

    gold: float = Field(default=0.0, ge=0, le=1)
    bronze: float = Field(default=0.0, ge=0, le=1)


class Policy(Model):
    """A policy, its options beside `name`. weights: equal: it is not told the servers' weights.

    reserve: as in the configuration.
    """

    name: str
    label: str = ""
    weights: Literal["configured", "equal"] = "configured"
    reserve: Literal["auto", "off", "classic", "learned"] = "auto"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("name"), str):
            value = {**value, **registry.spec_of(value["name"])}
        own = {key: value[key] for key in ("name", "label", "weights", "reserve") if key in value}
        return {**own, "options": {key: value[key] for key in value if key not in own}}

    @field_validator("reserve", mode="before")
    @classmethod
    def _reserve(cls, value: object) -> object:
        return "off" if value is False else value  # YAML's

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        canonical = registry.canonical(name)
        if canonical not in registry.BUILT_IN and canonical not in registry.third_party():
            known = [*registry.names(), *registry.ALIASES]
            raise ValueError(f"no policy is called {shown(name)}{did_you_mean(name, known)}")
        return canonical

    @property
    def title(self) -> str:
        """Return what the tables call it: its label, or its name and options."""
        options = self.options | ({} if self.reserve == "auto" else {"reserve": self.reserve})
        return self.label or " ".join([self.name, *(f"{key}={value}" for key, value in options.items())])

    @property
    def spec(self) -> dict[str, Any]:
        """Return what the registry makes it from."""
        return {"name": self.name, **self.options}


class Phase(Model):
    """A part of the run, by the flows that arrive in it, whose figures are also given for itself."""

    name: str
    start: Seconds
    end: Seconds


class Scenario(Model):
    title: str = ""
    description: str = ""
    servers: tuple[Servers, ...] = Field(min_length=1)
    demand: Demand
    arrivals: Arrivals = Poisson(kind="poisson")
    load: Positive | None = None  # offered work over the capacity of the servers there at the start
    rate: Positive | None = None  # or flows a second
    balancers: Balancers = Balancers()
    events: tuple[Event, ...] = ()
    detect: Seconds = 1.0  # from a crash or recovery until the health checks have seen it
    retries: int = Field(default=3, ge=0, le=100)
    queue: int | None = Field(default=None, ge=0)  # flows that wait at a balancer: all full, or held
    sla: Sla = Sla()
    policies: tuple[Policy, ...] = Field(min_length=1)
    interval: Interval = 0.2  # of control
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    flows: int | None = Field(default=None, ge=1, le=FLOWS_MAX)  # the run ends when so many have ended
    duration: Span | None = None  # or after this time
    warmup: float = Field(default=0.1, ge=0, le=0.9)  # share of the run whose flows do not count
    phases: tuple[Phase, ...] = ()
    reference: Reference = "central-queue"

    @field_validator("arrivals", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("balancers", mode="before")
    @classmethod
    def _count_alone(cls, value: object) -> object:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _number_of_seeds(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= SEEDS_MAX:
                raise ValueError(f"expected a number of seeds from 1 to {SEEDS_MAX}, or a list, not {value}")
            return tuple(range(1, value + 1))
        return value

    def slots(self) -> list[sim.Server]:
        """Return the servers, one a slot."""
        return [group.build() for group in self.servers for _ in range(group.count)]

    def slots_of(self, which: Which) -> list[int]:
        """Return the slots that an event names."""
        if isinstance(which, str):
            names = [group.name for group in self.servers for _ in range(group.count)]
            return [slot for slot, name in enumerate(names) if name == which]
        return [which] if isinstance(which, int) else list(which)

    def world(self, seed: int, policy: Policy | None = None) -> sim.World:
        """Return the world of a seed, as a policy is to see it: its flows do not depend on the policy."""
        servers = self.slots()
        if policy is not None and policy.weights == "equal":
            servers = [replace(server, weight=min(server.weight, 1)) for server in servers]
        events = [
            event
            for item in self.events
            for event in item.build([] if isinstance(item, RateEvent) else self.slots_of(item.server))
        ]
        world = sim.World(
            servers,
            self.arrivals.build(),
            self.demand.build(),
            seed=seed,
            flows=FLOWS_DEFAULT if self.flows is None and self.duration is None else self.flows,
            duration=self.duration,
            balancers=self.balancers.count,
            view=self.balancers.view,
            split=self.balancers.split,
            clients=self.balancers.clients,
            events=sorted(events, key=lambda event: event.at),
            detect=self.detect,
            retries=self.retries,
            queue_slots=sim.UNLIMITED if self.queue is None else self.queue,
            gold=self.sla.gold,
            bronze=self.sla.bronze,
            # Who holds flows back reads flow records, and so does who must guess the other balancers' flows.
            rings=policy is not None and (policy.reserve in ("auto", "learned") or self.balancers.count > 1),
            # The classic auction counts work: a server of speed 1 that is busy has a load of 1.
            load_per_second=1.0 / self.demand.build().mean,
        )
        if self.load is not None:
            world = world.at_load(self.load)
        else:
            assert self.rate is not None
            world = replace(world, arrivals=world.arrivals.scaled(self.rate / world.arrivals.mean_rate))
        return replace(world, warmup=self.warmup * length(world))


def length(world: sim.World) -> float:
    """Return how long flows arrive, seconds: exact for a duration, else what is to be expected."""
    times = [world.duration] if world.duration is not None else []
    if world.flows is not None:
        times.append(_time_of(world.flows, world))
    return min(times)


def _time_of(flows: int, world: sim.World) -> float:
    """Return when so many flows are to be expected to have arrived."""
    rate, factor, now, left = world.arrivals.mean_rate, 1.0, 0.0, float(flows)
    for event in world.events:
        if isinstance(event, sim.RateChange):
            here = (event.at - now) * rate * factor
            if here >= left:
                break
            now, left, factor = event.at, left - here, event.factor
    return now + left / (rate * factor) if factor > 0 else now


def mistakes(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what no single key can tell: where, and what is wrong."""
    total = sum(group.count for group in scenario.servers)
    if total > SERVERS_MAX:
        yield ("servers",), f"{total} servers: expected at most {SERVERS_MAX}"
    if not any(group.present and not group.backup and group.weight for group in scenario.servers):
        yield ("servers",), "no server is there at the start that takes flows"
    if (scenario.load is None) == (scenario.rate is None):
        one = "both" if scenario.load is not None else "neither"
        yield ("rate",) if scenario.rate else ("load",), f"expected either 'load' or 'rate', not {one}"
    names = [group.name for group in scenario.servers if group.name]
    for i, group in enumerate(scenario.servers):
        if group.name and group.name in [other.name for other in scenario.servers[:i]]:
            yield ("servers", i, "name"), f"a second group called {shown(group.name)}"
    for i, event in enumerate(scenario.events):
        if isinstance(event, RateEvent):
            continue
        here = ("events", i, "server")
        if isinstance(event.server, str):
            if event.server not in names:
                yield here, f"no group of servers is called {shown(event.server)}{did_you_mean(event.server, names)}"
        elif any(not 0 <= slot < total for slot in scenario.slots_of(event.server)):
            yield here, f"expected a slot from 0 to {total - 1}, not {shown(event.server)}"
    if len(set(scenario.seeds)) < len(scenario.seeds) or not scenario.seeds:
        yield ("seeds",), "expected each seed once, and at least one"
    for i, seed in enumerate(scenario.seeds):
        if not 0 <= seed < 2**63:
            yield ("seeds", i), f"expected a seed from 0 to 2^63 - 1, not {seed}"
    if scenario.sla.gold + scenario.sla.bronze > 1.0 + 1e-9:
        yield ("sla",), f"gold and bronze are {scenario.sla.gold + scenario.sla.bronze:g} together: expected at most 1"
    for i, phase in enumerate(scenario.phases):
        if phase.end <= phase.start:
            yield ("phases", i, "end"), f"expected more than its start, {format_duration(phase.start)}"
    if sum(getattr(scenario.arrivals, "rates", (1.0,))) == 0:
        yield ("arrivals", "rates"), "every rate is 0: no flow would arrive"
    exponential = isinstance(scenario.demand, Exponential) and isinstance(scenario.arrivals, Poisson)
    if scenario.reference == "birth-death" and (not exponential or scenario.events):
        yield ("reference",), "the birth–death bound is for exponential demand, Poisson arrivals and no events"
    yield from _policy_mistakes(scenario)


def _policy_mistakes(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    titles: list[str] = []
    for i, policy in enumerate(scenario.policies):
        here = ("policies", i)
        try:
            known = registry.options(policy.name)
        except Exception as error:  # whatever a third party's module raises when it is imported
            yield here, f"policy '{policy.name}' cannot be loaded: {type(error).__name__}: {error}"
            continue
        unknown = [option for option in policy.options if option not in known]
        for option in unknown:
            hint = (
                did_you_mean(option, [*known, "label", "weights", "reserve"])
                or f" (it takes: {', '.join(known) or 'none'})"
            )
            yield (*here, option), f"unknown option of policy '{policy.name}'{hint}"
        if not unknown:
            try:
                registry.create(policy.spec)
            except Exception as error:  # the same: their constructor, our one line
                yield here, " ".join(str(error).split()) or type(error).__name__
        if policy.title in titles:
            yield here, f"a second policy called {shown(policy.title)}: give it a label"
        titles.append(policy.title)
