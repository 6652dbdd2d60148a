"""Small disorder is mended, large disorder is said; several traces become one and one several."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.traces.order import by_balancer, in_order, merged
from testbed.traces.record import Problems, Records, TraceError, join, records_from
from testbed.traces.rows import Block


def records_at(times: list[int]) -> Records:
    return records_from(np.array(times, dtype=np.int64), key=np.arange(len(times)))


def blocks_of(times: list[int], cuts: list[int]) -> list[Block]:
    records, lines = records_at(times), np.arange(1, len(times) + 1)
    edges = [0, *sorted(cut % (len(times) + 1) for cut in cuts), len(times)]
    return [(records[a:b], lines[a:b]) for a, b in pairwise(edges) if b > a]


TIMES = st.lists(st.integers(-20, 20), max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=6)


@given(TIMES, CUTS)
def test_a_wide_window_sorts_everything_and_keeps_ties(times, cuts):
    problems = Problems("t", good=len(times))
    out = join(in_order(blocks_of(times, cuts), 100, problems))
    assert problems.bad == 0
    assert out["key"].tolist() == sorted(range(len(times)), key=lambda i: times[i])


@given(TIMES, CUTS, CUTS, st.integers(0, 5))
def test_the_result_depends_on_the_rows_alone(times, cuts, others, window):
    found = []
    for way in (cuts, others):
        problems = Problems("t", good=len(times))
        out = join(in_order(blocks_of(times, way), window, problems))
        assert (np.diff(out["t_ns"]) >= 0).all()
        assert len(out) == problems.good == len(times) - problems.bad
        found.append((out.tolist(), problems.first))
    assert repr(found[0]) == repr(found[1])


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 5), st.randoms())
def test_a_row_may_stand_as_many_rows_too_late_as_the_window_has(times, window, random):
    # Rows that move at most `window` places from where they belong.
    times = sorted(times)
    places = sorted(range(len(times)), key=lambda i: i + random.uniform(0, window))
    problems = Problems("t", good=len(times))
    out = join(in_order(blocks_of([times[i] for i in places], []), window, problems))
    assert problems.bad == 0
    assert out["t_ns"].tolist() == times


def test_a_row_out_of_order_is_said_with_its_line():
    times = [10, 20, 30, 40, 50, 15, 60]
    problems = Problems("t")
    out = join(in_order(blocks_of(times, []), 2, problems))
    assert out["t_ns"].tolist() == [10, 20, 30, 40, 50, 60]
    assert [bad.line for bad in problems.first] == [6]
    assert "out of order" in problems.first[0].reason
    with pytest.raises(TraceError, match="t:6: out of order"):
        list(in_order(blocks_of(times, []), 2, Problems("t", strict=True)))


def test_without_a_window_nothing_may_be_late():
    problems = Problems("t")
    out = join(in_order(blocks_of([1, 3, 2, 3, 4], []), 0, problems))
    assert out["t_ns"].tolist() == [1, 3, 3, 4]
    assert [bad.line for bad in problems.first] == [3]


@given(st.lists(st.tuples(TIMES, CUTS), min_size=1, max_size=4))
def test_merging_is_sorting_all_rows_by_time_and_then_trace(traces):
    sorted_times = [sorted(times) for times, _ in traces]
    sources = [
        [block for block, _ in blocks_of(times, cuts)] for times, (_, cuts) in zip(sorted_times, traces, strict=True)
    ]
    expected = sorted((t, i, k) for i, times in enumerate(sorted_times) for k, t in enumerate(times))
    out = join(merged(sources))
    assert out["t_ns"].tolist() == [t for t, _, _ in expected]
    assert out["key"].tolist() == [k for _, _, k in expected]


def test_merging_holds_no_more_than_a_block_of_each():
    read = [0, 0]

    def source(i: int):
        for start in range(0, 1000, 10):
            read[i] += 1
            yield records_at(list(range(start, start + 10)))

    for block in merged([source(0), source(1)]):
        assert abs(read[0] - read[1]) <= 1
        assert len(block) <= 20


def test_splitting_by_balancer_loses_nothing():
    records = records_at(list(range(100)))
    records["balancer"] = np.arange(100) % 3
    parts: dict[int, list[Records]] = {}
    for balancer, block in by_balancer([records[:50], records[50:]]):
        parts.setdefault(balancer, []).append(block)
    assert [len(join(parts[b])) for b in range(3)] == [34, 33, 33]
    assert all((join(parts[b])["balancer"] == b).all() for b in range(3))
    assert join(merged([parts[b] for b in range(3)]))["t_ns"].tolist() == list(range(100))
