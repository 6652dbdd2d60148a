"""Each format's rows: what they come to, what is wrong with bad ones, and the fast path is the careful one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.traces.azure2021 import Azure2021
from testbed.traces.digits import hashed_one
from testbed.traces.jsonl import JsonLines
from testbed.traces.marllb import Marllb
from testbed.traces.reader import TraceFile
from testbed.traces.record import Problems, TraceError, join
from testbed.traces.rows import RowFormat, read_rows
from testbed.traces.table import Table
from testbed.traces.wikibench import WikiBench
from tests.traces.reading import DATA, OneByOne, read_bytes


def rows_of(data: bytes, form: RowFormat) -> tuple[list[tuple], Problems]:
    problems = Problems("test")
    try:
        records = join(block for block, _ in read_rows([data], form, problems))
    except TraceError:
        return [], problems
    return [row if row[1] == row[1] else (row[0], None, *row[2:]) for row in records.tolist()], problems


def assert_fast_is_careful(data: bytes, make) -> None:
    fast, careful = rows_of(data, make()), rows_of(data, OneByOne(make()))
    assert fast[0] == careful[0]
    assert (fast[1].bad, fast[1].first) == (careful[1].bad, careful[1].first)


NUMBER = st.sampled_from(
    [b"", b"0", b"7", b"-1", b"5478122", b"0.11515061509231506", b"1190146243.326", b"1e3", b"1.5e-7", b"abc", b"1.",
     b".5", b"123456789012345678901234567890", b"0.30000000000000004", b"18446744073709551615", b"1e999", b"nan", b"+3"]
)  # fmt: skip
NOISE = st.binary(max_size=8).map(lambda b: b.replace(b"\n", b""))


def lines_of(line):
    ends = st.sampled_from([b"\n", b"\r\n", b"\n\n"])
    return st.lists(st.tuples(line, ends), max_size=12).map(lambda pairs: b"".join(a + b for a, b in pairs))


def joined(separator: bytes, *parts):
    whole = st.tuples(*parts).map(separator.join)
    return st.one_of(whole, whole, whole, NOISE, st.tuples(whole, NOISE).map(b"".join))


MARLLB_QUERY = st.one_of(
    NUMBER.map(lambda n: b"/dummy.php/?n=" + n),
    st.sampled_from(
        [b"n=5", b"/a?m=1&n=3&k=2", b"/a?n=4#x&y", b"/a#?n=4", b"/?n=1&n=2", b"/wiki/Vickrey", b"", b"/?n", b"?n="]
    ),
)


@given(lines_of(joined(b"\t", NUMBER, MARLLB_QUERY)))
def test_marllb_many_lines_are_read_as_one(data):
    assert_fast_is_careful(data, Marllb)


DATE = st.sampled_from(
    [b"2010-05-27T09:31:55.63", b"2010-05-27T09:31:55", b"2010-02-30T09:31:55", b"2010-05-27T09:31:5",
     b"2010-05-27T09:31:60", b"2010-05-27T09:31:55.", b"2010-05-27T09:31:55.1234567890123", b"2010-05-27T09:31-55.1",
     b"1999-12-31T23:59:59.999999999"]
)  # fmt: skip
URL = st.sampled_from([b"http://en.wikipedia.org/wiki/Auction", b"http://a/b c", b"", b"x" * 700])


@given(lines_of(joined(b" ", NUMBER, st.one_of(NUMBER, DATE), URL, st.sampled_from([b"-", b"save", b""]))))
def test_wikibench_many_lines_are_read_as_one(data):
    assert_fast_is_careful(data, WikiBench)


@given(lines_of(joined(b",", URL, URL, NUMBER, NUMBER)))
def test_azure_many_lines_are_read_as_one(data):
    assert_fast_is_careful(data, Azure2021)


HEADERS = [
    b"t_ns,work,bytes,key,balancer",
    b"key;time;duration_ms",
    b"client\tsize\tt_ms",
    b"arrival_s",
    b"work,t_ms,work,key",
]
CELL = st.one_of(NUMBER, st.sampled_from([b'"1"', b'"a,b"', b'"', b"key", b"\xff\xfe"]))


@settings(max_examples=200)
@given(st.sampled_from(HEADERS), st.data())
def test_table_many_lines_are_read_as_one(header, data):
    separator = next(s for s in (b",", b";", b"\t", b"#") if s in header or s == b"#")
    columns = header.count(separator) + 1
    body = data.draw(lines_of(joined(separator, *[CELL] * columns)))
    assert_fast_is_careful(header + b"\n" + body, Table)


JSON_VALUE = st.one_of(
    st.none(),
    st.integers(-3, 2**65),
    st.floats(0, 10, allow_nan=False),
    st.sampled_from(["7", "x", True, [], -1, 1e300]),
)
OBJECT = st.dictionaries(st.sampled_from(["t_ns", "work", "bytes", "key", "balancer", "more"]), JSON_VALUE)
PLAIN = st.fixed_dictionaries({"t_ns": st.integers(0, 99), "work": st.floats(0, 9), "key": st.integers(0, 2**64 - 1)})


@given(lines_of(st.one_of(PLAIN, PLAIN, OBJECT).map(lambda row: json.dumps(row).encode())))
def test_json_many_lines_are_read_as_one(data):
    assert_fast_is_careful(b'{"t_ns": 0}\n' + data, JsonLines)


def test_marllb_work_is_n_and_other_queries_have_none(tmp_path: Path):
    records, trace = read_bytes(
        tmp_path, b"0.5\t/dummy.php/?n=5478122\n1\t/index.php/Auction\n1.5\t/a?x=1&n=7&y=2\n", format="marllb"
    )
    assert records["t_ns"].tolist() == [500_000_000, 1_000_000_000, 1_500_000_000]
    assert records["work"][0] == 5478122
    assert math.isnan(records["work"][1])
    assert records["work"][2] == 7
    assert int(records["key"][1]) == hashed_one(b"/index.php/Auction")
    assert trace.work_unit == "n"


def test_marllb_header_is_optional(tmp_path: Path):
    data = (DATA / "marllb_rate_150.csv").read_bytes()
    with_header, _ = read_bytes(tmp_path, data)
    without, _ = read_bytes(tmp_path, data.partition(b"\n")[2])
    assert len(with_header) == 30
    assert (with_header == without).all()


def test_the_excerpts_differ_in_their_rates():
    slow, fast = (TraceFile(DATA / f"marllb_rate_{rate}.csv").records() for rate in (150, 400))
    assert len(slow) == len(fast) == 30
    assert np.ptp(slow["t_ns"]) > 1.5 * np.ptp(fast["t_ns"])


@pytest.mark.parametrize("rate", [150, 400])
def test_whole_published_traces_are_read_without_a_bad_row(rate):
    path = Path(__file__).parents[3] / f"shared/traces/poisson_for_loop_rate_{rate}.csv"
    if not path.exists():
        pytest.skip(f"not here: {path.name} of ZhiyuanYaoJ/MARLLB, beside the repository in shared/traces")
    trace = TraceFile(path)
    records = trace.records()
    assert trace.problems.bad == 0
    assert len(records) == path.read_bytes().count(b"\n") - 1
    assert records["work"].mean() == pytest.approx(3.67e6, rel=0.01)


def test_wikibench_in_both_forms_of_time():
    trace = TraceFile(DATA / "wikibench.txt")
    records = trace.records()
    assert trace.format == "wikibench"
    # The second row stands before the first in time.
    assert records["t_ns"].tolist()[:2] == [1190146243311000000, 1190146243326000000]
    assert np.isnan(records["work"]).all()
    dates = TraceFile(DATA / "wikibench_2010.txt").records()
    assert dates["t_ns"].tolist() == [1274952715630000000, 1274952719999999999, 1274952720000000000]
    assert int(dates["key"][0]) == int(records["key"][-1])  # the same url


def test_azure_2021_arrives_when_it_began():
    trace = TraceFile(DATA / "azure2021.csv")
    records = trace.records()
    assert (trace.format, trace.work_unit) == ("azure2021", "s")
    assert records["t_ns"][0] == 5160142570019 - 134000000
    assert records["work"].tolist() == [0.134, 0.013, 42.356, 42.372, 0.108, 0.093]
    assert len(set(records["key"].tolist())) == 6


def test_a_tables_columns_are_found_by_name_and_unit(tmp_path: Path):
    records, trace = read_bytes(tmp_path, b"client;arrival_s;demand_ms\nalice;0.25;40\nbob;1;\nalice;2;8.5\n")
    assert trace.format == "csv"
    assert trace.work_unit == "s"
    assert records["t_ns"].tolist() == [250_000_000, 1_000_000_000, 2_000_000_000]
    assert records["work"][[0, 2]].tolist() == [0.04, 0.0085]
    assert math.isnan(records["work"][1])
    assert records["key"][0] == records["key"][2] != records["key"][1]


@pytest.mark.parametrize(
    "data", [b"who,when,cost\na,1500,2\n", b'{"who": "a", "when": 1500, "cost": 2}\n'], ids=["csv", "jsonl"]
)
def test_columns_can_be_told(tmp_path: Path, data: bytes):
    records, _ = read_bytes(tmp_path, data, columns=("t=when:ms", "work=cost:ms", "key=who"))
    assert records.tolist() == [(1_500_000_000, 0.002, 0, hashed_one(b"a"), 0)]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (("t=nowhere",), "no column is called 'nowhere'"),
        (("x=when",), "no field is called 'x'"),
        (("t",), "FIELD=COLUMN"),
        (("t=",), "FIELD=COLUMN"),
        (("key=who:ms",), "key has no unit"),
    ],
)
def test_columns_told_wrong_are_an_error(tmp_path: Path, columns, says):
    with pytest.raises(TraceError, match=says):
        read_bytes(tmp_path, b"who,when\na,1500\n", columns=columns)


def test_quoted_cells_are_understood(tmp_path: Path):
    records, trace = read_bytes(tmp_path, b'time,"key",work\n1,"a, ""b""",2\n"2",c,3\n3,"open,4\n')
    assert records["key"].tolist() == [hashed_one(b'a, "b"'), hashed_one(b"c")]
    assert [bad.line for bad in trace.problems.first] == [4]


