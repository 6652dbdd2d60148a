"""A file is read the same however its bytes come; its format is found out; what is broken is said in one line."""

import gzip
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.traces import checksum
from testbed.traces.lines import LINE_MOST
from testbed.traces.reader import FORMATS, Options, TraceFile
from testbed.traces.record import PATIENCE, Problems, TraceError
from testbed.traces.writer import Writer
from tests.traces.reading import DATA, MARLLB, read_bytes

FILES = ["marllb_rate_150.csv", "wikibench.txt", "wikibench_2010.txt", "azure2021.csv"]
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a: TraceFile, b: TraceFile) -> bool:
    return (a.problems.good, a.problems.bad, a.problems.first) == (b.problems.good, b.problems.bad, b.problems.first)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 1000])
def test_lines_may_be_split_anywhere(name: str, chunk_bytes: int):
    whole, pieces = TraceFile(DATA / name), TraceFile(DATA / name, Options(chunk_bytes=chunk_bytes))
    assert checksum(whole.blocks()) == checksum(pieces.blocks())
    assert same(whole, pieces)


MIXED = st.lists(
    st.one_of(
        st.integers(0, 10**10).map(lambda t: f"{t / 1e9}\t/?n={t % 97}\n".encode()),
        st.sampled_from([b"\n", b"\r\n", b"junk\n", b"1\t/a\r\n", b"x" * 100 + b"\n", b"5\t/?n=\n"]),
        st.binary(max_size=20),
    ),
    max_size=40,
).map(b"".join)


@same_folder
@given(MIXED, st.integers(1, 300), st.sampled_from([0, 1, 3, 65536]))
def test_whatever_the_chunks_rows_and_bad_rows_are_the_same(tmp_path: Path, data, chunk_bytes, reorder):
    results = []
    for size in (1 << 20, chunk_bytes):
        try:
            records, trace = read_bytes(tmp_path, data, format="marllb", chunk_bytes=size, reorder=reorder)
            results.append((checksum([records]), trace.problems))
        except TraceError as error:
            results.append((str(error), Problems("")))
    assert results[0] == results[1]


@same_folder
@given(st.one_of(st.binary(max_size=400), MIXED), st.sampled_from(["auto", *FORMATS]), st.integers(1, 64))
def test_garbage_is_an_error_or_bad_rows_never_a_traceback(tmp_path: Path, data, form, chunk_bytes):
    for prefix in (b"", *PREFIXES.get(form, ())):
        assert_error_or_records(tmp_path, prefix + data, format=form, chunk_bytes=chunk_bytes)


def assert_error_or_records(folder: Path, data: bytes, **options) -> None:
    message = "one line"
    try:
        records, trace = read_bytes(folder, data, **options)
    except TraceError as error:
        message = str(error)
    else:
        assert (np.diff(records["t_ns"]) >= 0).all()
        assert len(records) == trace.problems.good
    assert len(message.splitlines()) == 1


PREFIXES = {
    "csv": [b"t_ns,work,bytes,key,balancer\n", b"time\n"],
    "jsonl": [b'{"t_ns": 1}\n'],
    "npy": [b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00\x10\x00\x00\x00"],
    "azure2019": [b"HashOwner,HashApp,HashFunction,Trigger,1,2\n"],
    "auto": [b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"\xef\xbb\xbf", b"time\tquery\n"],
}


@same_folder
@given(st.data())
def test_a_damaged_npy_or_gzip_file_is_never_a_traceback(tmp_path: Path, data):
    with Writer(tmp_path / "w.npy") as writer:
        writer.write_all(TraceFile(DATA / "azure2021.csv").blocks())
    good = (tmp_path / "w.npy").read_bytes()
    if data.draw(st.booleans()):
        good = gzip.compress(good)
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_error_or_records(tmp_path, bytes(damaged))


@pytest.mark.parametrize(
    ("name", "form"), list(zip(FILES, ["marllb", "wikibench", "wikibench", "azure2021"], strict=True))
)
def test_the_format_is_found_out_with_and_without_a_header(tmp_path: Path, name: str, form: str):
    data = (DATA / name).read_bytes()
    for variant in (data, data.partition(b"\n")[2], b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), b"\n" + data):
        assert read_bytes(tmp_path, variant)[1].format == form


def test_a_gzip_file_is_the_file(tmp_path: Path):
    plain, _ = read_bytes(tmp_path, MARLLB)
    for packed in (gzip.compress(MARLLB), gzip.compress(MARLLB[:100]) + gzip.compress(MARLLB[100:])):
        records, trace = read_bytes(tmp_path, packed, chunk_bytes=17)
        assert trace.format == "marllb"
        assert (records == plain).all()


