"""Learning from constant corrections: a round is a number of farms, a job each. Where it is looked at, the network is
learned anew from all farms so far (controlplane/agents/arms.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.agents import surfaces
from controlplane.agents.surfaces import CORES, ORDERED, QUEUES, Arms, Farm
from controlplane.env.core import Core
from controlplane.learned.encoding import Inputs
from controlplane.training.episodes import Episodes, Setup, Tally
from controlplane.training.jobs import EXPLORE, SAMPLES, WORLDS, balancers_for
from controlplane.training.learners import Hold, Parameters, Round
from controlplane.training.ranges import Sample, Sampler
from controlplane.training.tasks import Task
from controlplane.training.workers import Workers

if TYPE_CHECKING:
    from controlplane.agents.arms import ConstantArms

# From this part of the second half of an episode on, bids that came from the own flows' order make a farm one of those.
MOSTLY = 0.5


@dataclass(frozen=True)
class ArmsJob:
    """One farm: episodes on the same arrivals and demands, the base policy's and one of each correction."""

    setup: Setup
    task: Task
    seed: tuple[int, ...]
    arms: int

    def run(self) -> tuple[Farm, Sample]:
        setup, generator = self.setup, np.random.default_rng([*self.seed, EXPLORE])
        balancers, replicas = balancers_for(self.task, self.seed), 1 + self.arms
        u = np.concatenate([np.zeros((1, 3)), surfaces.draw(generator, self.arms)])
        watched = np.array([0, 1 + int(generator.integers(self.arms))]) * balancers  # first balancers of two episodes
        episodes = Episodes(setup, self.task, balancers, replicas, twins=False, records=True)
        seen, ordered = _Seen(), 0
        try:
            episodes.begin([[*self.seed, WORLDS]] * replicas)
            world = episodes.world
            tally, sampler = Tally(setup, replicas), Sampler(balancers, np.random.default_rng([*self.seed, SAMPLES]))
            for step in range(setup.steps):
                inputs = episodes.inputs()
                sampler.add(inputs)
                relative, own = _relative(episodes.core, inputs)
                ordered += own and step >= setup.steps // 2
                seen.add(inputs, relative, watched)
                tally.add(episodes.step(*surfaces.corrections(setup.schema, u.repeat(balancers, axis=0), relative)))
            p99 = episodes.p99() * tally.failing
        finally:
            episodes.close()
        fct = np.stack([tally.fct, p99], 1)
        fct = np.log(np.where(tally.complete[:, None] & (fct > 0), fct, np.nan))
        sharing = np.mean([server.service == "sharing" for server in world.servers]) > 0.5
        kind = ORDERED if ordered > MOSTLY * (setup.steps - setup.steps // 2) else CORES if sharing else QUEUES
        arms = Arms(u[1:], fct[1:] - fct[0], surfaces.regime_of(kind, balancers), balancers, float(world.load or 0.0))
        return seen.farm(arms), sampler.sample()


def _relative(core: Core, inputs: Inputs) -> tuple[Any, bool]:
    """Return surfaces.relative_of() each row, and whether the first row's bids come from its own flows' order."""
    decided = [core.base.directives[row] for row in range(len(inputs.active))]
    weights = [None if one is None or one.weights is None else np.asarray(one.weights) for one in decided]
    relative = np.zeros(inputs.active.shape)
    for row, given in enumerate(weights):
        n = 0 if given is None else len(given)
        relative[row, :n] = surfaces.relative_of(given, inputs.active[row, :n])
    return relative, decided[0] is not None and "service" in decided[0].fitted


class _Seen:
    """What two balancers see, step by step."""

    def __init__(self) -> None:
        self._steps: list[tuple[Any, ...]] = []

    def add(self, inputs: Inputs, relative: Any, which: Any) -> None:
        parts = inputs.rows, inputs.whole, inputs.active, relative
        self._steps.append(tuple(part[which].copy() for part in parts))

    def farm(self, arms: Arms) -> Farm:
        rows, whole, active, relative = (np.stack(parts, 1) for parts in zip(*self._steps, strict=True))
        return Farm(arms, rows.astype(np.float16), whole, active, relative.astype(np.float16))


class Regression:
    """The agent `arms` and its farms. Scenarios take turns."""

    recorded, cumulative = False, True

    def __init__(self, agent: ConstantArms, setup: Setup, tasks: Sequence[Task], seed: int) -> None:
        self.agent, self.setup, self.tasks, self.seed = agent, setup, tasks, seed
        self.decode = agent.decode

    def round(self, number: int, workers: Workers, hold: Hold) -> Round:
        c = self.agent.config
        jobs = [
            ArmsJob(self.setup, self.tasks[i % len(self.tasks)], (self.seed, i), c.arms)
            for i in range(number * c.farms, (number + 1) * c.farms)
        ]
        found = workers.map(jobs)
        hold()
        self.agent.take([farm for farm, _ in found])
        figures = {"farms": float(sum(farm.is_whole for farm in self.agent.farms))}
        return Round(len(jobs) * (1 + c.arms) * self.setup.steps, figures, [sample for _, sample in found])

    def settle(self) -> dict[str, float]:
        return self.agent.learn()

    def parameters(self) -> Parameters:
        return self.agent.parameters()

    def begin_from(self, parameters: Mapping[str, Any]) -> None:
        self.agent.load_actor(parameters)

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
