"""The life of a flow: occupancy is conserved, each outcome leaves what it should and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane._dataplane import lib
from dataplane.core import NO_SERVER, new_flows
from shm_layout.layout import OUTCOMES
from tests.core.farm import Farm

OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}
UNIT = 128  # ns, of the time in a server's word


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 10**6)), max_size=80), st.integers(1, 3))
def test_occupancy_is_conserved(steps, workers):
    # Over all workers: the times add up to the time that passed, arrivals to completions, the word to the open flows.
    with Farm(3, workers=workers) as farm:
        open_flows, found = [], 0
        for k, (opens, server, wait) in enumerate(steps):
            farm.now += wait
            worker = k % workers
            if opens or not open_flows:
                flow = farm.balancers[worker].open(server, farm.now)
                open_flows.append((worker, server, flow))
                found += 1
            else:
                owner, _, flow = open_flows.pop(wait % len(open_flows))
                farm.balancers[owner].close(flow, farm.now)
        for server in range(3):
            mine = [flow for _, s, flow in open_flows if s == server]
            assert farm.balancer.in_flight(server) == len(mine)
            farm.balancer.open(server, farm.now)  # charges the time until now
        stats = [farm.segment.read_stats(worker=w) for w in range(workers)]
        total = sum(s["time_ns"].sum(axis=1) for s in stats)
        assert (np.abs(total.astype(np.int64) - (farm.now - farm.began)) <= UNIT).all()
        completions = sum(s["completions"].sum() for s in stats)
        assert completions == sum(s["arrivals"].sum() for s in stats) == found - len(open_flows)
        assert sum(s["flows_total"].sum() for s in stats) == found + 3
        assert sum(s["in_flight"].sum() for s in stats) == len(open_flows) + 3


def test_the_time_with_n_in_flight_is_charged_to_n():
    with Farm(1) as farm:
        start = farm.now
        first = farm.balancer.open(0, start + 10 * UNIT)
        second = farm.balancer.open(0, start + 15 * UNIT)
        farm.balancer.close(first, start + 18 * UNIT)
        farm.balancer.close(second, start + 40 * UNIT)
        assert farm.balancer.stats(0)["time_ns"][:4].tolist() == [10 * UNIT, (5 + 22) * UNIT, 3 * UNIT, 0]
        assert farm.balancer.stats(0)["completions"][:4].tolist() == [0, 1, 1, 0]
        assert farm.balancer.stats(0)["arrivals"][:4].tolist() == [1, 1, 0, 0]
        assert farm.balancer.stats(0)["found_fct_ns"][:4].tolist() == [8 * UNIT, 25 * UNIT, 0, 0]


def test_rounding_of_times_does_not_add_up():
    with Farm(1) as farm:
        flow = None
        for _ in range(1000):
            farm.now += 100  # less than the unit
            farm.balancer.close(flow, farm.now) if flow else None
            flow = farm.balancer.open(0, farm.now)
        assert farm.balancer.stats(0)["time_ns"].sum() == pytest.approx(100_000, abs=UNIT)


def test_a_clock_that_a_peer_read_earlier_charges_nothing():
    with Farm(1, workers=2) as farm:
        a = farm.balancers[0].open(0, farm.now + 10_000)
        b = farm.balancers[1].open(0, farm.now)
        farm.balancers[0].close(a, farm.now + 20_480)
        farm.balancers[1].close(b, farm.now + 20_480)
        total = sum(int(farm.segment.read_stats(worker=w)["time_ns"][0][1:].sum()) for w in range(2))
        assert total == pytest.approx(10_480, abs=2 * UNIT)


def test_the_profile_counts_time_at_the_server_and_the_histogram_the_clients():
    with Farm(1) as farm:
        flow = farm.balancer.open(0, farm.now, opened_ns=farm.now - 70_000)
        farm.balancer.close(flow, farm.now + 30_000)
        stats = farm.balancer.stats(0)
        assert stats["found_fct_ns"][0] == 30_000
        assert stats["fct_sum_ns"] == 100_000
        assert stats["fct_histogram"][lib.histogram_bucket(100_000)] == 1
        assert stats["fct_histogram"].sum() == 1


LEAVES = {  # completion, sample, failure, failure of the gateway kind
    "ok": (1, 1, 0, 0),
    "server_5xx": (1, 1, 1, 0),
    "connect_failed": (0, 0, 1, 1),
    "server_abort": (0, 0, 1, 1),
    "server_timeout": (0, 1, 1, 1),
    "client_abort": (0, 0, 0, 0),
    "client_timeout": (0, 0, 0, 0),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_leaves_what_it_should(outcome):
    completion, sample, failure, gateway = LEAVES[outcome]
    with Farm(1) as farm:
        flow = farm.balancer.open(0, farm.now)
        farm.balancer.close(flow, farm.now + 5000, OUTCOME[outcome], bytes_in=3, bytes_out=4)
        stats = farm.balancer.stats(0)
        assert stats["outcomes"].tolist() == [int(name == outcome) for name in OUTCOMES]
        assert stats["completions"].sum() == completion
        assert stats["fct_sum_ns"] == 5000 * completion
        assert stats["arrivals"].sum() == stats["fct_histogram"].sum() == sample
        assert stats["found_fct_ns"].sum() == 5000 * sample
        assert farm.segment.read_reservoirs(lib.METRIC_FCT).counts[0, 0] == sample
        assert farm.segment.read_reservoirs(lib.METRIC_DURATION).counts[0, 0] == sample
        assert (stats["failures_in_a_row"], stats["gateway_failures_in_a_row"]) == (failure, gateway)
        assert (stats["bytes_in"], stats["bytes_out"]) == (3, 4)
        assert (farm.balancer.in_flight(0), stats["in_flight"]) == (0, 0)


def test_failures_in_a_row_end_with_a_good_answer():
    with Farm(1) as farm:
        counts = []
        for outcome in ("server_5xx", "connect_failed", "client_abort", "server_abort", "ok", "server_timeout"):
            farm.balancer.close(farm.balancer.open(0, farm.now), farm.now, OUTCOME[outcome])
            stats = farm.balancer.stats(0)
            counts.append((int(stats["failures_in_a_row"]), int(stats["gateway_failures_in_a_row"])))
        assert counts == [(1, 0), (2, 1), (2, 1), (3, 2), (0, 0), (1, 1)]


def test_a_retried_flow_leaves_its_server_without_a_sample():
    with Farm(2) as farm:
        flow = farm.balancer.open(0, farm.now)
        farm.balancer.retry(flow, farm.now + 1000, OUTCOME["connect_failed"])
        stats = farm.balancer.stats(0)
        assert flow.server == NO_SERVER
        assert (stats["retries"], stats["outcomes"][OUTCOME["connect_failed"]]) == (1, 1)
        assert (stats["arrivals"].sum(), farm.balancer.in_flight(0)) == (0, 0)
        assert stats["failures_in_a_row"] == 1


def test_closing_what_is_not_open_does_nothing():
    with Farm(1) as farm:
        flow = farm.balancer.open(0, farm.now)
        for _ in range(2):
            farm.balancer.close(flow, farm.now)
            farm.balancer.retry(flow, farm.now, OUTCOME["connect_failed"])
        farm.balancer.close(new_flows(1), farm.now)
        farm.balancer.close(farm.balancer.open(5, farm.now), farm.now)  # no such slot
        assert farm.balancer.stats(0)["outcomes"].sum() == 1
        assert farm.balancer.in_flight(0) == 0


def test_a_flow_of_the_slots_former_server_leaves_the_counts_and_no_trace():
    with Farm(2) as farm:
        old = farm.balancer.open(0, farm.now)
        farm.change(0, id=77)
        assert farm.balancer.stats(0)["flows_total"] == 0
        new = farm.balancer.open(0, farm.now)
        farm.balancer.close(old, farm.now + 10**6)
        stats = farm.balancer.stats(0)
        assert (stats["id"], stats["outcomes"].sum(), stats["arrivals"].sum(), stats["completions"].sum()) == (
            77,
            0,
            0,
            0,
        )
        assert farm.balancer.in_flight(0) == stats["in_flight"] == 1
        farm.balancer.close(new, farm.now + 2 * 10**6)
        assert farm.balancer.stats(0)["outcomes"].sum() == 1
        assert farm.balancer.in_flight(0) == 0


def test_a_new_server_starts_with_nothing_from_the_slots_former_one():
    with Farm(1) as farm:
        for _ in range(50):
            farm.balancer.close(farm.balancer.open(0, farm.now), farm.now + 5000)
        farm.now += 10**12
        farm.change(0, id=2)
        assert farm.segment.read_reservoirs(lib.METRIC_FCT).counts[0, 0] == 0
        assert farm.segment.read_reservoirs(lib.METRIC_FCT).ids[0, 0] == 2
        farm.balancer.open(0, farm.now + 12_800)
        stats = farm.balancer.stats(0)
        assert stats["time_ns"].tolist() == [12_800] + [0] * (len(stats["time_ns"]) - 1)
        assert stats["flows_total"] == 1


def test_in_flight_ends_at_what_a_word_holds():
    with Farm(1) as farm:
        flows = farm.load([65_535])
        assert farm.dispatch().full
        assert farm.balancer.in_flight(0) == 65_535
        for flow in flows:
            farm.balancer.close(flow, farm.now)
        assert farm.balancer.in_flight(0) == 0


def test_the_server_table_may_shrink_under_open_flows():
    with Farm(3) as farm:
        flows = farm.load([1, 1, 1])
        farm.servers = farm.servers[:1]
        farm.publish_settings()
        farm.refresh()
        for flow in flows:
            farm.balancer.close(flow, farm.now)
        assert farm.segment.read_words().in_flight.tolist() == [0, 0, 0]
        assert farm.dispatch().server == 0
