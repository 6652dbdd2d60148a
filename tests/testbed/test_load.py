"""The generator keeps to its schedule whatever the answers do, and says so when it could not."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from testbed import clock
from testbed.backends.backend import Backend, Spec
from testbed.demand import Demand, parse_demand
from testbed.load.__main__ import main as load_main
from testbed.load.connection import ABORTED, CLOSED, MALFORMED, OK, REFUSED, TIMEOUT
from testbed.load.generator import Generator, Result, Target, parse_url
from testbed.load.report import summarize, write_csv
from testbed.load.schedule import Schedule, from_csv, from_times, poisson
from testbed.processes import free_port
from testbed.reference import central_queue

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def evenly(n: int, gap_s: float) -> Schedule:
    return from_times(np.arange(n) * gap_s)


def against_backend(spec: Spec, schedule: Schedule, timeout_s: float = 10.0) -> Result:
    async def body() -> Result:
        backend = Backend(spec)
        await backend.start()
        try:
            return await Generator(Target("127.0.0.1", backend.port), schedule, timeout_s=timeout_s).run()
        finally:
            await backend.stop()

    return clock.run(body())


def against(serve: Serve, schedule: Schedule, timeout_s: float = 5.0, keep_alive: bool = True) -> Result:
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def body() -> Result:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        try:
            target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
            return await Generator(target, schedule, timeout_s=timeout_s, keep_alive=keep_alive).run()
        finally:
            server.close()
            await asyncio.gather(*handlers)

    return clock.run(body())


def answering(*answers: bytes, closes: bool = False) -> Serve:
    """A server that gives these answers in turn on each connection, in pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers * 100:
            await reader.readuntil(b"\r\n\r\n")
            for piece in range(0, len(answer), 37):
                writer.write(answer[piece : piece + 37])
                await asyncio.sleep(0.0005)
            if closes:
                break

    return serve


def test_arrivals_are_not_delayed_by_slow_answers():
    # One worker needs 100 ms for what comes every 10: a closed loop would fall behind, an open one fills the queue.
    result = against_backend(Spec(demand="fixed:100"), evenly(20, 0.01))
    sent = result.records["sent_s"]
    assert np.all(sent - result.records["scheduled_s"] < 0.05)
    assert np.all(result.records["error"] == OK)
    assert result.fct_s[-1] == pytest.approx(20 * 0.1 - 0.19, abs=0.3)


def test_a_starved_generator_says_how_late_it_was():
    async def body() -> Result:
        backend = Backend(Spec())
        await backend.start()
        generator = Generator(Target("127.0.0.1", backend.port), evenly(30, 0.01))
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.12)
        try:
            return await generator.run()
        finally:
            await backend.stop()

    result = clock.run(body())
    summary = summarize(result)
    assert summary.late_max > 80
    assert not summary.is_valid
    assert "INVALID" in str(summary)
    assert result.fct_s.max() > 0.08  # and the requests that it held back are charged for it


def test_the_reference_serves_with_the_fastest_free_worker():
    # Speeds 1 and 2: the fast one takes the first; the slow one the second; the third waits for the fast one (at 1 s).
    fct = central_queue(np.array([0.0, 0.1, 0.2]), np.array([2.0, 2.0, 2.0]), [1.0, 2.0], 1)
    assert fct.tolist() == pytest.approx([1.0, 2.0, 1.8])
    late = central_queue(np.array([0.0]), np.array([2.0]), [1.0, 2.0], 1, late_s=[0.0, 0.1], path_s=0.05)
    assert late.tolist() == pytest.approx([1.15])


def test_the_same_seed_gives_the_same_schedule():
    demand = parse_demand("pareto:40")
    a, b = poisson(200, 5, 7, demand), poisson(200, 5, 7, demand)
    assert np.array_equal(a.arrival_s, b.arrival_s)
    assert np.array_equal(a.demand_ms, b.demand_ms)
    denser = poisson(400, 5, 7, demand)
    assert np.allclose(denser.arrival_s[: len(a)], a.arrival_s / 2)
    assert np.array_equal(denser.demand_ms[: len(a)], a.demand_ms)


@pytest.mark.parametrize("shape", ["exponential", "pareto", "fixed"])
def test_demand_has_the_mean_that_was_asked_for(shape: str):
    sample = Demand(shape, 40.0).sample(200_000, np.random.default_rng(1))
    assert sample.mean() == pytest.approx(40.0, rel=0.02)
    assert sample.min() > 0


@pytest.mark.parametrize("text", ["normal:3", "fixed", "fixed:x", "fixed:-1", "fixed:nan"])
def test_a_nonsensical_demand_is_refused(text: str):
    with pytest.raises(ValueError, match=r"demand|mean"):
        parse_demand(text)


