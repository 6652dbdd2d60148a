"""Active checks against real sockets, and the rise and fall of a server by their results."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from controlplane.config import Server as ServerConfig
from controlplane.health import CheckPlan, CheckResult, HealthChecks, check, judge, set_down, take_result
from controlplane.servers import Server, ServerTable

GOOD = CheckResult(True, "L7OK 200", 0.001)
BAD = CheckResult(False, "L4CON refused", 0.001)


def make_server(port: int = 9001) -> Server:
    table = ServerTable(1)
    table.configure([ServerConfig.model_validate(f"127.0.0.1:{port}")])
    return next(iter(table))


@contextlib.asynccontextmanager
async def origin(answer: Callable[[], bytes | None]) -> AsyncIterator[Server]:
    """A server that sends what answer() gives and closes; None: it never answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            if (data := answer()) is None:
                await asyncio.sleep(60)
            else:
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    tasks: set[asyncio.Task[None] | None] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield make_server(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks))
        await asyncio.sleep(0)  # aborted transports close in the next turn


async def checked(answer: bytes | None, plan: CheckPlan) -> CheckResult:
    async with origin(lambda: answer) as server:
        result = await check(server, plan)
        assert result is not None
        return result


@pytest.mark.parametrize(
    ("answer", "good", "text"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, "L7OK 200"),
        (b"HTTP/1.0 302 Found\r\n\r\n", True, "L7OK 302"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", False, "L7STS 503"),
        (b"SSH-2.0-OpenSSH\r\n", False, "L7RSP not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", False, "L7RSP not HTTP"),
        (b"", False, "L7RSP no answer"),
        (b"x" * 100_000, False, "L7RSP not HTTP"),
        (None, False, "L7TOUT"),
    ],
)
def test_an_http_check_judges_the_status_line(answer, good, text):
    result = asyncio.run(checked(answer, CheckPlan(path="/health", timeout_s=0.3)))
    assert (result.good, result.text) == (good, text)


def test_a_check_without_a_path_asks_for_a_connection_only():
    result = asyncio.run(checked(None, CheckPlan(timeout_s=1.0)))
    assert (result.good, result.text) == (True, "L4OK")


def test_a_refused_connection_says_so():
    result = asyncio.run(check(make_server(1), CheckPlan()))
    assert result is not None
    assert (result.good, result.text) == (False, "L4CON Connection refused")


@pytest.mark.parametrize(
    ("answer", "good"), [(b"HTTP/1.1 204 x", True), (b"HTTP/1.1 418 x", True), (b"HTTP/1.1 200 x", False)]
)
def test_the_expected_statuses_are_the_plans(answer, good):
    assert judge(answer, ((204, 204), (400, 499)))[0] is good


def test_a_check_that_slept_with_the_machine_says_nothing():
    times = iter([0.0, 10.0])  # of its begin and its end, with a timeout of 1
    assert asyncio.run(check(make_server(1), CheckPlan(timeout_s=1.0), lambda: next(times))) is None


def test_a_server_goes_down_after_fall_bad_checks_and_up_after_rise_good_ones():
    server, plan = make_server(), CheckPlan(fall=3, rise=2)
    assert [take_result(server, BAD, plan, False) for _ in range(4)] == [False, False, True, False]
    assert server.down_cause == "check: L4CON refused"
    assert [take_result(server, GOOD, plan, False) for _ in range(3)] == [False, True, False]
    assert server.health == "up"


def test_a_good_check_in_between_starts_the_count_anew():
    server, plan = make_server(), CheckPlan(fall=2)
    for result in (BAD, GOOD, BAD):
        assert not take_result(server, result, plan, False)
    assert server.up


def test_the_first_good_check_is_enough_when_nobody_else_is_up():
    server, plan = make_server(), CheckPlan(rise=5)
    set_down(server, "traffic")
    assert take_result(server, GOOD, plan, True)


def test_checks_follow_the_servers_and_only_the_down_ones_when_there_are_no_active_checks():
    async def scenario() -> None:
        seen: list[str] = []
        async with origin(lambda: b"HTTP/1.1 200 OK\r\n\r\n") as server:
            always = HealthChecks(CheckPlan(inter_s=0.02), lambda s, r: seen.append(r.text))
            always.follow([server])
            while len(seen) < 3:
                await asyncio.sleep(0.01)
            server.state = "maint"
            always.follow([server])
            await asyncio.sleep(0)
            seen.clear()
            await asyncio.sleep(0.1)
            assert seen == []
            always.stop()

            server.state = "ready"
            passive = HealthChecks(CheckPlan(inter_s=0.02, always=False), lambda s, r: seen.append(r.text))
            passive.follow([server])
            await asyncio.sleep(0.1)
            assert seen == []
            set_down(server, "traffic")
            passive.follow([server])
            while not seen:
                await asyncio.sleep(0.01)
            passive.stop()

    asyncio.run(asyncio.wait_for(scenario(), 10))
