"""The access log of a real balancer: its lines, its rotation, and that nobody waits for it (row 36)."""

import json
import os
import re
import signal
from datetime import UTC, datetime

import pytest

from testbed.farm import Farm
from tests.faults.running import Load, Running, wait_until


@pytest.fixture(scope="module")
def addresses():
    with Farm.of_speeds([1, 2], workers=8, demand="fixed:1", processes=1) as farm:
        yield farm.addresses


def one_request(running: Running, path: str) -> None:
    with Load(running.port, connections=1, path=path):
        pass


def test_each_request_is_a_line_of_json(tmp_path, addresses):
    file = tmp_path / "access.log"
    before = datetime.now(UTC)
    with Running(tmp_path, addresses, log={"access": str(file)}) as running:
        with Load(running.port, path='/a?q="\\x') as load:
            load.run_for(300)
        total = int(running.service["totals"]["requests_total"])
        wait_until(lambda: len(file.read_text().splitlines()) == total)
        assert running.service["log_lost"] == 0
        names = {server["name"] for server in running.service["servers"]}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["server"] for line in lines} <= names
    one = lines[0]
    assert (one["method"], one["target"], one["status"], one["outcome"]) == ("GET", '/a?q="\\x', 200, "ok")
    assert one["client"] == "127.0.0.1"
    assert before <= datetime.fromisoformat(one["time"]) <= datetime.now(UTC)
    for line in lines:
        assert 0 < line["ttfb_ms"] <= line["total_ms"]
        assert line["queue_ms"] + line["connect_ms"] + line["ttfb_ms"] <= line["total_ms"] + 0.01


def test_the_combined_format_is_what_log_readers_expect(tmp_path, addresses):
    file = tmp_path / "access.log"
    with Running(tmp_path, addresses, log={"access": str(file), "format": "combined"}) as running:
        one_request(running, '/x"y')
        wait_until(lambda: file.read_text().count("\n"))
    pattern = (
        r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /x\\x22y HTTP/1\.1" 200 \d+ "-" "-" web/'
    )
    assert re.match(pattern, file.read_text())


def test_usr1_opens_the_file_anew(tmp_path, addresses):
    file, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    with Running(tmp_path, addresses, log={"access": str(file)}) as running:
        one_request(running, "/before")
        wait_until(lambda: "/before" in file.read_text())
        file.rename(rotated)
        running.signal(signal.SIGUSR1)
        wait_until(file.exists)
        one_request(running, "/after")
        wait_until(lambda: "/after" in file.read_text())
        assert "/after" not in rotated.read_text()


@pytest.mark.parametrize("kind", ["full disk", "blocked pipe"])
def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path, addresses, kind):
    """Row 36: dropped lines are counted; no request waits."""
    path, reader = "/dev/full", None
    if kind == "blocked pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # and never read
    try:
        with Running(tmp_path, addresses, log={"access": path}) as running, Load(running.port) as load:
            load.run_for(1000)
            wait_until(lambda: running.service["log_lost"] > 0)
            assert running.metrics()['vickrey_access_log_lost_total{service="web"}'] > 0
            load.run_for(200)
        load.assert_nothing_lost()
    finally:
        if reader is not None:
            os.close(reader)


def test_a_path_that_cannot_be_opened_is_an_error_at_the_start_and_at_a_reload(tmp_path, addresses):
    with Running(tmp_path, addresses) as running:
        running.write(log={"access": str(tmp_path / "no" / "such" / "folder")})
        status, answer = running.request("POST", "/v1/reload", {})
        assert status == 422
        assert "service.web.log.access: cannot open" in answer["error"]
        file = tmp_path / "access.log"
        running.write(log={"access": str(file)})
        running.change("POST", "reload")
        one_request(running, "/later")
        wait_until(lambda: file.exists() and "/later" in file.read_text())
