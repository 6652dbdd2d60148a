"""The engine is deterministic, keeps count of every flow, and shows the policy what a live balancer would."""

import hashlib
from typing import Any, ClassVar

import numpy as np
import pytest

from controlplane.policy import CURVE_N, Directive, Observation
from dataplane.simulator import (
    BoundedPareto,
    Crash,
    Exponential,
    Poisson,
    Recover,
    Server,
    Simulation,
    SpeedChange,
    World,
)
from dataplane.simulator.engine import curve_from, gsed_curves
from dataplane.simulator.references import central_queue
from shm_layout.segment import CURVE_LOW, CURVE_POINTS, DirectiveData

SPEEDS = [1.0, 1.0, 2.0, 4.0]


def busy_world(**more) -> World:
    servers = [
        Server(speed=s, workers=1 + i % 3, service="sharing" if i % 2 else "fifo", delay=0.0005 * i, backlog=200)
        for i, s in enumerate(SPEEDS)
    ]
    world = {
        "servers": servers,
        "arrivals": Poisson(1000.0),
        "demand": BoundedPareto(0.01),
        "flows": 50_000,
        "balancers": 2,
        "events": [SpeedChange(5.0, 3, 1.0), Crash(10.0, 1), Recover(12.0, 1), SpeedChange(15.0, 3, 4.0)],
        "seed": 11,
    }
    return World(**(world | more)).at_load(0.8)


