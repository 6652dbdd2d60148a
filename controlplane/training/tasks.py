"""What a policy is trained in: a scenario of the simulator, or farms drawn at random, a new one each episode.

    heterogeneous-4x            a shipped scenario, or a file
    random                      2–64 servers, 1–8 balancers; speeds, workers, loads, demands, arrivals, events drawn
    random:servers=4-16,balancers=4,load=0.8-0.95,workers=2-8,service=fifo,changes=8-16,trace=FILE

An episode of a scenario without events has no end of its own; events keep their place within the episode: what happens
at half of the scenario's time happens at half of the episode.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controlplane.command import CommandError
from controlplane.config_errors import ConfigError, did_you_mean
from controlplane.env.worlds import ENDLESS
from controlplane.simulation.scenario import Policy, Scenario, length
from controlplane.simulation.scenario_file import library, load
from dataplane.simulator import World
from dataplane.simulator import world as sim

RANDOM = "random"
SERVERS_MOST, BALANCERS_MOST, CHANGES_MOST = 256, 8, 1000
# Workers that servers are drawn with: as many have one as have several.
WORKERS = (1, 1, 2, 4, 8)
SHARING = 0.35  # part of the farms whose servers share their cores


@dataclass(frozen=True)
class ScenarioTask:
    """A scenario's farm and traffic, with other arrivals each episode."""

    name: str
    scenario: Scenario
    interval: float  # seconds
    hide_weights: bool = False  # in half of the episodes, for base policies that learn them

    @property
    def width(self) -> int:
        """The most servers that a world of it has."""
        return sum(group.count for group in self.scenario.servers)

    @property
    def balancers(self) -> tuple[int, int]:
        """The least and the most balancers that a world of it has."""
        return self.scenario.balancers.count, self.scenario.balancers.count

    def world(self, generator: np.random.Generator, balancers: int, seconds: float) -> World:
        """Return a world for an episode of so many seconds."""
        seed = int(generator.integers(2**63))
        untold = Policy(name="adaptive", weights="equal") if self.hide_weights and generator.uniform() < 0.5 else None
        world = self.scenario.world(seed, untold)
        if world.events:
            scale = seconds / length(world)
            world = replace(world, events=[replace(event, at=event.at * scale) for event in world.events])
        return replace(world, flows=None, duration=ENDLESS, warmup=0.0)


