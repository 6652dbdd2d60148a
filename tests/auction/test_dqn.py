"""The deep Q-network: the shape that the white paper gives it, its target, and that it learns."""

import numpy as np
import pytest

from controlplane.auction.learning import INCREASE, make

torch = pytest.importorskip("torch", reason="torch is not installed: needs vickrey[rl]")


def agent_of(n, seed=1, **options):
    return make("dqn", n, np.random.default_rng(seed), **options)


def update(agent, ratio, sensitivity):
    ones = np.ones(agent.n)
    active = np.ones(agent.n, dtype=bool)
    return agent.update(sensitivity, ratio, 0.5 * ones, task_load=5.0, risk_aversion=0.5 * ones, active=active)


def test_the_network_is_four_inputs_two_layers_of_64_and_three_actions():
    layers = [layer for layer in agent_of(1).network if hasattr(layer, "in_features")]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(4, 64), (64, 64), (64, 3)]
    assert [type(layer).__name__ for layer in agent_of(1).network] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_the_target_network_is_renewed_every_so_many_updates():
    agent = agent_of(4, target_every=5, batch=8)

    def same():
        pairs = zip(agent.network.parameters(), agent.target.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same()
    rng, sensitivity = np.random.default_rng(2), np.ones(4)
    seen = []
    for _ in range(11):
        sensitivity = update(agent, rng.random(4), sensitivity)
        seen.append(same())
    # Updates begin with the second round: the fifth and the tenth copy the network.
    assert seen == [True, False, False, False, False, True, False, False, False, False, True]


def test_replay_keeps_the_last_transitions():
    agent = agent_of(3, memory=7, batch=4)
    sensitivity = np.ones(3)
    for i in range(5):
        sensitivity = update(agent, np.full(3, i / 10), sensitivity)
    assert agent._remembered == 12
    assert sorted(np.round(agent._memory_state[:, 0], 1).tolist()) == pytest.approx([0.1, *[0.2] * 3, *[0.3] * 3])


def test_a_seed_repeats_and_torchs_own_generator_and_threads_are_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    threads = torch.get_num_threads()

    def run():
        agent, sensitivity, rng = agent_of(5, batch=16), np.ones(5), np.random.default_rng(3)
        for _ in range(30):
            sensitivity = update(agent, rng.random(5), sensitivity)
        return sensitivity.tolist()

    assert run() == run()
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_its_action_moves_the_bid_of_the_coming_round():
    agent = agent_of(300, epsilon=1.0, neural_rate=0.2)
    update(agent, np.full(300, 0.9), np.ones(300))
    assert set(np.round(agent.neural, 6)) == {1.2, 0.8, 1.0}
    assert (agent.neural[agent.action == INCREASE] == 1.2).all()


def test_it_finds_the_action_that_pays():
    agent = agent_of(20, epsilon=0.2, gamma=0.5)
    ratio, sensitivity = np.full(20, 0.9), np.ones(20)
    for _ in range(400):
        sensitivity = update(agent, ratio, np.ones(20))
        ratio = np.where(agent.action == INCREASE, ratio - 0.2 * (ratio - 0.5), np.minimum(ratio + 0.05, 0.95))
    state = np.column_stack([np.full(20, 0.9), np.full(20, 5.0), np.ones(20), np.full(20, 0.5)])
    assert (agent.values(state).argmax(axis=1) == INCREASE).all()
    assert np.isfinite(sensitivity).all()
