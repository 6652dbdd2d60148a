"""What the three environments share: a source, the meaning of actions, the base policy and the score, a row a balancer.

A step is: orders from the actions, base curves brought up to date, one call of the source, the score. Rows that no
agent acts for follow the base policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from controlplane.env.actions import ActionKind, Bounds, make_action
from controlplane.env.base import Base
from controlplane.env.live import LiveSource
from controlplane.env.objective import Constraint, Reward, Score, Scorer
from controlplane.env.reading import TRUTHS, Reading
from controlplane.env.simulated import SimulatedSource, WorldMaker
from controlplane.env.worlds import default_world
from controlplane.policy import Policy
from controlplane.weights import WeightLimits
from dataplane.simulator import World
from shm_layout.features import FEATURES

# Greatest values of the observation space: the sources cut there.
FLOWS_MAX, SECONDS_MAX = 65535.0, 1e6
# What the truth shows of each server.
TRUTH_SHOWN = ("in_server", "busy", "workers", "speed")


@dataclass(frozen=True)
class Settings:
    """Everything that makes an environment; the keyword arguments of its class. docs/environments.md explains them."""

    source: str = "sim"
    world: World | WorldMaker | None = None
    servers: int | None = None  # rows of the observation; None: as many as the world has, or the live service
    interval: float = 0.2
    action: str = "curves"
    base: str | Mapping[str, Any] | Policy = "adaptive"
    base_every: int = 1
    bounds: Bounds | Mapping[str, float] = field(default_factory=Bounds)
    limits: WeightLimits | Mapping[str, Any] = field(default_factory=WeightLimits)
    rule: str = "sed"
    levels: tuple[float, ...] = (1.0, 1.5, 2.0)
    step: float = 0.25
    drain: bool = False
    reward: Reward | str | Mapping[str, Any] = field(default_factory=Reward)
    constraints: Sequence[Constraint | Sequence[Any] | Mapping[str, Any]] = ()
    penalise: bool = False
    truth: bool = False
    reservoir_slots: int = 128
    segment: str | None = None  # live
    balancers: int = 1  # live: how many share the servers; in the simulator the world says
    read_only: bool = False  # live
    takeover: bool = False  # live

    def __post_init__(self) -> None:
        if self.source not in ("sim", "live"):
            raise ValueError(f"source: {self.source!r} is neither sim nor live")
        if self.source == "live":
            if self.segment is None:
                raise ValueError("source live: segment=INSTANCE.SERVICE is needed")
            if self.world is not None:
                raise ValueError("source live: there is no world to choose")
            if self.truth:
                raise ValueError("truth: only the simulator knows it")
        elif self.segment is not None or self.read_only or self.takeover:
            raise ValueError("segment, read_only and takeover belong to source live")


@dataclass(frozen=True)
class Step:
    """What a step gave, rows in order; arrays may be written again by the step after the next."""

    reading: Reading
    score: Score
    terminated: NDArray[np.bool_]  # (replicas,)
    truncated: NDArray[np.bool_]  # (replicas,)
    seconds: NDArray[np.float64]  # (replicas,) since the episode began


class Core:
    """Rows of balancers under control."""

    def __init__(
        self,
        settings: Settings,
        replicas: int = 1,
        *,
        every_balancer: bool = False,
        followers: int = 0,
        with_base: bool = False,
    ) -> None:
        """followers: so many replicas, the last ones, follow the base policy, for comparison.

        with_base: the base policy decides also where actions do not correct it, to be looked at.
        """
        s = self.settings = settings
        if not 0 <= followers <= replicas:
            raise ValueError(f"followers: {followers} of {replicas} replicas")
        reward = Reward.of(s.reward)
        constraints = [Constraint.of(constraint) for constraint in s.constraints]
        bounds = s.bounds if isinstance(s.bounds, Bounds) else Bounds(**s.bounds)
        limits = s.limits if isinstance(s.limits, WeightLimits) else WeightLimits(**s.limits)
        # The width is known once the source is there, the bids' constant before: ask an action of one server for it.
        options: dict[str, Any] = {
            "bounds": bounds,
            "limits": limits,
            "rule": s.rule,
            "levels": tuple(s.levels),
            "step": s.step,
            "drain": s.drain,
        }
        constant = make_action(s.action, 1, 1, **options).constant
        histogram = reward.metric == "fct_tail"
        self.source: SimulatedSource | LiveSource
        if s.source == "live":
            if any(constraint.field == "utilisation" for constraint in constraints):
                raise ValueError("constraint on utilisation: only the simulator knows it")
            if replicas != 1 or every_balancer:
                raise ValueError("source live: one balancer, one agent")
            assert s.segment is not None
            self.source = LiveSource(
                s.segment,
                s.servers,
                s.balancers,
                interval=s.interval,
                read_only=s.read_only,
                takeover=s.takeover,
                histogram=histogram,
                constant=constant,
            )
        else:
            world = s.world or default_world()
            sample = world if isinstance(world, World) else world(np.random.default_rng(0))
            if sample.view != "own":
                raise ValueError("world: every balancer needs a view of its own (view='own')")
            if s.servers is None and not isinstance(world, World):
                raise ValueError("servers: say how many at most, where each episode makes its own world")
            self.source = SimulatedSource(
                [world] * replicas,
                s.servers or len(sample.servers),
                sample.balancers,
                interval=s.interval,
                histogram=histogram,
                constant=constant,
                reservoir_slots=s.reservoir_slots,
            )
        self.servers, self.balancers = self.source.servers, self.source.balancers
        self.replicas, self.rows = replicas, replicas * self.balancers
        try:
            self.kind: ActionKind = make_action(s.action, self.servers, self.rows, **options)
            # Rows that agents act for: all, or the first balancer of each replica.
            led = (replicas - followers) * self.balancers
            self.acting = np.arange(0, led, 1 if every_balancer else self.balancers)
            self.scorer = Scorer(reward, constraints, s.penalise, self.rows, self.servers, self.balancers)
            self._needs_base = with_base or self.kind.needs_base or len(self.acting) < self.rows
            if isinstance(self.source, LiveSource) and self.source.read_only:
                self._needs_base = False
            self.base = Base(s.base, self.rows, self.source.observe, self.source.orders, s.base_every)
        except BaseException:
            self.source.close()
            raise
        self.reading: Reading | None = None
        self._prepared = False

    # --- spaces -------------------------------------------------------------------------------------------------------

    def observation_space(self) -> spaces.Dict:
        """One row's: servers (servers, 11), active (servers,), and truth (servers, 4) when asked for."""
        high = np.full((self.servers, len(FEATURES)), SECONDS_MAX, dtype=np.float32)
        high[:, 0] = FLOWS_MAX
        parts: dict[str, spaces.Space[Any]] = {
            "active": spaces.MultiBinary(self.servers),
            "servers": spaces.Box(np.zeros_like(high), high, dtype=np.float32),
        }
        if self.settings.truth:
            parts["truth"] = spaces.Box(0.0, float(SECONDS_MAX), (self.servers, len(TRUTH_SHOWN)), np.float32)
        return spaces.Dict(parts)

    def action_space(self) -> spaces.Space[Any]:
        """One row's."""
        return self.kind.space(self.servers)

    def neutral_action(self) -> NDArray[Any]:
        """The action that does least: no correction, equal weights, the lowest level."""
        space = self.action_space()
        return np.zeros(space.shape or (), dtype=space.dtype)

    # --- episodes -----------------------------------------------------------------------------------------------------

    def reset(self, generators: dict[int, np.random.Generator]) -> Reading:
        """Begin episodes in the replicas that generators name."""
        rows = self.rows_of(list(generators))
        self.source.orders.window[rows] = 1.0
        self.source.orders.correction[rows] = 0.0
        self.source.orders.mode[rows] = 0
        reading = self.source.reset(generators)
        self.reading, self._prepared = reading, False
        self.kind.reset(rows, reading.active)
        if self._needs_base:
            self.base.begin((int(row) for row in rows), reading.settings_version)
        self.scorer.begin(reading, rows)
        return reading

    def rows_of(self, replicas: Sequence[int]) -> NDArray[np.intp]:
        """Return the rows of replicas."""
        first = np.asarray(replicas, dtype=np.intp)[:, None] * self.balancers
        return (first + np.arange(self.balancers)).ravel()

    def step(self, actions: NDArray[Any], replicas: Sequence[int] | None = None) -> Step:
        """Act in the acting rows (n, …) of these replicas, or of all, and run one interval of them."""
        if self.reading is None:
            raise RuntimeError("reset() comes before step()")
        before = self.reading
        if replicas is None:
            acting, running = self.acting, np.arange(self.rows)
        else:
            running = self.rows_of(replicas)
            chosen = np.isin(self.acting, running)
            acting, actions = self.acting[chosen], actions[chosen]
        # Before the action, as for those who look at the bids first: what it asks for holds from the next step on.
        if self._needs_base and not self._prepared:
            self.base.prepare(running, before.settings_version)
        self._prepared = False
        if not self.is_watching:
            self.kind.order(actions, acting, before.active[acting], self.source.orders)
        reading = self.reading = self.source.step(replicas)
        seconds = self.source.seconds(reading)
        terminated = reading.finished.copy()
        truncated = ~terminated & (seconds >= self._duration - 1e-9)
        score = self.scorer.score(reading, np.repeat(terminated, self.balancers))
        return Step(reading, score, terminated, truncated, seconds)

    def prepare(self) -> None:
        """Bring the base policy's curves up to date now, for one that looks at them before it acts; the step that
        follows does not do so again. All rows: for those who step all replicas."""
        if self.reading is None:
            raise RuntimeError("reset() comes before prepare()")
        if self._needs_base and not self._prepared:
            self.base.prepare(np.arange(self.rows), self.reading.settings_version)
            self._prepared = True

    @property
    def policy(self) -> str:
        """Whose decisions are in force."""
        if self.is_watching:
            assert isinstance(self.source, LiveSource)
            directive = self.source.directive
            return "" if directive is None else directive.policy
        return f"env.{self.kind.name}:{self.base.name}" if self.kind.needs_base else f"env.{self.kind.name}"

    @property
    def base_curves(self) -> NDArray[np.float32] | None:
        """The base policy's bids as prepare() left them, (rows, servers, points); None where it makes none."""
        return self.source.orders.base if self._needs_base else None

    @property
    def is_watching(self) -> bool:
        """Whether actions change nothing: a live segment attached read-only."""
        return isinstance(self.source, LiveSource) and self.source.read_only

    @property
    def _duration(self) -> NDArray[np.float64]:
        """When each replica's world ends, seconds."""
        if isinstance(self.source, LiveSource):
            return np.array([np.inf])
        return self.source.durations

    def truth(self, reading: Reading) -> NDArray[np.float32]:
        """Return what the truth shows, (replicas, servers, 4)."""
        columns = [TRUTHS.index(name) for name in TRUTH_SHOWN]
        return np.minimum(reading.truth[:, :, columns], SECONDS_MAX).astype(np.float32)

    def close(self) -> None:
        self.source.close()
