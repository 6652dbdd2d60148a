"""What the workers write is read whole: words, totals, stats, reservoirs, flow records."""

from collections.abc import Iterator

import numpy as np
import pytest

from shm_layout.layout import SERVER_STATS
from shm_layout.segment import (
    METRIC_DURATION,
    METRIC_FCT,
    Segment,
    SegmentError,
    ServerData,
    SettingsData,
    now_ns,
)
from tests.shm_layout.raw import Raw


@pytest.fixture
def raw(segment: Segment) -> Iterator[Raw]:
    raw = Raw(segment)
    yield raw
    raw.__dict__.clear()  # no view outlives the test


def publish_ids(segment: Segment, ids: list[int]) -> None:
    free = ServerData(state="free")
    servers = [ServerData(id=i, name=f"s{i}") if i else free for i in ids]
    segment.publish_settings(SettingsData(servers=servers))


def test_a_word_is_read_as_number_and_time(segment: Segment, raw: Raw) -> None:
    changed = now_ns() - 5 * 10**9
    for server, in_flight in enumerate((0, 1, 65535)):
        raw.words[server] = in_flight << 48 | (changed >> 7) & (2**48 - 1)
    words = segment.read_words(0, 3)
    assert words.in_flight.tolist() == [0, 1, 65535]
    assert np.abs(words.changed_ns.astype(np.int64) - changed).max() <= 256


def test_a_word_from_after_the_clock_was_read_counts_as_now(segment: Segment, raw: Raw) -> None:
    raw.words[0] = ((now_ns() + 10**9) >> 7) & (2**48 - 1)
    before = now_ns()
    assert before <= segment.read_words(0, 1).changed_ns[0] <= now_ns()


@pytest.mark.parametrize(("first", "n"), [(0, 9), (8, 1), (-1, 2), (3, 6), (0, -1)])
def test_servers_out_of_range_are_an_error(segment: Segment, first: int, n: int) -> None:
    for read in (segment.read_words, segment.read_stats):
        with pytest.raises(SegmentError, match="of 8"):
            read(first, n)
    with pytest.raises(SegmentError, match="of 8"):
        segment.read_reservoirs(METRIC_FCT, first, n)


def test_workers_out_of_range_are_an_error(segment: Segment) -> None:
    with pytest.raises(SegmentError):
        segment.read_stats(worker=2)
    with pytest.raises(SegmentError):
        segment.read_records(2)
    with pytest.raises(SegmentError):
        segment.read_reservoirs(2) if segment.started_workers().size else segment.read_records(64)


def test_stats_of_workers_are_added_up(segment: Segment, raw: Raw) -> None:
    publish_ids(segment, [11, 12, 13])
    raw.workers["started_ns"] = 5
    for worker, times in enumerate((1, 10)):
        stats = raw.stats[worker, :3]
        stats["id"] = (11, 12, 13)
        stats["flows_total"] = np.array([1, 2, 3]) * times
        stats["bid_sum"] = 0.5 * times
        stats["outcomes"][:, 0] = 7 * times
        stats["time_ns"][:, 103] = 9 * times
        stats["last_open_ns"] = 100 * times
        stats["failures_in_a_row"] = 3 - worker
    merged = segment.read_stats()
    assert merged.shape == (8,)
    assert merged["id"].tolist() == [11, 12, 13, 0, 0, 0, 0, 0]
    assert merged["flows_total"][:3].tolist() == [11, 22, 33]
    assert merged["bid_sum"][:3].tolist() == [5.5] * 3
    assert merged["outcomes"][:3, 0].tolist() == [77] * 3
    assert merged["time_ns"][:3, 103].tolist() == [99] * 3
    assert merged["last_open_ns"][:3].tolist() == [1000] * 3
    assert merged["failures_in_a_row"][:3].tolist() == [3] * 3
    assert segment.read_stats(1, 2)["id"].tolist() == [12, 13]
    assert segment.read_stats(0, 3, worker=1)["flows_total"].tolist() == [10, 20, 30]


def test_stats_of_a_slots_former_server_are_left_out(segment: Segment, raw: Raw) -> None:
    publish_ids(segment, [21, 12])
    raw.workers["started_ns"] = 5
    raw.stats["id"][:, :2] = [[11, 12], [21, 12]]
    raw.stats["flows_total"][:, :2] = [[1000, 1], [1, 1]]
    merged = segment.read_stats(0, 2)
    assert merged["id"].tolist() == [21, 12]
    assert merged["flows_total"].tolist() == [1, 2]
    asked = segment.read_stats(0, 2, ids=np.array([11, 12], dtype=np.uint64))
    assert asked["flows_total"].tolist() == [1000, 2]