@dataclass(frozen=True)
class RandomTask:
    """Domain randomisation: every episode has a farm and a traffic of its own."""

    name: str
    servers: tuple[int, int] = (2, 64)
    balancers: tuple[int, int] = (1, 8)
    load: tuple[float, float] = (0.3, 0.97)
    workers: tuple[int, int] = (1, 8)
    service: str | None = None  # fifo or sharing; None: either
    changes: tuple[int, int] | None = None  # of speeds, in an episode; None: one in a fifth of them, or else a crash
    trace: str | None = None
    interval: float = 0.2

    @property
    def width(self) -> int:
        """The most servers that a world of it has."""
        return self.servers[1]

    def world(self, generator: np.random.Generator, balancers: int, seconds: float) -> World:
        """Return a world for an episode of so many seconds."""
        g = generator
        low, high = self.servers
        n = round(low * (high / low) ** g.uniform())  # as many small farms as great ones
        rho = float(g.uniform(*self.load))
        farm = self._farm(g, n)
        capacity = sum(server.capacity for server in farm)
        # From one to 25 flows a server and interval.
        flows = n * 25.0 ** g.uniform()
        mean = capacity * rho * self.interval / flows
        trace = self.trace is not None and g.uniform() < 0.5
        world = sim.World(
            farm,
            self._window(g, flows / self.interval, seconds) if trace else _arrivals(g, seconds),
            _demand(g, mean),
            duration=ENDLESS,
            balancers=balancers,
            split="hash" if g.uniform() < 0.2 else "random",
            clients=int(g.integers(200, 5000)),
            load_per_second=1.0 / mean,
        )
        if not trace:
            world = world.at_load(rho)
        return replace(world, events=self._events(g, farm, seconds))

    def _farm(self, g: np.random.Generator, n: int) -> list[sim.Server]:
        kind = g.integers(4)
        if kind == 0:
            speeds = np.ones(n)
        elif kind == 1:
            speeds = np.where(np.arange(n) < max(1, round(n * g.uniform(0.1, 0.6))), 10.0 ** g.uniform(0.2, 1.0), 1.0)
        elif kind == 2:
            speeds = g.choice([1.0, 2.0, 4.0], n)
        else:
            speeds = 8.0 ** g.uniform(0.0, 1.0, n)
        several = workers_in(self.workers)
        workers = g.choice(several, n) if g.uniform() < 0.3 else np.full(n, g.choice(several))
        either = "sharing" if g.uniform() < SHARING else "fifo"
        service = self.service or either
        told = g.uniform() < 0.5  # whether the balancers know the capacities
        scale = 64.0 / float((speeds * workers).max())
        return [
            sim.Server(
                speed=float(speed),
                workers=int(k),
                service=service,  # type: ignore[arg-type]
                weight=max(1, round(float(speed * k) * scale)) if told else 1,
            )
            for speed, k in zip(speeds, workers, strict=True)
        ]

    def _events(self, g: np.random.Generator, farm: Sequence[sim.Server], seconds: float) -> list[sim.Event]:
        """Return as many changes of speeds as wanted, or, where nothing is said, nothing in most episodes, else a
        change of speeds, or a crash and a recovery."""
        if self.changes is not None:
            number = int(g.integers(self.changes[0], self.changes[1] + 1))
            return _changes(g, farm, np.sort(g.uniform(0.0, seconds, number)))
        n, chance = len(farm), g.uniform()
        at = float(seconds * g.uniform(0.3, 0.7))
        if chance < 0.2:
            return _changes(g, farm, np.array([at]))
        if chance < 0.3 and n >= 8:
            slot = int(g.integers(n))
            back = at + float(seconds * g.uniform(0.05, 0.2))
            return [sim.Crash(at, slot), sim.Recover(back, slot)]
        return []

    def _window(self, g: np.random.Generator, rate: float, seconds: float) -> sim.Arrivals:
        """Return a part of the recorded trace, its mean rate brought to `rate` for long enough."""
        assert self.trace is not None
        times = _trace_times(self.trace)
        wanted = int(rate * seconds * 1.5) + 100
        start = int(g.integers(max(1, len(times) - wanted)))
        part = times[start : start + wanted]
        part = part - part[0]
        if len(part) < wanted:  # over and over, a mean gap between
            span = part[-1] + part[-1] / max(len(part) - 1, 1) + 1.0
            part = (np.arange(math.ceil(wanted / len(part)))[:, None] * span + part).ravel()[:wanted]
        own_rate = (len(part) - 1) / max(float(part[-1]), 1.0) * 1e9
        return sim.Trace(np.rint(part * (own_rate / rate)).astype(np.uint64))


Task = ScenarioTask | RandomTask


def workers_in(bounds: tuple[int, int]) -> list[int]:
    """Return those of WORKERS that lie within bounds."""
    return [k for k in WORKERS if bounds[0] <= k <= bounds[1]]


