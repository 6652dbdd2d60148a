"""Who overtook whom: shared cores, workers that are proven, and workers that are not there."""

import itertools

import numpy as np
import pytest

from controlplane.overtaking import Overtaking, first_of
from shm_layout.layout import FLOW_RECORD


def records(rows: list[tuple[float, float, int]]) -> np.ndarray:
    """Return flow records of server 0, id 1, from (dispatched, closed, found)."""
    out = np.zeros(len(rows), dtype=FLOW_RECORD)
    out["server_id"] = 1
    for i, (dispatched, closed, found) in enumerate(rows):
        out["dispatched_ns"][i], out["closed_ns"][i], out["found"][i] = dispatched * 1e9, closed * 1e9, found
    return out


@pytest.fixture
def exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demands are known to be exponential."""
    monkeypatch.setattr(Overtaking, "_first_of", lambda _, limit: 1.0 / limit)


def test_overtaking_is_counted_by_hand():
    ids = np.ones(1, dtype=np.uint64)
    # One worker: a (0 … 3), b comes at 1 and leaves at 5; c comes at 2, finds both, and leaves at 4, before b.
    fifo, shared = Overtaking(), Overtaking()
    fifo.update(records([(0, 3, 0), (1, 4, 1), (2, 5, 2)]), 3, ids, np.ones(1))
    shared.update(records([(0, 3, 0), (2, 4, 2), (1, 5, 1)]), 3, ids, np.ones(1))
    # Chances: b one of two, c two of three.
    assert (fifo.chances, fifo.taken) == (pytest.approx(1 / 2 + 2 / 3), 0.0)
    assert (shared.chances, shared.taken) == (pytest.approx(1 / 2 + 2 / 3), 1.0)


def in_order(watch: Overtaking, flows: int, limit: float, now: float = 0.0) -> float:
    """Show groups of three flows that one worker served as they came; return when the last was over."""
    for _ in range(flows // 3):
        rows = [(now, now + 3, 0), (now + 1, now + 4, 1), (now + 2, now + 5, 2)]
        watch.update(records(rows), 3, np.ones(1, dtype=np.uint64), np.array([limit]))
        now += 10
    return now


def overtaking(watch: Overtaking, flows: int, limit: float, now: float) -> float:
    """Show flows that find two and leave before both; return when the last was over."""
    for _ in range(flows):
        rows = [(now + 2, now + 3, 2), (now, now + 8, 0), (now + 1, now + 9, 0)]
        watch.update(records(rows), 3, np.ones(1, dtype=np.uint64), np.array([limit]))
        now += 10
    return now


def test_who_leaves_before_two_that_came_earlier_proves_a_second_worker():
    watch = Overtaking()
    # First in, first out at the beginning: the cores are not shared. A limit of one worker is what the times tell.
    now = in_order(watch, 15, 1.0)
    assert watch.judged
    assert watch.proven[0] == 1.0
    # One in two should overtake with two workers. Ten did not: it takes three that did. By one at a time.
    now = overtaking(watch, 1, 1.0, now)
    assert watch.proven[0] == pytest.approx(1.0, abs=0.01)
    overtaking(watch, 2, 1.0, now)
    assert watch.proven[0] == pytest.approx(2.0, abs=0.01)


def test_few_that_overtake_among_many_that_do_not_prove_nothing():
    watch, now = Overtaking(), 0.0
    for _ in range(50):
        now = overtaking(watch, 1, 1.0, in_order(watch, 30, 1.0, now))
        assert watch.proven[0] == pytest.approx(1.0, abs=0.01)


def test_a_worker_that_was_proven_by_mistake_is_taken_back():
    watch = Overtaking()
    now = in_order(watch, 15, 1.0)
    watch.proven[0] = 3.0
    now = in_order(watch, 15, 3.0, now)
    assert watch.proven[0] == pytest.approx(3.0, abs=0.01)  # of five flows that find two one is to overtake both
    in_order(watch, 60, 3.0, now)
    assert watch.proven[0] == pytest.approx(2.0, abs=0.01)


def test_flows_that_were_dispatched_at_one_moment_do_not_overtake_each_other():
    # One worker, and b sent in one go with a, whom it found there: it leaves after a, as it should.
    watch = Overtaking()
    watch.update(records([(0, 3, 0), (0, 4, 1)]), 2, np.ones(1, dtype=np.uint64), np.ones(1))
    assert (watch.chances, watch.taken) == (pytest.approx(1 / 2), 0.0)


def test_lost_records_are_no_evidence():
    watch = Overtaking()
    watch.update(records([(0, 3, 0), (2, 4, 2)]), 10, np.ones(1, dtype=np.uint64), np.ones(1))
    assert watch.chances == 0.0


@pytest.mark.parametrize("workers", [1.0, 2.0, 4.0, 8.0])
def test_of_exponential_flows_each_is_the_first_to_end_as_often(workers):
    times = -np.log1p(-(np.arange(512) + 0.5) / 512)
    assert first_of(times, np.array([workers]))[0] == pytest.approx(1 / workers, rel=0.01)


def test_the_part_that_overtakes_all_others_is_counted_by_hand():
    # Of 1 and 3, one that is at work has 1 left with Σ (t − 1)⁺ / Σ t = 2/4, 3 with none; half of the flows take 1.
    assert first_of(np.array([3.0, 1.0]), np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 1 / 4, 1 / 8]
    # What takes as long as all others is never before them.
    assert first_of(np.ones(64), np.array([1.0, 2.0])).tolist() == [1.0, 0.0]


@pytest.mark.usefixtures("exponential")
def test_flows_that_never_overtake_have_no_second_worker():
    watch = Overtaking()
    assert in_order(watch, 9, 2.0) == 30.0
    assert watch.most[0] == np.inf  # of six flows that found one, three were to overtake it
    in_order(watch, 12, 2.0, 30.0)
    assert watch.most[0] == 1.0


@pytest.mark.usefixtures("exponential")
def test_a_worker_that_was_taken_back_by_mistake_is_proven_again():
    watch = Overtaking()
    now = in_order(watch, 30, 2.0)
    assert watch.most[0] == 1.0
    overtaking(watch, 8, 1.0, in_order(watch, 3, 1.0, now))
    assert watch.most[0] == np.inf


def served(k: int, times: np.ndarray, open_flows: int) -> np.ndarray:
    """Records of flows of these times, seconds, at a FIFO of k workers that always has so many in flight."""
    free, rows, ends = [0.0] * k, [], [0.0] * open_flows
    for took in times:
        # The next is dispatched when one ends.
        begin = min(ends)
        ends.remove(begin)
        worker = int(np.argmin(free))
        free[worker] = max(free[worker], begin) + took
        ends.append(free[worker])
        rows.append((begin, free[worker], open_flows - 1))
    return records(rows)


SHAPES = {
    "exponential": lambda rng, n: rng.exponential(0.04, n),
    "pareto": lambda rng, n: 0.015 * np.minimum((1.0 - rng.random(n)) ** (-1 / 1.5), 100.0),
    "two kinds": lambda rng, n: np.where(rng.random(n) < 0.9, 0.004, 0.3),
    "fixed": lambda rng, n: np.full(n, 0.04),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_workers_that_are_there_are_not_taken_back(shape, k, seed):
    """Where every flow has a minimum to take, the last of eight seldom is the first to end."""
    rows = served(k, SHAPES[shape](np.random.default_rng(seed), 4000), k)
    watch = Overtaking()
    for part in np.array_split(rows[np.argsort(rows["closed_ns"])], 100):
        watch.update(part, len(part), np.ones(1, dtype=np.uint64), np.array([float(k)]))
        assert watch.most[0] == np.inf


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "k"),
    [*itertools.product(("exponential", "two kinds"), (1, 2, 7)), ("pareto", 1), ("pareto", 2)],
)
def test_a_worker_that_is_not_there_is_found_out(shape, k, seed):
    """Its flows take longer by what they wait, so times and rates alone may fit a worker more."""
    rows = served(k, SHAPES[shape](np.random.default_rng(seed), 4000), k + 1)
    watch, limits = Overtaking(), []
    for part in np.array_split(rows[np.argsort(rows["closed_ns"])], 100):
        watch.update(part, len(part), np.ones(1, dtype=np.uint64), np.array([k + 1.0]))
        limits.append(watch.most[0])
    assert limits[-1] == pytest.approx(k, rel=0.2)


def in_runs(rng: np.random.Generator, n: int) -> np.ndarray:
    """Times of which those that are near are alike: a server that is slow for a while, and fast again."""
    slow = np.cumsum(rng.random(n) < 1 / 100) % 2
    return np.where(slow, 0.05, 0.005) * rng.uniform(0.95, 1.05, n)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_flows_that_differ_only_from_those_long_before_are_not_expected_to_overtake(k):
    refuted = 0.0
    for seed in range(6):
        rows, watch = served(k, in_runs(np.random.default_rng(seed), 4000), k), Overtaking()
        for part in np.array_split(rows[np.argsort(rows["closed_ns"])], 100):
            watch.update(part, len(part), np.ones(1, dtype=np.uint64), np.array([float(k)]))
            refuted += np.isfinite(watch.most[0]) / 600
    assert refuted < 0.1  # a run that ends may look like flows that differ; by the others' shape all would be refuted


def test_the_shape_of_other_servers_is_not_held_against_one():
    # Three servers of two workers with exponential flows, and one whose flows take the same time within a tenth.
    rng = np.random.default_rng(1)
    rows = []
    for i in range(4):
        times = rng.exponential(0.01, 2000) if i < 3 else 0.01 * rng.uniform(0.9, 1.1, 2000)
        of_one = served(2, times, 2)
        of_one["server"], of_one["server_id"] = i, i + 1
        rows.append(of_one)
    both = np.concatenate(rows)
    both = both[np.argsort(both["closed_ns"])]
    watch = Overtaking()
    for part in np.array_split(both[both["closed_ns"] < min(one["closed_ns"].max() for one in rows)], 60):
        watch.update(part, len(part), np.arange(1, 5, dtype=np.uint64), np.full(4, 2.0))
    assert np.isinf(watch.most).all()


def test_a_bound_is_forgotten_where_everybody_overtakes_and_while_records_are_lost():
    watch = Overtaking()
    watch.most = np.ones(1)
    rows = served(4, np.random.default_rng(1).exponential(0.01, 400), 4)
    watch.update(rows, len(rows), np.ones(1, dtype=np.uint64), np.ones(1))
    assert watch.share > 0.5
    assert watch.most[0] == np.inf
    watch.most = np.ones(1)
    for _ in range(20):
        watch.update(rows[:1], 1000, np.ones(1, dtype=np.uint64), np.ones(1))
    assert watch.most[0] == pytest.approx(np.e)


def test_servers_may_go_and_their_records_with_them():
    rows = served(2, np.random.default_rng(1).exponential(0.01, 300), 2)
    rows["server"] = 5
    watch = Overtaking()
    watch.update(rows[:200], 200, np.ones(6, dtype=np.uint64), np.full(6, 2.0))
    rows["server"] = 0
    watch.update(rows[200:], 100, np.ones(2, dtype=np.uint64), np.full(2, 2.0))
    assert np.isinf(watch.most).all()
