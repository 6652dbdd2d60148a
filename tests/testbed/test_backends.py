"""What comparisons take for granted: a backend is k workers of a known speed, one queue, first come first served."""

import asyncio
import heapq
import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import clock
from testbed.backends.backend import Backend, Spec
from testbed.backends.faults import parse_fault
from testbed.backends.station import LEAD_MOST_S, Job, Station
from testbed.farm import Farm


def with_backend(spec: Spec, test: Callable[[Backend, aiohttp.ClientSession, str], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        backend = Backend(spec)
        await backend.start()
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as session:
                await test(backend, session, f"http://127.0.0.1:{backend.port}")
        finally:
            await backend.stop()

    clock.run(body())


async def get(session: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
    async with session.get(url) as answer:
        await answer.read()
        return answer


async def set_fault(session: aiohttp.ClientSession, backend: Backend, **fault: Any) -> None:
    async with session.post(f"http://127.0.0.1:{backend.control_port}/fault", json=fault) as answer:
        assert answer.status == 200, await answer.text()


def test_service_time_is_demand_over_speed():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        services = [float((await get(session, f"{url}/?d=40")).headers["X-Service-Ms"]) for _ in range(5)]
        assert min(services) >= 20.0 - 0.01
        assert min(services) < 25.0

    with_backend(Spec(speed=2.0), body)


def test_k_requests_are_served_at_once_and_the_next_waits():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        answers = await asyncio.gather(*(get(session, f"{url}/?d=100") for _ in range(4)))
        waits = sorted(float(answer.headers["X-Wait-Ms"]) for answer in answers)
        assert all(wait < 1 for wait in waits[:3])
        assert 50 < waits[3] < 150

    with_backend(Spec(workers=3), body)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_busy_event_loop_costs_a_station_no_rate(workers: int):
    """Jobs that waited begin when the last service was over, whenever that was seen: d / speed apart, exactly."""

    async def body() -> None:
        station = Station(workers=workers, speed=2.0)
        jobs = [station.submit(0.01) for _ in range(4 * workers)]
        for _ in range(5):
            time.sleep(0.012)  # the loop sees no end in time
            await asyncio.sleep(0)
        await asyncio.gather(*(job.done for job in jobs))
        for i, job in enumerate(jobs[workers:]):
            assert job.started == jobs[i].finished
            assert job.service_s == pytest.approx(0.005, abs=1e-6)  # a difference of two readings of a clock
        assert jobs[-1].finished - jobs[workers - 1].arrived == pytest.approx(0.02, abs=1e-6)
        # One that comes when its worker was free already, if nobody had seen it, begins at its own arrival.
        first = station.submit(0.01)
        if workers == 1:
            time.sleep(0.02)
            second = station.submit(0.01)
            await second.done
            assert (first.finished < second.arrived, second.started) == (True, second.arrived)

    clock.run(body())


@given(
    demands=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    late=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), max_size=4),
    workers=st.integers(1, 4),
    blocked=st.lists(st.integers(0, 30), max_size=4),
    lead_s=st.sampled_from([0.0, LEAD_MOST_S]),
)
@settings(max_examples=25)
def test_a_station_is_a_queue_of_k_workers_whatever_the_event_loop_does(demands, late, workers, blocked, lead_s):
    """Demands and standstills in ms; late: demands, and how long before they were submitted they came. Who comes first
    starts first, on the worker that is free first, however early jobs are told to be done."""

    async def body() -> None:
        station = Station(workers=workers, lead_s=lead_s)
        jobs = [station.submit(demand / 1e3) for demand in demands]
        for stop in blocked:
            time.sleep(stop / 1e3)
            await asyncio.sleep(0.001)
        for demand, before in late:
            await asyncio.sleep(0.003)
            now = asyncio.get_running_loop().time()
            jobs.append(station.submit(demand / 1e3, max(now - before / 1e3, jobs[-1].arrived)))
        await asyncio.gather(*(job.done for job in jobs))
        free = [0.0] * workers
        for job in jobs:
            started = max(heapq.heappop(free), job.arrived)
            assert job.started == pytest.approx(started, abs=1e-6)
            heapq.heappush(free, started + job.demand_s)
        assert (station.busy, station.queued, station.totals.served) == (0, 0, len(jobs))

    clock.run(body())


def test_a_job_is_told_so_much_earlier_that_its_answer_leaves_as_its_service_ends():
    async def body() -> None:
        loop, station = asyncio.get_running_loop(), Station()
        for served in range(200):
            job = Job(0.01, served, loop.create_future(), started=served, finished=served + 0.01)
            late_s = 0.1 if served % 20 == 5 else 0.0003  # once in a while the machine stands still
            station.answered(job, job.finished - station.lead_s + late_s)
        assert station.lead_s == pytest.approx(0.0003, abs=3e-5)
        job = station.submit(0.01)
        await job.done
        assert job.finished - station.lead_s <= loop.time()
        assert (job.service_s, station.busy) == (pytest.approx(0.01), 0)
        next_one = station.submit(0.01, job.finished - 0.0001)
        assert next_one.started == job.finished  # its worker was busy until then
        for unlike in (Job(0.0, 1.0, job.done, 1.0, 1.0), Job(1.0, 1.0, job.done, 1.0, 2.0)):
            lead_s = station.lead_s
            station.burns_cpu = unlike.demand_s > 0
            station.answered(unlike, unlike.finished + 0.01)  # too short to be told before, and at no known time
            assert station.lead_s == lead_s

    clock.run(body())


def test_a_request_comes_with_its_bytes_and_a_pipelined_one_with_the_answer_before_it():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        writer.write(b"GET /?d=20 HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        writer.write(b"POST /?d=20 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.write(b"ab")
        answers = (await reader.read()).decode()
        writer.close()
        waits = [float(found) for found in re.findall(r"X-Wait-Ms: (\S+)", answers)]
        assert len(waits) == 3
        assert max(waits) < 1  # nobody else is there
        assert backend.station.totals.served == 3
        assert backend.station.totals.late_s < 3 * 0.05

    with_backend(Spec(), body)


def test_what_a_handler_takes_to_begin_is_no_time_without_work(monkeypatch):
    """A request has come when its bytes have: its service is over so much after that."""

    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        submit, before_s = Station.submit, []

        def seen(station: Station, demand_s: float, arrived: float | None = None) -> Job:
            assert arrived is not None
            before_s.append(asyncio.get_running_loop().time() - arrived)
            return submit(station, demand_s, arrived)

        asked_for = backend._asked_for
        monkeypatch.setattr(backend, "_asked_for", lambda query: (time.sleep(0.02), asked_for(query))[1])
        monkeypatch.setattr(Station, "submit", seen)
        await get(session, f"{url}/?d=1")
        async with session.post(f"{url}/?d=1", data=b"ab") as answer:
            assert answer.status == 200
        assert before_s[0] >= 0.02
        assert before_s[1] < 0.02  # it has come when its body has

    with_backend(Spec(), body)


def test_short_answers_teach_a_backend_its_lead_and_long_ones_do_not():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await get(session, f"{url}/?d=2&size=1000000")
        assert (backend.station.lead_s, backend.station.totals.late_s) == (0.0, 0.0)
        await get(session, f"{url}/?d=2")
        assert backend.station.lead_s > 0  # the first answer is told at its end, and leaves later

    with_backend(Spec(), body)


def test_a_reset_answers_those_who_wait_503():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        first, second = (asyncio.create_task(get(session, f"{url}/?d=100")) for _ in range(2))
        while backend.station.queued == 0:
            await asyncio.sleep(0.005)
        backend.station.clear()
        assert sorted([(await first).status, (await second).status]) == [200, 503]

    with_backend(Spec(), body)


def test_a_client_may_leave_in_the_moment_of_a_reset():
    async def body() -> None:
        station = Station()
        station.submit(0.01)
        waiting = asyncio.create_task(station.serve(0.01))
        await asyncio.sleep(0)
        station.clear()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    clock.run(body())


def test_the_queue_is_first_come_first_served():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        order: list[int] = []

        async def one(i: int) -> None:
            await get(session, f"{url}/?d={60 if i == 0 else 5}")
            order.append(i)

        tasks = []
        for i in range(6):
            tasks.append(asyncio.create_task(one(i)))
            await asyncio.sleep(0.008)
        await asyncio.gather(*tasks)
        assert order == list(range(6))

    with_backend(Spec(), body)


def test_a_full_queue_is_answered_503_at_once():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        statuses = [a.status for a in await asyncio.gather(*(get(session, f"{url}/?d=150") for _ in range(5)))]
        assert sorted(statuses) == [200, 200, 200, 503, 503]
        assert backend.station.totals.rejected == 2

    with_backend(Spec(limit=2), body)


def test_a_waiting_request_whose_client_leaves_is_dropped():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        first = asyncio.create_task(get(session, f"{url}/?d=300"))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(get(session, f"{url}/?d=300"))
        await asyncio.sleep(0.05)
        assert (backend.station.busy, backend.station.queued) == (1, 1)
        second.cancel()
        await asyncio.sleep(0.05)
        assert (backend.station.busy, backend.station.queued) == (1, 0)
        await first
        assert backend.station.totals.abandoned == 1

    with_backend(Spec(), body)


def test_stats_add_up():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await asyncio.gather(*(get(session, f"{url}/?d=50") for _ in range(6)))
        async with session.get(f"{url}/stats") as answer:
            stats = await answer.json()
        assert (stats["busy"], stats["queued"], stats["served"]) == (0, 0, 6)
        assert stats["demand_ms"] == pytest.approx(300)
        assert stats["service_ms"] == pytest.approx(300, abs=1e-2)
        assert 4 * 30 <= stats["wait_ms"] <= 2 * 50 + 2 * 100 + 1  # 300 where all come at once

    with_backend(Spec(workers=2), body)


def test_the_body_is_as_long_as_asked_and_nonsense_is_refused():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(f"{url}/?size=100000") as answer:
            assert len(await answer.read()) == 100_000
        for query in ("d=nan", "d=-1", "d=x", "size=-1", "size=99999999999"):
            assert (await get(session, f"{url}/?{query}")).status == 400, query
        async with session.post(f"{url}/", data=io.BytesIO(b"y" * 3_000_000)) as answer:
            assert answer.headers["X-Received-Bytes"] == "3000000"

    with_backend(Spec(), body)


def test_without_a_demand_the_configured_distribution_is_drawn():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        services = {(await get(session, url)).headers["X-Service-Ms"] for _ in range(4)}
        assert len(services) == 4

    with_backend(Spec(demand="exponential:3"), body)


def test_burning_cpu_takes_the_service_time():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        before = time.process_time()
        await get(session, f"{url}/?d=60")
        assert time.process_time() - before >= 0.06

    with_backend(Spec(cpu=True), body)


def test_slow_divides_the_speed_until_it_ends():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await set_fault(session, backend, kind="slow", factor=4, seconds=0.2)
        assert float((await get(session, f"{url}/?d=10")).headers["X-Service-Ms"]) >= 40 - 0.01
        await asyncio.sleep(0.25)
        assert float((await get(session, f"{url}/?d=10")).headers["X-Service-Ms"]) < 40

    with_backend(Spec(), body)


def test_hang_answers_only_after_the_fault():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await set_fault(session, backend, kind="hang")
        pending = [asyncio.create_task(get(session, f"{url}{path}")) for path in ("/", "/health")]
        await asyncio.sleep(0.15)
        assert not any(task.done() for task in pending)
        await set_fault(session, backend, kind="none")
        assert [answer.status for answer in await asyncio.gather(*pending)] == [200, 200]

    with_backend(Spec(), body)


def test_refuse_closes_the_port_and_the_end_opens_it_again():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await get(session, url)
        await set_fault(session, backend, kind="refuse", drop=True)
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(session, url)
        await set_fault(session, backend, kind="none")
        assert (await get(session, url)).status == 200

    with_backend(Spec(), body)


def test_error_close_and_close_mid_body():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await set_fault(session, backend, kind="500", status=502, health=True)
        assert (await get(session, url)).status == 502
        assert (await get(session, f"{url}/health")).status == 503
        await set_fault(session, backend, kind="close")
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await get(session, url)
        await set_fault(session, backend, kind="close-mid-body")
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(session, f"{url}/?size=1000")

    with_backend(Spec(), body)


def test_a_share_of_the_requests_is_struck():
    async def body(backend: Backend, session: aiohttp.ClientSession, url: str) -> None:
        await set_fault(session, backend, kind="500", share=0.5)
        statuses = [(await get(session, url)).status for _ in range(60)]
        assert 10 < statuses.count(500) < 50

    with_backend(Spec(), body)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"kind": "fire"}, "unknown kind 'fire'"),
        ({"kind": "slow", "facter": 2}, "unknown key 'facter'"),
        ({"kind": "slow", "factor": 0}, "factor must be between"),
        ({"kind": "slow", "factor": "2"}, "factor must be a number"),
        ({"kind": "500", "status": 200}, "status must be between"),
        ([], "a fault is a JSON object"),
    ],
)
def test_a_nonsensical_fault_is_refused(fault: object, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        parse_fault(fault)


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1, 2], processes=2) as running:
        yield running


def test_a_farm_kills_and_revives_a_backend_on_its_port(farm: Farm):
    address = farm.addresses[0]
    farm.kill("s1")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{address}/health", timeout=5)
    with urllib.request.urlopen(f"http://{farm.addresses[1]}/health", timeout=5) as answer:
        assert answer.status == 200
    farm.revive("s1")
    assert farm.addresses[0] == address
    with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
        assert answer.headers["X-Server"] == "s1"


def test_a_farm_sets_and_resets_faults(farm: Farm):
    farm.fault("s2", kind="slow", factor=2)
    assert [stats["speed"] for stats in farm.stats()] == [1.0, 1.0]
    farm.reset()
    assert [stats["speed"] for stats in farm.stats()] == [1.0, 2.0]
    assert farm.await_idle(1)
    request = urllib.request.Request(f"http://{farm.addresses[0]}/fault", json.dumps({"kind": "x"}).encode())
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=5)
