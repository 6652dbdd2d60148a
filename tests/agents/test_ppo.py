"""PPO: advantages and the clipped surrogate by hand, pieces with their stored state, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import Transition  # noqa: E402
from controlplane.agents.ppo import PpoConfig, ProximalPolicy, advantages, clipped  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402
from tests.agents.play import Recall, inputs_of  # noqa: E402

torch.set_num_threads(1)

SMALL = ActionSchema(levels=(-1.0, 0.0, 1.0), row_heads=("mu",), global_heads=("scale",))


def test_advantages_are_the_decayed_sums_of_the_errors():
    # γ = 0.5, λ = 0.5; V = 1, 2, 3, 4:  δ = (r + V'/2 − V) = 1 + 1 − 1, 1 + 1.5 − 2, 1 + 2 − 3 = 1, 0.5, 0
    reward, values = torch.ones(1, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    never, always = torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    assert advantages(reward, values, never, always, 0.5, 0.5).tolist() == [[1.125, 0.5, 0.0]]
    # Step 1 terminates: δ = 1 − 2, and nothing comes back over it.
    done = torch.tensor([[False, True, False, False]])
    assert advantages(reward, values, done, always, 0.5, 0.5).tolist() == [[0.75, -1.0, 0.0]]
    # After step 1 the episode was cut off: that step says nothing, and the one before ends with its own error.
    valid = torch.tensor([[True, False, True]])
    assert advantages(reward, values, never, valid, 0.5, 0.5).tolist() == [[1.0, 0.0, 0.0]]


def test_a_ratio_beyond_the_clip_gains_nothing_more_but_a_loss_counts_in_full():
    new, old = torch.log(torch.tensor([[[1.5], [1.1], [0.5]]])), torch.zeros(1, 1, 3)
    got = clipped(new.reshape(1, 1, 3), old, torch.tensor([[2.0]]), 0.2)
    torch.testing.assert_close(got, torch.tensor([[[2.4, 2.2, 1.0]]]))
    got = clipped(new.reshape(1, 1, 3), old, torch.tensor([[-2.0]]), 0.2)
    torch.testing.assert_close(got, torch.tensor([[[-3.0, -2.2, -1.6]]]))


def filled(agent: ProximalPolicy, rows: int, servers: int, seed: int) -> None:
    """Let an agent act on random inputs for its horizon, with borders of episodes here and there."""
    rng = np.random.default_rng(seed)
    hidden = agent.initial(rows, servers)
    for step in range(agent.config.horizon + 1):
        fresh = rng.random(rows) < (1.0 if step == 0 else 0.1)
        hidden = hidden * ~fresh[:, None, None]
        inputs = inputs_of(rng, rows, servers)
        numbers_rows, numbers_whole, after = agent.act(inputs, hidden, explore=True)
        reward = rng.normal(size=rows).astype(np.float32)
        costs, never = np.zeros((rows, 0), np.float32), np.zeros(rows, np.bool_)
        agent.observe(Transition(inputs, numbers_rows, numbers_whole, reward, costs, never, fresh, hidden))
        hidden = after


def test_before_the_first_step_all_ratios_are_one_in_every_piece():
    # Pieces begin with the stored state: run from there, the probabilities are those of the whole rollout.
    agent = ProximalPolicy(SMALL, PpoConfig(hidden=8, horizon=12, length=4), seed=1)
    filled(agent, 5, 3, seed=1)
    assert agent.ready
    pieces, old, advantage, target = agent.rollout()
    assert pieces.rows.shape[:2] == (15, 5)
    assert advantage.shape == target.shape == (15, 4)
    losses = agent.losses(pieces, old, torch.ones_like(advantage), target)
    assert float(losses["policy"].detach()) == pytest.approx(-1.0, abs=1e-5)
    valid = pieces.valid
    assert float((advantage * valid).sum() / valid.sum()) == pytest.approx(0.0, abs=1e-5)
    assert not advantage[~valid].abs().sum() > 1e3 * valid.sum()


def test_it_is_ready_after_each_horizon_and_begins_a_new_rollout():
    agent = ProximalPolicy(SMALL, PpoConfig(hidden=8, horizon=8, length=4, epochs=1), seed=2)
    filled(agent, 4, 3, seed=2)
    figures = agent.learn()
    assert not agent.ready
    assert all(np.isfinite(value) for value in figures.values())
    assert agent.updates == 1
    with pytest.raises(ValueError, match="length 5 does not divide horizon 8"):
        PpoConfig(horizon=8, length=5)


def test_it_remembers_what_was_seen_three_steps_before():
    config = PpoConfig(
        hidden=16, gamma=0.9, learning_rate=1e-2, horizon=8, length=8, minibatches=2, epochs=3, entropy_weight=0.003
    )
    agent, game = ProximalPolicy(SMALL, config, seed=1), Recall(64, 3, seed=1)
    assert game.play(agent, 4, explore=False, learn=False) < 0.6
    game.play(agent, 100)
    assert game.play(agent, 4, explore=False, learn=False) > 0.85
