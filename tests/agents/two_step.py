"""The two-step game of the QMIX paper (Rashid et al. 2018, section 5 and appendix B), as vector steps for agents.

Two balancers, two "servers" each (kind choice). In the first state the first balancer's choice alone counts: it leads
to game A, where every joint choice is worth 7, or to game B, worth [[0, 1], [1, 8]].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.batch import Transition
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs

GAME_A = np.full((2, 2), 7.0)
GAME_B = np.array([[0.0, 1.0], [1.0, 8.0]])


def inputs(state: NDArray[np.int64]) -> Inputs:
    """Return what 2·R balancers see of states (R,) 0, 1 (A) or 2 (B): the state, who they are, the servers."""
    replicas = len(state)
    rows = np.zeros((2 * replicas, 2, len(SERVER_COLUMNS)), dtype=np.float32)
    rows[:, 1, 0] = 1.0
    whole = np.zeros((2 * replicas, len(GLOBAL_COLUMNS)), dtype=np.float32)
    whole[np.arange(2 * replicas), np.repeat(state, 2)] = 1.0
    whole[1::2, 3] = 1.0
    return Inputs(rows, whole, np.ones((2 * replicas, 2), dtype=np.bool_))


def play(agent: Any, steps: int, replicas: int = 16) -> None:
    """Let an agent play and learn for so many vector steps; rewards are the team's."""
    state, hidden = np.zeros(replicas, dtype=np.int64), agent.initial(2 * replicas, 2)
    for _ in range(steps):
        seen = inputs(state)
        numbers_rows, numbers_whole, after = agent.act(seen, hidden, explore=True)
        first, second = numbers_whole[::2, 0], numbers_whole[1::2, 0]
        over = state > 0
        reward = np.where(over, np.where(state == 1, GAME_A[first, second], GAME_B[first, second]), 0.0)
        both = 2 * replicas
        agent.observe(
            Transition(
                seen,
                numbers_rows,
                numbers_whole,
                np.repeat(reward, 2).astype(np.float32),
                np.zeros((both, 0), dtype=np.float32),
                np.repeat(over, 2),
                np.repeat(~over, 2),
                hidden,
                balancers=2,
            )
        )
        state = np.where(over, 0, 1 + first)
        hidden = after * np.repeat(~over, 2)[:, None, None]
        while agent.ready:
            agent.learn()


def value(agent: Any) -> float:
    """Return what the agents' greedy choices are worth."""
    _, first, hidden = agent.act(inputs(np.array([0])), agent.initial(2, 2), explore=False)
    game = int(first[0, 0])
    _, both, _ = agent.act(inputs(np.array([1 + game])), hidden, explore=False)
    return float((GAME_A, GAME_B)[game][both[0, 0], both[1, 0]])
