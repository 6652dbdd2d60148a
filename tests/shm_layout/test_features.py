"""The observation table against a plain model, and percentiles of histograms against the samples themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shm_layout.features import FEATURES, features_of, percentiles, read_features
from shm_layout.layout import HISTOGRAM_BUCKETS, SAMPLE, lib
from shm_layout.segment import METRIC_DURATION, METRIC_FCT, Reservoirs, Segment, ServerData, SettingsData
from tests.shm_layout.raw import Raw

HALF_LIFE = 2.0
SLOTS = 16


def reservoirs(table: list[list[list[tuple[int, int]]]], counts: list[list[int]], ids: list[int]) -> Reservoirs:
    """table[worker][server]: (time_ns, value_ns)."""
    samples = np.zeros((len(table), len(ids), SLOTS), dtype=SAMPLE)
    for w, of_worker in enumerate(table):
        for s, of_server in enumerate(of_worker):
            for slot, pair in enumerate(of_server):
                samples[w, s, slot] = pair
    each = np.tile(np.array(ids, dtype=np.uint64), (len(table), 1))
    return Reservoirs(samples, np.array(counts, dtype=np.uint64), each)


def model(table: list[list[list[tuple[int, int]]]], counts: list[list[int]], server: int) -> list[float]:
    """Mean, p90, std, decayed mean and decayed p90 of one server, by the book; seconds."""
    rows = [
        (time, value * 1e-9, counts[w][server] / len(of_worker[server]))
        for w, of_worker in enumerate(table)
        for time, value in of_worker[server]
    ]
    newest = max(time for time, _, _ in rows)
    values = np.array([value for _, value, _ in rows])
    plain = np.array([weight for _, _, weight in rows])
    decayed = plain * np.array([0.5 ** ((newest - time) * 1e-9 / HALF_LIFE) for time, _, _ in rows])
    mean = np.average(values, weights=plain)
    return [
        mean,
        p90(values, plain),
        math.sqrt(np.average((values - mean) ** 2, weights=plain)),
        np.average(values, weights=decayed),
        p90(values, decayed),
    ]


def p90(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(upto, upto[-1] * (0.9 - 1e-9))])


def table_of(fct: Reservoirs, ids: list[int], prior: float = 0.1) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    in_flight = np.arange(len(ids))
    features = features_of(np.array(ids, dtype=np.uint64), in_flight, fct, fct, half_life=HALF_LIFE, prior=prior)
    return features.values, features.samples


samples_of_one = st.lists(st.tuples(st.integers(10**9, 10**11), st.integers(0, 10**11)), min_size=1, max_size=SLOTS)


@given(st.data())
def test_features_follow_the_model(data: st.DataObject) -> None:
    workers, servers = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    table = [[data.draw(samples_of_one) for _ in range(servers)] for _ in range(workers)]
    counts = [[len(s) + data.draw(st.integers(0, 1000)) for s in of_worker] for of_worker in table]
    ids = [7 + s for s in range(servers)]
    values, samples = table_of(reservoirs(table, counts, ids), ids)
    for s in range(servers):
        expected = model(table, counts, s)
        assert values[s, 1:6] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert values[s, 6:] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert samples[s].tolist() == [sum(len(of_worker[s]) for of_worker in table)] * 2


def test_columns_are_in_the_order_of_their_names() -> None:
    assert FEATURES == (
        "n_flow_on",
        "fct_mean",
        "fct_p90",
        "fct_std",
        "fct_mean_decay",
        "fct_p90_decay",
        "flow_duration_mean",
        "flow_duration_p90",
        "flow_duration_std",
        "flow_duration_mean_decay",
        "flow_duration_p90_decay",
    )
    assert FEATURES.index("flow_duration_mean_decay") == 9


def test_p90_of_ten_equal_samples_is_the_ninth() -> None:
    table = [[[(10**9 + i, (i + 1) * 10**9) for i in range(10)]]]
    values, _ = table_of(reservoirs(table, [[10]], [1]), [1])
    assert values[0, 2] == pytest.approx(9.0)


def test_a_half_life_halves_a_samples_weight() -> None:
    # 1 s now and 4 s a half life ago: (1·1 + 4·½) / 1½ = 2
    now = 100 * 10**9
    table = [[[(now, 10**9), (now - 2 * 10**9, 4 * 10**9)]]]
    values, _ = table_of(reservoirs(table, [[2]], [1]), [1])
    assert values[0, 4] == pytest.approx(2.0)
    assert values[0, 1] == pytest.approx(2.5)


def test_workers_count_in_proportion_to_their_flows() -> None:
    # one worker saw 300 flows of 1 s, the other 100 of 5 s, both through two samples
    table = [[[(10**9, 10**9)] * 2], [[(10**9, 5 * 10**9)] * 2]]
    values, _ = table_of(reservoirs(table, [[300], [100]], [1]), [1])
    assert values[0, 1] == pytest.approx(2.0)
    assert values[0, 3] == pytest.approx(math.sqrt(0.75 * 1 + 0.25 * 9))


def test_samples_a_day_old_still_have_a_decayed_mean() -> None:
    table = [[[(10**9 + i, 3 * 10**9) for i in range(5)]], [[(86_400 * 10**9, 10**9)]]]
    values, _ = table_of(reservoirs(table, [[5], [0]], [1]), [1])  # the second worker offered nothing
    assert values[0, 4] == pytest.approx(3.0)


def test_a_server_without_samples_takes_the_others_mean_and_is_marked() -> None:
    table = [[[(10**9, 10**9)], [], [(10**9, 3 * 10**9)], []]]
    values, samples = table_of(reservoirs(table, [[1, 0, 1, 0]], [1, 2, 3, 0]), [1, 2, 3, 0])
    assert values[1, 1] == pytest.approx(2.0)
    assert samples[:, 0].tolist() == [1, 0, 1, 0]
    assert values[3].tolist() == [0.0] * 11  # a free slot
    assert values[:3, 0].tolist() == [0, 1, 2]


def test_without_any_sample_the_prior_stands() -> None:
    values, _ = table_of(reservoirs([[[], []]], [[0, 0]], [1, 2]), [1, 2], prior=0.25)
    assert values[0].tolist() == [0, *[0.25, 0.25, 0.0, 0.25, 0.25] * 2]
    assert np.isfinite(values).all()


def test_samples_of_a_slots_former_server_do_not_count() -> None:
    table = [[[(10**9, 10**9)], [(10**9, 3 * 10**9)]]]
    former = reservoirs(table, [[1, 1]], [99, 2])
    values, samples = table_of(former, [1, 2])
    assert samples[:, 0].tolist() == [0, 1]
    assert values[0, 1] == pytest.approx(3.0)


def test_many_servers_have_the_features_they_have_alone() -> None:
    rng = np.random.default_rng(3)
    n = 300
    samples = np.zeros((2, n, SLOTS), dtype=SAMPLE)
    samples["time_ns"] = rng.integers(1, 10**10, samples.shape) * (rng.random(samples.shape) < 0.7)
    samples["value_ns"] = rng.exponential(1e8, samples.shape)
    ids = np.arange(1, n + 1, dtype=np.uint64)
    counts = rng.integers(0, 50, (2, n)).astype(np.uint64)
    every = Reservoirs(samples, counts, np.tile(ids, (2, 1)))
    together = features_of(ids, np.zeros(n), every, every)
    for i in np.flatnonzero((together.samples > 0).all(axis=1))[::17]:
        one = Reservoirs(samples[:, i : i + 1], counts[:, i : i + 1], every.ids[:, i : i + 1])
        alone = features_of(ids[i : i + 1], np.zeros(1), one, one)
        assert together.values[i] == pytest.approx(alone.values[0])


def test_the_table_of_a_segment(segment: Segment) -> None:
    segment.publish_settings(SettingsData(servers=[ServerData(id=5, name="a"), ServerData(id=6, name="b")]))
    raw = Raw(segment)
    raw.fill(0, 0, METRIC_FCT, id=5, samples=[(10**9, 10**7)], count=1)
    raw.fill(1, 1, METRIC_DURATION, id=6, samples=[(10**9, 4 * 10**7)], count=1)
    raw.words[1] = 9 << 48
    del raw
    table = read_features(segment)
    assert table.values.shape == (2, 11)
    assert table.values[:, 0].tolist() == [0, 9]
    assert table.values[0, 1] == pytest.approx(0.010)
    assert table.values[1, 9] == pytest.approx(0.040)
    assert table.samples.tolist() == [[1, 0], [0, 1]]
    assert table.active.tolist() == [True, True]


# --- percentiles ------------------------------------------------------------------------------------------------------


def histogram_of(values_ns: list[int]) -> NDArray[np.int64]:
    histogram = np.zeros(HISTOGRAM_BUCKETS, dtype=np.int64)
    for value in values_ns:
        histogram[lib.histogram_bucket(value)] += 1
    return histogram


@given(st.lists(st.integers(1152, 2**41), min_size=1, max_size=200), st.floats(1, 100))
def test_a_percentile_is_within_a_bucket_of_the_samples(values_ns: list[int], q: float) -> None:
    got = float(percentiles(histogram_of(values_ns), q)[0])
    true = float(np.percentile(values_ns, q, method="inverted_cdf")) * 1e-9
    assert true / 1.13 <= got <= true * 1.13


def test_percentiles_of_many_histograms_at_once() -> None:
    values = np.random.default_rng(1).exponential(5e7, (3, 20_000)).astype(np.int64)
    histograms = np.array([histogram_of(row.tolist()) for row in values])
    got = percentiles(histograms, [50, 90, 99])
    assert got.shape == (3, 3)
    assert got == pytest.approx(np.percentile(values, [50, 90, 99], axis=1).T * 1e-9, rel=0.02)


def test_percentiles_of_nothing_are_unknown() -> None:
    histograms = np.zeros((2, HISTOGRAM_BUCKETS))
    histograms[1, 100] = 1
    got = percentiles(histograms, [0, 50])
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("q", [-1, 101, math.nan])
def test_percentiles_out_of_range_are_an_error(q: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        percentiles(np.ones(HISTOGRAM_BUCKETS), q)


def test_another_number_of_buckets_is_an_error() -> None:
    with pytest.raises(ValueError, match="buckets"):
        percentiles(np.ones(10), 50)
