"""The reserve made real: flows wait for a cheaper server, in the order of their classes, and nothing is lost by it."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest

from dataplane.build_ffi import has_io_uring
from shm_layout.segment import RouteData
from tests.c_build import ASAN_UBSAN, TSAN, build_c
from tests.socket.bench import OK, Bench, Gated, N, flat, get, wait_for
from tests.socket.conftest import IO_BACKENDS, SOURCES, read_all, read_message

pytestmark = pytest.mark.parametrize("io", IO_BACKENDS)
SECOND = 1_000_000_000
BUILDS = {"asan": ASAN_UBSAN, "tsan": TSAN}


@pytest.fixture(scope="module", params=BUILDS)
def engine_program(request):
    libraries = ("-lm", "-luring") if has_io_uring() else ("-lm", "-DNO_IO_URING")
    name = "standalone" if request.param == "asan" else "standalone-tsan"
    return build_c(name, SOURCES, (*BUILDS[request.param], *libraries))


@pytest.fixture
def start_bench(start_origin, start_balancer, service, io) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def start(workers: int = 1, mode: str = "http", servers: int = 2, **settings: Any) -> Bench:
        gated = Gated()
        ports = [start_origin(gated.handler(i)).port for i in range(servers)]
        given = {"sla_header": "x-sla", "sla_any_client": True, "timeout_queue_ns": 20 * SECOND, **settings}
        service.publish(ports, **given)
        service.segment.begin_controller()
        balancer = start_balancer([0], mode=mode, io=io, workers=workers, SEGMENT=service.segment.name)
        bench = Bench(service, gated, ports, balancer)
        benches.append(bench)
        if workers > 1:  # each looks for its peers every 50 ms, and follows their flows from then on
            wait_for(lambda: len(bench.rows()) == workers)
            time.sleep(0.15)
        return bench

    yield start
    for bench in benches:
        for gate in list(bench.servers.gates.values()):
            gate.set()
        for client in bench.clients.values():
            client.close()


def test_a_flow_waits_for_the_cheap_server_although_a_dear_one_is_idle(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("first")
    bench.hold("second")
    assert bench.servers.seen == [(0, "first")]
    assert bench.total("held") >= 1
    bench.finish("first")
    wait_for(lambda: (0, "second") in bench.servers.seen)
    bench.finish("second")
    assert bench.total("queued") == 0
    assert bench.total("waited_class", 1) == 1
    assert bench.total("flows_class", 1) == 2
    assert bench.total("wait_class_sum_ns", 1) == bench.total("queue_wait_sum_ns") > 0


def test_with_enough_flows_before_it_one_takes_the_dear_server(start_bench):
    bench = start_bench()
    bench.direct(np.where(N < 2, 1.5, 6).astype(np.float32))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    bench.hold("c")
    bench.arrive("d")  # two wait before it: the dear server is right for it, not for them
    assert bench.servers.seen == [(0, "a"), (1, "d")]
    bench.finish("a")
    wait_for(lambda: (0, "b") in bench.servers.seen)
    bench.finish("d", "b")
    wait_for(lambda: (0, "c") in bench.servers.seen)
    bench.finish("c")


def test_a_completion_at_the_dear_server_lets_a_later_one_go(start_bench):
    bench = start_bench()
    bench.direct(np.where(N < 2, 1.5, 6).astype(np.float32))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    bench.hold("c")
    bench.arrive("d")
    bench.hold("e")  # two wait before it as well, but the least bid is 20
    bench.finish("d")
    wait_for(lambda: len(bench.servers.seen) == 3)
    assert bench.servers.seen[2] == (1, "e")
    bench.servers.answer("a", "b", "c", "e")
    bench.finish("a", "b", "c", "e")


def test_a_second_flow_in_a_pipe_is_the_first_of_those_that_wait(start_bench):
    """A server of one flow gets a second one (bid 20) once two wait: the newcomer that makes them enough stays."""
    bench = start_bench(servers=1)
    bench.direct(np.where(N < 2, 1.5, 25).astype(np.float32), bids=(1.0,))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    bench.hold("c")
    bench.send("d")
    wait_for(lambda: bench.total("queued") == 2 and len(bench.servers.seen) == 2)
    assert bench.servers.seen == [(0, "a"), (0, "b")]
    bench.servers.answer(*"abcd")
    wait_for(lambda: len(bench.servers.seen) == 4)
    assert bench.servers.names == ["a", "b", "c", "d"]
    bench.finish(*"abcd")


def test_queues_of_several_workers_count_as_one(start_bench):
    bench = start_bench(workers=3)
    bench.direct(np.where(N < 2, 1.5, 6).astype(np.float32))
    bench.taken()
    bench.arrive("a")
    for asked, name in enumerate(
        "bcde", start=2
    ):  # who of them takes the dear server is estimated, that one does is certain
        bench.send(name)
        wait_for(lambda asked=asked: bench.total("queued") + len(bench.servers.seen) == asked)
    wait_for(lambda: len(bench.servers.seen) >= 2)
    server, name = bench.servers.seen[1]
    assert server == 1
    if bench.total("queued") == 3:  # two workers that looked at the same moment may both have sent one
        bench.servers.answer(name)
        wait_for(lambda: bench.total("queued") == 2 and len(bench.servers.seen) == 3)
        assert bench.servers.seen[2][0] == 1
    bench.servers.answer(*"abcde")
    bench.finish(*"abcde")


@pytest.mark.parametrize("workers", [1, 3])
def test_gold_goes_before_silver_before_bronze_and_within_a_class_who_came_first(start_bench, workers):
    bench = start_bench(workers=workers)
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("x")
    sent = [("b1", "bronze"), ("s1", "Silver"), ("g1", "GOLD"), ("b2", "bronze"), ("s2", "nonsense"), ("g2", "gold")]
    for name, sla in sent:
        bench.hold(name, sla)
        time.sleep(0.002)
    assert [bench.total("queued_class", c) for c in range(3)] == [2, 2, 2]
    order = ["x", "g1", "g2", "s1", "s2", "b1", "b2"]
    for name in order:
        wait_for(lambda name=name: name in bench.servers.names)
        bench.finish(name)
    assert bench.servers.names == order


def test_gold_outbids_and_bronze_is_deferred(start_bench):
    bench = start_bench()
    bench.direct(flat(5.5), sla_reserve=(4.0, 1.0, 0.2))
    bench.taken()
    bench.arrive("x")
    bench.hold("b", "bronze")  # the dear server bids 5, and its reserve is 1.1
    bench.arrive("s1")
    bench.hold("s2")  # the least bid is 20 now
    bench.arrive("g", "gold")  # its reserve is 22
    assert bench.servers.seen == [(0, "x"), (1, "s1"), (0, "g")]
    bench.finish("x", "g")
    wait_for(lambda: (0, "s2") in bench.servers.seen)
    bench.finish("s2", "s1")
    wait_for(lambda: (0, "b") in bench.servers.seen)
    bench.finish("b")


def test_held_flows_go_at_once_when_the_controller_is_gone(start_bench):
    bench = start_bench(stale_after_ns=SECOND // 2)
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    wait_for(lambda: len(bench.servers.seen) == 2)  # the fallback rule holds nobody
    assert bench.total("fallback_active") == 1
    bench.finish("a", "b")


def test_a_new_directive_is_looked_at_at_once(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    bench.direct(flat(6))
    wait_for(lambda: (1, "b") in bench.servers.seen)
    bench.hold("c")
    bench.direct(None)
    wait_for(lambda: (0, "c") in bench.servers.seen)
    bench.finish("a", "b", "c")


def test_nobody_waits_for_a_server_that_went_down(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    cheap, dear = bench.service.settings.servers
    cheap.health = "down"
    bench.service.publish(servers=[cheap, dear])
    wait_for(lambda: (1, "b") in bench.servers.seen)  # what is in flight at the cheap one ends no wait
    bench.finish("a", "b")


def test_a_client_that_leaves_while_it_is_held_leaves_nothing(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    for number in range(3):
        gone = bench.hold(f"gone{number}", "gold")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        wait_for(lambda: bench.total("queued") == 0)
    bench.hold("b")
    bench.finish("a")
    wait_for(lambda: "b" in bench.servers.names)
    bench.finish("b")
    assert bench.servers.names == ["a", "b"]
    assert [bench.total("queued_class", c) for c in range(3)] == [0, 0, 0]


def test_held_flows_are_served_before_a_graceful_end(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    held = bench.hold("b")
    bench.balancer.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    bench.servers.answer("a", "b")
    assert read_all(held).endswith(b"ok")
    assert bench.balancer.process.wait(10) == 0


def test_a_second_signal_ends_held_flows_too(start_bench):
    bench = start_bench()
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    held = bench.hold("b")
    for _ in range(2):
        bench.balancer.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert read_all(held) == b""
    assert bench.balancer.process.wait(10) == 0


def test_the_reserve_never_costs_an_answer(start_bench):
    bench = start_bench(timeout_queue_ns=SECOND)
    bench.direct(flat(1.5), bids=(1.0, 50.0))
    bench.taken()
    bench.arrive("a")
    begun = time.monotonic()
    bench.hold("b", "bronze")
    wait_for(lambda: "b" in bench.servers.names)  # after half of the time, whatever is bid
    assert time.monotonic() - begun > 0.45
    assert bench.servers.seen[1] == (0, "b")
    assert bench.total("queue_timeouts") == 0
    bench.finish("a", "b")


def test_a_timeout_shorter_than_two_looks_costs_no_answer_either(start_bench):
    bench = start_bench(timeout_queue_ns=SECOND // 25)  # whoever waits is looked at every 50 ms
    bench.direct(flat(1.5), bids=(1.0, 50.0))
    bench.taken()
    bench.arrive("a")
    for number in range(6):
        bench.arrive(f"b{number}")
    assert bench.total("queue_timeouts") == 0
    bench.finish("a", *(f"b{number}" for number in range(6)))


def test_a_flow_that_finds_no_slot_to_wait_in_is_not_held(start_bench):
    bench = start_bench(queue_slots=2)
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("a")
    bench.hold("b")
    bench.hold("c")
    bench.arrive("d")
    bench.finish("d", "a")
    wait_for(lambda: "b" in bench.servers.names)
    bench.finish("b")
    wait_for(lambda: "c" in bench.servers.names)
    bench.finish("c")


def test_a_flow_that_waits_for_room_is_answered_503_in_time(start_bench):
    bench = start_bench(timeout_queue_ns=SECOND // 2)
    full = bench.service.settings.servers
    for server in full:
        server.maxconn = 1
    bench.service.publish(servers=full)
    bench.service.taken()
    bench.direct(flat(100))
    bench.taken()
    bench.arrive("a")
    bench.arrive("b")
    late = bench.hold("c")
    assert read_message(late).startswith(b"HTTP/1.1 503 ")
    assert bench.total("queue_timeouts") == 1
    bench.finish("a", "b")


def test_a_flow_whose_server_refused_it_is_held_no_more(start_bench):
    bench = start_bench(servers=2)
    with socket.socket() as nobody:  # bound, and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        bench.service.publish([nobody.getsockname()[1], bench.ports[1]])
        bench.service.taken()
        bench.direct(flat(1.5), bids=(1.0, 5.0))
        bench.taken()
        bench.arrive("a")  # refused by the cheap one, sent on to the dear one
        assert bench.servers.seen == [(1, "a")]
        bench.arrive("b")
        assert bench.servers.seen == [(1, "a"), (1, "b")]
        bench.finish("a", "b")


def test_connections_of_tcp_mode_are_not_held(start_bench):
    bench = start_bench(mode="tcp", sla_header="", sla_any_client=False)
    bench.direct(flat(0.5))
    bench.taken()
    for number in range(4):
        bench.arrive(f"c{number}")
    assert bench.total("held") == 0
    bench.finish("c0", "c1", "c2", "c3")


@pytest.mark.parametrize("workers", [1, 2])
def test_bronze_has_its_turn_while_gold_never_ends(start_origin, start_balancer, service, io, workers):
    def handle(connection, origin):
        while origin.request(connection):
            time.sleep(0.004)
            connection.sendall(OK)

    origin = start_origin(handle)
    service.publish([origin.port], sla_header="x-sla", sla_any_client=True, timeout_queue_ns=2 * SECOND)
    only = list(service.settings.servers)
    only[0].maxconn = 1
    service.publish(servers=only)
    balancer = start_balancer([0], io=io, workers=workers, SEGMENT=service.segment.name)
    stop = threading.Event()

    def gold() -> None:
        with balancer.connect(10) as s:
            while not stop.is_set():
                s.sendall(get("g", "gold"))
                read_message(s, b"ok")

    threads = [threading.Thread(target=gold) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.1)
        with balancer.connect(10) as s:
            begun = time.monotonic()
            s.sendall(get("b", "bronze"))
            assert read_message(s, b"ok").startswith(b"HTTP/1.1 200")
            assert time.monotonic() - begun > 0.9  # gold goes first for half of the time
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_completion_at_one_worker_wakes_a_flow_of_another(start_bench):
    bench = start_bench(workers=4)
    bench.direct(flat(1.5))
    bench.taken()
    bench.arrive("x0")
    waits = []
    for number in range(1, 25):
        bench.hold(f"x{number}")
    for number in range(24):
        begun = time.monotonic()
        bench.servers.answer(bench.servers.names[-1])  # of two that came at nearly the same time either goes first
        wait_for(lambda number=number: len(bench.servers.seen) == number + 2)
        waits.append(time.monotonic() - begun)
        assert bench.service.in_flight() <= 2
    bench.finish(*(f"x{number}" for number in range(25)))
    assert float(np.median(waits)) < 0.04  # a look is due every 50 ms without being woken


def test_the_class_is_the_header_s_else_the_route_s_else_the_default(start_bench):
    routes = [RouteData("/api", "gold", 0), RouteData("/api/slow", "bronze", 0), RouteData("/x", "silver", 0)]
    bench = start_bench(routes=routes, sla_default="bronze")
    bench.direct(None, loads=[[load, load, load * 3] for load in (1.0, 2.0, 4.0, 8.0)])
    bench.taken()
    asked = ["other", "api", "api/slow/1", "apiary", "x", "ap", "api/1", "api/2"]
    slas = ["", "", "", "", "", "", "bronze", "platinum"]
    for name, sla in zip(asked, slas, strict=True):
        bench.arrive(name, sla)
        bench.finish(name)
    wait_for(lambda: bench.rows()["ring_head"].sum() == len(asked))
    records = bench.service.segment.read_records(0, 0).records
    assert records["sla"].tolist() == [2, 0, 2, 0, 1, 2, 2, 0]
    assert records["route"].tolist() == [0, 1, 2, 1, 3, 0, 1, 1]
    assert records["load"].tolist() == [3, 2, 12, 2, 8, 3, 6, 2], "bronze flows weigh three times as much"
    assert [bench.total("flows_class", c) for c in range(3)] == [3, 1, 4]


def test_a_client_that_is_not_trusted_does_not_choose_its_class(start_bench):
    bench = start_bench(sla_any_client=False)
    bench.direct(None)
    bench.taken()
    bench.arrive("a", "gold")
    bench.service.publish(trusted=[ip_network("127.0.0.0/8")])
    bench.service.taken()
    bench.arrive("b", "gold")
    bench.finish("a")
    bench.finish("b")
    assert [bench.total("flows_class", c) for c in range(3)] == [1, 1, 0]