def test_json_lines_may_lack_members(tmp_path: Path):
    data = b'{"t_ns": 5}\n{"t_ns": 7, "work": 0.5, "bytes": 3, "key": "x", "balancer": 1}\n{"t_ns": 9, "work": null}\n'
    records, trace = read_bytes(tmp_path, data)
    assert trace.format == "jsonl"
    assert records[1].item() == (7, 0.5, 3, hashed_one(b"x"), 1)
    assert np.isnan(records["work"][[0, 2]]).all()


BAD = {
    "marllb": [
        (b"0.5 /?n=1", "no tab"),
        (b"0.5\t/a\t/b", "two columns"),
        (b"0.5\t", "two columns"),
        (b"soon\t/a", "time is no number"),
        (b"1e30\t/a", "time is out of range"),
        (b"1\t/?n=x", "n is no number"),
        (b"1\t/?n=-4", "the work is negative"),
        (b"1\t/?n=1e19", "the work is out of range"),
    ],
    "wikibench": [
        (b"1 2 http://x", "four columns"),
        (b"x 2 http://x -", "id is no whole number"),
        (b"1 2010-13-01T00:00:00 http://x -", "timestamp is no date"),
        (b"1 2  -", "url is empty"),
    ],
    "azure2021": [
        (b"a,b,3", "not 3"),
        (b",b,3,1", "app and func"),
        (b"a,b,3,", "duration is empty"),
        (b"a,b,x,1", "end_"),
    ],
    "csv": [
        (b"1,2", "expected 3 columns, not 2"),
        (b",2,3", "time is empty"),
        (b"1,-2,3", "negative"),
        (b"1,2,4294967296", "balancer is out of range"),
        (b"1,2,1.5", "balancer is no whole number"),
    ],
    "jsonl": [
        (b"[1]", "is no JSON object"),
        (b'{"time": 1', "is no JSON"),
        (b'{"time": NaN}', "NaN"),
        (b'{"time": true}', "time is no number"),
        (b'{"time": 1, "work": "2"}', "work is no number"),
        (b'{"time": 1, "bytes": -1}', "bytes is out of range"),
        (b'{"time": 1, "key": []}', "key is neither"),
        (b'{"time": 1e400}', "time is no number"),
        (b"[" * 100_000, "too deeply"),
        (b'{"time": ' + b"9" * 5000 + b"}", "too long"),
        (b"\xff\xfe{", "no UTF-8"),
    ],
}
GOOD = {
    "marllb": b"0.5\t/?n=1",
    "wikibench": b"1 2 http://x -",
    "azure2021": b"a,b,3,1",
    "csv": b"time,work,balancer\n1,2,3",
    "jsonl": b'{"time": 1}',
}


@pytest.mark.parametrize(
    ("form", "line", "reason"), [(form, line, reason) for form, rows in BAD.items() for line, reason in rows]
)
def test_a_bad_row_is_left_out_and_named(tmp_path: Path, form: str, line: bytes, reason: str):
    records, trace = read_bytes(tmp_path, GOOD[form] + b"\n" + line + b"\n", format=form)
    assert len(records) == 1
    (bad,) = trace.problems.first
    assert reason in bad.reason
    assert bad.line == GOOD[form].count(b"\n") + 2
    with pytest.raises(TraceError, match=f":{bad.line}: "):
        read_bytes(tmp_path, GOOD[form] + b"\n" + line + b"\n", format=form, strict=True)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_without_a_time_is_no_trace(tmp_path: Path, form: str):
    data = {"csv": b"a,b\n1,2\n", "jsonl": b'{"a": 1}\n'}[form]
    with pytest.raises(TraceError, match="--column t="):
        read_bytes(tmp_path, data, format=form)