def test_a_cut_gzip_file_is_an_error(tmp_path: Path):
    with pytest.raises(TraceError, match="ended before"):
        read_bytes(tmp_path, gzip.compress(MARLLB)[:-10], chunk_bytes=64)


def test_a_trace_is_read_from_a_pipe_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb", buffering=0) as out:
            for at in range(0, len(MARLLB), 13):
                out.write(MARLLB[at : at + 13])

    thread = threading.Thread(target=write)
    with open(reading, "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        thread.start()
        trace = TraceFile("-")
        assert len(trace.records()) == 30
        with pytest.raises(TraceError, match="only once"):
            list(trace.blocks())
        thread.join()


def test_a_file_can_be_read_again():
    trace = TraceFile(DATA / "azure2021.csv")
    assert checksum(trace.blocks()) == checksum(trace.blocks())
    assert trace.problems.good == 6


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"Dear Sir or Madam,\nwe write to you\n", "no trace that is known: it begins 'Dear Sir or Madam,'"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 9, "no trace that is known"),
        (b"PK\x03\x04" + bytes(5000), "no trace that is known"),
        (b"HashOwner,HashApp,HashFunction,Average,Count\n", "these are the durations"),
    ],
)
def test_a_file_of_another_kind_is_one_clear_error(tmp_path: Path, data: bytes, says: str):
    with pytest.raises(TraceError, match=says) as raised:
        read_bytes(tmp_path, data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["marllb", "wikibench", "azure2021"])
def test_a_wrong_format_that_was_asked_for_is_one_clear_error(tmp_path: Path, form: str):
    data = b"GET / HTTP/1.1\n" * (10 * PATIENCE)
    with pytest.raises(TraceError, match=f"is no {form} trace: line 1: "):
        read_bytes(tmp_path, data, format=form)


def test_a_missing_file_is_an_error():
    with pytest.raises(TraceError, match="No such file"):
        TraceFile("/no/such/file")


def test_the_first_ten_bad_rows_are_shown_with_their_lines(tmp_path: Path):
    data = MARLLB + b"".join(b"bad %d\n" % i for i in range(25)) + b"600\t/?n=1\n"
    records, trace = read_bytes(tmp_path, data)
    assert len(records) == 31
    assert trace.problems.bad == 25
    assert [bad.line for bad in trace.problems.first] == list(range(32, 42))
    text = str(trace.problems)
    assert "25 bad rows left out" in text
    assert "line 32: no tab between time and query: bad 0" in text
    assert "… and 15 more" in text
    assert len(text.splitlines()) == 12


def test_bad_rows_that_come_first_do_not_make_another_kind_when_good_ones_follow(tmp_path: Path):
    bad = b"bad\n" * (PATIENCE - 1)
    assert len(read_bytes(tmp_path, bad + b"1\t/a\n" + bad, format="marllb")[0]) == 1


def test_a_line_without_end_is_a_bad_row_and_takes_no_memory(tmp_path: Path):
    long = b"9" * (LINE_MOST + 5)
    for chunk_bytes in (1 << 20, 4096):
        records, trace = read_bytes(
            tmp_path, b"1\t/a\n" + long + b"\t/?n=3\n2\t/b\n" + long, format="marllb", chunk_bytes=chunk_bytes
        )
        assert len(records) == 2
        assert [bad.line for bad in trace.problems.first] == [2, 4]
        assert "longer than" in trace.problems.first[0].reason


def test_memory_is_bounded(tmp_path: Path):
    """A compressed trace of 2 million rows, 72 MB of records, is read in a process that may not have as much more."""
    rows = b"".join(b"%d.5\t/?n=%d\n" % (i, i) for i in range(20_000))
    with gzip.open(tmp_path / "big.gz", "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(rows)
    code = (
        "import resource, sys\nfrom testbed.traces.reader import *\nfrom testbed.traces.rows import read_rows\n"
        "from testbed.traces.lines import Input\nfrom testbed.traces.marllb import Marllb\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with Input(sys.argv[1]) as file:\n"
        "    rows = sum(len(r) for r, _ in read_rows(file.pieces(), Marllb(), Problems('x')))\n"
        "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.gz")], capture_output=True, text=True, timeout=60, check=True
    )
    rows_read, kilobytes = (int(word) for word in done.stdout.split())
    assert rows_read == 2_000_000
    assert kilobytes < 50_000
