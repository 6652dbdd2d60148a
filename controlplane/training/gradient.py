"""Learning by gradients: every round, the agent acts in whole episodes in all lanes, then takes the steps in, in order,
and learns whenever it is ready."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from controlplane.agents.agent import Agent
from controlplane.agents.isac import IndependentConfig
from controlplane.command import CommandError
from controlplane.training.episodes import Setup
from controlplane.training.learners import Hold, Parameters, Round, rows_of, same_balancers
from controlplane.training.sampler import RolloutJob, side_by_side
from controlplane.training.tasks import Task
from controlplane.training.workers import Workers

# Agents that act for, or learn from, all balancers of a farm at once.
WHOLE_FARMS = ("ssac", "isac", "mpg")


class Gradient:
    """An agent of controlplane/agents and its rollouts."""

    def __init__(self, agent: Agent, setup: Setup, tasks: Sequence[Task], seed: int, replicas: int, lanes: int) -> None:
        if (agent.several or agent.name in WHOLE_FARMS) and same_balancers(tasks) is None:
            raise CommandError(
                f"agent {agent.name} learns from all balancers of a farm together: give it scenarios of one number of "
                "balancers (random:balancers=4)",
                status=2,
            )
        own = agent.config if isinstance(agent.config, IndependentConfig) else None
        if own is not None and not own.shared and own.balancers != same_balancers(tasks):
            raise CommandError(
                f"agent.balancers: expected {same_balancers(tasks)}, as many as the scenarios have, not "
                f"{own.balancers}: each has a network of its own (agent.shared: false)",
                status=2,
            )
        torch.set_num_threads(1)
        self.agent, self.setup, self.tasks, self.seed, self.lanes = agent, setup, tasks, seed, lanes
        self.rows = rows_of(tasks, replicas // lanes)
        self.decode, self.recorded, self.cumulative = agent.decode, False, False

    def round(self, number: int, workers: Workers, hold: Hold) -> Round:
        agent = self.agent
        state = agent.state_dict()
        jobs = [
            RolloutJob(
                self.setup,
                self.tasks[(number * self.lanes + lane) % len(self.tasks)],
                agent.name,
                agent.config,
                state,
                (self.seed, number, lane),
                self.rows,
            )
            for lane in range(self.lanes)
        ]
        lanes = workers.map(jobs)
        losses: dict[str, list[float]] = defaultdict(list)
        hold()
        for step in side_by_side(lanes):
            agent.observe(step)
            while agent.ready:
                for name, value in agent.learn().items():
                    losses[name].append(value)
        figures = {name: float(np.mean(values)) for name, values in losses.items()}
        figures["reward"] = float(np.mean([lane.reward for lane in lanes]))
        figures["updates"] = float(agent.updates)
        costs = np.mean([step.cost.mean(axis=0) for lane in lanes for step in lane.steps], axis=0)
        figures |= {f"constraint/{i}": float(x) for i, x in enumerate(costs)}
        figures |= {f"multiplier/{i}": float(x) for i, x in enumerate(agent.multipliers.values)}
        steps = sum(lane.farms for lane in lanes) * self.setup.steps
        return Round(steps, figures, [lane.sample for lane in lanes])

    def settle(self) -> dict[str, float]:
        return {}

    def parameters(self) -> Parameters:
        return self.agent.actor().parameters_numpy()

    def begin_from(self, parameters: Mapping[str, Any]) -> None:
        self.agent.load_actor(parameters)

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict(replay=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
