"""The figures of a trace are those that numpy finds in all of it at once."""

import numpy as np
import pytest

from testbed.traces.generate import generated
from testbed.traces.record import checksum, records_from
from testbed.traces.statistics import BIN_ERROR, Statistics


def figures(records, size: int = 777):
    statistics = Statistics()
    for at in range(0, len(records), size):
        statistics.add(records[at : at + size])
    return statistics.as_json()


@pytest.mark.parametrize("kind", ["poisson", "mmpp2", "pareto", "wiki"])
def test_figures_are_those_of_the_whole(kind):
    records = generated(kind, flows=30_000)
    found = figures(records)
    t = records["t_ns"]
    assert found["rows"] == 30_000
    assert found["span_s"] == pytest.approx((t[-1] - t[0]) * 1e-9)
    assert found["rate_per_s"] == pytest.approx(29_999 / found["span_s"])
    gaps = np.diff(t)
    assert found["interarrival_cv"] == pytest.approx(gaps.std() / gaps.mean())
    assert found["sha256"] == checksum([records])
    work = found["work"]
    assert work["mean"] == pytest.approx(records["work"].mean())
    assert work["cv"] == pytest.approx(records["work"].std() / records["work"].mean())
    assert (work["min"], work["max"]) == (records["work"].min(), records["work"].max())
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        exact = np.quantile(records["work"], q, method="inverted_cdf")
        assert work[name] == pytest.approx(exact, rel=BIN_ERROR)


@pytest.mark.parametrize("kind", ["poisson", "mmpp2", "onoff"])
def test_dispersion_is_variance_over_mean_of_the_counts(kind):
    records = generated(kind, flows=30_000)
    since = records["t_ns"] - records["t_ns"][0]
    found = figures(records)["dispersion"]
    assert [row["window_s"] for row in found] == pytest.approx([10.0**k for k in range(-3, 2)])
    for row in found:
        window = round(row["window_s"] * 1e9)
        counts = np.bincount(since // window)[: int(since[-1] // window)]
        assert row["windows"] == len(counts)
        assert row["index"] == pytest.approx(counts.var(ddof=1) / counts.mean(), rel=1e-9)


def test_dispersion_tells_chance_from_bursts_and_from_order():
    def at_one_second(records):
        return next(row["index"] for row in figures(records)["dispersion"] if row["window_s"] == 1.0)

    assert at_one_second(generated("poisson", flows=100_000)) == pytest.approx(1, abs=0.15)
    assert at_one_second(generated("mmpp2", flows=100_000)) > 20
    assert at_one_second(records_from(np.arange(100_000) * 10_000_019)) < 0.01


def test_what_is_not_known_is_counted_apart():
    records = records_from(np.arange(4) * 10**9, [1.0, np.nan, 3.0, 0.0], [0, 5, 0, 7], balancer=[0, 1, 1, 9])
    found = figures(records)
    assert (found["work"]["known"], found["work"]["mean"], found["work"]["min"]) == (3, 4 / 3, 0.0)
    assert (found["bytes"]["known"], found["bytes"]["mean"]) == (2, 6.0)
    assert found["balancers"] == {"0": 1, "1": 2, "9": 1}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_traces_have_no_rate(n):
    found = figures(records_from(np.zeros(n, dtype=np.int64), 1.0))
    assert found["rate_per_s"] is None
    assert found["dispersion"] == []
