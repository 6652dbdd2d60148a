"""After a crash of the data plane: in-flight counts are true again, counters begin anew, no row stays locked."""

import os
import random
import signal
import time

import pytest

from dataplane._dataplane import lib
from dataplane.core import Balancer, new_flows
from tests.core.farm import Farm


def test_the_flows_of_a_dead_data_plane_are_not_in_flight():
    with Farm(3, workers=2) as farm:
        farm.load([3, 2, 1], worker=0)
        farm.load([1, 1, 1], worker=1)
        farm.balancers[:] = [Balancer(farm.segment, worker=0, now_ns=farm.now, repair=True)]
        assert farm.segment.read_words().in_flight.tolist() == [0, 0, 0]
        assert farm.segment.read_stats()["in_flight"].tolist() == [0, 0, 0]
        assert farm.segment.read_stats(worker=0)["flows_total"].tolist() == [0, 0, 0]


def test_a_worker_that_does_not_come_back_is_not_waited_for():
    with Farm(2, workers=2) as farm:
        farm.balancers[:] = [Balancer(farm.segment, worker=0, now_ns=farm.now, repair=True)]
        assert farm.segment.read_workers()["heartbeat_ns"].tolist() == [farm.now, 0]
        farm.meet()
        assert farm.dispatch().server in (0, 1)


def test_readers_of_flow_records_go_on_after_a_restart():
    with Farm(1) as farm:
        farm.balancer.record(server_id=1)
        cursor = farm.segment.read_records(0).cursor
        farm.balancers[:] = [Balancer(farm.segment, now_ns=farm.now, repair=True)]
        farm.balancer.record(server_id=2)
        read = farm.segment.read_records(0, cursor)
        assert (read.records["server_id"].tolist(), read.lost) == ([2], 0)


@pytest.mark.parametrize("seed", range(8))
def test_a_worker_killed_at_any_moment_leaves_a_segment_to_go_on_with(seed):
    with Farm(4, reservoir_slots=64) as farm:
        farm.curves([[k, k + 1] for k in range(4)])
        child = os.fork()
        if child == 0:
            try:
                flows = new_flows(50)
                while True:
                    farm.now = farm.balancer.drill_flows(flows, 1000, now_ns=farm.now)
                    farm.balancer.record(b"/")
                    farm.balancer.sample(farm.now)
            finally:
                os._exit(1)
        time.sleep(random.Random(seed).uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        farm.balancers[:] = [Balancer(farm.segment, now_ns=farm.now, repair=True)]
        assert farm.segment.read_words().in_flight.tolist() == [0] * 4
        farm.curves([[k, k + 1] for k in range(4)])
        farm.balancer.drill_flows(new_flows(10), 1000, now_ns=farm.now)
        stats = farm.segment.read_stats()
        assert (stats["flows_total"].sum(), stats["in_flight"].sum()) == (1000, 10)
        reservoirs = farm.segment.read_reservoirs(lib.METRIC_FCT)
        assert reservoirs.counts.sum() == 990, "a reservoir stayed locked"
        farm.balancers.clear()
