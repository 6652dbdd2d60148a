"""The learning modes: their update rules by hand, and what must hold of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.auction.learning import ACTIONS, DECREASE, INCREASE, MODES, NONE, greedy, make

BASE_MODES = [mode for mode in MODES if mode != "dqn"]


def learner(mode, n=1, seed=1, **options):
    return make(mode, n, np.random.default_rng(seed), **options)


def update(agent, ratio, sensitivity=None, active=None, target=0.5):
    n = agent.n
    ones = np.ones(n)
    return agent.update(
        ones if sensitivity is None else sensitivity,
        np.broadcast_to(np.asarray(ratio, float), n).copy(),
        target * ones,
        task_load=5.0,
        risk_aversion=0.5 * ones,
        active=np.ones(n, dtype=bool) if active is None else np.asarray(active),
    )


def test_continuous_moves_in_proportion_to_the_distance_from_the_target():
    # 2·(1 + 0.1·(0.8 − 0.5)) = 2.06;  2·(1 + 0.1·(0.2 − 0.5)) = 1.94;  a ratio above 1 counts as 1: 2·1.05
    agent = learner("continuous", 3, learning_rate=0.1)
    assert update(agent, [0.8, 0.2, 3.0], 2 * np.ones(3)).tolist() == pytest.approx([2.06, 1.94, 2.1])


def test_off_changes_nothing():
    assert update(learner("off", 2), [0.9, 0.1], np.array([3.0, 4.0])).tolist() == [3, 4]


def test_the_q_update_by_hand():
    agent = learner("qlearning", 1, epsilon=0.0, alpha=0.5, gamma=0.9)
    agent.q[0, 9, INCREASE] = 0.2
    agent.q[0, 7, DECREASE] = 0.4
    sensitivity = update(agent, 0.95, np.ones(1))  # state 9: increase is best
    assert sensitivity.tolist() == pytest.approx([1.1])
    update(agent, 0.75, sensitivity)
    # r = |0.95 − 0.5| − |0.75 − 0.5| = 0.2;  Q ← 0.2 + 0.5·(0.2 + 0.9·0.4 − 0.2) = 0.38
    assert agent.q[0, 9, INCREASE] == pytest.approx(0.38)
    assert agent.action[0] == DECREASE


def test_states_are_tenths_of_the_load_ratio():
    from controlplane.auction.qlearning import state_of

    assert state_of(np.array([0.0, 0.09, 0.1, 0.55, 0.999, 1.0])).tolist() == [0, 0, 1, 5, 9, 10]


def test_q_learning_of_many_servers_is_that_of_each_alone():
    """The same steps by the white paper's own agent: a dictionary a server, one step after another."""
    ratios = np.random.default_rng(5).random((60, 4))
    agent = learner("qlearning", 4, epsilon=0.0, alpha=0.3, gamma=0.8)
    sensitivity, own = np.ones(4), np.ones(4)
    tables = [{} for _ in range(4)]
    last = [None] * 4
    for row in ratios:
        sensitivity = update(agent, row, sensitivity)
        for i, ratio in enumerate(row):
            state, error = int(10 * ratio), abs(ratio - 0.5)
            q = tables[i].setdefault(state, dict.fromkeys(ACTIONS, 0.0))
            if last[i]:
                before, action, old = last[i]
                entry = tables[i][before]
                entry[action] += 0.3 * (old - error + 0.8 * max(q.values()) - entry[action])
            best = max(q.values())
            action = next(a for a in reversed(ACTIONS) if q[a] == best)
            own[i] = np.clip(own[i] * {"increase": 1.1, "decrease": 0.9, "none": 1.0}[action], 0.01, 100)
            last[i] = state, action, error
    assert sensitivity.tolist() == pytest.approx(own.tolist())


def test_the_bandit_keeps_the_mean_reward_of_each_arm():
    agent = learner("bandit", 1, epsilon=0.0)
    agent.value[0] = [0.0, 0.0, -1.0]  # so that it begins with an arm that we know
    agent.count[0] = [0, 0, 1]
    update(agent, 0.9)  # the error is 0.4
    arm = int(agent.action[0])
    update(agent, 0.8)  # reward 0.1
    assert agent.value[0, arm] == pytest.approx(0.1)
    agent.value[0] = [-1.0, -1.0, -1.0]
    agent.value[0, arm] = 0.1
    update(agent, 0.7)
    update(agent, 0.5)  # the same arm was paid 0.1, and now 0.2
    assert agent.count[0, arm] == 3
    assert agent.value[0, arm] == pytest.approx((0.1 + 0.1 + 0.2) / 3)


def test_ucb1_tries_every_arm_and_then_the_one_whose_bound_is_highest():
    agent = learner("ucb1", 1)
    tried = []
    for ratio in (0.9, 0.8, 0.8, 0.8):
        update(agent, ratio)
        tried.append(int(agent.action[0]))
    assert sorted(tried[:3]) == [INCREASE, DECREASE, NONE]
    agent.value[0], agent.count[0], agent.square[0] = [0.1, 0.3, 0.2], [10, 10, 80], 1.0
    # σ = sqrt(1/100);  bounds 0.1·sqrt(2 ln 100 / n): .096, .096, .034 above .1, .3, .2
    assert agent._choose(np.zeros((1, 4))).tolist() == [DECREASE]
    agent.count[0] = [1, 1000, 1000]
    # bound of the first: 0.1 + σ·sqrt(2 ln 2001 / 1) with σ = sqrt(1/2001) = 0.187; the second 0.3 + 0.003
    assert agent._choose(np.zeros((1, 4))).tolist() == [DECREASE]
    agent.square[0] = 2001 * 0.01  # σ = 0.1: the first 0.1 + 0.39
    assert agent._choose(np.zeros((1, 4))).tolist() == [INCREASE]


