"""Multipliers of constraints: they rise while violated, fall when not, and settle at the saddle point."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import Transition  # noqa: E402
from controlplane.agents.dqn import DeepQNetwork, DqnConfig  # noqa: E402
from controlplane.agents.lagrange import Multipliers  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)


def test_a_multiplier_rises_while_its_constraint_is_violated_and_the_others_stay_at_zero():
    multipliers = Multipliers(limit=0.1, rate=0.5)
    seen = []
    for _ in range(4):
        multipliers.update(np.array([[0.3, 0.0], [0.5, 0.1]]))
        seen.append(multipliers.values.copy())
    # mean costs 0.4 and 0.05: 0.5 · (0.4 − 0.1) a step, and nothing below zero
    np.testing.assert_allclose([values[0] for values in seen], [0.15, 0.30, 0.45, 0.60])
    assert all(values[1] == 0.0 for values in seen)


def test_a_multiplier_falls_when_its_constraint_is_kept_and_stops_at_the_bounds():
    multipliers = Multipliers(limit=0.2, rate=1.0, most=3.0)
    for _ in range(5):
        multipliers.update(np.array([[1.2]]))
    assert multipliers.values == [3.0]
    multipliers.update(np.array([[0.0]]))
    np.testing.assert_allclose(multipliers.values, [2.8])


def test_dual_ascent_settles_at_the_known_multiplier():
    # max −(x − 1)² subject to x ≤ 0.6: the best reply to λ is x = 1 − λ/2, so λ = 0.8 at the saddle point
    multipliers = Multipliers(limit=0.6, rate=0.05)
    x = 1.0
    for _ in range(1_000):
        multipliers.update(np.array([[x]]))
        x = 1.0 - multipliers.values[0] / 2
    assert multipliers.values[0] == pytest.approx(0.8, abs=1e-6)
    assert x == pytest.approx(0.6, abs=1e-6)


def test_the_number_of_constraints_does_not_change():
    multipliers = Multipliers()
    multipliers.update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 costs, expected 3"):
        multipliers.update(np.zeros((2, 2)))


def test_an_agent_keeps_a_constraint_that_costs_reward():
    # Two servers: the first pays 1 and costs 1, the second nothing. With a mean cost of at most 0.3 the multiplier must
    # settle where both are worth the same, at λ = 1, and the first be chosen about as often as is allowed.
    config = DqnConfig(
        hidden=16,
        gamma=0.0,
        memory=False,
        length=1,
        burn_in=0,
        batch=32,
        warmup=64,
        capacity=2_000,
        learning_rate=3e-3,
        epsilon=0.1,
        epsilon_end=0.1,
        normalise_reward=False,
        cost_limit=0.3,
        multiplier_rate=0.005,
    )
    agent = DeepQNetwork(ActionSchema("choice"), config, seed=1)
    rows = np.zeros((32, 2, len(SERVER_COLUMNS)), np.float32)
    rows[:, 0, :4], rows[:, 1, :4] = 1.0, -1.0
    inputs = Inputs(rows, np.zeros((32, len(GLOBAL_COLUMNS)), np.float32), np.ones((32, 2), np.bool_))
    hidden, none, never = agent.initial(32, 2), np.zeros((32, 2, 0), np.int64), np.zeros(32, np.bool_)
    values, first = [], []
    for _ in range(1_000):
        _, chosen, _ = agent.act(inputs, hidden, explore=True)
        paid = (chosen[:, 0] == 0).astype(np.float32)
        agent.observe(Transition(inputs, none, chosen, paid, paid[:, None], never, never, hidden))
        while agent.ready:
            agent.learn()
        values.append(agent.multipliers.values[0])
        first.append(paid.mean())
    assert values[0] < 0.01  # it begins without a multiplier
    assert np.mean(values[400:]) == pytest.approx(1.0, abs=0.15)
    assert np.mean(first[400:]) == pytest.approx(0.3, abs=0.15)
