"""Units of work that may run in any process, in any order: whole episodes, of pure data and to pure data.

What a job yields depends on what stands in it and on nothing else, so that a training comes out the same with one
worker, with many, and on a cluster; and since no episode outlives its job, it can be resumed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.es import Members
from controlplane.learned.network import Network, decide
from controlplane.training.episodes import Episodes, Setup, Tally
from controlplane.training.ranges import Sample, Sampler
from controlplane.training.tasks import Task

Floats = NDArray[np.float64]

# What seeds are for: the first number after a training's own seed. Held-out episodes do not depend on that one.
EXPLORE, WORLDS, BALANCERS, SAMPLES = 1, 2, 3, 4
HELD_OUT = 0x51CC


class Job(Protocol):
    """Something to run."""

    def run(self) -> Any: ...


def balancers_for(task: Task, seed: Sequence[int]) -> int:
    """Return how many balancers the episodes of this seed have."""
    low, high = task.balancers
    return int(np.random.default_rng([*seed, BALANCERS]).integers(low, high + 1))


def seeds_for(seed: Sequence[int], replicas: int) -> list[list[int]]:
    """Return the seeds of the episodes side by side."""
    return [[*seed, WORLDS, i] for i in range(replicas)]


class Costs:
    """Mean costs of whole episodes, over the steps whose completion times a Tally counts: while an episode settles
    down, utilisations are not what they will be."""

    def __init__(self, setup: Setup, parts: int) -> None:
        self._skip = setup.skipped
        self._steps = 0
        self._sums = np.zeros((parts, len(setup.constraints)))

    def add(self, cost: NDArray[np.float32]) -> None:
        """Take in a step's costs (rows, constraints); as many rows of each part stand together."""
        self._steps += 1
        if self._steps > self._skip:
            parts, constraints = self._sums.shape
            self._sums += cost.reshape(parts, len(cost) // parts, constraints).mean(axis=1)

    @property
    def means(self) -> Floats:
        """(parts, constraints)"""
        return np.asarray(self._sums / max(self._steps - self._skip, 1))


@dataclass(frozen=True)
class Evaluation:
    """Mean completion times of episodes, seconds: the policy's and the base policy's on the same arrivals."""

    task: str
    policy: Floats  # (episodes,)
    base: Floats  # empty when it was not asked for
    sample: Sample
    costs: Floats  # (constraints,) means over the steps that count and balancers, the policy's


@dataclass(frozen=True)
class EvaluateJob:
    """A policy beside its base."""

    setup: Setup
    task: Task
    parameters: Mapping[str, NDArray[np.float32]]
    decode: str
    seed: tuple[int, ...]
    replicas: int
    twins: bool = True  # else nothing is told of the base policy

    def run(self) -> Evaluation:
        setup = self.setup
        balancers = balancers_for(self.task, self.seed)
        network = Network(self.parameters, setup.schema)
        episodes = Episodes(setup, self.task, balancers, self.replicas, twins=self.twins, width=self.task.width)
        try:
            episodes.begin(seeds_for(self.seed, self.replicas))
            hidden = network.initial(episodes.rows, self.task.width)
            tally = Tally(setup, self.replicas * (2 if self.twins else 1))
            costs = Costs(setup, 1)
            sampler = Sampler(balancers, np.random.default_rng([*self.seed, SAMPLES]))
            for _ in range(setup.steps):
                inputs = episodes.inputs()
                sampler.add(inputs)
                rows, whole, hidden = network.forward(inputs, hidden)
                outcome = episodes.step(*decide(setup.schema, rows, whole, self.decode))
                tally.add(outcome)
                costs.add(outcome.cost)
        finally:
            episodes.close()
        fct = np.where(tally.complete, tally.fct, np.nan)
        return Evaluation(self.task.name, fct[: self.replicas], fct[self.replicas :], sampler.sample(), costs.means[0])


@dataclass(frozen=True)
class MembersJob:
    """Policies that differ a little, all in the same episodes."""

    setup: Setup
    task: Task
    hidden: int
    decode: str
    vectors: NDArray[np.float32]  # (members, parameters)
    seed: tuple[int, ...]
    episodes: int  # different ones

    def run(self) -> tuple[Floats, Floats, Sample]:
        """Return mean completion times (members, episodes), mean costs (members, constraints), and inputs."""
        setup, members = self.setup, len(self.vectors)
        balancers = balancers_for(self.task, self.seed)
        networks = Members(self.vectors, setup.schema, self.hidden)
        width = self.task.width
        episodes = Episodes(setup, self.task, balancers, members * self.episodes, twins=False, width=width)
        try:
            episodes.begin(seeds_for(self.seed, self.episodes) * members)
            hidden = np.zeros((episodes.rows, width, self.hidden), dtype=np.float32)
            tally, costs = Tally(setup, members * self.episodes), Costs(setup, members)
            sampler = Sampler(balancers, np.random.default_rng([*self.seed, SAMPLES]))
            for _ in range(setup.steps):
                inputs = episodes.inputs()
                sampler.add(inputs)
                rows, whole, hidden = networks.forward(inputs, hidden)
                outcome = episodes.step(*decide(setup.schema, rows, whole, self.decode))
                tally.add(outcome)
                costs.add(outcome.cost)
        finally:
            episodes.close()
        fct = np.where(tally.complete, tally.fct, np.nan).reshape(members, self.episodes)
        return fct, costs.means, sampler.sample()