@functools.lru_cache(maxsize=4)
def _trace_times(path: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the arrival times of a trace, nanoseconds from the first."""
    from testbed.traces import TraceFile

    records = TraceFile(path).records()
    times = np.sort(np.asarray(records["t_ns"], dtype=np.float64))
    since: np.ndarray[tuple[int], np.dtype[np.float64]] = times - times[0]
    return since


def _demand(g: np.random.Generator, mean: float) -> sim.Demand:
    match int(g.integers(5)):
        case 0 | 1:
            return sim.Exponential(mean)
        case 2:
            return sim.Lognormal(mean, float(g.uniform(0.5, 3.0)))
        case 3:
            return sim.Hyperexponential.balanced(mean, float(g.uniform(1.5, 4.0)))
    return sim.BoundedPareto(mean, float(g.uniform(1.2, 2.2)), 1000.0)


def _arrivals(g: np.random.Generator, seconds: float) -> sim.Arrivals:
    match int(g.integers(6)):
        case 0:
            return sim.Sine(1.0, float(g.uniform(0.1, 0.5)), float(seconds * g.uniform(0.2, 1.0)))
        case 1:
            high = float(g.uniform(1.3, 3.0))
            return sim.MMPP((1.0, high), (float(seconds * g.uniform(0.05, 0.3)), float(seconds * g.uniform(0.01, 0.1))))
        case 2:
            on = float(seconds * g.uniform(0.02, 0.2))
            return sim.OnOff((float(g.uniform(1.0, 2.0)), 1.0), (on, on * float(g.uniform(1.0, 4.0))))
    return sim.Poisson(1.0)


def _changes(g: np.random.Generator, farm: Sequence[sim.Server], times: NDArray[np.float64]) -> list[sim.Event]:
    """Return changes of speeds: each time, servers of as many workers draw each other's, which keeps the capacity."""
    speeds = np.array([server.speed for server in farm])
    workers = np.array([server.workers for server in farm])
    events: list[sim.Event] = []
    for at in times:
        drawn = speeds.copy()
        for k in np.unique(workers):
            drawn[workers == k] = g.permutation(speeds[workers == k])
        events += [sim.SpeedChange(float(at), int(i), float(drawn[i])) for i in np.flatnonzero(drawn != speeds)]
        speeds = drawn
    return events


def tasks_of(names: Sequence[str], interval: float, *, hide_weights: bool = False) -> tuple[Task, ...]:
    """Return the tasks of scenario names, files and `random…`. Raises CommandError with all that is wrong in one."""
    if not names:
        raise CommandError("which scenario? --scenario NAME, a YAML file, or random", status=2)
    tasks = tuple(_task(name, interval, hide_weights) for name in names)
    short = [task.name for task in tasks]
    # Two files of one name are told apart by their paths.
    return tuple(
        replace(task, name=name) if short.count(task.name) > 1 else task
        for task, name in zip(tasks, names, strict=True)
    )


def _task(name: str, interval: float, hide_weights: bool) -> Task:
    if name == RANDOM or name.startswith(RANDOM + ":"):
        return _random(name, interval)
    try:
        scenario = load(name)
    except ConfigError as error:
        text = str(error)
        if name not in library() and did_you_mean(name, [RANDOM]):
            text += f"{did_you_mean(name, [RANDOM])}"
        raise CommandError(text, status=2, details={"problems": error.as_json()}) from None
    if scenario.balancers.view != "own":
        raise CommandError(f"{name}: balancers.view: expected own: agents see their own flows", status=2)
    return ScenarioTask(Path(name).stem, scenario, interval, hide_weights)


def _random(name: str, interval: float) -> RandomTask:
    given: dict[str, object] = {}
    for part in filter(None, name.removeprefix(RANDOM).removeprefix(":").split(",")):
        key, equals, value = part.partition("=")
        known = ["servers", "balancers", "load", "workers", "service", "changes", "trace"]
        if key not in known:
            raise CommandError(f"--scenario {name}: unknown key {key!r}{did_you_mean(key, known)}", status=2)
        if not equals or not value:
            raise CommandError(f"--scenario {name}: expected {key}=VALUE", status=2)
        given[key] = value if key in ("trace", "service") else _range(name, key, value)
    task = RandomTask(name, **given, interval=interval)  # type: ignore[arg-type]
    for key, (low, high), least, most in (
        ("servers", task.servers, 1, SERVERS_MOST),
        ("balancers", task.balancers, 1, BALANCERS_MOST),
        ("load", task.load, 0.01, 1.2),
        ("workers", task.workers, 1, max(WORKERS)),
        ("changes", task.changes or (0, 0), 0, CHANGES_MOST),
    ):
        if not least <= low <= high <= most:
            raise CommandError(
                f"--scenario {name}: {key}: expected LOW-HIGH from {least} to {most}, not {low:g}-{high:g}", status=2
            )
    if not workers_in(task.workers):
        raise CommandError(f"--scenario {name}: workers: expected a range with 1, 2, 4 or 8 in it", status=2)
    if task.service not in (None, "fifo", "sharing"):
        raise CommandError(f"--scenario {name}: service: expected fifo or sharing, not {task.service!r}", status=2)
    if task.trace is not None:
        _check_trace(name, task.trace)
    return task


def _range(name: str, key: str, value: str) -> tuple[float, float] | tuple[int, int]:
    low, dash, high = value.partition("-")
    try:
        number = float if key == "load" else int
        return (number(low), number(high if dash else low))
    except ValueError:
        kind = "numbers" if key == "load" else "whole numbers"
        raise CommandError(
            f"--scenario {name}: {key}: expected {kind}, N or LOW-HIGH, not {value!r}", status=2
        ) from None


def _check_trace(name: str, path: str) -> None:
    from testbed.traces import TraceError

    try:
        times = _trace_times(path)
    except (TraceError, OSError) as error:
        text = f"{path}: {(error.strerror or str(error)).lower()}" if isinstance(error, OSError) else str(error)
        raise CommandError(f"--scenario {name}: {text}", status=2) from None
    if len(times) < 100 or times[-1] <= 0:
        raise CommandError(f"--scenario {name}: {path}: expected 100 arrivals or more", status=2)
