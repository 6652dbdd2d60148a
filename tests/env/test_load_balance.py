"""LoadBalance-v0 as Gymnasium's users meet it."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from controlplane import registry
from controlplane.env import LoadBalance, random_worlds
from controlplane.env.actions import KINDS
from controlplane.env.objective import METRICS
from dataplane.simulator import Crash, Poisson, Server, Simulation, World
from tests.env.worlds import INTERVAL, eventful, farm


def make(world=None, **settings):
    return LoadBalance(**({"world": world or farm(), "interval": INTERVAL, "base": "gsed"} | settings))


def steps(env, n, action=None):
    return [env.step(env.neutral_action() if action is None else action) for _ in range(n)]


@pytest.mark.parametrize("action", KINDS)
def test_gymnasiums_checker_passes(action):
    check_env(make(action=action), skip_render_check=True)


def test_gymnasiums_checker_passes_with_truth_and_constraints():
    check_env(make(truth=True, constraints=[("utilisation", 0.8)]), skip_render_check=True)


def test_make_knows_it_by_its_id():
    env = gymnasium.make("controlplane.env:LoadBalance-v0", base="gsed")
    assert isinstance(env.unwrapped, LoadBalance)
    assert env.spec.max_episode_steps == 500
    env.close()


def test_the_same_seed_gives_the_same_bytes():
    def run():
        env = make(eventful(), base="adaptive", action="curves")
        observation, _ = env.reset(seed=5)
        env.action_space.seed(5)
        seen = [observation["servers"].tobytes()]
        for _ in range(25):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation["servers"].tobytes(), observation["active"].tobytes(), np.float64(reward).tobytes()]
        return b"".join(seen)

    assert run() == run()


def test_another_seed_gives_other_flows():
    env = make()
    env.reset(seed=1)
    one = steps(env, 3)[-1][0]["servers"]
    env.reset(seed=2)
    assert (steps(env, 3)[-1][0]["servers"] != one).any()


def test_an_episode_after_reset_without_a_seed_is_another_one():
    env = make()
    env.reset(seed=1)
    one = steps(env, 3)[-1][0]["servers"]
    env.reset()
    assert (steps(env, 3)[-1][0]["servers"] != one).any()


@pytest.mark.parametrize("policy", ["adaptive", "gsed", "lsq"])
def test_the_zero_action_is_the_base_policy(policy):
    """Flow by flow: the environment and the simulator's own control give every flow to the same server."""
    world = replace(eventful(), duration=2.0, records=5000)
    env = make(world, base=policy)
    env.reset(seed=3)
    steps(env, 20)
    simulated = env.core.source.simulations[0]
    alone = Simulation(replace(world, seed=simulated.world.seed), table_slots=0)
    alone.run(registry.create(policy), interval=INTERVAL)
    assert len(alone.records) > 500
    assert (simulated.records == alone.records).all()


def test_a_correction_moves_flows():
    env = make()
    env.reset(seed=1)
    action = env.neutral_action()
    action[3] = 1.0  # δμ of server 0
    faster = steps(env, 20, action)
    shares = env.core.reading.counters[0, :, 0].copy()
    env.reset(seed=1)
    steps(env, 20)
    assert shares[0] > 1.15 * env.core.reading.counters[0, 0, 0]
    assert faster[-1][4]["policy"] == "env.curves:gsed"


@pytest.mark.parametrize("rule", ["sed", "gsed", "alias", "wrr"])
def test_weights_steer_by_every_rule(rule):
    env = make(farm(2), action="weights", rule=rule)
    env.reset(seed=1)
    steps(env, 30, np.array([1.0, -1.0], dtype=np.float32))
    steered = env.core.reading.counters[0, :, 0].copy()
    if rule in ("alias", "wrr"):
        assert 12 < steered[0] / steered[1] < 20  # 16
    env.reset(seed=1)
    steps(env, 30, np.array([0.0, 0.0], dtype=np.float32))
    assert steered[0] > 1.15 * env.core.reading.counters[0, 0, 0]


