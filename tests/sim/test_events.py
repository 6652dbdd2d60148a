"""Scheduled events happen when they should and do what they say; no flow is lost without being counted."""

import numpy as np
import pytest

from dataplane.simulator import (
    MMPP,
    Crash,
    Deterministic,
    Drain,
    Exponential,
    Join,
    Leave,
    OnOff,
    Poisson,
    Profile,
    RateChange,
    Recover,
    Server,
    Simulation,
    SimulationError,
    Sine,
    SpeedChange,
    Trace,
    WeightChange,
    Works,
    World,
)

ABORT, CONNECT_FAILED, REFUSED, NO_SERVER = 3, 2, 7, 2**32 - 1


def trace_world(times_ms, works_ms, servers, **more) -> World:
    times = np.asarray(times_ms, dtype=np.uint64) * np.uint64(1_000_000)
    return World(servers, Trace(times), Works(np.asarray(works_ms) / 1e3), **more)


def closed_ms(world: World) -> list[float]:
    result = Simulation(world).run()
    return [t / 1e6 for t in result.records["closed_ns"].tolist()]


def test_a_flow_in_service_is_slowed_by_a_change_of_speed():
    # 10 ms of work: 4 ms at speed 1, the other 6 at speed 0.5 take 12 ms.
    assert closed_ms(trace_world([0], [10], [Server()], events=[SpeedChange(0.004, 0, 0.5)])) == [16]


def test_a_stopped_server_goes_on_where_it_was():
    events = [SpeedChange(0.004, 0, 0.0), SpeedChange(0.1, 0, 1.0)]
    assert closed_ms(trace_world([0, 1], [10, 5], [Server()], events=events)) == [106, 111]


def test_fifo_serves_k_at_a_time_in_order_of_arrival():
    assert closed_ms(trace_world([0, 0, 0, 0], [10, 4, 3, 2], [Server(workers=2)])) == [10, 4, 7, 9]


def test_cores_are_shared_by_all_flows_on_them():
    # Two cores, three flows: 2/3 of a core each until the first has its 2 ms.
    assert closed_ms(trace_world([0, 0, 0], [2, 4, 6], [Server(workers=2, service="sharing")])) == [3, 5, 7]


def test_the_link_delays_both_ways():
    assert closed_ms(trace_world([0], [10], [Server(delay=0.003)])) == [16]


def test_a_full_backlog_turns_flows_away_at_once():
    result = Simulation(trace_world([0, 1, 2], [10, 10, 10], [Server(backlog=1)])).run()
    assert result.records["outcome"].tolist() == [0, 0, 1]
    assert result.records["closed_ns"][2] == 2_000_000
    assert result.totals.overflowed == result.servers["overflowed"][0] == result.summary().rejected == 1


def test_maxconn_holds_flows_at_the_balancer_in_their_order():
    world = trace_world([0, 1, 2], [10, 10, 10], [Server(workers=4, maxconn=1)])
    assert closed_ms(world) == [10, 20, 30]


def test_a_full_queue_at_the_balancer_refuses():
    result = Simulation(trace_world([0, 1, 2], [10, 10, 10], [Server(maxconn=1)], queue_slots=1)).run()
    assert result.records["outcome"].tolist() == [0, 0, REFUSED]
    assert result.records["server"].tolist() == [0, 0, NO_SERVER]


def test_a_crash_loses_what_is_there_and_retries_go_elsewhere():
    servers = [Server(), Server()]
    world = trace_world([0, 0, 20, 20, 20], [10, 10, 1, 1, 1], servers, events=[Crash(0.005, 0)], detect=10.0)
    result = Simulation(world).run()
    lost = result.records[:2]["outcome"].tolist()
    assert sorted(lost) == [0, ABORT]
    assert result.records[2:]["server"].tolist() == [1, 1, 1]
    assert result.totals.retries == result.records["retries"].sum() == result.servers["refused"][0] > 0


def test_a_dead_server_gets_nothing_once_it_was_detected():
    events = [Crash(1.0, 0), Recover(3.0, 0)]
    world = World(
        [Server(), Server(), Server()], Poisson(100.0), Exponential(0.01), flows=600, events=events, detect=0.5
    )
    r = Simulation(world).run().records
    seconds, tries_at_0 = r["arrival_ns"] * 1e-9, (r["server"] == 0) | (r["retries"] > 0)
    assert tries_at_0[(seconds > 1.0) & (seconds < 1.5)].any()
    assert not tries_at_0[(seconds > 1.5) & (seconds < 3.5)].any()
    assert tries_at_0[seconds > 3.5].any()