def test_thompson_draws_from_beliefs_that_narrow():
    agent = learner("thompson", 2000, seed=3)
    agent.value[:] = [0.1, 0.3, 0.2]
    agent.count[:] = [1e6, 1e6, 1e6]
    agent.square[:] = 3e6 * 0.01
    assert (agent._choose(np.zeros((2000, 4))) == DECREASE).all()
    agent.count[:] = 1
    agent.square[:] = 3 * 0.01
    chosen = np.bincount(agent._choose(np.zeros((2000, 4))), minlength=3) / 2000
    assert chosen[DECREASE] > chosen[NONE] > chosen[INCREASE] > 0.02


@pytest.mark.parametrize("mode", ["qlearning", "bandit", "ucb1", "thompson"])
def test_without_exploration_who_knows_nothing_changes_nothing(mode):
    agent = learner(mode, 50, epsilon=0.0)
    sensitivity = np.full(50, 3.0)
    for _ in range(20):
        sensitivity = update(agent, 0.9, sensitivity)  # never a reward
    assert sensitivity.tolist() == [3.0] * 50


def test_epsilon_is_the_share_of_random_actions():
    agent = learner("bandit", 30_000, epsilon=0.3)
    update(agent, 0.9)
    shares = np.bincount(agent.action, minlength=3) / 30_000
    assert shares == pytest.approx([0.1, 0.1, 0.8], abs=0.01)


@pytest.mark.parametrize("mode", ["bandit", "ucb1", "thompson"])
def test_no_more_is_tried_than_is_allowed(mode):
    """Rewards that are noise are what makes ucb1 and thompson try most: more than a third of the rounds, unbounded."""
    rng, tried = np.random.default_rng(3), []
    agent = learner(mode, 200, epsilon=0.05, tries_most=0.05)
    sensitivity = np.ones(200)
    for _ in range(300):
        sensitivity = update(agent, rng.uniform(0.2, 0.9, 200), sensitivity)
        tried.append(agent.action != greedy(agent.value))
    assert 0.0 < np.mean(tried) < 0.055


@pytest.mark.parametrize("mode", ["qlearning", "bandit", "ucb1", "thompson"])
def test_an_arm_that_pays_is_found(mode):
    """A made-up server whose ratio falls by a fifth of the way when it increases, and rises when it does not."""
    agent = learner(mode, 40, epsilon=0.1)
    ratio, sensitivity = np.full(40, 0.9), np.ones(40)
    for _ in range(300):
        sensitivity = update(agent, ratio, sensitivity)
        ratio = np.where(agent.action == INCREASE, ratio - 0.2 * (ratio - 0.5), np.minimum(ratio + 0.05, 0.95))
    assert (ratio < 0.7).mean() > 0.8


@settings(max_examples=40)
@given(st.sampled_from(BASE_MODES), st.integers(0, 2**32), st.lists(st.floats(0, 2), min_size=3, max_size=30))
def test_sensitivities_stay_in_their_range_and_a_seed_repeats(mode, seed, ratios):
    def run():
        agent = learner(mode, 2, seed, learning_rate=1.0, step=0.9, epsilon=0.5)
        sensitivity = np.array([0.02, 90.0])
        seen = []
        for ratio in ratios:
            sensitivity = update(agent, ratio, sensitivity)
            seen.append(sensitivity.tolist())
        return seen

    seen = run()
    assert all(0.01 <= value <= 100 for row in seen for value in row)
    assert seen == run()


@pytest.mark.parametrize("mode", BASE_MODES)
def test_a_server_that_is_not_active_neither_learns_nor_changes(mode):
    agent = learner(mode, 2, epsilon=0.5)
    sensitivity = np.array([1.0, 1.0])
    for ratio in (0.9, 0.3, 0.8, 0.2):
        sensitivity = update(agent, ratio, sensitivity, active=[True, False])
    assert sensitivity[1] == 1.0
    if mode == "qlearning":
        assert not agent.q[1].any()
    if mode in ("bandit", "ucb1", "thompson"):
        assert not agent.count[1].any()


@pytest.mark.parametrize("mode", BASE_MODES)
def test_state_moves_with_its_server(mode):
    moved, stayed = learner(mode, 3, epsilon=0.0, exploration=0.0), learner(mode, 3, epsilon=0.0, exploration=0.0)
    for agent in (moved, stayed):
        if mode == "qlearning":
            agent.q[:] = np.random.default_rng(2).normal(size=agent.q.shape)
        elif mode != "off" and mode != "continuous":
            agent.value[:], agent.count[:] = np.random.default_rng(2).normal(size=(3, 3)), 5
        update(agent, [0.9, 0.6, 0.1])
    moved.rows(np.array([2, -1, 0, 1]))  # a new one between the third and the first
    a = update(moved, [0.2, 0.5, 0.8, 0.7])
    b = update(stayed, [0.8, 0.7, 0.2])
    assert a[[2, 3, 0]].tolist() == b.tolist()
    assert a[1] == 1.0
    assert moved.neural.shape == (4,)


def test_the_first_server_may_come_after_none():
    agent = learner("qlearning", 0)
    agent.rows(np.array([-1, -1]))
    assert update(agent, 0.9).shape == (2,)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="no learning mode is called 'greedy'; there are off, continuous"):
        learner("greedy")
    with pytest.raises(ValueError, match="no learning option is called 'eps'"):
        learner("bandit", eps=0.1)
    with pytest.raises(ValueError, match="expected epsilon from 0 to 1, not 2"):
        learner("bandit", epsilon=2)


def test_without_torch_the_dqn_says_what_it_needs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeError, match=r"needs vickrey\[rl\]"):
        learner("dqn")