def test_a_drained_server_gets_nothing():
    env = make(action="weights", drain=True)
    env.reset(seed=1)
    steps(env, 10, np.array([-1, 0, 0, 0], dtype=np.float32))
    assert env.core.reading.counters[0, 0, 0] == 0


def test_the_observation_says_who_may_take_flows():
    world = replace(farm(), events=(Crash(0.15, 2),), detect=0.1)
    env = make(world)
    observation, _ = env.reset(seed=1)
    assert observation["active"].tolist() == [1, 1, 1, 1]
    observation = steps(env, 4)[-1][0]
    assert observation["active"].tolist() == [1, 1, 0, 1]


def test_smaller_worlds_fill_the_first_rows():
    env = make(random_worlds(servers=(2, 6)), servers=6)
    sizes = set()
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        observation = steps(env, 2)[-1][0]
        n = int(observation["active"].sum())
        sizes.add(n)
        assert observation["active"][:n].all()
        assert not observation["servers"][n:].any()
    assert len(sizes) > 2


def test_an_episode_without_more_flows_terminates():
    env = make(farm(flows=100, duration=None))
    env.reset(seed=1)
    for _ in range(100):
        *_, terminated, truncated, _ = env.step(env.neutral_action())
        assert not truncated
        if terminated:
            return
    pytest.fail("it never ended")


