"""LoadBalance on a running balancer: real servers, the real data plane, the real controller."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controlplane.env import LoadBalance
from controlplane.env.live import LiveSourceError
from shm_layout.errors import SegmentError
from shm_layout.features import read_features
from testbed.farm import Farm
from tests.env.live import DataPlane, data_plane
from tests.faults.running import Load, Running, wait_until

INTERVAL = 0.05


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1, 1, 4], workers=4, demand="fixed:2", processes=1) as farm:
        yield farm


@pytest.fixture
def plane(farm: Farm) -> Iterator[DataPlane]:
    with data_plane(farm.addresses) as plane:
        yield plane


@pytest.fixture
def running(farm: Farm, tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, farm.addresses, policy="gsed") as running:
        yield running


def live(name: str, **settings: object) -> LoadBalance:
    return LoadBalance(source="live", segment=name, **({"interval": INTERVAL} | settings))


def flows_of(env: LoadBalance) -> np.ndarray:
    return env.core.reading.counters[0, :, 0].copy()


def test_it_steps_and_sees_the_flows(plane):
    env = live(plane.name, base="gsed", reward="fct_mean")
    observation, _ = env.reset(seed=1)
    assert observation["active"].tolist() == [1, 1, 1]
    assert env.observation_space.contains(observation)
    with Load(plane.port, connections=4) as load:
        flows = 0
        for _ in range(10):
            observation, reward, terminated, truncated, info = env.step(env.neutral_action())
            flows += info["flows"]
            assert (terminated, truncated) == (False, False)
    assert 0 < flows <= sum(load.statuses.values())
    assert -1 < reward < 0
    assert observation["servers"][:, 1].min() > 1e-4  # fct_mean of servers that take 0.5 ms and more
    assert info["policy"] == "env.curves:gsed"
    load.assert_nothing_lost()
    env.close()


def test_the_features_are_the_segments(plane):
    env = live(plane.name, base="gsed")
    env.reset()
    with Load(plane.port, connections=2):
        for _ in range(4):
            env.step(env.neutral_action())
    observation = env.step(env.neutral_action())[0]
    assert observation["servers"] == pytest.approx(read_features(plane.segment).values, rel=1e-5)
    env.close()


def test_its_directive_is_in_force(plane):
    env = live(plane.name, action="weights", drain=True)
    env.reset()
    drained = np.array([-1, 0, 0], dtype=np.float32)
    env.step(drained)
    wait_until(lambda: int(plane.segment.read_workers()[0]["directive_sequence"]) >= 1)
    before = flows_of(env)
    with Load(plane.port, connections=2) as load:
        for _ in range(6):
            env.step(drained)
    change = flows_of(env) - before
    assert change[0] == 0
    assert change[1:].sum() > 0
    assert not plane.segment.read_workers()[0]["fallback_active"]
    load.assert_nothing_lost()
    env.close()


@pytest.mark.parametrize("rule", ["gsed", "alias", "wrr"])
def test_every_rule_is_taken(plane, rule):
    env = live(plane.name, action="discrete", rule=rule)
    env.reset()
    env.step(np.array([0, 1, 2]))
    wait_until(lambda: not plane.segment.read_workers()[0]["fallback_active"])
    assert plane.segment.read_workers()[0]["rejected"].sum() == 0
    env.close()


def test_the_adaptive_base_learns_live(plane):
    env = live(plane.name)
    env.reset()
    with Load(plane.port, connections=4):
        for _ in range(10):
            env.step(env.neutral_action())
    assert env.core.base.name == "adaptive"
    assert np.ptp(env.core.source.orders.base[0, :, 0]) > 0  # told nothing, it bids unequally for unequal servers
    env.close()


def test_without_steps_the_data_plane_falls_back(plane):
    env = live(plane.name, base="gsed")
    env.reset()
    env.step(env.neutral_action())
    wait_until(lambda: not plane.segment.read_workers()[0]["fallback_active"])
    wait_until(lambda: plane.segment.read_workers()[0]["fallback_active"], 10)
    env.step(env.neutral_action())
    wait_until(lambda: not plane.segment.read_workers()[0]["fallback_active"])
    env.close()


def test_a_second_one_is_refused_until_the_first_lets_go(plane):
    first = live(plane.name, base="gsed")
    with pytest.raises(LiveSourceError, match=r"takeover=True.*read_only=True"):
        live(plane.name, base="gsed")
    first.close()
    live(plane.name, base="gsed").close()


def test_steps_keep_to_the_interval(plane):
    env = live(plane.name, base="gsed")
    env.reset()
    begin = time.monotonic()
    for _ in range(6):
        *_, info = env.step(env.neutral_action())
    assert time.monotonic() - begin >= 6 * INTERVAL - 1e-3
    assert info["time"] >= 6 * INTERVAL - 1e-3
    env.close()


def test_a_running_controller_is_not_disturbed(running):
    name = f"{running.instance}.web"
    with pytest.raises(LiveSourceError, match="is its controller"):
        live(name, base="gsed")
    assert running.get("health")["controller"]


def test_read_only_watches_what_the_controller_does(running):
    env = live(f"{running.instance}.web", read_only=True, action="weights")
    env.reset()
    with Load(running.port, connections=2):
        flows = 0
        for _ in range(6):
            *_, info = env.step(env.neutral_action())
            flows += info["flows"]
    assert flows > 0
    assert info["policy"] == "gsed"
    assert info["weights"].shape == (3,)
    assert running.process("controller")["restarts"] == 0
    env.close()


def test_takeover_ends_the_controller_and_keeps_control(running):
    with Load(running.port, connections=2) as load:
        env = live(f"{running.instance}.web", takeover=True, base="gsed")
        env.reset()
        for _ in range(10):
            env.step(env.neutral_action())
        assert env.core.source.directive.policy == "env"
        env.close()
    load.assert_nothing_lost()
    # The supervisor's next controller finds the lock free.
    wait_until(lambda: running.get("health")["controller"], 20)


def test_an_environment_too_narrow_is_refused(plane):
    env = live(plane.name, servers=2, base="gsed", action="weights")
    with pytest.raises(LiveSourceError, match="3 server slots"):
        env.reset()
    env.close()


@pytest.mark.parametrize("name", ["/vickrey.nobody.web", "nobody.web"])
def test_a_segment_that_is_not_there_is_named(name):
    with pytest.raises(SegmentError, match=r"/vickrey\.nobody\.web"):
        live(name)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"truth": True}, "simulator"),
        ({"constraints": [("utilisation", 0.8)]}, "simulator"),
        ({"segment": "web"}, "INSTANCE"),
    ],
)
def test_what_only_the_simulator_can_do_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        live(**({"name": "main.web"} | {("name" if k == "segment" else k): v for k, v in wrong.items()}))