@pytest.mark.parametrize(
    ("answer", "body_bytes"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100, 100),
        (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", 0),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 2),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nT: v\r\n\r\n", 6),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0),
    ],
)
def test_answers_are_read_in_any_framing_and_the_connection_is_used_again(answer: bytes, body_bytes: int):
    result = against(answering(answer), evenly(8, 0.03))
    assert result.records["status"].tolist() == [200] * 8
    assert result.records["body_bytes"].tolist() == [body_bytes] * 8
    assert np.all(result.records["first_byte_s"] <= result.records["done_s"])


def test_a_body_may_last_until_the_connection_closes():
    result = against(
        answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 90, closes=True), evenly(4, 0.05)
    )
    assert result.records["error"].tolist() == [OK] * 4
    assert result.records["body_bytes"].tolist() == [90] * 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", CLOSED),
        (b"", CLOSED),
        (b"220 mail.example ESMTP\r\n\r\n", MALFORMED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\ntoo long", MALFORMED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", MALFORMED),
    ],
)
def test_a_broken_answer_is_an_error(answer: bytes, error: int):
    result = against(answering(answer, closes=True), evenly(3, 0.05))
    assert result.records["error"].tolist() == [error] * 3
    assert len(result.fct_s) == 0


def test_errors_of_servers_are_counted_and_not_averaged():
    bad = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Server: s1\r\n\r\n"
    result = against(answering(bad, good), evenly(10, 0.02))
    summary = summarize(result)
    assert summary.errors == {"status 503": summary.requests - summary.answered}
    assert 0 < summary.answered < 10
    assert result.servers == ["s1"]


def test_a_server_that_is_silent_times_out():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    result = against(silent, evenly(5, 0.01), timeout_s=0.2)
    assert result.records["error"].tolist() == [TIMEOUT] * 5
    assert np.all(result.records["done_s"] - result.records["sent_s"] < 1.0)


def test_nobody_there_is_a_refused_connection():
    result = clock.run(Generator(Target("127.0.0.1", free_port()), evenly(3, 0.01)).run())
    assert result.records["error"].tolist() == [REFUSED] * 3


def test_every_request_may_have_its_own_connection():
    result = against(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True), evenly(10, 0.01), keep_alive=False
    )
    assert result.records["error"].tolist() == [OK] * 10


def test_abort_ends_a_run_at_once():
    async def body() -> tuple[Result, float]:
        backend = Backend(Spec(demand="fixed:60000"))
        await backend.start()
        generator = Generator(Target("127.0.0.1", backend.port), evenly(1000, 0.01))
        asyncio.get_running_loop().call_later(0.3, generator.abort)
        begun = time.monotonic()
        result = await generator.run()
        took = time.monotonic() - begun
        assert generator.in_flight == 0
        await backend.stop()
        return result, took

    result, took = clock.run(body())
    assert took < 30  # of the 60 s that an answer would take
    assert set(result.records["error"].tolist()) == {ABORTED}
    assert np.isnan(result.records["sent_s"][-1])


def test_a_schedule_and_the_records_go_through_csv(tmp_path: Path):
    schedule_path, records_path = tmp_path / "schedule.csv", tmp_path / "records.csv"
    schedule_path.write_text("arrival_s,demand_ms\n0.0,1\n0.02,2.5\n0.03,\n")
    schedule = from_csv(schedule_path)
    assert schedule.arrival_s.tolist() == [0.0, 0.02, 0.03]
    assert schedule.demand_ms[:2].tolist() == [1.0, 2.5]
    write_csv(against_backend(Spec(), schedule), records_path)
    lines = records_path.read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("scheduled_s,sent_s,first_byte_s,done_s,demand_ms")
    assert lines[1].endswith("200,ok,server")
    schedule_path.write_text("arrival_s\n0\nsoon\n")
    with pytest.raises(ValueError, match=r"schedule\.csv:3: not a number"):
        from_csv(schedule_path)
    schedule_path.write_text("arrival_s\n1\n0\n")
    with pytest.raises(ValueError, match="ascend"):
        from_csv(schedule_path)


def test_the_command_prints_one_json_document(capsys: pytest.CaptureFixture[str]):
    backend_port = free_port()
    assert load_main([f"127.0.0.1:{backend_port}", "--rate", "50", "--seconds", "0.2", "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["answered"] == 0
    assert set(summary["errors"]) == {"refused"}
    assert load_main(["127.0.0.1:1", "--demand", "normal:1"]) == 2
    assert load_main(["ftp://127.0.0.1:1"]) == 2


def test_urls_name_host_port_and_path():
    assert parse_url("http://127.0.0.1:81/a?b=c") == Target("127.0.0.1", 81, "/a?b=c")
    assert parse_url("127.0.0.1:81") == Target("127.0.0.1", 81, "/")
    assert b"GET /a?b=c&d=1.5000 HTTP/1.1" in parse_url("http://127.0.0.1:81/a?b=c").request(1.5)
