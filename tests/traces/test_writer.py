"""What is written reads back as the same bytes."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.traces import checksum, read
from testbed.traces.generate import generated
from testbed.traces.reader import Options, TraceFile
from testbed.traces.record import RECORD, T_NS_LIMIT, U32, U64, WORK_LIMIT, TraceError
from testbed.traces.writer import Writer

NAMES = ["t.csv", "t.jsonl", "t.npy", "t.csv.gz", "t.jsonl.gz"]

ROWS = st.lists(
    st.tuples(
        st.integers(-T_NS_LIMIT + 1, T_NS_LIMIT - 1),
        st.one_of(st.just(float("nan")), st.floats(0, WORK_LIMIT), st.integers(0, 10**9).map(lambda n: n / 1e9)),
        st.integers(0, U64),
        st.integers(0, U64),
        st.integers(0, U32),
    ),
    min_size=1,
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.sampled_from(NAMES), st.integers(1, 400))
def test_every_record_survives_the_round_trip(tmp_path: Path, rows, name, chunk_bytes):
    records = np.array(sorted(rows, key=lambda row: row[0]), dtype=RECORD)
    records["work"] = np.where(np.isnan(records["work"]), np.nan, records["work"] + 0.0)
    with Writer(tmp_path / name) as writer:
        writer.write(records)
    trace = TraceFile(tmp_path / name, Options(chunk_bytes=chunk_bytes))
    back = trace.records()
    assert trace.problems.bad == 0
    assert checksum([back]) == checksum([records]) == writer.checksum


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_written_in_pieces_is_the_trace(tmp_path: Path, name: str):
    records = generated("mice", flows=40_000, balancers=3)
    with Writer(tmp_path / name) as writer:
        writer.write_all(records[at : at + 7_001] for at in range(0, len(records), 7_001))
    assert writer.rows == 40_000
    assert (read(tmp_path / name) == records).all()


def test_a_numpy_file_is_numpys(tmp_path: Path):
    records = generated("poisson", flows=1000)
    with Writer(tmp_path / "t.npy") as writer:
        writer.write(records)
    assert (np.load(tmp_path / "t.npy", mmap_mode="r") == records).all()
    np.save(tmp_path / "other.npy", records)
    assert (read(tmp_path / "other.npy") == records).all()


def test_a_numpy_file_of_something_else_is_an_error(tmp_path: Path):
    for array in (np.zeros(3), np.zeros((2, 2), dtype=RECORD), np.zeros(3, dtype=[("t_ns", "<i8")])):
        np.save(tmp_path / "t.npy", array)
        with pytest.raises(TraceError, match="not one of trace records"):
            read(tmp_path / "t.npy")


def test_a_cut_numpy_file_is_an_error(tmp_path: Path):
    np.save(tmp_path / "t.npy", generated("poisson", flows=1000))
    data = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(data[:-100])
    with pytest.raises(TraceError, match=r"ends after 997 of 1,000 records"):
        read(tmp_path / "t.npy")


def test_the_same_trace_is_the_same_compressed_file(tmp_path: Path):
    for name in ("a.csv.gz", "b.csv.gz"):
        with Writer(tmp_path / name) as writer:
            writer.write(generated("poisson", flows=100))
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).startswith(b"t_ns,work,bytes,key,balancer\n")


def test_a_file_that_was_not_finished_does_not_appear(tmp_path: Path):
    (tmp_path / "t.csv").write_text("before")

    def breaks_off():
        yield generated("poisson", flows=10)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "t.csv") as writer:
        writer.write_all(breaks_off())
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert (tmp_path / "t.csv").read_text() == "before"


@pytest.mark.parametrize("path", ["t.txt", "t", "t.npy.gz", "/no/such/folder/t.csv"])
def test_what_cannot_be_written_is_an_error(path: str):
    with pytest.raises(TraceError), Writer(path):
        pass
