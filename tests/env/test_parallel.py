"""LoadBalanceParallel: several balancers that each see their own flows."""

from dataclasses import replace

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from controlplane.env import LoadBalanceParallel
from controlplane.env.actions import KINDS
from tests.env.worlds import INTERVAL, farm


def make(balancers=3, **settings):
    given = {
        "world": replace(farm(), balancers=balancers),
        "interval": INTERVAL,
        "base": "gsed",
        "max_episode_steps": 20,
    }
    return LoadBalanceParallel(**(given | settings))


def neutral(env):
    return {agent: env.neutral_action() for agent in env.agents}


@pytest.mark.parametrize("action", KINDS)
def test_pettingzoos_checker_passes(action):
    parallel_api_test(make(action=action), num_cycles=100)


def test_pettingzoos_seed_checker_passes():
    parallel_seed_test(make, num_cycles=30)


def test_each_agent_sees_only_its_own_flows():
    env = make()
    env.reset(seed=1)
    for _ in range(5):
        observations, *_ = env.step(neutral(env))
    in_flight = np.array([observations[agent]["servers"][:, 0] for agent in env.possible_agents])
    assert in_flight.sum() == env.core.source.simulations[0].totals().in_flight
    assert (in_flight[0] != in_flight[1]).any()


def test_agents_act_each_for_themselves():
    env = make(2, action="weights", drain=True)
    env.reset(seed=1)
    actions = {"balancer_0": np.array([1, 1, -1, -1]), "balancer_1": np.array([-1, -1, 1, 1])}
    for _ in range(10):
        env.step(actions)
    flows = env.core.reading.counters[:, :, 0]
    assert not flows[0, 2:].any()
    assert not flows[1, :2].any()


def test_a_shared_reward_is_the_mean():
    shared, own = make(shared_reward=True), make()
    for env in (shared, own):
        env.reset(seed=1)
    for _ in range(5):
        _, one, *_ = shared.step(neutral(shared))
        _, each, *_ = own.step(neutral(own))
    assert len(set(each.values())) > 1
    assert list(one.values()) == pytest.approx([np.mean(list(each.values()))] * 3)


def test_an_episode_ends_for_all_at_once():
    env = make()
    env.reset(seed=1)
    for i in range(20):
        *_, truncations, _ = env.step(neutral(env))
        assert all(truncations.values()) == (i == 19)
    assert env.agents == []


def test_state_is_what_all_see():
    env = make(2)
    env.reset(seed=1)
    env.step(neutral(env))
    assert env.state().shape == (2 * 4 * 11 + 4 * 4,)
