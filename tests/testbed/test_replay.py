"""`vickrey replay`: what a trace becomes on the wire, at which pace, and what is told of it, come what may."""

import contextlib
import csv
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import cli
from testbed.farm import Farm
from testbed.load.generator import Target, parse_url
from testbed.processes import free_port
from testbed.replay import source
from testbed.replay.queries import path_of
from testbed.traces.record import Problems, TraceError, records_from

MARLLB = "time\tquery\n0.0\t/dummy.php/?n=5478122\n0.02\t/index.php?title=A b&x=\u00e9\n0.04\t/dummy.php/?n=12\n"
WIKI = "1 1.0 http://en.wikipedia.org/wiki/Load_balancing?a=%20b#top -\n2 1.02 http://upload.example/x.png -\n"

Answer = Callable[[socket.socket], bool]  # True: the connection goes on


class Recorder:
    """A server that keeps the request lines and gives one kind of answer; each connection has a thread."""

    def __init__(self, answer: Answer) -> None:
        self.paths: list[str] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        data, is_new = b"", True
        with contextlib.suppress(OSError), client:
            while True:
                while b"\r\n\r\n" not in data:
                    more = client.recv(65536)
                    if not more:
                        return
                    data += more
                self.connections += is_new
                is_new = False
                head, _, data = data.partition(b"\r\n\r\n")
                self.heads.append(head)
                self.paths.append(head.split(b" ")[1].decode())
                if not self._answer(client):
                    return

    def close(self) -> None:
        # Before its number may be used again: else the thread would go on accepting, for whoever listens there next.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        for client in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                client.close()


def ok(client: socket.socket) -> bool:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return True


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder(ok)
    yield server
    server.close()


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([2.0], workers=2) as running:
        yield running


