"""MPG and I-SAC: the reward by hand, and balancers that learn from nothing but their own rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import Transition  # noqa: E402
from controlplane.agents.isac import IndependentConfig, IndependentSoftActorCritic, of_balancer  # noqa: E402
from controlplane.agents.mpg import PotentialConfig, PotentialGame, durations, potential_reward  # noqa: E402
from controlplane.learned.encoding import encode  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402
from shm_layout.features import FEATURES  # noqa: E402
from tests.agents.two_step import inputs, play, value  # noqa: E402

torch.set_num_threads(1)

CURVES, CHOICE = ActionSchema(), ActionSchema("choice")
SMALL = {"hidden": 8, "length": 2, "burn_in": 0, "batch": 8, "warmup": 16}


def step(
    rng: np.random.Generator, rows: int, *, balancers: int = 2, fresh: bool = False, done: bool = False
) -> Transition:
    """Return a vector step of three servers with the duration i·100 ms on server i in every row, and two active."""
    features = np.zeros((rows, 3, len(FEATURES)))
    features[:, :, FEATURES.index("fct_mean")] = rng.uniform(0.1, 0.5, (rows, 1))
    features[:, :, FEATURES.index("flow_duration_mean_decay")] = np.arange(3) * 0.1
    active = np.tile([True, False, True], (rows, 1))
    inputs = encode(features, active, np.zeros((rows, 3, 4)), np.zeros((rows, 3, 9)), 0.2, balancers)
    return Transition(
        inputs,
        rng.integers(0, 5, (rows, 3, 2)),
        rng.integers(0, 5, (rows, 3)),
        rng.normal(size=rows).astype(np.float32),
        np.zeros((rows, 0), dtype=np.float32),
        np.full(rows, done),
        np.full(rows, fresh),
        rng.normal(size=(rows, 3, 8)).astype(np.float32),
        balancers,
    )


def test_the_reward_is_variance_and_log_variance() -> None:
    # Durations 1, 2, 6: mean 3, variance (4 + 1 + 9)/3 = 14/3. Then two active of three, 1 and 6: variance 6.25.
    x = np.array([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    active = np.array([[True, True, True], [True, False, True], [True, True, True]])
    both = potential_reward(x, active, epsilon=0.0001)
    assert both[0] == pytest.approx(-(14 / 3 + np.log(14 / 3 + 0.0001)))
    assert both[1] == pytest.approx(-(6.25 + np.log(6.2501)))
    assert both[2] == pytest.approx(-np.log(0.0001))  # equal durations: the greatest reward there is, 9.21
    assert potential_reward(x, active, 2.0, 0.0)[1] == pytest.approx(-12.5)
    assert potential_reward(x, active, 0.0, 0.5, 0.75)[1] == pytest.approx(-0.5 * np.log(7.0))


def test_durations_come_back_out_of_the_inputs() -> None:
    # 0, 0.1 and 0.2 s with an interval of 0.2 s, whatever the usual FCT: 0, 0.5 and 1 intervals.
    seen = durations(step(np.random.default_rng(1), 5).inputs)
    np.testing.assert_allclose(seen[:, ::2], np.tile([0.0, 1.0], (5, 1)), atol=2e-3)


def test_a_balancer_is_rewarded_for_what_its_step_led_to() -> None:
    rng = np.random.default_rng(2)
    agent = PotentialGame(CURVES, PotentialConfig(**SMALL, epsilon=0.01))
    # Two servers with durations 0 and 1 interval: variance 0.25, reward −(0.25 + log 0.26) = 1.097.
    first = step(rng, 4, fresh=True)
    agent.observe(first)
    assert len(agent.learners[0].replay) == 0  # what it led to is not known yet
    agent.observe(step(rng, 4))
    kept = agent.learners[0].replay
    np.testing.assert_allclose(kept.each[0].arrays["reward"][0], -(0.25 + np.log(0.26)), atol=0.01)
    np.testing.assert_array_equal(kept.each[1].arrays["rows"][0], first.inputs.rows[1::2])


def test_a_trainer_may_write_into_its_arrays_again() -> None:
    rng = np.random.default_rng(3)
    agent = PotentialGame(CURVES, PotentialConfig(**SMALL))
    first = step(rng, 4, fresh=True)
    agent.observe(first)
    first.fresh[:] = False
    agent.observe(step(rng, 4))
    assert agent.learners[0].replay.each[0].arrays["fresh"][0].all()


@pytest.mark.parametrize("shared", [True, False])
def test_independent_balancers_learn_each_from_its_own(shared: bool) -> None:
    rng = np.random.default_rng(4)
    agent = IndependentSoftActorCritic(CURVES, IndependentConfig(**SMALL, shared=shared, balancers=2), seed=1)
    for _ in range(8):
        observed = step(rng, 4)
        agent.observe(observed)
        if agent.ready:
            assert all(np.isfinite(x) for x in agent.learn().values())
    replays = agent.learners[0].replay.each if shared else [learner.replay for learner in agent.learners]
    assert len(replays) == 2
    for k, replay in enumerate(replays):
        np.testing.assert_array_equal(replay.arrays["reward"][7], observed.reward[k::2])
    assert agent.updates > 0
    assert len({id(actor) for actor in agent.actors}) == (1 if shared else 2)
    # Rows of the first balancer are acted for by the first network, also where networks differ.
    rows, whole, after = agent.act(observed.inputs, observed.hidden, explore=False)
    for k in range(2):
        mine = of_balancer(observed, k)
        own = agent.learners[0 if shared else k].act(mine.inputs, mine.hidden, explore=False)
        np.testing.assert_array_equal(rows[k::2], own[0])
        np.testing.assert_array_equal(whole[k::2], own[1])
        np.testing.assert_allclose(after[k::2], own[2], atol=1e-6)


@pytest.mark.parametrize("kind", [IndependentSoftActorCritic, PotentialGame])
@pytest.mark.parametrize("shared", [True, False])
def test_a_saved_agent_goes_on_as_it_would_have(
    kind: type[IndependentSoftActorCritic], shared: bool, tmp_path: object
) -> None:
    rng = np.random.default_rng(5)
    config = kind.config_class(**SMALL, shared=shared, balancers=2)
    agent = kind(CURVES, config, seed=1)
    for _ in range(8):
        agent.observe(step(rng, 4))
    agent.learn()
    torch.save(agent.state_dict(replay=True), f"{tmp_path}/state.pt")
    other = kind(CURVES, config, seed=2)
    other.load_state_dict(torch.load(f"{tmp_path}/state.pt", weights_only=True))
    assert agent.learn() == other.learn()
    with pytest.raises(ValueError, match="agent ssac"):
        other.load_state_dict({**agent.state_dict(), "agent": "ssac"})


def test_a_wrong_number_of_balancers_is_refused() -> None:
    agent = IndependentSoftActorCritic(CURVES, IndependentConfig(**SMALL, shared=False, balancers=3))
    with pytest.raises(ValueError, match="2 balancers, expected 3"):
        agent.observe(step(np.random.default_rng(6), 4))


def test_independent_learners_find_what_is_best_whatever_the_other_does() -> None:
    # In game B, [[0, 1], [1, 8]], the second choice is better for each whatever the other does.
    config = IndependentConfig(
        hidden=16,
        gamma=0.99,
        learning_rate=3e-3,
        actor_rate=3e-3,
        target_rate=0.05,
        batch=64,
        length=2,
        burn_in=0,
        warmup=200,
        normalise_reward=False,
        alpha=1.0,
        alpha_rate=0.0,
    )
    agent = IndependentSoftActorCritic(CHOICE, config, seed=1)
    play(agent, 150)
    _, both, _ = agent.act(inputs(np.array([2])), agent.initial(2, 2), explore=False)
    assert both.tolist() == [[1], [1]]
    assert value(agent) >= 7.0


def test_the_reward_given_by_the_environment_is_not_looked_at() -> None:
    agents = []
    for bonus in (0.0, 100.0):
        rng = np.random.default_rng(7)
        agent = PotentialGame(CURVES, PotentialConfig(**SMALL), seed=1)
        for _ in range(8):
            observed = step(rng, 4)
            agent.observe(replace(observed, reward=observed.reward + np.float32(bonus)))
        agents.append(agent.learn())
    assert agents[0] == agents[1]
