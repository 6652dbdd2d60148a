"""The simulator as a source of steps: any number of replicas, each a world of its own, moved by one C call a step.

A row is one balancer of one replica. What is published goes through the same payload, checks and adoption as a live
controller's directive; what is read is what a live observer could read, and the truth about the servers beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.env.orders import Orders
from controlplane.env.reading import COUNTERS, TRUTHS, Reading
from controlplane.observation import Observer
from controlplane.policy import Observation
from dataplane._dataplane import ffi, lib
from dataplane.simulator import Simulation, World
from shm_layout.features import FEATURES, HALF_LIFE, PRIOR
from shm_layout.layout import HISTOGRAM_BUCKETS

# A world is given whole, or made anew for each episode from a generator: domain randomisation.
WorldMaker = Callable[[np.random.Generator], World]

# Sets of output arrays.
SETS = 3

assert len(FEATURES) == lib.VECTOR_FEATURES
assert len(COUNTERS) == lib.VECTOR_COUNTERS
assert len(TRUTHS) == lib.VECTOR_TRUTHS


class SourceError(RuntimeError):
    """The source cannot go on."""


def _stop_clocks(simulation: Simulation) -> None:
    """Let a simulation that is over be freed at once: its segments hold it by their clock, and it holds them."""
    now_ns = simulation.now_ns
    for segment in simulation.segments:
        segment.clock = lambda: now_ns


# Flow records kept in each balancer's ring: those of an interval, with room to spare.
RING_SLOTS = 2048


class SimulatedSource:
    """Replicas of worlds. `reset` begins episodes, `step` runs one control interval of those that are told to run."""

    def __init__(
        self,
        worlds: Sequence[World | WorldMaker],
        servers: int,
        balancers: int,
        *,
        interval: float,
        histogram: bool = False,
        slope: float = 1.0,
        constant: float = 1.0,
        reservoir_slots: int = 128,
        half_life: float = HALF_LIFE,
        prior: float = PRIOR,
    ) -> None:
        self.worlds, self.servers, self.balancers, self.interval = list(worlds), servers, balancers, interval
        self.interval_ns = round(interval * 1e9)
        if self.interval_ns <= 0:
            raise ValueError(f"interval {interval} s: expected more than 0")
        self.reservoir_slots = reservoir_slots
        n, rows = len(self.worlds), len(self.worlds) * balancers
        self.simulations: list[Simulation | None] = [None] * n
        self._observers: list[Observer | None] = [None] * rows
        self.durations = np.full(n, np.inf)  # when each world ends, seconds since its start
        config = ffi.new(
            "struct vector_config *",
            {
                "n_replicas": n,
                "n_balancers": balancers,
                "n_servers": servers,
                "reservoir_slots": reservoir_slots,
                "half_life_ns": half_life * 1e9,
                "prior_s": prior,
                "slope": slope,
                "constant": constant,
            },
        )
        self._vector = ffi.gc(lib.vector_create(config), lib.vector_destroy)
        if self._vector == ffi.NULL:
            raise ValueError(f"no vector of {n} replicas × {balancers} balancers × {servers} servers")
        self.orders = Orders.empty(rows, servers)
        self._run = np.zeros(n, dtype=np.uint8)
        # Several sets of outputs in turn: what a step returned stays as it is through the next one and a reset in it.
        buckets = HISTOGRAM_BUCKETS if histogram else 0
        self._readings = [Reading.empty(n, rows, servers, buckets) for _ in range(SETS)]
        self._arrays = [self._c_arrays(reading) for reading in self._readings]
        self._turn = 0

    def _c_arrays(self, reading: Reading) -> Any:
        orders = self.orders
        c = ffi.new("struct vector_arrays *")
        for name, kind, array in (
            ("run", "uint8_t[]", self._run),
            ("mode", "uint8_t[]", orders.mode),
            ("base", "float[]", orders.base),
            ("correction", "double[]", orders.correction),
            ("weights", "double[]", orders.weights),
            ("features", "float[]", reading.features),
            ("active", "uint8_t[]", reading.active.view(np.uint8)),
            ("counters", "double[]", reading.counters),
            ("truth", "double[]", reading.truth),
            ("settings_version", "uint64_t[]", reading.settings_version),
            ("now_ns", "uint64_t[]", reading.now_ns),
            ("finished", "uint8_t[]", reading.finished.view(np.uint8)),
        ):
            setattr(c, name, ffi.from_buffer(kind, array))
        if reading.histogram.size:
            c.histogram = ffi.from_buffer("uint64_t[]", reading.histogram)
        return c

    def reset(self, generators: dict[int, np.random.Generator]) -> Reading:
        """Begin an episode in these replicas, each world's seed drawn from its generator; the others stay."""
        for replica, generator in generators.items():
            given = self.worlds[replica]
            world = given if isinstance(given, World) else given(generator)
            seed = int(generator.integers(2**63))
            before = self.simulations[replica]
            self.simulations[replica] = self._begin(replica, replace(world, seed=seed))
            if before is not None:
                _stop_clocks(before)
        return self._call(list(generators), 0)

    def _begin(self, replica: int, world: World) -> Simulation:
        if len(world.servers) > self.servers or world.balancers != self.balancers:
            raise ValueError(
                f"a world of {len(world.servers)} servers and {world.balancers} balancers in an environment of "
                f"{self.servers} and {self.balancers}"
            )
        # Flow records are for summaries; an episode may be without end.
        # Of several balancers each reads its segment's ring to learn of the others, if it has a policy that does.
        rings = world.rings or world.balancers > 1
        world = replace(world, records=0 if world.records is None else world.records, rings=rings)
        ring_slots = RING_SLOTS if rings else 64
        simulation = Simulation(world, reservoir_slots=self.reservoir_slots, table_slots=0, ring_slots=ring_slots)
        self._check(lib.vector_place(self._vector, replica, simulation.handle), replica)
        self.durations[replica] = np.inf if world.duration is None else world.duration
        return simulation

    def step(self, replicas: Sequence[int] | None = None) -> Reading:
        """Publish the orders and run one interval of these replicas, or of all; the others keep what they read."""
        return self._call(replicas, self.interval_ns)

    def _call(self, replicas: Sequence[int] | None, interval_ns: int) -> Reading:
        before = self._readings[self._turn]
        self._turn = (self._turn + 1) % SETS
        reading = self._readings[self._turn]
        if replicas is None or len(replicas) == len(self.worlds):
            self._run[:] = 1
        else:
            reading.take(before)
            self._run[:] = 0
            self._run[list(replicas)] = 1
        failed = ffi.new("uint32_t *")
        self._check(lib.vector_step(self._vector, self._arrays[self._turn], interval_ns, failed), failed[0])
        return reading

    def _check(self, code: int, replica: int) -> None:
        if code < 0:
            raise SourceError(f"replica {replica}: {ffi.string(lib.segment_strerror(code)).decode()}")

    def observe(self, row: int) -> Observation:
        """Return what a controller of this row's balancer sees now."""
        replica, balancer = divmod(row, self.balancers)
        simulation = self.simulations[replica]
        assert simulation is not None
        observer = self._observers[row]
        if observer is None or observer.segment is not simulation.segments[balancer]:
            observer = self._observers[row] = Observer(simulation.segments[balancer], self.interval, self.balancers)
        return observer.read(simulation.now_ns)

    def seconds(self, reading: Reading) -> NDArray[np.float64]:
        """Return the time since each replica's start."""
        return np.asarray(reading.now_ns * 1e-9)

    def close(self) -> None:
        """Free the simulations."""
        for replica in range(len(self.simulations)):
            lib.vector_place(self._vector, replica, ffi.NULL)
            if (simulation := self.simulations[replica]) is not None:
                _stop_clocks(simulation)
        self.simulations = [None] * len(self.simulations)
