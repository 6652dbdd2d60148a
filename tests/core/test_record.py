"""Flow records: written whole, in order, overwriting; targets only when the settings ask for them."""

import pytest

from tests.core.farm import Farm


def test_records_come_back_as_they_were_written():
    with Farm(1, log_targets=True) as farm:
        farm.balancer.record(b"/a/b?c=1", server_id=7, bytes_out=12, bid=1.5, status=200, client_port=99)
        farm.balancer.record(b"", server_id=8)
        read = farm.segment.read_records(0)
        assert read.lost == 0
        first, second = read.records
        assert (first["sequence"], first["server_id"], first["bytes_out"]) == (1, 7, 12)
        assert (first["bid"], first["status"], first["client_port"]) == (1.5, 200, 99)
        assert first["target"][: first["target_bytes"]] == b"/a/b?c=1"
        assert (second["sequence"], second["server_id"], second["target_bytes"]) == (2, 8, 0)


@pytest.mark.parametrize("length", [1, 7, 8, 127, 128, 129, 5000])
def test_a_long_target_is_cut(length):
    with Farm(1, log_targets=True) as farm:
        target = bytes(33 + i % 90 for i in range(length))
        farm.balancer.record(target)
        record = farm.segment.read_records(0).records[0]
        assert record["target_bytes"] == min(length, 128)
        assert bytes(record["target"]) == target[:128]


def test_targets_are_left_out_unless_they_are_asked_for():
    with Farm(1) as farm:
        farm.balancer.record(b"/secret")
        assert farm.segment.read_records(0).records[0]["target_bytes"] == 0


def test_a_reader_that_was_away_counts_what_it_lost():
    with Farm(1) as farm:
        for k in range(100):
            farm.balancer.record(b"", server_id=k)
        read = farm.segment.read_records(0)
        assert (len(read.records), read.lost, read.cursor) == (64, 36, 100)
        assert read.records["server_id"].tolist() == list(range(36, 100))
