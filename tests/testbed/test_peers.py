"""The peers of a comparison forward, weigh and go, and leave no process."""

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.farm import Farm
from testbed.peers import haproxy, nginx, vickrey
from testbed.peers.peer import Peer, Server
from testbed.processes import accepts, cpu_seconds, free_port, process_tree, rss_bytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1, 1], workers=8, processes=1) as running:
        yield running


def needs(condition: bool, what: str) -> None:
    if not condition:
        pytest.skip(f"{what} is not installed")


def start_haproxy(servers: list[Server], mode: str) -> Peer:
    needs(haproxy.is_installed(), "haproxy")
    return haproxy.start(servers, mode=mode, balance="roundrobin")


def start_nginx(servers: list[Server], mode: str) -> Peer:
    needs(nginx.has_stream() if mode == "tcp" else nginx.is_installed(), f"nginx for {mode}")
    return nginx.start(servers, mode=mode, balance="")


def start_vickrey(servers: list[Server], mode: str) -> Peer:
    return vickrey.start(servers, mode=mode, policy="wrr")


@pytest.mark.parametrize("mode", ["http", "tcp"])
@pytest.mark.parametrize("start", [start_haproxy, start_nginx, start_vickrey])
def test_a_peer_forwards_by_weight_and_leaves_nothing(
    farm: Farm, start: Callable[[list[Server], str], Peer], mode: str
):
    servers = [Server(address, weight) for address, weight in zip(farm.addresses, (10, 30), strict=True)]
    with start(servers, mode) as peer:
        served = Counter()
        for _ in range(40):
            with urllib.request.urlopen(f"http://127.0.0.1:{peer.port}/", timeout=10) as answer:
                served[answer.headers["X-Server"]] += 1
        pids = peer.pids()
        assert rss_bytes(pids) > 1 << 20
        assert cpu_seconds(pids) >= 0
    assert sum(served.values()) == 40
    assert 24 <= served["s2"] <= 36
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    assert not accepts(peer.port)
    assert not peer.folder.exists()


def test_vickreys_processes_are_told_apart(farm: Farm):
    with vickrey.start([Server(address) for address in farm.addresses], policy="lsq") as peer:
        roles = peer.roles()
        assert [len(roles[role]) for role in ("data plane", "controller", "supervisor")] == [1, 1, 1]
        peer.set_policy("adaptive")
        assert peer.status()["policy"]["name"] == "adaptive"
        with pytest.raises(RuntimeError, match=r"nonsense"):
            peer.set_policy("nonsense")


def test_the_origin_serves_its_three_bodies():
    needs(nginx.is_installed(), "nginx")
    with nginx.start_origin() as origin:
        for path, size in (("small", 13), ("10k", 10_240), ("1m", 1_048_576)):
            with urllib.request.urlopen(f"http://127.0.0.1:{origin.port}/{path}", timeout=10) as answer:
                assert len(answer.read()) == size


def test_a_peer_that_cannot_start_says_why():
    needs(haproxy.is_installed(), "haproxy")
    with pytest.raises(RuntimeError, match="balance only supports"):
        haproxy.start([Server(f"127.0.0.1:{free_port()}")], balance="no-such-rule")


def test_the_process_tree_has_children_of_children():
    child = subprocess.Popen(["sh", "-c", "sleep 30 & wait"])
    try:
        while len(process_tree(child.pid)) < 2:
            assert child.poll() is None
        family = process_tree(child.pid)
        assert child.pid == family[0]
        assert child.pid in process_tree(os.getpid())
        for pid in family[1:]:
            os.kill(pid, 9)
    finally:
        child.kill()
        child.wait()


def run_benchmark(*command: str) -> dict[str, object]:
    run = subprocess.run(
        [sys.executable, *command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    document: dict[str, object] = json.loads(run.stdout)
    assert document["not_measured"] == {}, run.stderr
    return document


def test_the_balance_benchmark_compares_on_the_same_arrivals():
    needs(haproxy.is_installed(), "haproxy")
    document = run_benchmark(
        *("benchmarks/balance.py", "--workers", "1", "--loads", "40", "--demand", "exponential"),
        *("--balancers", "vickrey adaptive", "haproxy leastconn"),
        *("--seconds", "2", "--warmup", "1", "--direct", "1", "--rounds", "1"),
    )
    (point,) = document["points"]  # type: ignore[misc]
    yardsticks = ["central queue (simulated)", "central queue over the path (simulated)"]
    assert list(point["balancers"]) == [*yardsticks, "vickrey adaptive", "haproxy leastconn"]
    assert (
        point["balancers"][yardsticks[0]]["over_path_ratio"]
        <= 1
        == point["balancers"][yardsticks[1]]["over_path_ratio"]
    )
    for figures in point["balancers"].values():
        assert figures["errors"] == figures["unanswered"] == 0
        assert figures["mean_ratio"] > 0.9
        assert figures["p50_ms"] <= figures["p99_ms"]


def test_the_overhead_benchmark_puts_costs_side_by_side():
    needs(haproxy.is_installed(), "haproxy")
    needs(nginx.is_installed(), "nginx")
    needs(subprocess.run(["which", "wrk"], capture_output=True).returncode == 0, "wrk")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only: balancer and client cannot be told apart")
    document = run_benchmark(
        "benchmarks/overhead.py", "--quick", "--only", "keep-alive", "--subjects", "haproxy http", "vickrey http"
    )
    costs = document["cpu_us_per_request"]["keep-alive"]  # type: ignore[index]
    assert set(costs) == {"haproxy http", "vickrey http", "vickrey http all"}
    assert all(0 < cost < 1000 for cost in costs.values())
    assert costs["vickrey http all"] >= costs["vickrey http"]
    assert document["errors"] == {}
