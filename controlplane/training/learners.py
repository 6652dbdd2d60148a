"""The ways to learn, as the trainer sees them: a round at a time, with a state that can be saved between rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.es import EvolutionStrategy
from controlplane.agents.lagrange import Multipliers
from controlplane.training.episodes import Setup
from controlplane.training.jobs import MembersJob, balancers_for
from controlplane.training.ranges import Sample
from controlplane.training.tasks import Task
from controlplane.training.workers import Workers

Parameters = dict[str, NDArray[np.float32]]
# From its call on nothing is interrupted: called when a learner begins to change.
Hold = Callable[[], None]


@dataclass(frozen=True)
class Round:
    """What a round gave."""

    steps: int  # control intervals of farms
    figures: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


class Learner(Protocol):
    """Learns a policy, a round at a time."""

    decode: str
    recorded: bool  # learns from a record alone, and sees nothing of what it is evaluated in
    cumulative: bool  # learns each policy anew from all that it has seen: the newest is the best, whatever chance says

    def round(self, number: int, workers: Workers, hold: Hold) -> Round:
        """Make a round. Until it calls hold() the learner is as it was before."""

    def settle(self) -> dict[str, float]:
        """Do what rounds have put off until the policy is looked at, if anything; return figures of it. Interrupted, it
        leaves the learner as it was."""

    def parameters(self) -> Parameters:
        """Return the present policy's network, as settle() left it."""

    def begin_from(self, parameters: Mapping[str, Any]) -> None:
        """Begin from an exported policy."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class Evolution:
    """The evolution strategy: a round is a generation, all of whose members meet the same episodes.

    Members are split into `lanes` jobs, which meet the same episodes too. Several scenarios take turns; each of the
    generation's episode groups is of one.
    """

    def __init__(self, strategy: EvolutionStrategy, setup: Setup, tasks: Sequence[Task], seed: int, lanes: int) -> None:
        c = strategy.config
        self.strategy, self.setup, self.tasks, self.seed, self.lanes = strategy, setup, tasks, seed, lanes
        self.decode, self.recorded, self.cumulative = strategy.decode, False, False
        self.multipliers = Multipliers(c.cost_limit, c.multiplier_rate, c.multiplier_max)

    def round(self, number: int, workers: Workers, hold: Hold) -> Round:
        c, members = self.strategy.config, self.strategy.ask()
        groups = self._groups(number)
        parts = np.array_split(np.arange(len(members)), min(self.lanes, len(members)))
        jobs = [
            MembersJob(self.setup, task, c.hidden, self.decode, members[part], seed, episodes)
            for task, seed, episodes in groups
            for part in parts
        ]
        results = workers.map(jobs)
        fct, costs = [], np.zeros((len(members), len(self.setup.constraints)))
        for i in range(len(groups)):
            own = results[i * len(parts) : (i + 1) * len(parts)]
            fct.append(np.concatenate([found[0] for found in own]))
            costs += np.concatenate([found[1] for found in own]) / len(groups)
        fitness, spread = fitness_of(np.concatenate(fct, axis=1))
        hold()
        if costs.shape[1]:
            self.multipliers.update(costs)
            fitness = fitness - costs @ self.multipliers.values
        figures = self.strategy.tell(fitness)
        figures["fitness/spread_of_an_episode"] = spread
        figures |= {f"constraint/{i}": float(x) for i, x in enumerate(costs.mean(axis=0))}
        figures |= {f"multiplier/{i}": float(x) for i, x in enumerate(self.multipliers.values)}
        steps = len(members) * sum(episodes for _, _, episodes in groups) * self.setup.steps
        return Round(steps, figures, [found[2] for found in results[:: max(1, len(parts))]])

    def _groups(self, number: int) -> list[tuple[Task, tuple[int, ...], int]]:
        """Return scenario, seed and number of this generation's episodes. Scenarios are evenly used."""
        episodes, tasks = self.strategy.config.episodes, self.tasks
        chosen: dict[int, int] = {}
        for i in range(episodes):
            which = (number * episodes + i) % len(tasks)
            chosen[which] = chosen.get(which, 0) + 1
        groups: list[tuple[Task, tuple[int, ...], int]] = []
        for which, count in chosen.items():
            task = tasks[which]
            apart = task.balancers[0] != task.balancers[1]  # another number of balancers in each
            for i in range(count if apart else 1):
                groups.append((task, (self.seed, number, which, i), 1 if apart else count))
        return groups

    def settle(self) -> dict[str, float]:
        return {}

    def parameters(self) -> Parameters:
        return self.strategy.parameters()

    def begin_from(self, parameters: Mapping[str, Any]) -> None:
        self.strategy.load_actor(parameters)

    def state_dict(self) -> dict[str, Any]:
        return {"strategy": self.strategy.state_dict(), "multipliers": self.multipliers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.load_state_dict(state["strategy"])
        self.multipliers.load_state_dict(state["multipliers"])


def fitness_of(fct: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return fitness (members,) of mean completion times (members, episodes), and the spread of an episode's ratios.

    Each episode counts by −log of the ratio to its members' mean; −inf for one in which nothing ended.
    """
    known = np.isfinite(fct) & (fct > 0)
    log = np.log(np.where(known, fct, 1.0))
    number = np.maximum(known.sum(axis=0), 1)
    ratio = log - np.where(known, log, 0.0).sum(axis=0) / number
    spread = float(np.where(known, ratio, 0.0).std(axis=0).mean())
    # An episode in which no member got a flow through tells nothing.
    some = known.any(axis=0)
    ratio = np.where(known, ratio, np.inf)[:, some]
    return -ratio.mean(axis=1) if some.any() else np.zeros(len(fct)), spread


def rows_of(tasks: Sequence[Task], replicas: int) -> int:
    """Return how many balancers act in a lane of so many farms: always as many, whatever the scenario."""
    counts = {count for task in tasks for count in task.balancers}
    return replicas * counts.pop() if len(counts) == 1 else max(replicas, *counts)


def same_balancers(tasks: Sequence[Task]) -> int | None:
    """Return the number of balancers when all tasks have the same, else None."""
    counts = {count for task in tasks for count in task.balancers}
    return counts.pop() if len(counts) == 1 else None


__all__ = ["Evolution", "Learner", "Parameters", "Round", "balancers_for", "fitness_of", "rows_of", "same_balancers"]
