"""Double DQN: its target by hand, its exploration, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.dqn import DeepQNetwork, DqnConfig, greatest  # noqa: E402
from controlplane.agents.sac import of_chosen, over_heads  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402
from tests.agents.play import Recall, inputs_of, sequences  # noqa: E402

torch.set_num_threads(1)

SMALL = ActionSchema(levels=(-1.0, 0.0, 1.0), row_heads=("mu",), global_heads=("scale",))


def test_the_learned_network_chooses_the_next_action_and_the_target_network_says_what_it_is_worth():
    config = DqnConfig(hidden=8, gamma=0.9, burn_in=1, length=2, normalise_reward=False)
    agent = DeepQNetwork(SMALL, config, seed=1)
    with torch.no_grad():
        for parameter in agent.target.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    batch = sequences(SMALL, np.random.default_rng(1), 6, 4, 3, 8, burn_in=1)
    batch.done[2, 1] = True
    batch.fresh[4, 3] = True  # an episode was cut off after step 2
    loss, _ = agent.loss(batch)
    with torch.no_grad():
        given = batch.rows, batch.whole, batch.active, batch.hidden, batch.fresh
        q, slow = agent.network.unroll(*given)[:2], agent.target.unroll(*given)[:2]
        errors = []
        for row in range(6):
            for t in (1, 2):
                if (row, t) == (4, 2):
                    continue
                active = batch.active[row, t]
                numbers = batch.numbers_rows[row, t], batch.numbers_whole[row, t]
                value = over_heads(of_chosen((q[0][row, t], q[1][row, t]), numbers), active)
                best = greatest((q[0][row, t + 1], q[1][row, t + 1]))
                following = over_heads(of_chosen((slow[0][row, t + 1], slow[1][row, t + 1]), best), active)
                y = batch.reward[row, t] + 0.9 * (not batch.done[row, t]) * following
                errors.append(float((value - y) ** 2))
    assert float(loss.detach()) == pytest.approx(np.mean(errors), rel=1e-4)


def test_on_average_epsilon_heads_of_a_row_deviate_however_many_it_has():
    agent = DeepQNetwork(ActionSchema(), DqnConfig(epsilon=2.0), seed=2)
    inputs = inputs_of(np.random.default_rng(2), 4_000, 9, idle=True)
    greedy = agent.act(inputs, agent.initial(4_000, 9), explore=False)
    explored = agent.act(inputs, agent.initial(4_000, 9), explore=True)
    moved = (greedy[0] != explored[0]).sum(axis=(1, 2)) + (greedy[1] != explored[1]).sum(axis=1)
    # A random level is the best one itself one time in five; the slot that is not active may move too (1 of 9).
    assert 2.0 * 0.8 * 0.9 < moved.mean() < 2.0 * 0.8 * 1.2


def test_epsilon_falls_with_the_updates_and_stays_at_its_end():
    agent = DeepQNetwork(SMALL, DqnConfig(epsilon=1.0, epsilon_end=0.2, epsilon_updates=100))
    seen = []
    for agent.updates in (0, 50, 100, 500):
        seen.append(agent.epsilon)
    assert seen == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_exploring_never_takes_a_server_that_is_not_active():
    agent = DeepQNetwork(ActionSchema("choice"), DqnConfig(epsilon=1.0), seed=3)
    inputs = inputs_of(np.random.default_rng(3), 300, 4, idle=True)
    _, chosen, _ = agent.act(inputs, agent.initial(300, 4), explore=True)
    assert set(chosen[:, 0]) == {0, 1, 2}


def test_it_remembers_what_was_seen_three_steps_before():
    config = DqnConfig(
        hidden=16,
        gamma=0.9,
        length=4,
        burn_in=2,
        batch=32,
        warmup=500,
        capacity=20_000,
        learning_rate=5e-3,
        target_rate=0.05,
        epsilon_updates=300,
    )
    agent, game = DeepQNetwork(SMALL, config, seed=1), Recall(32, 3, seed=1)
    assert game.play(agent, 4, explore=False, learn=False) < 0.7
    game.play(agent, 100)
    assert game.play(agent, 4, explore=False, learn=False) > 0.9


def test_its_values_are_read_as_the_best_level():
    assert DeepQNetwork.decode == "mode"
