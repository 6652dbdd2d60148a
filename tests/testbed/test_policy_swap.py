"""The shipped policy on real servers: put in force at two balancers while both have traffic."""

import json
import subprocess
import sys
import time

import pytest

from testbed.farm import Farm
from testbed.peers import vickrey
from testbed.peers.peer import Server

SERVICE = f"/v1/services/{vickrey.SERVICE}/policy"


def replay(balancer: vickrey.Vickrey, seed: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "controlplane.cli", "replay", "poisson:rate=120,mean_work=0.03"),
            *("--target", balancer.url, "--duration", "8s", "--seed", str(seed), "--quiet", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def until_decides(balancer: vickrey.Vickrey, policy: str) -> None:
    deadline = time.monotonic() + 10.0
    while balancer.status()["directive"]["policy"] != policy:
        assert time.monotonic() < deadline, balancer.status()["directive"]
        time.sleep(0.05)


@pytest.mark.slow
def test_two_balancers_before_eight_servers_take_it_and_give_it_up_and_lose_no_request():
    file = "shipped:several"
    with Farm.of_speeds([1, 1, 1, 1, 2, 2, 4, 4], workers=1) as farm:
        servers = [Server(address) for address in farm.addresses]
        with vickrey.start(servers, balancers=2) as one, vickrey.start(servers, balancers=2) as other:
            loads = [replay(balancer, seed) for seed, balancer in enumerate((one, other), 1)]
            try:
                for name, options in (("learned", {"file": file}), ("adaptive", {}), ("learned", {"file": file})):
                    time.sleep(1.5)
                    for balancer in (one, other):
                        balancer.set_policy(name, **options)
                        until_decides(balancer, name)
            finally:
                said = [json.loads(load.communicate(timeout=40)[0]) for load in loads]
            shown = [balancer.call("GET", SERVICE) for balancer in (one, other)]
    for found in said:
        assert found["errors"] == {}
        assert found["requests"]["unanswered"] == 0
        assert found["requests"]["sent"] > 600
    assert [found["policy"] for found in shown] == ["learned", "learned"]
