"""LoadBalanceVector is many LoadBalance at once, and Gymnasium's vector environment in every respect."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from controlplane.env import LoadBalance, LoadBalanceVector
from controlplane.env.actions import KINDS
from tests.env.worlds import INTERVAL, eventful, farm


def settings(**more):
    return {"world": eventful(), "interval": INTERVAL, "base": "gsed"} | more


@pytest.mark.parametrize("action", KINDS)
def test_each_replica_is_a_load_balance_of_its_own_seed(action):
    envs = LoadBalanceVector(3, **settings(action=action))
    alone = [LoadBalance(**settings(action=action)) for _ in range(3)]
    together, _ = envs.reset(seed=7)
    for i, env in enumerate(alone):
        observation, _ = env.reset(seed=7 + i)
        assert (together["servers"][i] == observation["servers"]).all()
    envs.action_space.seed(1)
    for _ in range(25):
        actions = envs.action_space.sample()
        together, rewards, _, _, infos = envs.step(actions)
        for i, env in enumerate(alone):
            observation, reward, _, _, info = env.step(actions[i])
            assert (together["servers"][i] == observation["servers"]).all()
            assert (together["active"][i] == observation["active"]).all()
            assert rewards[i] == reward
            assert infos["flows"][i] == info["flows"]


def test_gymnasium_makes_it():
    envs = gymnasium.make_vec(
        "LoadBalance-v0", num_envs=2, vectorization_mode="vector_entry_point", max_episode_steps=3, **settings()
    )
    assert isinstance(envs.unwrapped, LoadBalanceVector)
    envs.reset(seed=1)
    ends = [envs.step(envs.action_space.sample())[3].tolist() for _ in range(4)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    envs.close()


def test_spaces_are_batches_of_the_single_ones():
    envs = LoadBalanceVector(3, **settings(truth=True))
    observation, _ = envs.reset(seed=1)
    assert envs.observation_space.contains({key: value.copy() for key, value in observation.items()})
    assert envs.single_observation_space["servers"].shape == (6, 11)


def test_next_step_autoreset_ignores_the_action_and_gives_no_reward():
    envs = LoadBalanceVector(2, max_episode_steps=2, **settings())
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=1)
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    envs.step(sample)
    *_, truncated, _ = envs.step(sample)
    assert truncated.all()
    observation, rewards, terminated, truncated, infos = envs.step(sample)
    assert not (terminated | truncated).any()
    assert not rewards.any()
    assert not observation["servers"][:, :, 0].any()  # a world that has just begun
    assert infos["time"].tolist() == [0, 0]
    *_, infos = envs.step(sample)
    assert infos["time"] == pytest.approx([INTERVAL] * 2)


def test_replicas_end_each_at_its_own_time():
    envs = LoadBalanceVector(3, **settings(world=farm(flows=60, duration=None)))
    envs.reset(seed=3)
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    ends = np.array([envs.step(sample)[2] for _ in range(40)])
    assert (ends.sum(axis=0) >= 2).all()
    assert len({tuple(np.flatnonzero(column)) for column in ends.T}) > 1


def test_same_step_autoreset_tells_the_last_observation():
    envs = LoadBalanceVector(2, max_episode_steps=2, autoreset="SameStep", **settings())
    envs.reset(seed=1)
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    envs.step(sample)
    observation, _, _, truncated, infos = envs.step(sample)
    assert truncated.all()
    assert not observation["servers"][:, :, 0].any()
    assert infos["final_obs"][0]["servers"][:, 1:].any()
    assert infos["_final_obs"].all()
    *_, truncated, infos = envs.step(sample)
    assert not truncated.any()
    assert "final_obs" not in infos


def test_observations_are_views_that_last_through_the_next_step():
    envs = LoadBalanceVector(2, max_episode_steps=5, **settings())
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    before, _ = envs.reset(seed=1)
    for _ in range(14):
        kept = before["servers"].copy()
        after, *_ = envs.step(sample)
        assert (before["servers"] == kept).all()
        assert not after["servers"].flags.owndata
        before = after


def test_copies_last():
    envs = LoadBalanceVector(2, copy=True, **settings())
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    first, _ = envs.reset(seed=1)
    kept = first["servers"].copy()
    for _ in range(5):
        envs.step(sample)
    assert (first["servers"] == kept).all()


def test_gymnasiums_vector_wrappers_take_it():
    envs = LoadBalanceVector(2, max_episode_steps=3, **settings())
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    envs.reset(seed=1)
    infos = [envs.step(envs.action_space.sample())[4] for _ in range(3)]
    assert (infos[-1]["episode"]["l"] == 3).all()


def test_a_mask_resets_some():
    envs = LoadBalanceVector(3, **settings())
    envs.reset(seed=1)
    sample = np.zeros(envs.action_space.shape, dtype=np.float32)
    for _ in range(3):
        envs.step(sample)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    *_, infos = envs.step(sample)
    assert infos["time"] == pytest.approx([4 * INTERVAL, INTERVAL, 4 * INTERVAL])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": "live", "segment": "a.b"}, "simulated"),
        ({"autoreset": "Disabled"}, "autoreset"),
        ({"render_mode": "human"}, "renders"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        LoadBalanceVector(2, **wrong)
