"""Azure Functions 2019: counts become arrivals of the same minutes, and percentiles durations of the same spread."""

from pathlib import Path

import numpy as np
import pytest

from testbed.traces.azure2019 import MINUTE_NS
from testbed.traces.digits import hashed_one
from testbed.traces.reader import Options, TraceFile
from testbed.traces.record import TraceError, checksum

COUNTS = "invocations_per_function_md.anon.d01.csv"
DURATIONS = "function_durations_percentiles.anon.d01.csv"
MINUTES = 1440
LEVELS = (0, 1, 25, 50, 75, 99, 100)


def counts_text(functions: dict[str, dict[int, int]]) -> str:
    header = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(str(m) for m in range(1, MINUTES + 1))
    rows = [
        f"o,app,{name},http," + ",".join(str(counts.get(m, 0)) for m in range(MINUTES))
        for name, counts in functions.items()
    ]
    return "\n".join([header, *rows]) + "\n"


def durations_text(functions: dict[str, list[float]]) -> str:
    header = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum," + ",".join(
        f"percentile_Average_{level}" for level in LEVELS
    )
    rows = [f"o,app,{name},1,1,1,1," + ",".join(str(p) for p in levels) for name, levels in functions.items()]
    return "\n".join([header, *rows]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    busy = dict.fromkeys(range(MINUTES), 50)
    (tmp_path / COUNTS).write_text(counts_text({"busy": busy, "rare": {3: 2, 700: 1}, "never": {}, "unknown": {5: 7}}))
    spread = [10.0, 11.0, 20.0, 40.0, 80.0, 500.0, 1000.0]
    (tmp_path / DURATIONS).write_text(durations_text({"busy": spread, "rare": [5.0] * 7}))
    return tmp_path


def key_of(name: str) -> int:
    return hashed_one(name.encode(), hashed_one(b"app"))


def test_each_minute_has_its_arrivals(folder: Path):
    trace = TraceFile(folder / COUNTS)
    records = trace.records()
    assert trace.format == "azure2019"
    assert (np.diff(records["t_ns"]) >= 0).all()
    busy = records[records["key"] == key_of("busy")]
    assert (np.bincount(busy["t_ns"] // MINUTE_NS) == 50).all()
    assert (records[records["key"] == key_of("rare")]["t_ns"] // MINUTE_NS).tolist() == [3, 3, 700]
    assert len(records) == 50 * MINUTES + 3 + 7
    # Uniform within the minute.
    seconds = busy["t_ns"] % MINUTE_NS * 1e-9
    assert seconds.mean() == pytest.approx(30, abs=0.3)
    assert seconds.std() == pytest.approx(60 / np.sqrt(12), abs=0.2)


def test_durations_have_the_functions_percentiles(folder: Path):
    records = TraceFile(folder / COUNTS).records()
    work = records["work"][records["key"] == key_of("busy")] * 1e3
    assert work.min() >= 10
    assert work.max() <= 1000
    assert np.quantile(work, [0.25, 0.5, 0.75, 0.99]) == pytest.approx([20, 40, 80, 500], rel=0.05)
    assert (records["work"][records["key"] == key_of("rare")] == 0.005).all()
    assert np.isnan(records["work"][records["key"] == key_of("unknown")]).all()


def test_the_seed_decides(folder: Path):
    def of(seed: int) -> str:
        return checksum(TraceFile(folder / COUNTS, Options(seed=seed, chunk_bytes=4096)).blocks())

    assert of(1) == checksum(TraceFile(folder / COUNTS, Options(seed=1)).blocks())
    assert of(1) != of(2)


def test_without_durations_there_is_no_work(folder: Path):
    (folder / DURATIONS).unlink()
    assert np.isnan(TraceFile(folder / COUNTS).records()["work"]).all()


def test_durations_can_be_named(folder: Path):
    (folder / DURATIONS).rename(folder / "elsewhere.csv")
    options = Options(durations=str(folder / "elsewhere.csv"))
    assert not np.isnan(TraceFile(folder / COUNTS, options).records()["work"]).all()


def test_bad_rows_are_counted_in_both_files(folder: Path):
    with (folder / COUNTS).open("a") as file:
        file.write("o,app,short,http,1,2\n" + "o,app,f,http," + ",".join(["x"] * MINUTES) + "\n")
    with (folder / DURATIONS).open("a") as file:
        file.write("o,app,f,1\no,app,unknown,1,1,1,1,9,8,7,6,5,4,3\no,app,unknown,1,1,1,1,a,8,7,6,5,4,3\n")
    trace = TraceFile(folder / COUNTS)
    trace.records()
    assert [bad.line for bad in trace.problems.first] == [6, 7]
    assert "expected 1444 columns, not 6" in trace.problems.first[0].reason
    assert "whole number" in trace.problems.first[1].reason
    assert trace.durations_problems is not None
    assert [bad.line for bad in trace.durations_problems.first] == [4, 5, 6]
    with pytest.raises(TraceError, match=":6: expected 1444"):
        TraceFile(folder / COUNTS, Options(strict=True)).records()


def test_the_wrong_half_is_named(folder: Path):
    with pytest.raises(TraceError, match="these are the durations"):
        TraceFile(folder / DURATIONS).records()
    with pytest.raises(TraceError, match="no durations of azure2019"):
        TraceFile(folder / COUNTS, Options(durations=str(folder / COUNTS))).records()
