"""References agree with ten-line models and with theory, and lie on the right side of each other."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.simulator import Server
from dataplane.simulator.references import birth_death_bound, central_queue, least_work_left, optimum, pooled_srpt

MEAN = 0.01


@st.composite
def flows(draw):
    gaps = draw(st.lists(st.integers(0, 20), min_size=1, max_size=40))
    works = draw(st.lists(st.integers(1, 40), min_size=len(gaps), max_size=len(gaps)))
    farm = draw(st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 3)), min_size=1, max_size=4))
    # No two workers come free at once: who then takes the head of a queue is for rounding to say.
    apart = np.random.default_rng(1).random(len(gaps)) * 1e-6
    return np.cumsum(gaps) * 1_000_000, np.array(works) / 1e3 + apart, [s for s, _ in farm], [k for _, k in farm]


def fastest_free_worker(arrivals_ns, works, speeds, workers):
    """The queue is one list; whenever a worker is free, its head goes to the fastest."""
    idle = sorted((s for s, k in zip(speeds, workers, strict=True) for _ in range(k)), reverse=True)
    busy, queue, fct, now = [], [], {}, 0.0
    todo = [(t * 1e-9, i) for i, t in enumerate(arrivals_ns)]
    while todo or busy:
        if busy and (not todo or busy[0][0] <= todo[0][0]):
            now, speed = heapq.heappop(busy)
            idle = sorted([*idle, speed], reverse=True)
        else:
            now, i = todo.pop(0)
            queue.append((now, i))
        while queue and idle:
            arrived, i = queue.pop(0)
            speed = idle.pop(0)
            heapq.heappush(busy, (now + works[i] / speed, speed))
            fct[i] = now + works[i] / speed - arrived
    return [fct[i] for i in range(len(works))]


@settings(max_examples=60)
@given(flows())
def test_the_central_queue_is_its_model(case):
    assert central_queue(*case) == pytest.approx(fastest_free_worker(*case), abs=1e-9)


@settings(max_examples=60)
@given(flows())
def test_least_work_left_takes_the_first_to_finish(case):
    arrivals_ns, works, speeds, workers = case
    free = [[0.0] * k for k in workers]
    expected = []
    for t, work in zip(arrivals_ns * 1e-9, works, strict=True):
        ends = [max(t, min(f)) + work / s for f, s in zip(free, speeds, strict=True)]
        i = int(np.argmin(ends))
        free[i][int(np.argmin(free[i]))] = ends[i]
        expected.append(ends[i] - t)
    # Equal ends may be resolved either way by rounding; then later flows differ, but not the first of them.
    got = least_work_left(*case)
    assert got[0] == pytest.approx(expected[0])
    assert got.mean() == pytest.approx(np.mean(expected), rel=0.2)


@settings(max_examples=60)
@given(flows())
def test_no_mean_is_below_pooled_srpt(case):
    floor = pooled_srpt(*case).mean() - 1e-9
    assert central_queue(*case).mean() >= floor
    assert least_work_left(*case).mean() >= floor


def test_srpt_preempts_for_the_smaller():
    # 10 ms at 0; 2 ms at 1 overtakes it; 20 ms at 2 waits.
    fct = pooled_srpt(np.array([0, 1, 2]) * 1_000_000, np.array([0.010, 0.002, 0.020]), [1.0], [1])
    assert fct == pytest.approx([0.012, 0.002, 0.030])


def test_references_refuse_arrivals_that_fall_back():
    with pytest.raises(ValueError, match="arrivals"):
        central_queue(np.array([5, 4]), np.array([1.0, 1.0]), [1.0], [1])
    with pytest.raises(ValueError, match="one work"):
        central_queue(np.array([4, 5]), np.array([1.0]), [1.0], [1])


def test_one_server_is_m_m_1_to_bound_and_optimum():
    assert birth_death_bound(70.0, MEAN, [Server()]) == pytest.approx(MEAN / 0.3)
    assert optimum(70.0, MEAN, [Server()], most=120).mean_fct == pytest.approx(MEAN / 0.3, rel=1e-4)


def test_the_bound_of_equal_workers_is_m_m_k():
    # M/M/2 at ρ = 0.9: mean response 1 / (1 - ρ²) service times.
    assert birth_death_bound(180.0, MEAN, [Server(workers=2)]) == pytest.approx(MEAN / (1 - 0.81))


@pytest.mark.parametrize(("ratio", "rho", "expected"), [(4.0, 0.9, 1.225), (10.0, 0.7, 0.522)])
def test_the_bound_has_the_published_values(ratio, rho, expected):
    speeds = np.array([ratio if i % 4 == 0 else 1.0 for i in range(16)])
    speeds *= 16 / speeds.sum()
    assert birth_death_bound(16 * rho / MEAN, MEAN, [Server(speed=s) for s in speeds]) / MEAN == pytest.approx(
        expected, abs=1e-3
    )


def test_the_optimum_of_three_servers_keeps_the_slowest_idle_at_low_load():
    servers = [Server(speed=10.0), Server(speed=9.0), Server(speed=0.2)]
    best = optimum(200.0, MEAN, servers, most=12, tolerance=1e-5)
    assert best.choice[0, 0, 0] == 0
    assert best.choice[1, 0, 0] == 1
    assert best.choice[2, 2, 0] != 2
    bids = best.bids((2, 2, 0))
    assert int(np.argmin(bids)) == best.choice[2, 2, 0]
    assert best.mean_fct >= birth_death_bound(200.0, MEAN, servers)
