"""What each server contributes: figures by hand, what is said when nothing is known, the command on real traffic."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from controlplane.auction.contribution import NotFittedError, contribution
from controlplane.cli import main
from controlplane.commands.server import _drain_line
from testbed import clock
from testbed.demand import Demand
from testbed.farm import Farm as RealFarm
from testbed.load.generator import Generator, Target
from testbed.load.schedule import poisson
from testbed.peers import vickrey
from testbed.peers.peer import Server


def server(name: str, mu: float, arrivals: float, **given: Any) -> dict[str, Any]:
    return {"name": name, "active": True, "mu": mu, "k": 1.0, "arrivals": arrivals, "samples": 9.0} | given


def shown(*servers: dict[str, Any]) -> dict[str, Any]:
    return {"policy": "adaptive", "servers": list(servers)}


def test_two_equal_servers_by_hand() -> None:
    # μ = 10, λ = 8 each: 2 to spare; 4 in flight on each, 4 in the pool: each saves 2. Equal, so all shares are 1/2.
    found = contribution(shown(server("a", 10, 8), server("b", 10, 8)))
    assert (found["arrivals"], found["capacity"], found["exact"]) == (16.0, 20.0, True)
    for entry in found["servers"]:
        assert entry["spare"] == pytest.approx(2.0)
        assert entry["games"]["spare"]["shapley"] == pytest.approx(2.0)
        assert entry["games"]["pooled"]["shapley"] == pytest.approx(2.0)
        assert [game["share"] for game in entry["games"].values()] == pytest.approx([0.5] * 3)
        assert [game["error"] for game in entry["games"].values()] == [0, 0, 0]
    # One alone cannot carry 16 with 10.
    assert [step["can_be_spared"] for step in found["drain"]] == [False, False]
    assert _drain_line(found["drain"]) == "drain: none can be spared"


def test_without_one_of_two_the_other_carries_all() -> None:
    # λ = 4 in all, μ = 10: two serve 2 each, 0.25 in flight on each; one alone has 0.4/0.6 = 0.667.
    found = contribution(shown(server("a", 10, 2), server("b", 10, 2)))
    assert found["servers"][0]["alone_out"] == pytest.approx(2 / 3 - 0.5, rel=0.02)
    assert sorted(entry["drain"] for entry in found["servers"]) == [1, 2]
    first = found["drain"][0]
    assert first["can_be_spared"]
    assert first["utilisation_after"] == pytest.approx(0.4)
    assert _drain_line(found["drain"]) == f"drain: {first['name']}; the others are then used to 40%"


def test_the_slowest_is_drained_first_and_who_is_out_is_no_player() -> None:
    found = contribution(
        shown(server("fast", 40, 20), server("gone", 99, 0, active=False), server("slow", 5, 1), server("mid", 20, 8))
    )
    assert [entry["name"] for entry in found["servers"]] == ["fast", "slow", "mid"]
    assert found["drain"][0]["name"] == "slow"
    assert found["no_flows"] == ["gone"]
    worth = [entry["games"]["serving"]["shapley"] for entry in found["servers"]]
    assert worth[0] > worth[2] > worth[1]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_more_servers_than_are_exact_have_error_bars() -> None:
    rng = np.random.default_rng(1)
    mu = rng.uniform(5, 50, 40)
    found = contribution(shown(*(server(f"s{i}", m, 0.7 * m) for i, m in enumerate(mu))))
    assert not found["exact"]
    assert max(entry["games"]["serving"]["error"] for entry in found["servers"]) > 0
    assert [entry["games"]["spare"]["shapley"] for entry in found["servers"]] == pytest.approx(list(0.3 * mu))


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ({"policy": "adaptive", "servers": []}, "nothing is fitted yet"),
        ({"policy": "lsq", "servers": [{"name": "a", "active": True}]}, "policy lsq fits no rates"),
        (shown(server("a", 10, 1, samples=0.0)), "no flow has ended"),
        (shown(server("a", 10, 1), server("b", 10, 1) | {"mu": None}), "of some servers"),
        (shown(server("a", 10, 1, active=False)), "no server takes flows"),
        (shown(server("a", 10, 0)), "nothing arrives"),
    ],
)
def test_when_nothing_can_be_said_it_says_why(document: dict[str, Any], what: str) -> None:
    with pytest.raises(NotFittedError, match=what):
        contribution(document)


@pytest.mark.live
@pytest.mark.parametrize("policy", ["adaptive", "auction"])
def test_the_command_before_and_after_real_traffic(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with RealFarm.of_speeds((1, 4), workers=2, processes=1) as farm:
        peer = vickrey.start([Server(address) for address in farm.addresses], policy=policy)
        try:
            command = ["server", "contribution", "--admin", f"127.0.0.1:{peer.admin_port}"]
            assert main(command) == 1
            assert "nothing is fitted yet" in capsys.readouterr().err
            schedule = poisson(200.0, 2.0, 1, Demand("exponential", 20.0))
            clock.run(Generator(Target("127.0.0.1", peer.port), schedule).run())
            time.sleep(0.5)  # a control interval or two
            assert main([*command, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert main(command) == 0
            lines = capsys.readouterr().out.splitlines()
        finally:
            peer.stop()
    assert found["policy"] == policy
    assert [len(found["servers"]), len(found["drain"])] == [2, 2]
    assert sum(entry["games"]["serving"]["share"] for entry in found["servers"]) == pytest.approx(1.0)
    assert lines[1].split()[0] == "SERVER"
    assert lines[-1].startswith("drain: ")
