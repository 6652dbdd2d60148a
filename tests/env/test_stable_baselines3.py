"""Stable-Baselines3 takes the environment as it is: its checker passes, and PPO trains on it unmodified."""

import importlib.util

import gymnasium
import numpy as np
import pytest

import controlplane.env  # noqa: F401  registers LoadBalance-v0
from tests.env.worlds import INTERVAL, farm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("stable_baselines3") is None,
        reason="stable-baselines3 is not installed: `make test` installs it",
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are so small that a second thread only gets in the way."""
    import torch

    torch.set_num_threads(1)


def make(**settings):
    given = {"world": farm(), "interval": INTERVAL, "base": "gsed", "max_episode_steps": 64}
    return gymnasium.make("LoadBalance-v0", **(given | settings))


@pytest.mark.filterwarnings("ignore:Your observation .* has an unconventional shape")
@pytest.mark.parametrize("action", ["curves", "discrete", "weights", "adjustments"])
def test_its_checker_passes(action):
    from stable_baselines3.common.env_checker import check_env

    check_env(make(action=action), skip_render_check=True)
    check_env(gymnasium.wrappers.FlattenObservation(make(action=action)), skip_render_check=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("action", ["weights", "discrete"])
def test_ppo_trains_on_flat_observations(action):
    from stable_baselines3 import PPO

    env = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.FlattenObservation(make(action=action)))
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=2, seed=1, device="cpu")
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(512)
    after = list(model.policy.parameters())
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert all(np.isfinite(parameter.detach().numpy()).all() for parameter in after)
    observation, _ = env.reset(seed=1)
    action, _ = model.predict(observation, deterministic=True)
    assert env.action_space.contains(action)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ppo_trains_on_dict_observations():
    from stable_baselines3 import PPO

    model = PPO("MultiInputPolicy", make(), n_steps=128, batch_size=64, n_epochs=2, seed=1, device="cpu")
    model.learn(256)
    assert model.num_timesteps >= 256


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ppo_learns_to_drain_a_slow_server():
    """One server of two is 20x slower: equal weights are poor, and PPO finds better ones."""
    from stable_baselines3 import PPO

    from dataplane.simulator import Exponential, Poisson, Server, World

    world = World([Server(speed=0.2), Server(speed=4.0)], Poisson(1.0), Exponential(0.01), duration=1e6).at_load(0.6)
    settings = {
        "world": world,
        "action": "weights",
        "rule": "alias",
        "reward": {"metric": "fct_mean", "scale": 10.0},
        "interval": 0.1,
        "max_episode_steps": 32,
    }

    def score(act):
        env = gymnasium.wrappers.FlattenObservation(make(**settings))
        total = 0.0
        for seed in range(5):
            observation, _ = env.reset(seed=seed)
            for _ in range(32):
                observation, reward, *_ = env.step(act(observation))
                total += float(reward)
        return total

    env = gymnasium.wrappers.FlattenObservation(make(**settings))
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, seed=1, device="cpu", gamma=0.9, learning_rate=1e-3)
    model.learn(4000)
    learned = score(lambda observation: model.predict(observation, deterministic=True)[0])
    equal = score(lambda observation: np.zeros(2, dtype=np.float32))
    assert learned > 0.7 * equal  # both negative: a third less delay
