"""What the round-based simulation is given: the models of its YAML file's keys, and the farm that a seed makes of them.

Ranges are one number, or [low, high] from which each server (or task) draws uniformly. What is left out is chosen so
that any number of servers and tasks makes a system that is busy at the peaks and idle between them: an average round
brings work for a tenth of all capacity, and is `utilisation` of what the servers can do in a round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from controlplane.auction.learning import MODES
from controlplane.auction.mechanism import OVERLOAD, PARTNER_BELOW, Floats
from controlplane.auction.tasks import Demand
from controlplane.config_values import shown

SERVERS_MAX = 100_000
ROUNDS_MAX = 10_000_000
PARTNERS_MAX = 7  # ROUND_PARTNERS of rounds.h
WORK_SHARE = 0.1  # of all capacity, the work that an average round brings when loads are not given
LOAD_SPREAD = 0.8  # of the mean load, both ways
TASKS_PER_SERVER = 2.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(least: float, open_end: bool) -> Callable[[Any], tuple[float, float]]:
    """Return a reader of ranges that begin at `least`, or above it."""

    def read(value: Any) -> tuple[float, float]:
        if _is_number(value):
            low = high = float(value)
        elif isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value)):
            low, high = float(value[0]), float(value[1])
        else:
            raise ValueError(f"expected a number or [low, high], not {shown(value)}")
        if not -np.inf < low <= high < np.inf:
            raise ValueError(f"expected [low, high] with low at most high, not [{low:g}, {high:g}]")
        if low < least or (open_end and low == least):
            raise ValueError(f"expected {'more than' if open_end else 'at least'} {least:g}, not {low:g}")
        return low, high

    return read


_as_list = PlainSerializer(list, return_type=list[float])
Range = Annotated[tuple[float, float], PlainValidator(_range(0.0, False)), _as_list]
PositiveRange = Annotated[tuple[float, float], PlainValidator(_range(0.0, True)), _as_list]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


TASKS_MAX = 10_000_000
LOAD_MAX = 1e12


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Servers(Model):
    """A group of servers that draw from the same ranges."""

    count: int = Field(default=8, ge=1, le=SERVERS_MAX)
    capacity: PositiveRange = (60.0, 140.0)
    sensitivity: PositiveRange = (5.0, 20.0)
    risk_aversion: Range = (0.2, 1.0)
    target_load_ratio: Share = 0.5
    coalition: int | None = Field(default=None, ge=0, lt=2**32)  # none: one of the scenario's, in turn
    processing_rate: Positive | None = None  # work a round; none: such that the farm can do `utilisation` of the work


class Classes(Model):
    """A number for each SLA level."""

    gold: NotNegative
    silver: NotNegative
    bronze: NotNegative

    def numbers(self) -> tuple[float, float, float]:
        return self.gold, self.silver, self.bronze


class Tasks(Model):
    base: NotNegative | None = None  # tasks in an average round; none: two a server
    amplitude: NotNegative | None = None  # none: half the base
    period: Positive = 50.0  # rounds
    arrivals: Literal["poisson", "fixed"] = "poisson"
    load: PositiveRange | None = None
    complexity: PositiveRange = (0.8, 1.2)
    shares: Classes = Classes(gold=0.2, silver=0.3, bronze=0.5)
    latency: Classes = Classes(gold=5.0, silver=8.0, bronze=12.0)  # rounds


class Auction(Model):
    noise: NotNegative = 0.1
    reserve: bool = True  # false: no bid is above it, nothing is deferred
    overload: NotNegative = OVERLOAD
    partner_below: NotNegative = PARTNER_BELOW
    partners: int = Field(default=1, ge=0, le=PARTNERS_MAX)
    coalitions: int = Field(default=2, ge=1, le=SERVERS_MAX)
    split: Literal["equal", "shapley"] = "equal"
    sla: bool = True  # false: classes are only counted
    deferrals: int = Field(default=3, ge=0, le=1_000_000)


class Learning(Model):
    learning_rate: Share = 0.1
    epsilon: Share = 0.1
    alpha: Share = 0.1
    gamma: Share = 0.9
    step: float = Field(default=0.1, ge=0, lt=1, allow_inf_nan=False)
    exploration: NotNegative | None = None
    neural_rate: Share = 0.1
    sensitivity_range: PositiveRange = (0.01, 100.0)


def _groups(value: object) -> object:
    """Let a number of servers, or one group of them, stand for a list of one group."""
    if isinstance(value, int) and not isinstance(value, bool):
        return ({"count": value},)
    return (value,) if isinstance(value, dict) else value


class Scenario(Model):
    title: str = ""
    rounds: int = Field(default=500, ge=1, le=ROUNDS_MAX)
    seed: int = Field(default=1, ge=0, lt=2**63)
    mode: Literal["off", "continuous", "qlearning", "bandit", "ucb1", "thompson", "dqn"] = "continuous"
    utilisation: Positive = 0.9
    servers: Annotated[tuple[Servers, ...], BeforeValidator(_groups), Field(min_length=1)] = (Servers(),)
    tasks: Tasks = Tasks()
    auction: Auction = Auction()
    learning: Learning = Learning()

    @property
    def n(self) -> int:
        """Number of servers."""
        return sum(group.count for group in self.servers)

    @property
    def capacity(self) -> float:
        """Expected capacity of all servers."""
        return sum(group.count * sum(group.capacity) / 2 for group in self.servers)

    def demand(self) -> Demand:
        """Return what comes, with everything that was left out chosen."""
        t = self.tasks
        base = TASKS_PER_SERVER * self.n if t.base is None else t.base
        load = t.load
        if load is None:
            mean = WORK_SHARE * self.capacity / max(base, 1.0)
            load = ((1 - LOAD_SPREAD) * mean, (1 + LOAD_SPREAD) * mean)
        return Demand(
            base=base,
            amplitude=base / 2 if t.amplitude is None else t.amplitude,
            period=t.period,
            random=t.arrivals == "poisson",
            load=load,
            complexity=t.complexity,
            shares=t.shares.numbers(),
            latency=t.latency.numbers(),
        )

    def rate(self) -> float:
        """Return the fixed processing rate of a server that has none of its own."""
        demand = self.demand()
        return max(demand.base * demand.mean_work / (self.n * self.utilisation), 1e-9)


assert set(MODES) == set(Scenario.model_fields["mode"].annotation.__args__)  # type: ignore[union-attr]


@dataclass
class Farm:
    """The servers of one run; every array (servers,)."""

    capacity: Floats
    sensitivity: Floats
    risk_aversion: Floats
    target: Floats
    rate: Floats
    coalition: np.ndarray[Any, np.dtype[np.uint32]]

    @property
    def n(self) -> int:
        return self.capacity.size


def draw_farm(scenario: Scenario, rng: np.random.Generator) -> Farm:
    """Draw the servers. Coalitions that are not given go round."""
    rate, number = scenario.rate(), scenario.auction.coalitions
    columns: list[list[Any]] = [[] for _ in range(6)]
    slot = 0
    for group in scenario.servers:
        size = group.count
        turn = (slot + np.arange(size)) % number
        parts = (
            rng.uniform(*group.capacity, size),
            rng.uniform(*group.sensitivity, size),
            rng.uniform(*group.risk_aversion, size),
            np.full(size, group.target_load_ratio),
            np.full(size, rate if group.processing_rate is None else group.processing_rate),
            (turn if group.coalition is None else np.full(size, group.coalition)).astype(np.uint32),
        )
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
        slot += size
    return Farm(*(np.ascontiguousarray(np.concatenate(column)) for column in columns))


def mistakes(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what no type can tell: where, and what is wrong."""
    if sum(scenario.tasks.shares.numbers()) <= 0:
        yield ("tasks", "shares"), "expected at least one share above 0"
    demand = scenario.demand()
    for key, given in (("base", demand.base), ("amplitude", demand.amplitude)):
        if given > TASKS_MAX:
            yield ("tasks", key), f"expected at most {TASKS_MAX:,} tasks a round, not {given:g}"
    if demand.load[1] > LOAD_MAX:
        yield ("tasks", "load"), f"expected at most {LOAD_MAX:g}, not {demand.load[1]:g}"


def load(path: str | os.PathLike[str]) -> Scenario:
    """Return the scenario of a YAML file. Raises ConfigError with all that is wrong in it."""
    from controlplane.config_yaml import read_yaml
    from controlplane.simulation.scenario_file import validate_as

    return validate_as(Scenario, read_yaml(path, "'servers:'"), mistakes)
