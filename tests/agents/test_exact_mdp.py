"""Exact routing problems: the chain against formulae and simulation, and agents within 1 % of its optimum."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.env.routing import Chain, Farm, Routing, RoutingVector

BOUND = 0.01


def solved(farm: Farm, policy: np.ndarray) -> float:
    """Return the mean completion time from the chain's stationary distribution, π Q = 0, by dense linear algebra."""
    states, shape = farm.states, farm.shape
    q = np.zeros((len(states), len(states)))
    for row, state in enumerate(states):
        server = policy[tuple(state)]
        moves = [(farm.arrivals, np.eye(len(state), dtype=int)[server])] if (state < farm.room).any() else []
        moves += [(mu, -np.eye(len(state), dtype=int)[i]) for i, mu in enumerate(farm.speeds) if state[i]]
        for rate, change in moves:
            q[row, np.ravel_multi_index(tuple(state + change), shape)] += rate
            q[row, row] -= rate
    a = np.vstack([q.T, np.ones(len(states))])
    pi = np.linalg.lstsq(a, np.append(np.zeros(len(states)), 1.0), rcond=None)[0]
    return float(pi @ states.sum(axis=1)) / farm.arrivals


def test_one_server_is_an_m_m_1():
    farm = Farm((2.0,), 0.6, 60)  # 1 / (μ − λ) = 1 / 0.8
    assert Chain(farm).mean_time(np.zeros(farm.shape, dtype=np.int64)) == pytest.approx(1.25, rel=1e-4)
    assert Chain(farm).optimum()[0] == pytest.approx(1.25, rel=1e-4)


@settings(max_examples=15)
@given(
    speeds=st.lists(st.floats(0.5, 8.0), min_size=2, max_size=3),
    load=st.floats(0.2, 0.9),
    seed=st.integers(0, 1000),
)
def test_any_policy_has_the_mean_that_its_stationary_distribution_says(speeds, load, seed):
    farm = Farm(tuple(speeds), load, 5 if len(speeds) == 3 else 9)
    allowed = farm.states < farm.room
    scores = np.where(allowed, np.random.default_rng(seed).random(allowed.shape), -1.0)
    policy = scores.argmax(axis=1).reshape(farm.shape)
    assert Chain(farm).mean_time(policy) == pytest.approx(solved(farm, policy), rel=1e-4)


def test_no_policy_is_better_than_the_optimum_and_its_own_policy_has_it():
    chain = Chain(Farm((4.0, 1.0), 0.7, 25))
    best, policy = chain.optimum()
    assert chain.mean_time(policy) == pytest.approx(best, rel=1e-4)
    gaps = [chain.mean_time(chain.farm.by_bids(c)) / best - 1 for c in (0.2, 0.35, 0.5, 1.0)]
    assert min(gaps) > -1e-4
    # Bids with the best c are within 1 % of it, shortest expected delay is 6 to 22 % off.
    assert min(gaps) < 0.01
    assert 0.06 < gaps[-1] < 0.22
    assert chain.lost(policy) < 1e-6


def test_a_policy_of_another_farm_or_onto_a_full_server_is_refused():
    chain = Chain(Farm((4.0, 1.0), 0.7, 5))
    with pytest.raises(ValueError, match=r"shape \(6, 6\)"):
        chain.mean_time(np.zeros((5, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="server without room"):
        chain.mean_time(np.zeros((6, 6), dtype=np.int64))
    with pytest.raises(ValueError, match="load"):
        Farm((1.0, 1.0), 1.0)


def test_the_environment_has_the_mean_that_the_chain_says():
    farm = Farm((4.0, 2.0, 1.0), 0.6, 12)
    policy = farm.by_bids(0.5)
    env = RoutingVector(farm, 512)
    env.reset(seed=1)
    rewards = [env.step(policy[tuple(env.in_flight.T)])[1].mean() for _ in range(600)]
    assert -np.mean(rewards) == pytest.approx(Chain(farm).mean_time(policy), rel=0.02)


def test_what_is_observed_is_what_the_table_has_for_the_state():
    env = RoutingVector(Farm((4.0, 1.0), 0.9, 6), 64)
    env.reset(seed=2)
    inputs = env.inputs
    np.testing.assert_allclose(
        np.expm1(inputs.rows[:, :, 0] + 1.0) * inputs.active, env.in_flight * inputs.active, atol=1e-4
    )
    assert (inputs.active == (env.in_flight < 6)).all()


def test_gymnasium_accepts_the_environment():
    env = Routing(Farm((4.0, 1.0), 0.7, 200))
    check_env(env, skip_render_check=True)
    first, second = (env.reset(seed=3)[0]["rows"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    _, reward, terminated, truncated, _ = env.step(np.int64(0))
    assert reward < 0
    assert not terminated
    assert not truncated


@pytest.mark.parametrize(
    ("name", "farm", "share"),
    [
        ("sac", Farm((4.0, 1.0), 0.7, 30), 0.35),
        ("dqn", Farm((4.0, 1.0), 0.7, 30), 0.35),
        ("ppo", Farm((4.0, 1.0), 0.7, 30), 0.4),
        ("ssac", Farm((4.0, 1.0), 0.7, 30), 0.35),
        ("isac", Farm((4.0, 1.0), 0.7, 30), 0.35),
        ("vdn", Farm((4.0, 1.0), 0.7, 30), 0.35),
        ("sac", Farm((4.0, 2.0, 1.0), 0.5, 14), 0.6),
        ("dqn", Farm((4.0, 2.0, 1.0), 0.5, 14), 0.35),
        ("ppo", Farm((4.0, 2.0, 1.0), 0.5, 14), 0.4),
    ],
    ids=lambda value: f"{len(value.speeds)} servers" if isinstance(value, Farm) else str(value),
)
def test_agents_come_within_one_per_cent_of_the_optimum(name, farm, share):
    # A third of the steps of benchmarks/exact_mdp.py, which has all agents on three farms with several seeds.
    torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")
    torch.set_num_threads(1)
    from controlplane.agents.exact import RECIPES, gap, train

    recipe, chain = RECIPES[name].shortened(share), Chain(farm)
    agent = recipe.agent(name, seed=0)
    before = gap(agent, chain)
    train(agent, RoutingVector(farm, recipe.envs), recipe.steps, seed=0)
    assert before > 0.1
    assert gap(agent, chain) < BOUND
