"""Rates and percentiles of the last seconds out of cumulative counters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.commands.status import auction_line, server_table, waiting_line
from controlplane.counters import BUCKET_EDGES_S, Snapshot
from controlplane.status import History, Recent, fct_ms, percentile_ms, ratio, traffic_status
from shm_layout._segment import lib
from shm_layout.layout import HISTOGRAM_BUCKETS, SERVER_STATS, WORKER


def snapshot(now: float, flows: list[int], ids: list[int] | None = None) -> Snapshot:
    stats = np.zeros(len(flows), SERVER_STATS)
    stats["flows_total"] = flows
    stats["fct_histogram"][:, 80] = flows
    stats["fct_sum_ns"] = np.array(flows) * 1_000_000
    workers = np.zeros(1, WORKER)
    workers["requests_total"] = sum(flows)
    ids_of = np.array(ids or range(1, len(flows) + 1), np.uint64)
    return Snapshot(now, ids_of, np.zeros(len(flows), np.uint32), stats, workers, None)


def histogram_of(durations_ns: list[int]) -> np.ndarray:
    histogram = np.zeros(HISTOGRAM_BUCKETS, np.int64)
    for duration in durations_ns:
        histogram[lib.histogram_bucket(duration)] += 1
    return histogram


@given(st.lists(st.integers(2000, 10**11), min_size=1, max_size=200), st.sampled_from([50.0, 90.0, 99.0]))
def test_percentiles_are_within_a_bucket_of_the_true_ones(durations, q):
    true_ms = np.percentile(durations, q, method="inverted_cdf") / 1e6
    assert percentile_ms(histogram_of(durations), q) == pytest.approx(true_ms, rel=1 / 8 + 1e-3, abs=1e-4)


def test_nothing_completed_has_no_percentile():
    assert percentile_ms(np.zeros(HISTOGRAM_BUCKETS, np.int64), 99) is None
    assert fct_ms(np.zeros(HISTOGRAM_BUCKETS, np.int64), 0)["mean_ms"] is None


def test_bucket_edges_are_the_headers():
    for bucket in (1, 7, 8, 100, HISTOGRAM_BUCKETS - 1):
        assert BUCKET_EDGES_S[bucket] == lib.histogram_bucket_low(bucket) / 1e9


def test_what_is_recent_is_the_difference():
    recent = Recent(snapshot(10.0, [100, 50]), snapshot(12.0, [140, 50]))
    assert recent.seconds == 2.0
    assert recent.flows.tolist() == [40, 0]
    assert recent.requests == 40
    assert recent.histogram[:, 80].tolist() == [40, 0]


def test_counters_that_began_anew_or_belong_to_another_server_count_from_zero():
    before = snapshot(10.0, [100, 100, 100], ids=[1, 2, 3])
    now = snapshot(11.0, [7, 100, 9, 4], ids=[1, 2, 4, 5])  # restarted, the same, another server, a new slot
    assert Recent(before, now).flows.tolist() == [7, 0, 9, 4]


def test_the_history_keeps_the_window_and_always_a_difference():
    history = History(snapshot(0.0, [0]))
    for second in range(1, 31):
        assert history.is_due(float(second), rows=1)
        history.add(snapshot(float(second), [10 * second]))
    assert not history.is_due(30.5, rows=1)
    recent = history.recent(snapshot(30.5, [305]), window_s=5.0)
    assert recent.flows[0] / recent.seconds == pytest.approx(10, rel=0.01)
    assert 4.4 <= recent.seconds <= 5.6
    assert history.recent(snapshot(30.5, [305]), window_s=99.0).seconds <= 11.5


def test_a_large_service_is_looked_at_more_rarely():
    history = History(snapshot(0.0, [0]))
    assert not history.is_due(2.0, rows=4096)
    assert history.is_due(8.0, rows=4096)


def test_bids_margins_and_waits_are_means_over_the_window():
    before, now = snapshot(10.0, [100, 50]), snapshot(12.0, [140, 50])
    before.stats["bid_sum"], now.stats["bid_sum"] = [10, 7], [18, 7]
    now.stats["auctions_won"] = [40, 0]
    now.stats["priced"], now.stats["price_sum"], now.stats["margin_sum"] = [10, 0], [5, 0], [2, 0]
    for name, value in {"flows_class": 40, "waited_class": 10, "wait_class_sum_ns": 20_000_000}.items():
        now.workers[name][:, 1] = value
    now.workers["queued_class"][:, 2] = 3
    document = traffic_status("http", now, Recent(before, now))
    assert (document["bid_mean"], document["price_mean"], document["margin_mean"]) == (0.2, 0.5, 0.2)
    silver, bronze = document["classes"]["silver"], document["classes"]["bronze"]
    assert (silver["rps"], silver["waited"], silver["wait_mean_ms"]) == (20, 0.25, 2)
    assert (bronze["queued"], bronze["wait_mean_ms"]) == (3, None)


def test_a_mean_of_nothing_is_none():
    assert ratio(0.0, 0) is None
    assert ratio(float("inf"), 3) is None


def test_the_auction_has_a_line_only_where_somebody_bids_or_waits():
    quiet = {"bid_mean": 0.0, "price_mean": None, "classes": {"silver": {"queued": 0, "rps": 9}}}
    assert auction_line(quiet) == waiting_line(quiet) == ""
    classes = {
        "silver": {"queued": 2, "rps": 9.0, "waited": 0.25, "wait_mean_ms": 3.21},
        "gold": {"queued": 0, "rps": 0},
    }
    service = {"bid_mean": 0.5, "price_mean": 0.75, "margin_mean": 0.25, "queued": 2, "classes": classes}
    service["reserve"] = {"mode": "learned", "value": 0.6123}
    assert auction_line(service) == "  bid 0.5 price 0.75 margin 0.25  reserve 0.612 (learned)"
    assert waiting_line(service) == "  waiting 2: silver 2, 25.0% waited 3.21 ms"
    assert len(server_table({"servers": [{"name": "a"}]})[0]) + 2 == len(
        server_table({"servers": [{"bid_mean": 1}]})[0]
    )