def test_stats_without_any_worker_are_zero(segment: Segment) -> None:
    assert segment.read_stats(0, 2).tobytes() == bytes(2 * SERVER_STATS.itemsize)


def test_workers_that_never_started_are_told_apart(segment: Segment, raw: Raw) -> None:
    raw.workers["started_ns"][1] = 5
    raw.workers["rejected"][1, 3] = 4
    assert segment.started_workers().tolist() == [1]
    assert segment.read_workers()["rejected"][:, 3].tolist() == [0, 4]


def test_reservoirs_come_with_counts_and_ids(segment: Segment, raw: Raw) -> None:
    raw.fill(1, 2, METRIC_DURATION, id=33, samples=[(100, 7), (200, 8)], count=50)
    read = segment.read_reservoirs(METRIC_DURATION)
    assert read.samples.shape == (1, 8, 16)
    assert read.counts[0].tolist() == [0, 0, 50, 0, 0, 0, 0, 0]
    assert read.ids[0, 2] == 33
    assert read.samples[0, 2, :3].tolist() == [(100, 7), (200, 8), (0, 0)]
    assert segment.read_reservoirs(METRIC_DURATION, 2, 1).samples[0, 0, 1].tolist() == (200, 8)
    assert not segment.read_reservoirs(METRIC_FCT).counts.any()


def test_a_reservoir_left_half_written_counts_as_empty(segment: Segment, raw: Raw) -> None:
    raw.fill(0, 0, METRIC_FCT, id=1, samples=[(100, 7)], count=1)
    raw.fill(0, 1, METRIC_FCT, id=2, samples=[(100, 7)], count=1)
    raw.reservoir(0, 0, METRIC_FCT)[0]["sequence"] = 3
    read = segment.read_reservoirs(METRIC_FCT)
    assert read.counts[0, :2].tolist() == [0, 1]
    assert read.samples[0, 0].tolist() == [(0, 0)] * 16


def write_records(raw: Raw, worker: int, first: int, n: int) -> None:
    ring = raw.rings[worker]
    for k in range(first, first + n):
        ring["sequence"][k % 64], ring["server_id"][k % 64] = k + 1, k
    raw.workers["ring_head"][worker] = first + n


def test_flow_records_are_read_from_a_cursor_on(segment: Segment, raw: Raw) -> None:
    write_records(raw, 1, 0, 10)
    read = segment.read_records(1, room=4)
    assert (read.records["server_id"].tolist(), read.cursor, read.lost) == ([0, 1, 2, 3], 4, 0)
    read = segment.read_records(1, read.cursor)
    assert (read.records["server_id"].tolist(), read.cursor, read.lost) == ([4, 5, 6, 7, 8, 9], 10, 0)
    read = segment.read_records(1, read.cursor)
    assert (len(read.records), read.cursor, read.lost) == (0, 10, 0)


def test_overwritten_flow_records_are_counted(segment: Segment, raw: Raw) -> None:
    write_records(raw, 0, 0, 150)
    read = segment.read_records(0, cursor=5)
    assert read.records["server_id"].tolist() == list(range(86, 150))
    assert (read.cursor, read.lost) == (150, 81)


def test_a_flow_record_being_written_is_counted_as_lost(segment: Segment, raw: Raw) -> None:
    write_records(raw, 0, 0, 3)
    raw.rings[0]["sequence"][1] = 0
    read = segment.read_records(0)
    assert (read.records["server_id"].tolist(), read.cursor, read.lost) == ([0, 2], 3, 1)


def test_a_cursor_beyond_the_head_begins_again(segment: Segment, raw: Raw) -> None:
    write_records(raw, 0, 0, 3)
    read = segment.read_records(0, cursor=1000)
    assert (read.records["server_id"].tolist(), read.cursor, read.lost) == ([0, 1, 2], 3, 0)


def test_a_damaged_head_of_the_ring_ends(segment: Segment, raw: Raw) -> None:
    raw.workers["ring_head"][0] = 2**64 - 1
    read = segment.read_records(0)
    assert len(read.records) == 0
    assert read.cursor == 2**64 - 1
