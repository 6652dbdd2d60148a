"""Clients that people use get their answers through the balancer: curl, wrk, ab, h2load."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.farm import Farm
from testbed.peers import vickrey
from testbed.peers.peer import Server


@pytest.fixture(scope="module")
def balancer() -> Iterator[vickrey.Vickrey]:
    with Farm.of_speeds([1, 2, 4], workers=8, processes=1) as farm:
        servers = [Server(address) for address in farm.addresses]
        with vickrey.start(servers, policy="adaptive", health={"path": "/health"}) as running:
            yield running


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def output(*command: str, stdin: bytes = b"") -> str:
    run = subprocess.run(command, input=stdin, capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode()


def test_curl_gets_posts_and_keeps_its_connection(balancer: vickrey.Vickrey):
    curl = tool("curl")
    answer = output(curl, "-sS", "-i", f"{balancer.url}?d=1&size=5")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith("\r\n\r\nxxxxx")
    statistics = output(
        curl, "-sS", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", balancer.url, balancer.url
    )
    assert statistics.split() == ["1", "0"]
    assert "Content-Length: 1000" in output(curl, "-sS", "-I", f"{balancer.url}?size=1000")


def test_curl_uploads_with_a_length_and_in_chunks(balancer: vickrey.Vickrey, tmp_path: Path):
    curl, body = tool("curl"), tmp_path / "body"
    body.write_bytes(b"y" * 2_000_000)
    # A body of this size makes curl ask first: Expect: 100-continue.
    assert "X-Received-Bytes: 2000000" in output(curl, "-sS", "-i", "--data-binary", f"@{body}", balancer.url)
    assert "X-Received-Bytes: 300000" in output(
        curl, "-sS", "-i", "-X", "POST", "-T", "-", balancer.url, stdin=b"z" * 300_000
    )


def test_curl_speaks_http_1_0_and_asks_for_much(balancer: vickrey.Vickrey):
    curl = tool("curl")
    assert output(curl, "-sS", "--http1.0", f"{balancer.url}?size=7") == "x" * 7
    assert len(output(curl, "-sS", f"{balancer.url}?size=5000000")) == 5_000_000


@pytest.mark.parametrize("header", ["Accept: */*", "Connection: close"])
def test_wrk_sees_no_error(balancer: vickrey.Vickrey, header: str):
    # wrk counts the end of a connection that it asked to be closed as no error when the answer was complete.
    said = output(tool("wrk"), "-t1", "-c32", "-d1s", "-H", header, balancer.url)
    assert int(re.findall(r"(\d+) requests in", said)[0]) > 100
    assert "Socket errors" not in said
    assert "Non-2xx" not in said


@pytest.mark.parametrize("options", [("-k",), ()])
def test_ab_sees_no_failure(balancer: vickrey.Vickrey, options: tuple[str, ...]):
    said = output(tool("ab"), "-q", "-n", "1000", "-c", "16", *options, balancer.url)
    assert re.search(r"Complete requests:\s+1000", said)
    assert re.search(r"Failed requests:\s+0", said)
    assert "Non-2xx" not in said


def test_h2load_speaks_http_1_1(balancer: vickrey.Vickrey):
    said = output(tool("h2load"), "--h1", "-n", "1000", "-c", "16", balancer.url)
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert "1000 2xx" in said
