"""What is trained in: scenarios as episodes, and farms drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.command import CommandError
from controlplane.training.tasks import tasks_of
from dataplane.simulator import Simulation, SpeedChange
from tests.training.small import SCENARIO, write_scenario


def worlds(name, count=40, balancers=1):
    (task,) = tasks_of([name], 0.2)
    return [task.world(np.random.default_rng([7, i]), balancers, 20.0) for i in range(count)]


def test_random_farms_stay_within_what_was_asked_for():
    for world in worlds("random:servers=3-9,load=0.4-0.6"):
        assert 3 <= len(world.servers) <= 9
        assert 0.39 <= world.load <= 0.61
        assert world.balancers == 1


def test_random_farms_have_the_workers_and_the_service_asked_for():
    for world in worlds("random:servers=3-9,workers=2-4,service=sharing"):
        assert {server.workers for server in world.servers} <= {2, 4}
        assert {server.service for server in world.servers} == {"sharing"}
    # Where neither is asked for they are as always: a training comes out the same.
    assert worlds("random", 10) == worlds("random:workers=1-8", 10)


def test_random_farms_change_as_often_as_asked_for_and_keep_their_capacity():
    for world in worlds("random:servers=3-9,changes=3-5"):
        speeds = [server.speed for server in world.servers]
        times = sorted({event.at for event in world.events})
        assert len(times) <= 5
        assert all(0.0 <= at <= 20.0 for at in times)
        capacity = sum(server.capacity for server in world.servers)
        for at in times:
            for event in world.events:
                assert isinstance(event, SpeedChange)
                if event.at == at:
                    speeds[event.server] = event.speed
            now = sum(speed * server.workers for speed, server in zip(speeds, world.servers, strict=True))
            assert now == pytest.approx(capacity)
    assert max(len({event.at for event in world.events}) for world in worlds("random:servers=3-9,changes=3-5")) == 5
    assert not any(world.events for world in worlds("random:servers=3-9,changes=0"))


def test_random_farms_differ_in_everything_that_is_randomised():
    found = worlds("random")
    assert len({len(world.servers) for world in found}) > 10
    assert len({type(world.demand) for world in found}) >= 4
    assert len({type(world.arrivals) for world in found}) >= 3
    assert len({world.servers[0].service for world in found}) == 2
    assert {server.workers for world in found for server in world.servers} >= {1, 2, 4, 8}
    assert any(world.events for world in found)
    assert not all(world.events for world in found)


def test_the_same_seed_makes_the_same_world():
    one, two = worlds("random", 5), worlds("random", 5)
    assert one == two


def test_random_worlds_can_be_simulated():
    from dataclasses import replace

    for world in worlds("random:servers=2-8", 10):
        Simulation(replace(world, duration=1.0, records=0)).run()


def test_events_keep_their_place_within_the_episode(tmp_path):
    text = SCENARIO + "duration: 100s\nevents: [{at: 50s, kind: speed, server: 0, speed: 1}]\n"
    (task,) = tasks_of([write_scenario(tmp_path, text)], 0.2)
    world = task.world(np.random.default_rng(1), 1, 20.0)
    assert world.events == [SpeedChange(10.0, 0, 1.0)]


def test_a_recorded_trace_gives_arrivals_of_the_load_asked_for(tmp_path):
    gaps = np.random.default_rng(3).exponential(0.01, 3000)
    path = tmp_path / "trace.csv"
    rows = [f"{t:.6f},1.0" for t in np.cumsum(gaps)]
    path.write_text("\n".join(["time,work", *rows]) + "\n")
    found = worlds(f"random:servers=4,load=0.7,trace={path}", 30)
    traced = [w for w in found if type(w.arrivals).__name__ == "Trace"]
    assert 5 < len(traced) < 25
    for world in traced:
        assert world.load == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random:server=4", "did you mean 'servers'"),
        ("random:servers=9-4", "expected LOW-HIGH"),
        ("random:servers=x", "expected whole numbers"),
        ("random:balancers=99", "from 1 to 8"),
        ("random:trace=/nowhere/t.csv", "/nowhere/t.csv"),
        ("random:load", "expected load=VALUE"),
        ("random:workers=3", "a range with 1, 2, 4 or 8 in it"),
        ("random:workers=0-4", "from 1 to 8"),
        ("random:changes=often", "expected whole numbers"),
        ("random:changes=9-4", "expected LOW-HIGH"),
        ("random:service=lifo", "expected fifo or sharing, not 'lifo'"),
        ("heavy-tale", "did you mean 'heavy-tail'"),
        ("nowhere.yaml", "no such file"),
    ],
)
def test_a_bad_scenario_is_named_with_what_was_expected(name, said):
    with pytest.raises(CommandError) as raised:
        tasks_of([name], 0.2)
    assert said in str(raised.value)
    assert raised.value.status == 2


def test_balancers_that_see_all_flows_cannot_be_trained(tmp_path):
    text = SCENARIO + "balancers: {count: 2, view: shared}\n"
    with pytest.raises(CommandError, match="view"):
        tasks_of([write_scenario(tmp_path, text)], 0.2)