def test_an_episode_at_the_worlds_duration_is_truncated():
    env = make(farm(duration=0.5))
    env.reset(seed=1)
    ends = [(terminated, truncated) for _, _, terminated, truncated, _ in steps(env, 5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("metric", METRICS)
def test_every_reward_is_finite_from_the_first_step_on(metric):
    env = make(
        reward=metric, world=replace(farm(), events=(Crash(0.3, 0), Crash(0.3, 1), Crash(0.3, 2), Crash(0.3, 3)))
    )
    env.reset(seed=1)
    assert np.isfinite([reward for _, reward, *_ in steps(env, 20)]).all()


@pytest.mark.parametrize("field", ["n_flow_on", "fct_mean", "fct_p90", "flow_duration_mean_decay"])
def test_the_reward_is_of_the_field_that_was_chosen(field):
    from controlplane.env.rewards import jain
    from shm_layout.features import FEATURES

    env = make(reward={"metric": "jain", "field": field})
    env.reset(seed=1)
    observation, reward, *_ = steps(env, 10)[-1]
    assert reward == pytest.approx(float(jain(observation["servers"][:, FEATURES.index(field)])))


def test_the_mean_fct_is_that_of_the_flows_that_ended():
    env = make(reward="fct_mean", world=replace(farm(), records=10_000))
    env.reset(seed=1)
    steps(env, 9)
    _, reward, _, _, info = steps(env, 1)[0]
    records = env.core.source.simulations[0].records
    closed = records["closed_ns"]
    ended = records[(records["outcome"] == 0) & (closed > 900_000_000) & (closed <= 1_000_000_000)]
    assert info["completed"] == len(ended) > 20
    expected = (ended["closed_ns"] - ended["arrival_ns"]).mean() * 1e-9
    assert info["fct_mean"] == pytest.approx(expected)
    assert reward == pytest.approx(-expected)


def test_the_tail_is_a_percentile_of_the_flows_that_ended():
    env = make(reward={"metric": "fct_tail", "quantile": 0.9}, world=replace(farm(), records=10_000))
    env.reset(seed=1)
    steps(env, 9)
    reward = steps(env, 1)[0][1]
    records = env.core.source.simulations[0].records
    closed = records["closed_ns"]
    ended = records[(records["outcome"] == 0) & (closed > 900_000_000) & (closed <= 1_000_000_000)]
    # Histogram buckets are an eighth of an octave wide.
    assert -reward == pytest.approx(np.quantile((ended["closed_ns"] - ended["arrival_ns"]) * 1e-9, 0.9), rel=0.15)


def test_shaping_adds_gamma_phi_next_minus_phi():
    shaped = make(reward={"metric": "fct_mean", "shaping": "jain", "gamma": 0.9, "shaping_scale": 2.0})
    bare, potential = make(reward="fct_mean"), make(reward="jain")
    rewards = []
    for env in (shaped, bare, potential):
        env.reset(seed=1)
        rewards.append(np.array([reward for _, reward, *_ in steps(env, 10)]))
    s, b, phi = rewards
    assert s[1:] - b[1:] == pytest.approx(2 * (0.9 * phi[1:] - phi[:-1]))


def test_costs_are_reported_and_only_taken_off_when_asked_for():
    constraints = [("utilisation", 0.5, 2.0), ("n_flow_on", 1.0)]
    reported, penalised = make(constraints=constraints), make(constraints=constraints, penalise=True)
    for env in (reported, penalised):
        env.reset(seed=1)
    for (_, bare, _, _, info), (_, less, *_) in zip(steps(reported, 10), steps(penalised, 10), strict=True):
        assert info["cost"] == pytest.approx(2 * info["costs"][0] + info["costs"][1])
        assert less == pytest.approx(bare - info["cost"])
    assert info["cost"] > 0


def test_utilisation_is_the_busy_share_of_the_last_seconds():
    env = make(
        World([Server(), Server()], Poisson(1.0), farm().demand, duration=1e6).at_load(0.6),
        constraints=[("utilisation", 0.0)],
    )
    env.reset(seed=1)
    costs = [info["costs"][0] for *_, info in steps(env, 200)]
    # The busier of two: above the mean of 0.6 by chance alone, never above 1; and it does not jump.
    assert 0.6 < np.mean(costs[50:]) < 0.75
    assert max(costs) <= 1 + 1e-9
    assert np.abs(np.diff(costs[50:])).max() < 0.05


def test_truth_is_shown_only_when_asked_for():
    env = make(truth=True)
    observation, _ = env.reset(seed=1)
    assert observation["truth"].shape == (4, 4)
    assert observation["truth"][:, 3].tolist() == [1, 2, 1, 2]
    assert "truth" not in make().observation_space.spaces


def test_balancers_without_an_agent_follow_the_base_policy():
    env = make(replace(farm(), balancers=3), action="weights", drain=True)
    env.reset(seed=1)
    steps(env, 20, np.array([-1, -1, -1, 1], dtype=np.float32))
    flows = env.core.reading.counters[:, :, 0]
    assert flows[0, :3].sum() == 0
    assert (flows[1:] > 0).all()


def test_gymnasiums_wrappers_take_it():
    env = gymnasium.make("LoadBalance-v0", world=farm(), base="gsed", interval=INTERVAL, max_episode_steps=20)
    env = gymnasium.wrappers.FlattenObservation(env)
    env = gymnasium.wrappers.NormalizeObservation(env)
    env = gymnasium.wrappers.FrameStackObservation(env, 4)
    env = gymnasium.wrappers.TransformReward(env, lambda reward: float(np.clip(reward, -1, 1)))
    observation, _ = env.reset(seed=1)
    assert observation.shape == (4, 4 * 12)
    for i in range(20):
        observation, reward, _, truncated, _ = env.step(env.action_space.sample())
        assert truncated == (i == 19)
        assert -1 <= reward <= 1
    assert np.isfinite(observation).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": "replay"}, "neither sim nor live"),
        ({"action": "jump"}, "not one of"),
        ({"reward": "fairness"}, "not one of"),
        ({"reward": {"metric": "jain", "field": "cpu"}}, "not one of"),
        ({"constraints": [("load", 0.8)]}, "not one of"),
        ({"base": "lsqq"}, "did you mean 'lsq'"),
        ({"interval": 0.0}, "interval"),
        ({"base_every": 0}, "base_every"),
        ({"segment": "main.web"}, "source live"),
        ({"source": "live", "world": None}, "segment"),
        ({"render_mode": "human"}, "renders nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        make(**({"world": farm()} | wrong))


@pytest.mark.parametrize("base", ["wrr", "p2c"])
def test_a_base_without_curves_of_all_servers_is_refused(base):
    env = make(base=base)
    with pytest.raises(ValueError, match="can be corrected"):
        env.reset(seed=1)
