"""Small batches and a small game for the agents' tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from controlplane.agents.agent import Agent
from controlplane.agents.batch import Sequences, Transition
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.schema import ActionSchema


def inputs_of(rng: np.random.Generator, rows: int, servers: int, *, idle: bool = False) -> Inputs:
    """Return random inputs; idle: the last server is not active."""
    active = np.ones((rows, servers), np.bool_)
    active[:, -1] = not idle
    return Inputs(
        rng.normal(size=(rows, servers, len(SERVER_COLUMNS))).astype(np.float32),
        rng.normal(size=(rows, len(GLOBAL_COLUMNS))).astype(np.float32),
        active,
    )


def sequences(
    schema: ActionSchema,
    rng: np.random.Generator,
    batch: int,
    steps: int,
    servers: int,
    hidden: int,
    burn_in: int = 0,
) -> Sequences:
    """Return random sequences of an action schema, all servers active, no borders."""
    levels = len(schema.levels) or servers
    heads = len(schema.global_heads) + (schema.kind == "choice")
    normal = lambda *shape: torch.from_numpy(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    return Sequences(
        normal(batch, steps, servers, len(SERVER_COLUMNS)),
        normal(batch, steps, len(GLOBAL_COLUMNS)),
        torch.ones(batch, steps, servers, dtype=torch.bool),
        torch.from_numpy(rng.integers(0, levels, (batch, steps, servers, len(schema.row_heads)))),
        torch.from_numpy(rng.integers(0, levels, (batch, steps, heads))),
        normal(batch, steps),
        torch.zeros(batch, steps, 0),
        torch.zeros(batch, steps, dtype=torch.bool),
        torch.zeros(batch, steps, dtype=torch.bool),
        normal(batch, servers, hidden),
        burn_in,
    )


class Recall:
    """A game that takes memory: each server shows a sign once, and three steps later its `mu` must be of that sign.

    An episode has four steps; the reward comes in the last: the share of servers and heads with the right sign. Rewards
    of single heads are not told.
    """

    STEPS = 4

    def __init__(self, rows: int, servers: int, seed: int) -> None:
        self.rng, self.rows, self.servers = np.random.default_rng(seed), rows, servers
        self.signs = np.zeros((rows, servers))

    def play(self, agent: Agent, episodes: int, *, explore: bool = True, learn: bool = True) -> float:
        """Play episodes with all rows at once and return the mean reward of their ends."""
        ends: list[float] = []
        for _ in range(episodes):
            hidden = agent.initial(self.rows, self.servers)
            self.signs = self.rng.choice([-1.0, 1.0], (self.rows, self.servers))
            for step in range(self.STEPS):
                inputs = self.look(step)
                rows, whole, after = agent.act(inputs, hidden, explore)
                reward = np.zeros(self.rows, np.float32)
                last = step == self.STEPS - 1
                if last:
                    right = np.sign(agent.schema.values(rows)[:, :, 0]) == self.signs
                    reward = right.mean(axis=1).astype(np.float32)
                    ends.append(float(reward.mean()))
                if learn:
                    each: Any = np.ones(self.rows, np.bool_)
                    costs = np.zeros((self.rows, 0), np.float32)
                    agent.observe(
                        Transition(inputs, rows, whole, reward, costs, each & last, each & (step == 0), hidden)
                    )
                    while agent.ready:
                        agent.learn()
                hidden = after
        return float(np.mean(ends))

    def look(self, step: int) -> Inputs:
        rows = np.zeros((self.rows, self.servers, len(SERVER_COLUMNS)), np.float32)
        rows[:, :, :2] = self.signs[:, :, None] * (step == 0)
        whole = np.zeros((self.rows, len(GLOBAL_COLUMNS)), np.float32)
        whole[:, 2:4] = 1.0 if step == self.STEPS - 1 else -1.0
        return Inputs(rows, whole, np.ones((self.rows, self.servers), np.bool_))