def replay(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command in this process; return its status and its document."""
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main(["replay", *arguments, "--json", "--quiet"])
    return status, json.loads(out.getvalue())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wire(path: Path, target: str, **wanted: Any) -> list[str]:
    """The paths that a trace asks for."""
    plan = source.load(source.Wanted(str(path), **wanted)).plan(parse_url(target))
    return [plan.path(index).decode() for index in range(len(plan.schedule))]


def test_a_marllb_row_is_sent_as_it_stands(tmp_path: Path, recorder: Recorder):
    trace = tmp_path / "trace.csv"
    trace.write_text(MARLLB)
    status, found = replay(str(trace), "--target", f"http://127.0.0.1:{recorder.port}/", "--late-p99", "10s")
    assert status == 0
    assert recorder.paths == ["/dummy.php/?n=5478122", "/index.php?title=A%20b&x=%C3%A9", "/dummy.php/?n=12"]
    assert found["requests"]["answered"] == 3
    assert found["trace"]["requests_as"] == "query"


def test_what_a_row_asks_for_depends_on_the_trace_and_on_request(tmp_path: Path):
    marllb, wiki, table, urls = (tmp_path / name for name in ("m.csv", "w.txt", "t.csv", "u.csv"))
    marllb.write_text(MARLLB.replace("/index.php?title=A b&x=\u00e9", "/dummy.php/?n=3000"))
    wiki.write_text(WIKI)
    table.write_text("t_s,work_ms,bytes\n0,1.5,\n1,2,100\n")
    urls.write_text("t,url\n0,https://h/a?b\n1,/c\n")
    base = "http://127.0.0.1:81/"
    assert wire(wiki, base) == ["/wiki/Load_balancing?a=%20b", "/x.png"]
    assert wire(wiki, base + "before/") == ["/before/wiki/Load_balancing?a=%20b", "/before/x.png"]
    assert wire(table, base) == ["/?d=1.5000", "/?d=2.0000&size=100"]
    assert wire(table, base + "p?q=1") == ["/p?q=1&d=1.5000", "/p?q=1&d=2.0000&size=100"]
    assert wire(marllb, base, seconds_per_work=2e-9) == ["/?d=10.9562", "/?d=0.0060", "/?d=0.0000"]
    assert wire(marllb, base + "dummy.php/", request="n")[0] == "/dummy.php/?n=5478122"
    assert wire(marllb, base + "static", request="plain") == ["/static"] * 3
    assert wire(urls, base) == ["/"] * 2
    assert wire(urls, base, request="query") == ["/a?b", "/c"]


@given(st.text(min_size=1))
def test_no_query_can_break_out_of_its_request_line(text: str):
    path = path_of(text)
    assert path.startswith("/")
    assert path.isascii()
    assert not any(c <= " " or c == "\x7f" for c in path)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.001, 5)), min_size=3, max_size=40),
    st.floats(0.05, 3),
    st.floats(0.1, 100),
)
def test_a_load_is_the_work_offered_over_the_capacity(rows: list[tuple[float, float]], rho: float, able: float):
    times = np.cumsum([gap + 1e-3 for gap, _ in rows])
    records = records_from((times * 1e9).astype(np.int64), work=[work for _, work in rows])
    wanted = source.Wanted("x", load=rho)
    plan = source.Trace(wanted, records, "csv", "s", Problems("x"), "").plan(
        Target("127.0.0.1", 1), capacity=able
    )  # fmt: skip
    arrival_s, work = plan.schedule.arrival_s, plan.work
    assert (len(work) - 1) / arrival_s[-1] * work.mean() / able == pytest.approx(rho, rel=1e-6)
    assert plan.load == pytest.approx(rho, rel=1e-6)


def test_speed_and_part_and_length_choose_what_is_sent_and_when(tmp_path: Path):
    trace = tmp_path / "t.csv"
    trace.write_text("t,work\n" + "".join(f"{100 + i},{i}\n" for i in range(20)))

    def times(**wanted: Any) -> list[float]:
        return (
            source.load(source.Wanted(str(trace), **wanted))
            .plan(Target("127.0.0.1", 1))
            .schedule.arrival_s.round(6)
            .tolist()
        )

    assert times(speed=4.0) == [i / 4 for i in range(20)]
    assert times(start=5.0, end=8.0) == [0.0, 1.0, 2.0]
    assert times(limit=2) == [0.0, 1.0]
    assert times(duration=1.0, speed=4.0) == [0.0, 0.25, 0.5, 0.75]
    assert times(start=18.0, duration=100.0) == [0.0, 1.0]


def test_a_made_up_trace_is_the_same_for_the_same_seed_and_reaches_the_duration():
    wanted = source.Wanted("mmpp2:rate=300,mean_work=0.001", duration=500.0, seed=3)
    one, same = (source.load(wanted).plan(Target("127.0.0.1", 1)) for _ in range(2))
    assert one.sha256 == same.sha256
    assert one.schedule.duration_s > 499
    assert one.sha256 != source.load(source.Wanted(wanted.trace, duration=500.0, seed=4)).plan(one.target).sha256


@pytest.mark.parametrize(
    ("trace", "wanted", "what"),
    [
        ("poisson:rat=3", {}, "no parameter 'rat'.*'rate'"),
        ("pareto:heavy=3", {}, "no parameter 'heavy': alpha, .*rate"),
        ("poison:rate=3", {}, "no such file, .*'poisson'"),
        ("no-such-flash.csv", {}, "No such file"),
        ("poisson:rate=x", {}, "NAME=VALUE"),
        ("poisson", {"request": "query"}, "no queries"),
        ("poisson", {"speed": 0.0}, "above 0"),
        ("poisson", {"speed": 2.0, "load": 0.5}, "give one"),
        ("poisson:mean_work=1000", {}, "more than a request may ask for"),
        ("no/such/file", {}, "No such file"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_words(trace: str, wanted: dict[str, Any], what: str):
    with pytest.raises(TraceError, match=what):
        source.load(source.Wanted(trace, **{"limit": 10, **wanted}))


def silent(client: socket.socket) -> bool:
    client.recv(1)
    return False


def reset(client: socket.socket) -> bool:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def saying(*answer: bytes) -> Answer:
    def give(client: socket.socket) -> bool:
        client.sendall(b"".join(answer))
        return False

    return give


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (silent, "timeout"),
        (reset, "reset"),
        (saying(), "closed"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), "closed"),
        (saying(b"220 mail.example ESMTP\r\n\r\n"), "malformed"),
        (saying(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), "status 503"),
        (None, "refused"),
    ],
)
def test_what_a_bad_server_does_is_an_error_of_its_class(answer: Answer | None, error: str, tmp_path: Path):
    server = Recorder(answer) if answer else None
    try:
        status, found = replay(
            "poisson:rate=100", "--target", f"http://127.0.0.1:{server.port if server else free_port()}/",
            "--limit", "8", "--timeout", "300ms" if answer is silent else "20s", "--connections", "per-flow",
            "--out", str(tmp_path / "out"),
        )  # fmt: skip
    finally:
        if server:
            server.close()
    assert status == 1
    assert found["errors"] == {error: 8}
    if answer is silent:
        assert 300 <= found["fct_at_least_ms"]["mean"] < 2000, "each was waited for so long, or longer where it is busy"
    else:
        assert found["fct_at_least_ms"] is None
    assert found["fct_ms"]["mean"] is None
    assert "no request was answered" in found["problems"][-1]
    assert error in (tmp_path / "out" / "report.html").read_text()


def test_per_flow_is_a_connection_a_request_and_keepalive_shares_them(recorder: Recorder):
    target = ("poisson:rate=200", "--target", f"http://127.0.0.1:{recorder.port}/", "--limit", "40")
    replay(*target, "--connections", "per-flow", "--header", "X-Test: 7")
    heads = recorder.heads[:]
    assert recorder.connections == 40
    assert all(b"Connection: close" in head and b"X-Test: 7" in head for head in heads)
    assert all(b"Host: 127.0.0.1" in head for head in heads)
    replay(*target)
    assert len(recorder.heads) == 80
    assert not any(b"Connection: close" in head for head in recorder.heads[40:])


def test_a_host_that_is_given_stands_instead_of_the_target_s(recorder: Recorder):
    target = ("--target", f"http://127.0.0.1:{recorder.port}/")
    replay("poisson:rate=200", *target, "--limit", "3", "--header", "host: a.b")
    assert [[line for line in head.splitlines() if line.lower().startswith(b"host:")] for head in recorder.heads] == [
        [b"host: a.b"]
    ] * 3


def test_the_files_of_a_run_tell_the_same(tmp_path: Path, farm: Farm):
    from hdrh.histogram import HdrHistogram
    from hdrh.log import HistogramLogReader

    out = tmp_path / "out"
    status, found = replay(
        "poisson:rate=250,mean_work=0.004", "--target", f"http://{farm.addresses[0]}/", "--duration", "1200ms",
        "--out", str(out), "--late-p99", "10s", "--late-max", "10s", "--seed", "5",
    )  # fmt: skip
    assert status == 0
    assert {path.name for path in out.iterdir()} == {
        *("report.html", "requests.csv", "latency.hgrm", "latency.hlog", "result.json")
    }
    assert sorted(found["files"]) == sorted(str(path) for path in out.iterdir())
    answered = found["requests"]["answered"]
    rows = rows_of(out / "requests.csv")
    fct_ms = np.array([float(row["fct_ms"]) for row in rows])
    assert len(rows) == answered == found["requests"]["sent"]
    assert fct_ms.mean() == pytest.approx(found["fct_ms"]["mean"], abs=1e-5)
    # Completion times count from the schedule, not from the sending.
    assert fct_ms == pytest.approx(
        [(float(row["done_s"]) - float(row["scheduled_s"])) * 1e3 for row in rows], abs=2e-3
    )  # fmt: skip
    assert {row["server"] for row in rows} == {"s1"}
    stored = json.loads((out / "result.json").read_text())
    assert stored["fct_ms"] == found["fct_ms"]
    table = (out / "latency.hgrm").read_text()
    assert f"TotalCount     = {answered:12.3f}" in table
    mean = re.search(r"Mean +=( +[0-9.]+)", table)
    assert mean is not None
    assert float(mean[1]) == pytest.approx(fct_ms.mean(), rel=1e-3, abs=2e-3)
    merged = HdrHistogram(1, 3_600_000_000, 3)
    with contextlib.closing(HistogramLogReader(str(out / "latency.hlog"), merged)) as reader:
        while reader.add_next_interval_histogram(merged):
            pass
    assert merged.get_total_count() == answered
    assert merged.get_value_at_percentile(50) / 1e3 == pytest.approx(np.percentile(fct_ms, 50), rel=0.05)
    page = (out / "report.html").read_text()
    assert "plotly" in page
    assert "<script src" not in page
    assert "<link" not in page
    for told in (
        found["origin"]["machine"],
        found["origin"]["config_sha256"],
        found["trace"]["sha256"],
        "load average",
    ):
        assert told in page
    assert sum(found["series"]["sent_per_s"]) == answered
    assert found["generator"]["cpu_us_per_request"] > 0


def test_requests_can_be_parquet(tmp_path: Path, recorder: Recorder):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: no Parquet to write or read")
    replay(
        "poisson:rate=200", "--target", f"http://127.0.0.1:{recorder.port}/", "--limit", "20",
        "--requests", "both", "--out", str(tmp_path),
    )  # fmt: skip
    table = parquet.read_table(tmp_path / "requests.parquet").to_pydict()
    rows = rows_of(tmp_path / "requests.csv")
    assert list(table) == list(rows[0])
    assert table["fct_ms"] == pytest.approx([float(row["fct_ms"]) for row in rows], abs=1e-5)
    assert table["wait_ms"] == [None] * 20


def test_parquet_without_pyarrow_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, found = replay(
        "poisson", "--target", "http://127.0.0.1:1/", "--requests", "parquet", "--out", str(tmp_path / "o")
    )
    assert status == 1
    assert "pyarrow" in found["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--target", "ftp://127.0.0.1/"),
        ("--target", "http://127.0.0.1:99999/"),
        ("--target", "http://127.0.0.1:1/", "--speed", "-1"),
        ("--target", "http://127.0.0.1:1/", "--capacity", "much"),
        ("--target", "http://127.0.0.1:1/", "--header", "no colon"),
        ("--target", "http://127.0.0.1:1/", "--format", "xml"),
        ("--target", "http://127.0.0.1:1/", "--column", "t"),
        ("--target", "http://127.0.0.1:1/", "--request", "post"),
    ],
)
def test_bad_usage_is_status_2_and_a_document(arguments: tuple[str, ...]):
    status, found = replay("poisson:flows=10", *arguments)
    assert status == 2
    assert found["error"]


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "controlplane.cli", "replay", *arguments],
        stdout=subprocess.PIPE, stderr=options.pop("stderr", subprocess.PIPE), text=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_there_is(number: signal.Signals, tmp_path: Path, farm: Farm):
    out = tmp_path / "out"
    process = command(
        "poisson:rate=100,mean_work=0.001", "--target", f"http://{farm.addresses[0]}/", "--duration", "60s",
        "--out", str(out), "--quiet", "--json",
    )  # fmt: skip
    begun = farm.stats()[0]["requests"]
    deadline = time.monotonic() + 20
    while farm.stats()[0]["requests"] < begun + 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    found = json.loads(said)
    assert found["partial"]
    assert found["requests"]["unsent"] > 5000
    assert any("PARTIAL" in problem for problem in found["problems"])
    assert len(rows_of(out / "requests.csv")) == found["requests"]["sent"] >= 19
    assert "PARTIAL" in (out / "report.html").read_text()
    assert json.loads((out / "result.json").read_text())["partial"]


def test_a_signal_at_any_moment_ends_in_order(farm: Farm):
    for wait_s in (0.25, 0.4, 0.7):
        process = command(
            "poisson:rate=100,mean_work=0.001", "--target", f"http://{farm.addresses[0]}/", "--duration", "60s",
            "--quiet",
        )  # fmt: skip
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        # On a busy machine it may have come while the interpreter was still starting, before anybody could take it.
        assert process.returncode in (1, -signal.SIGINT)
        if process.returncode == 1 and wait_s > 0.3 and "Traceback" in said:
            raise AssertionError(said)


def test_a_run_that_was_ended_before_its_first_request_is_a_document_of_nothing():
    from testbed.load.report import summarize
    from testbed.replay.results import Replay, document, text
    from testbed.replay.run import Interrupts, run

    trace = source.load(source.Wanted("poisson", limit=10))
    plan = trace.plan(Target("127.0.0.1", free_port()))
    with Interrupts() as interrupts:
        interrupts.came = True
        outcome = run(plan, interrupts)
    found = document(Replay(trace, plan, outcome, summarize(outcome.result), {}, {}))
    assert found["requests"]["sent"] == 0
    assert found["partial"]
    assert "PARTIAL" in text(found)


def test_progress_goes_to_standard_error_a_bar_on_a_terminal(farm: Farm):
    common = ("poisson:rate=100,mean_work=0.001", "--target", f"http://{farm.addresses[0]}/", "--json")
    ours, theirs = pty.openpty()
    process = command(*common, "--duration", "1s", stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 65536):
            drawn += piece
    said, _ = process.communicate(timeout=20)
    os.close(ours)
    json.loads(said)
    assert b"replay" in drawn
    assert b"p99" in drawn
    assert b"late ms" in drawn
    process = command(*common, "--duration", "2.4s")
    said, lines = process.communicate(timeout=30)
    json.loads(said)
    assert "of 2.4 s" in lines
    assert "FCT ms p50" in lines


def test_the_commands_of_the_replay_page_run(tmp_path: Path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "replay.md").read_text()
    (script,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    script = re.sub(r"--duration \ds", "--duration 1s", script)
    script = script.replace("9001", str(free_port())).replace("/tmp", str(tmp_path))
    # A busy machine may make a run invalid (status 1): that is not what this is about.
    script = script.replace("vickrey replay", "vickrey replay --late-p99 10s --late-max 10s")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["timeout", "60", "bash", "-e", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
        capture_output=True, text=True, timeout=70, env={**os.environ, "PATH": path},
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("Status codes  [code:count]                            200:") == 2
    assert '"load": 0.7' in run.stdout or '"load": 0.6999' in run.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 1e6