def digest(world: World, **run) -> str:
    simulation = Simulation(world)
    simulation.publish_bids(gsed_curves(SPEEDS))
    return hashlib.sha256(simulation.run(**run).records.tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes():
    assert digest(busy_world()) == digest(busy_world())
    assert digest(busy_world()) != digest(busy_world(seed=12))


def test_looking_on_changes_nothing():
    looks = []
    assert digest(busy_world(), control=lambda s: looks.append(s.servers()), interval=0.1) == digest(busy_world())
    assert len(looks) > 50


def test_two_policies_meet_the_same_flows():
    def flows(curves):
        simulation = Simulation(busy_world())
        simulation.publish_bids(curves)
        r = simulation.run().records
        return r[["arrival_ns", "work_ns", "balancer"]], r["server"]

    first, choices = flows(gsed_curves(SPEEDS))
    second, others = flows(curve_from(lambda n: n))
    assert (first == second).all()
    assert (choices != others).any()


@pytest.mark.parametrize("view", ["own", "shared"])
def test_every_flow_ends_once_and_is_counted(view):
    simulation = Simulation(busy_world(view=view))
    result = simulation.run()
    t, s = result.totals, result.summary()
    assert t.finished
    assert t.arrivals == t.completed + t.refused + t.overflowed + t.failed == 50_000
    assert (s.completed, s.refused, s.overflowed, s.failed, s.open) == (
        t.completed,
        t.refused,
        t.overflowed,
        t.failed,
        0,
    )
    assert t.in_flight == t.waiting == 0
    assert s.failed > 0
    assert result.servers["completed"].sum() == t.completed
    assert (result.servers["in_server"] == 0).all()
    assert (result.utilisation <= 1).all()
    assert 0 < s.jain <= 1


def test_records_count_fct_like_the_totals():
    result = Simulation(World([Server()], Poisson(50.0), Exponential(0.01), flows=1000)).run()
    assert result.fct.mean() == pytest.approx(result.totals.mean_fct)
    assert result.records["work_ns"].sum() * 1e-9 == pytest.approx(result.totals.work)


def test_a_run_can_be_cut_anywhere():
    simulation = Simulation(busy_world())
    simulation.publish_bids(gsed_curves(SPEEDS))
    rng = np.random.default_rng(1)
    t = 0.0
    while not simulation.run_until(t):
        t += rng.exponential(0.3)
    assert hashlib.sha256(simulation.records.tobytes()).hexdigest() == digest(busy_world())


def test_hashed_clients_keep_their_balancer():
    world = busy_world(split="hash", clients=50, balancers=3, events=())
    shares = np.bincount(Simulation(world).run().records["balancer"], minlength=3)
    assert (shares > 0).all()
    # 50 clients of equal activity: shares are multiples of about 1/50
    assert np.allclose(shares / shares.sum() * 50, np.rint(shares / shares.sum() * 50), atol=0.25)


def test_balancers_with_a_shared_view_do_better_than_with_their_own():
    def mean(view):
        world = World(
            [Server(speed=s) for s in SPEEDS], Poisson(1.0), Exponential(0.01), balancers=4, view=view, flows=60_000
        )
        simulation = Simulation(world.at_load(0.85))
        simulation.publish_bids(gsed_curves(SPEEDS))
        return simulation.run().summary().mean

    assert mean("shared") < 0.9 * mean("own")


def test_without_a_sign_of_life_the_fallback_takes_over():
    world = World([Server(), Server(speed=4.0)], Poisson(20.0), Exponential(0.01), duration=20.0, stale_after=5.0)
    simulation = Simulation(world)
    simulation.publish_bids(np.stack([curve_from(lambda n: n), curve_from(lambda n: n + 1e9)]))
    r = simulation.run().records
    seconds = r["arrival_ns"] * 1e-9
    assert set(r["server"][seconds < 4.9]) == {0}
    assert set(r["server"][seconds > 5.2]) == {0, 1}


def test_control_keeps_its_directive_in_force():
    world = World([Server(), Server(speed=4.0)], Poisson(20.0), Exponential(0.01), duration=20.0, stale_after=5.0)
    simulation = Simulation(world)
    calls = []

    def control(s: Simulation) -> None:
        calls.append(s.now)
        s.publish_bids(np.stack([curve_from(lambda n: n), curve_from(lambda n: n + 1e9)]))

    result = simulation.run(control=control, interval=0.5)
    assert set(result.records["server"]) == {0}
    assert np.allclose(calls, np.arange(40) * 0.5)


class LearnedGsed:
    """(n + ½)/w with w the throughput seen while busy."""

    name = "learned_gsed"

    def decide(self, observation: Observation) -> Directive:
        busy, ended = observation.profile.time[:, 1:].sum(axis=1), observation.profile.completions.sum(axis=1)
        rate = (ended + 1.0) / (busy + 0.01)
        return Directive(rule="bids", curves=(CURVE_N + 0.5) / rate[:, None])


def test_a_policy_learns_over_simulated_balancers():
    # Told nothing of the speeds, it ends well below least connections, and near the same rule told the truth.
    world = World([Server(speed=s) for s in SPEEDS], Poisson(1.0), Exponential(0.01), flows=100_000, warmup=10.0)
    world = world.at_load(0.7)
    learned = Simulation(world).run(LearnedGsed()).summary()
    least_connections = Simulation(world).run().summary()
    told = Simulation(world)
    told.publish_bids(gsed_curves(SPEEDS))
    assert learned.mean < 0.85 * least_connections.mean
    assert learned.mean < 1.1 * told.run().summary().mean


def test_each_balancer_has_its_own_copy_of_the_policy():
    class Recorder:
        name = "recorder"
        seen: ClassVar[dict[int, list[float]]] = {}

        def decide(self, observation: Observation) -> Directive:
            self.seen.setdefault(id(self), []).append(observation.flows.sum())
            assert observation.balancers == 3
            return Directive(rule="bids", curves=np.tile(CURVE_N, (observation.n_servers, 1)))

    world = World([Server(), Server()], Poisson(100.0), Exponential(0.01), balancers=3, duration=5.0)
    result = Simulation(world).run(Recorder(), interval=1.0)
    assert len(Recorder.seen) == 3
    assert all(len(flows) == 5 for flows in Recorder.seen.values())
    assert sum(flows[-1] for flows in Recorder.seen.values()) == (result.records["arrival_ns"] <= 4_000_000_000).sum()


def held_world(**fields: Any) -> World:
    fields = {"servers": [Server(), Server(speed=0.1)], "flows": 4_000} | fields
    return World(arrivals=Poisson(90.0), demand=Exponential(0.01), seed=5, **fields)


def publish_threshold(simulation: Simulation, wanted: float) -> None:
    """One flow at a time to each server; the second takes one only when so many wait."""
    points = np.arange(CURVE_POINTS)
    curves = np.array([np.where(points < 1, bid, 1e9) for bid in (0.5, wanted + 0.5)])
    reserve = CURVE_LOW + 1.0
    directive = DirectiveData(ids=np.array([1, 2]), rule="bids", policy="t", curves=curves, reserve=reserve)
    simulation.publish(directive)


def test_a_threshold_holds_flows_back_from_the_slow_server():
    used = []
    for wanted in (0, 3, 12):
        simulation = Simulation(held_world())
        publish_threshold(simulation, wanted)
        result = simulation.run()
        assert result.totals.completed == 4_000
        used.append((result.records["server"] == 1).mean())
    assert used[0] > used[1] > used[2] > 0.0


def test_one_server_at_a_time_is_a_central_queue():
    simulation = Simulation(held_world(servers=[Server(), Server()]))
    publish_threshold(simulation, 0)
    records = simulation.run().records
    found = central_queue(records["arrival_ns"], records["work_ns"] * 1e-9, [1, 1], [1, 1])
    assert (records["closed_ns"] - records["arrival_ns"]) * 1e-9 == pytest.approx(found, abs=2e-8)


def test_a_place_in_a_busy_servers_pipe_is_for_the_first_in_the_queue():
    """Though it takes a queue of three to send a second flow: else those who come later pass as long as it lasts."""
    simulation = Simulation(held_world(servers=[Server()]))
    curve = np.where(np.arange(CURVE_POINTS) < 2, np.where(np.arange(CURVE_POINTS) < 1, 0.5, 3.5), 1e9)
    simulation.publish(
        DirectiveData(ids=np.array([1]), rule="bids", policy="t", curves=curve[None], reserve=CURVE_LOW + 1.0)
    )
    result = simulation.run()
    assert result.totals.completed == 4_000
    assert (np.diff(result.records["closed_ns"].astype(np.int64)) >= 0).all()


def test_gold_leaves_the_queue_first_and_bronze_is_not_starved():
    simulation = Simulation(held_world(servers=[Server()], gold=0.2, bronze=0.3))
    simulation.publish(
        DirectiveData(
            ids=np.array([1]),
            rule="bids",
            policy="t",
            curves=np.where(np.arange(CURVE_POINTS) < 1, 0.0, 1e9)[None],
            reserve=np.ones(CURVE_POINTS),
        )
    )
    result = simulation.run()
    fct = (result.records["closed_ns"] - result.records["arrival_ns"]) * 1e-9
    gold, silver, bronze = (fct[result.classes == i].mean() for i in range(3))
    assert 2 * gold < silver
    assert 2 * silver < bronze
    assert result.totals.completed == 4_000
    assert np.bincount(result.classes) / 4_000 == pytest.approx([0.2, 0.5, 0.3], abs=0.03)


def test_classes_change_no_other_draw():
    plain, classed = (Simulation(held_world(**shares)).run().records for shares in ({}, {"gold": 0.3, "bronze": 0.3}))
    assert (plain["arrival_ns"] == classed["arrival_ns"]).all()
    assert (plain["work_ns"] == classed["work_ns"]).all()
