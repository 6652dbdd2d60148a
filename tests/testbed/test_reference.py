"""The simulated references: like the simulator's own where nothing changes, and by hand where something does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.simulator import references
from testbed.reference import central_queue, least_work_left

SERVERS = st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 3)), min_size=1, max_size=5)


@settings(max_examples=40)
@given(servers=SERVERS, seed=st.integers(0, 1000))
def test_without_changes_they_agree_with_the_simulators(servers: list[tuple[float, int]], seed: int):
    rng = np.random.default_rng(seed)
    arrival_ns = np.cumsum(rng.integers(1, 20_000_000, 200)).astype(np.uint64)
    arrival_s, demand_s = arrival_ns * 1e-9, rng.exponential(0.04, 200)
    speeds, workers = [speed for speed, _ in servers], [count for _, count in servers]
    for ours, theirs in ((central_queue, references.central_queue), (least_work_left, references.least_work_left)):
        expected = theirs(arrival_ns, demand_s, speeds, workers)
        assert ours(arrival_s, demand_s, speeds, workers).mean() == pytest.approx(expected.mean(), rel=1e-3)


def test_a_service_keeps_the_speed_at_which_it_began_and_the_next_has_the_new_one():
    # Speed 2 until 1 s, then 1/2. The first takes 2/2 = 1 s, the second begins at 1 s and takes 2/0.5 = 4 s.
    arrival, demand = np.array([0.0, 0.5]), np.array([2.0, 2.0])
    for reference in (central_queue, least_work_left):
        assert reference(arrival, demand, [2.0], 1, changes=[(1.0, 0, 0.5)]).tolist() == pytest.approx([1.0, 4.5])


def test_a_server_that_is_down_serves_nobody_until_it_is_back():
    # The fast one is away from 0 to 3 s. A central queue takes the slow one (2 s) and, at 3 s, the fast one.
    changes = [(0.0, 1, 0.0), (3.0, 1, 10.0)]
    arrival, demand = np.array([0.5, 0.6, 0.7]), np.array([2.0, 2.0, 2.0])
    fct = central_queue(arrival, demand, [1.0, 10.0], 1, changes=changes)
    assert fct.tolist() == pytest.approx([2.0, 3.9, 2.5])  # ends at 2.5; from 2.5 to 4.5; at 3 s for 0.2 s
    # Who knows everything waits for the fast one: 3.2 s is sooner than 4.5 s.
    fct = least_work_left(arrival, demand, [1.0, 10.0], 1, changes=changes)
    assert fct.tolist() == pytest.approx([2.0, 2.6, 2.7])


def test_over_the_path_a_worker_waits_for_the_answers_way_and_the_next_flows():
    # Services of 1 s, the path takes 0.25 s: the second begins when the first one's worker hears of it.
    arrival, demand, path = np.array([0.0, 0.0, 5.0]), np.ones(3), np.array([0.25, 0.5, 0.25])
    near = central_queue(arrival, demand, [1.0], 1, path_s=path)
    over = central_queue(arrival, demand, [1.0], 1, path_s=path, over_path=True)
    assert near.tolist() == pytest.approx([1.25, 2.5, 1.25])
    assert over.tolist() == pytest.approx([1.25, 2.75, 1.25])


@settings(max_examples=20)
@given(path=st.floats(0.0, 0.02), seed=st.integers(0, 1000))
def test_the_path_takes_as_much_of_a_worker_as_a_longer_service(path: float, seed: int):
    rng = np.random.default_rng(seed)
    arrival, demand = np.cumsum(rng.exponential(0.01, 200)), rng.exponential(0.04, 200)
    over = central_queue(arrival, demand, [1.0, 4.0], 2, path_s=path, over_path=True)
    np.testing.assert_allclose(over, central_queue(arrival, demand, [1.0, 4.0], 2, late_s=[path, path]))


def test_a_flow_that_nobody_will_ever_serve_takes_for_ever():
    arrival, demand = np.array([0.0, 2.0]), np.array([1.0, 1.0])
    for reference in (central_queue, least_work_left):
        assert reference(arrival, demand, [1.0], 1, changes=[(1.5, 0, 0.0)]).tolist() == [1.0, np.inf]
