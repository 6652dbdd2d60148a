"""Pace, load and parts of a trace."""

import numpy as np
import pytest

from testbed.traces.generate import generated
from testbed.traces.record import TraceError, join, records_from
from testbed.traces.statistics import Statistics
from testbed.traces.transform import Change, offered_load


def blocks_of(records, size: int = 1000):
    return [records[at : at + size] for at in range(0, len(records), size)]


BURSTS = generated("mmpp2", flows=30_000, rate=200.0)


def changed(records=BURSTS, **change):
    return join(Change(**change).apply(lambda: blocks_of(records)))


def test_twice_the_speed_halves_all_gaps():
    out = changed(speed=2.0)
    assert out["t_ns"][0] == BURSTS["t_ns"][0]
    assert np.allclose(np.diff(out["t_ns"]), np.diff(BURSTS["t_ns"]) / 2, atol=1)
    assert (out["work"] == BURSTS["work"]).all()


@pytest.mark.parametrize("rho", [0.3, 0.95])
def test_load_rescales_time_to_the_load_that_is_asked_for(rho):
    out = changed(load=rho, capacity=8.0)
    assert offered_load([out], 8.0) == pytest.approx(rho, rel=1e-6)


def test_load_keeps_the_burstiness():
    def cv(records) -> float:
        statistics = Statistics()
        statistics.add(records)
        return statistics.as_json()["interarrival_cv"]

    assert cv(changed(load=0.9, capacity=1.0)) == pytest.approx(cv(BURSTS), rel=1e-6)
    # The index of dispersion moves with the scale: what was seen in 1 s windows is now seen in shorter ones.
    assert cv(BURSTS) > 1.2


def test_a_part_is_from_the_first_arrival_on():
    out = changed(start=10.0, end=20.0)
    since = (out["t_ns"] - BURSTS["t_ns"][0]) * 1e-9
    assert since[0] >= 10
    assert since[-1] < 20
    assert len(out) == int(
        ((BURSTS["t_ns"] - BURSTS["t_ns"][0] >= 10e9) & (BURSTS["t_ns"] - BURSTS["t_ns"][0] < 20e9)).sum()
    )


def test_what_lies_after_the_end_is_not_read():
    def source():
        yield BURSTS[:1000]
        yield BURSTS[1000:2000]
        raise AssertionError

    end = float(BURSTS["t_ns"][1500] - BURSTS["t_ns"][0]) * 1e-9
    assert 1495 < len(join(Change(end=end).apply(source))) <= 1501
    assert len(join(Change(limit=2000).apply(source))) == 2000


def test_limit_counts_rows_of_the_part():
    assert (changed(start=5.0, limit=1500) == changed(start=5.0)[:1500]).all()
    assert len(changed(limit=0)) == 0


def test_rebased_the_first_arrival_is_at_0():
    out = changed(start=10.0, rebase=True)
    assert out["t_ns"][0] == 0
    assert (np.diff(out["t_ns"]) == np.diff(changed(start=10.0)["t_ns"])).all()


def test_work_can_be_scaled():
    assert np.allclose(changed(scale_work=2e-9)["work"], BURSTS["work"] * 2e-9)
    with pytest.raises(TraceError, match="out of range"):
        changed(scale_work=1e300)


def test_one_balancers_share():
    records = generated("poisson", flows=1000, balancers=4)
    assert set(changed(records, balancer=2)["balancer"].tolist()) == {2}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"speed": 0.0}, "speed must be above 0"),
        ({"speed": float("nan")}, "speed must be above 0"),
        ({"load": 0.5}, "go together"),
        ({"capacity": 0.5}, "go together"),
        ({"load": 0.5, "capacity": 1.0, "speed": 2.0}, "both set the pace"),
    ],
)
def test_changes_that_make_no_sense_are_refused(change, says):
    with pytest.raises(TraceError, match=says):
        Change(**change)


def test_a_load_needs_work_and_time():
    unknown = records_from(np.arange(5))
    with pytest.raises(TraceError, match="needs the work of every row"):
        changed(unknown, load=0.5, capacity=1.0)
    with pytest.raises(TraceError, match="arrivals at two times"):
        changed(records_from(np.zeros(5, dtype=np.int64), 1.0), load=0.5, capacity=1.0)


@pytest.mark.parametrize("speed", [1e-300, 1e-12])
def test_times_that_leave_the_range_are_an_error(speed):
    with pytest.raises(TraceError, match="out of range"):
        changed(speed=speed)
