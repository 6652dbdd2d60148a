"""A trace drives the simulator and the load generator as if each had drawn it itself."""

import asyncio

import numpy as np
import pytest

from dataplane.simulator import Exponential, Poisson, Server, Simulation, World
from testbed import clock
from testbed.backends.backend import Backend, Spec
from testbed.load.generator import Generator, Target
from testbed.traces.adapters import arrivals, loop_schedule, loop_target, replay_world, schedule, works
from testbed.traces.generate import generated
from testbed.traces.reader import TraceFile
from testbed.traces.record import TraceError, empty, records_from
from tests.traces.reading import DATA

MEAN = 0.01
SERVERS = [Server(speed=2.0), Server(), Server()]


def test_a_replayed_poisson_trace_agrees_with_the_built_in_source():
    trace = generated("poisson", flows=300_000, rate=1.0, mean_work=MEAN, seed=4)
    replayed = replay_world(trace, SERVERS, warmup=5.0).at_load(0.8)
    drawn = World(SERVERS, Poisson(1.0), Exponential(MEAN), seed=2, flows=300_000, warmup=5.0).at_load(0.8)
    # Load sets the trace's own mean work against the servers, to the last digit.
    assert replayed.load == pytest.approx(drawn.load)
    a, b = Simulation(replayed).run().summary(), Simulation(drawn).run().summary()
    assert abs(a.mean - b.mean) < 1.5 * (a.mean_error + b.mean_error)
    assert a.mean_error < 0.1 * a.mean
    assert a.p50 == pytest.approx(b.p50, rel=0.03)
    assert a.p99 == pytest.approx(b.p99, rel=0.15)
    assert (a.open, a.rejected, a.failed) == (0, 0, 0)


def test_one_server_fed_by_a_trace_is_m_m_1():
    trace = generated("poisson", flows=400_000, rate=70.0, mean_work=MEAN)
    summary = Simulation(replay_world(trace, [Server()], warmup=100.0)).run().summary()
    assert abs(summary.mean - MEAN / (1 - 0.7)) < 1.5 * summary.mean_error


def test_every_flow_arrives_when_and_where_the_trace_says_and_brings_its_work():
    trace = generated("mice", flows=5_000, balancers=3)
    world = replay_world(trace, SERVERS, balancers=3)
    records = Simulation(world).run().records
    assert (records["arrival_ns"] == trace["t_ns"] - trace["t_ns"][0]).all()
    assert (records["balancer"] == trace["balancer"]).all()
    assert np.allclose(records["work_ns"], trace["work"] * 1e9)


def test_the_same_keys_go_the_same_way():
    trace = generated("poisson", flows=4_000, clients=7)
    records = Simulation(replay_world(trace, SERVERS, balancers=3, split="hash")).run().records
    for key in np.unique(trace["key"]):
        assert len(set(records["balancer"][trace["key"] == key].tolist())) == 1


def test_marllbs_loop_turns_become_seconds():
    trace = TraceFile(DATA / "marllb_rate_150.csv").records()
    world = replay_world(trace, [Server()], seconds_per_work=1e-9)
    assert world.demand.mean == pytest.approx(trace["work"].mean() * 1e-9)


def test_a_trace_without_work_needs_a_demand():
    trace = TraceFile(DATA / "wikibench.txt").records()
    with pytest.raises(TraceError, match="does not tell the work"):
        works(trace)
    assert Simulation(replay_world(trace, SERVERS, demand=Exponential(MEAN))).run().totals.completed == 5


def test_what_does_not_fit_is_an_error():
    with pytest.raises(TraceError, match="is empty"):
        arrivals(empty())
    with pytest.raises(TraceError, match="out of order"):
        arrivals(records_from(np.array([5, 3])))
    with pytest.raises(TraceError, match="has a balancer 9"):
        replay_world(records_from(np.arange(2), 1.0, balancer=9), SERVERS, balancers=2)


def test_a_schedule_has_the_traces_times_and_milliseconds():
    trace = generated("poisson", flows=100, rate=50.0, mean_work=0.02)
    made = schedule(trace)
    assert made.arrival_s[0] == 0
    assert np.allclose(np.diff(made.arrival_s), np.diff(trace["t_ns"]) * 1e-9)
    assert np.allclose(made.demand_ms, trace["work"] * 1e3)
    assert np.isnan(schedule(TraceFile(DATA / "wikibench.txt").records()).demand_ms).all()


def test_a_trace_is_sent_to_a_real_server():
    trace = generated("poisson", flows=60, rate=150.0, mean_work=0.004)

    async def body():
        backend = Backend(Spec(workers=60))
        await backend.start()
        try:
            return await Generator(Target("127.0.0.1", backend.port), schedule(trace)).run()
        finally:
            await backend.stop()

    result = clock.run(body())
    assert len(result.fct_s) == 60
    # Asked for in steps of 0.1 µs.
    assert np.allclose(result.records["demand_ms"], trace["work"] * 1e3)
    assert (result.records["service_ms"] >= trace["work"] * 1e3 - 0.01).all()


def test_loop_turns_are_asked_for_as_n():
    trace = TraceFile(DATA / "marllb_rate_150.csv").records()
    made = loop_schedule(trace)
    target = loop_target(Target("127.0.0.1", 80, "/dummy.php/"))
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def body():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await Generator(loop_target(Target("127.0.0.1", port, "/dummy.php/")), made, keep_alive=False).run()
        finally:
            server.close()

    assert target.request(5478122.0).startswith(b"GET /dummy.php/?n=5478122 HTTP/1.1\r\n")
    assert len(clock.run(body()).fct_s) == 30
    assert sorted(asked) == sorted(b"GET /dummy.php/?n=%d HTTP/1.1" % n for n in trace["work"].astype(int).tolist())
