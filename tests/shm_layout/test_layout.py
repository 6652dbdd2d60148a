"""The dtypes say what the compiler says, and the bins and buckets are where the header puts them."""

import re

import numpy as np
import pytest

from shm_layout import layout
from shm_layout.build_ffi import HEADERS, marked
from shm_layout.layout import ffi, lib

STRUCTS = re.findall(r"^struct (\w+) \{", marked(HEADERS[0]), re.MULTILINE)


@pytest.mark.parametrize("struct", STRUCTS)
def test_a_dtype_has_the_structs_size_and_offsets(struct: str) -> None:
    ctype = ffi.typeof(f"struct {struct}")
    dtype = layout.dtype_of(struct)
    assert dtype.itemsize == ffi.sizeof(ctype)
    assert dtype.names == tuple(name for name, _ in ctype.fields)
    end = 0
    for name, field in ctype.fields:
        assert dtype.fields[name][1] == field.offset == end, "a hole that is not spelled out"
        assert dtype.fields[name][0].itemsize == ffi.sizeof(field.type)
        end = field.offset + ffi.sizeof(field.type)
    assert end == dtype.itemsize


def test_values_written_through_c_are_read_through_the_dtype() -> None:
    record = ffi.new("struct flow_record *", {"opened_ns": 2**63, "bid": 1.5, "client_port": 65535, "target": b"/x"})
    seen = np.frombuffer(ffi.buffer(record), dtype=layout.FLOW_RECORD)[0]
    assert (seen["opened_ns"], seen["bid"], seen["client_port"], seen["target"]) == (2**63, 1.5, 65535, b"/x")
    assert layout.SERVER_STATS["bid_sum"] == np.float64


def test_names_follow_the_enums() -> None:
    assert layout.RULES == ("maglev", "alias", "wrr", "bids", "classic")
    assert layout.SERVER_STATES == ("free", "ready", "drain", "maint")
    assert layout.SERVER_HEALTH == ("up", "down", "ejected")
    assert len(layout.OUTCOMES) == lib.OUTCOMES
    assert len(layout.REJECTS) == lib.REJECTS


def test_each_number_in_flight_has_the_bin_that_begins_at_or_before_it() -> None:
    n = np.arange(layout.IN_FLIGHT_MAX + 1)
    bins = np.array([lib.curve_bin(int(i)) for i in n])
    assert np.array_equal(bins, np.searchsorted(layout.CURVE_LOW, n, side="right") - 1)
    assert layout.CURVE_LOW[0] == 0
    assert lib.curve_bin(2**32 - 1) == layout.CURVE_POINTS - 1


def test_each_duration_has_the_bucket_that_begins_at_or_before_it() -> None:
    low = [lib.histogram_bucket_low(b) for b in range(layout.HISTOGRAM_BUCKETS)]
    assert low == sorted(low)
    for bucket, begin in enumerate(low):
        assert lib.histogram_bucket(begin) == bucket
        assert lib.histogram_bucket(begin - 1) == max(bucket - 1, 0)
    assert lib.histogram_bucket(0) == 0
    assert lib.histogram_bucket(2**64 - 1) == layout.HISTOGRAM_BUCKETS - 1