def test_retries_end():
    result = Simulation(trace_world([10], [1], [Server()], events=[Crash(0.0, 0)], retries=2, detect=9.0)).run()
    assert result.records["outcome"].tolist() == [CONNECT_FAILED]
    assert result.records["retries"].tolist() == [2]


def test_nobody_up_refuses():
    result = Simulation(trace_world([10], [1], [Server()], events=[Crash(0.0, 0)], detect=0.0)).run()
    assert result.records["outcome"].tolist() == [REFUSED]


def test_servers_join_drain_and_leave():
    servers = [Server(), Server(present=False), Server()]
    events = [Join(1.0, 1), Drain(2.0, 0), Leave(3.0, 2)]
    world = World(servers, Poisson(100.0), Exponential(0.005), flows=500, events=events)
    result = Simulation(world).run()
    r = result.records
    seconds = r["arrival_ns"] * 1e-9
    assert set(r["server"][seconds < 1]) == {0, 2}
    assert set(r["server"][(seconds > 1) & (seconds < 2)]) == {0, 1, 2}
    assert set(r["server"][(seconds > 2) & (seconds < 3)]) == {1, 2}
    assert set(r["server"][seconds > 3]) == {1}
    assert result.totals.completed == 500


def test_weight_zero_takes_a_server_out():
    world = World([Server(), Server()], Poisson(100.0), Exponential(0.005), flows=300, events=[WeightChange(1.0, 0, 0)])
    r = Simulation(world).run().records
    seconds = r["arrival_ns"] * 1e-9
    assert set(r["server"][seconds < 1]) == {0, 1}
    assert set(r["server"][seconds > 1]) == {1}


def arrivals_in(world: World, begin: float, end: float) -> int:
    seconds = Simulation(world).run().records["arrival_ns"] * 1e-9
    return int(((seconds >= begin) & (seconds < end)).sum())


def test_the_rate_changes_when_told():
    world = World([Server()], Poisson(1000.0), Deterministic(1e-5), duration=20.0, events=[RateChange(10.0, 3.0)])
    assert arrivals_in(world, 0, 10) == pytest.approx(10_000, rel=0.04)
    assert arrivals_in(world, 10, 20) == pytest.approx(30_000, rel=0.04)


@pytest.mark.parametrize(
    "arrivals",
    [
        Poisson(1000.0),
        Sine(1000.0, 900.0, 5.0),
        Sine(500.0, 1000.0, 5.0),
        MMPP((3000.0, 500.0), (0.05, 0.2)),
        OnOff((4000.0, 0.0), (0.25, 0.75)),
        Profile((500.0, 2000.0, 0.0, 1500.0), 0.5),
    ],
    ids=["poisson", "sine", "sine cut at zero", "mmpp", "on/off", "profile"],
)
def test_every_process_has_its_mean_rate(arrivals):
    world = World([Server()], arrivals, Deterministic(1e-5), duration=50.0)
    assert arrivals_in(world, 0, 50) == pytest.approx(50 * arrivals.mean_rate, rel=0.05)


def test_the_sine_is_high_in_its_first_half_and_low_in_its_second():
    world = World([Server()], Sine(1000.0, 1000.0, 20.0), Deterministic(1e-5), duration=20.0)
    assert arrivals_in(world, 0, 10) / arrivals_in(world, 10, 20) == pytest.approx((np.pi + 2) / (np.pi - 2), rel=0.1)


def test_on_off_is_silent_when_off():
    assert (
        arrivals_in(World([Server()], OnOff((1000.0, 0.0), (1.0, 1.0)), Deterministic(1e-5), duration=4.0), 1, 2) == 0
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"arrivals": Poisson(0.0)},
        {"arrivals": Trace(np.array([5, 4], dtype=np.uint64))},
        {"demand": Exponential(-1.0)},
        {"servers": [Server(workers=0)]},
        {"servers": [Server(speed=-1.0)]},
        {"events": [SpeedChange(1.0, 7, 1.0)]},
        {"split": "trace"},
    ],
    ids=str,
)
def test_a_world_that_makes_no_sense_is_refused(broken):
    world = {"servers": [Server()], "arrivals": Poisson(1.0), "demand": Exponential(1.0), "flows": 10} | broken
    with pytest.raises(SimulationError):
        Simulation(World(**world))


def test_a_run_that_can_never_end_says_so():
    with pytest.raises(SimulationError):
        Simulation(trace_world([0], [1], [Server(speed=0.0)])).run()
