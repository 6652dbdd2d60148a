"""Policies that fail, lag, or do harm, on a whole balancer under load (rows 25, 29, 30); what is set while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.farm import Farm
from tests.faults import hostile
from tests.faults.running import ROOT, Load, Running, wait_until


@pytest.fixture
def running(farm: Farm, tmp_path: Path) -> Iterator[Running]:
    """A balancer with a hostile plug-in and an audit log."""
    with balancer_before(farm, tmp_path) as made:
        yield made


@pytest.fixture
def idle_cpu(tmp_path: Path) -> Iterator[Running]:
    """The same before servers of which four flows each are enough work, and little for the CPU."""
    with (
        Farm.of_speeds([1, 1, 1, 1], workers=4, demand="fixed:10", processes=1) as farm,
        balancer_before(farm, tmp_path) as made,
    ):
        yield made


def balancer_before(farm: Farm, folder: Path) -> Running:
    made = Running(folder, farm.addresses, interval="50ms")
    made.plugins.append(hostile.install(folder))
    made.admin["audit"] = str(folder / "audit.jsonl")
    made.write()
    return made


def policy(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = running.get("services/web/policy")
    return found


def set_policy(running: Running, spec: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = running.change("POST", "services/web/policy", spec)
    return answer


def recorded(running: Running, what: str) -> list[dict[str, Any]]:
    lines = (running.folder / "audit.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["what"] == what]


def vickrey(running: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controlplane.cli", *arguments, "--admin", f"127.0.0.1:{running.admin_port}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_decisions_that_are_no_numbers_demote_and_cost_no_request(running):
    """Row 25: each kind of garbage; the last good decision holds, five in a row demote to least connections."""
    kinds = ("nan", "infinite", "negative", "zero", "shape", "text", "raise")
    with Load(running.port) as load:
        for n, kind in enumerate(kinds, 1):
            set_policy(running, {"name": "hostile", "does": kind})
            wait_until(lambda: policy(running).get("demoted"))
            wait_until(lambda: running.service["directive"]["policy"] == "lsq")
            load.run_for(20)
            assert running.metrics()['vickrey_policy_demotions_total{service="web"}'] == n
            set_policy(running, {"name": "adaptive"})
        assert running.process("controller")["restarts"] == 0
        load.run_for(50)
    load.assert_nothing_lost()
    wait_until(lambda: len(recorded(running, "demoted")) == len(kinds))
    assert {record["spec"]["does"] for record in recorded(running, "demoted")} == set(kinds)


def test_a_policy_slower_than_its_deadline_is_dropped_and_then_demoted(running):
    """Row 29: it takes 150 ms of an interval of 50; late decisions are dropped, ten in a row demote."""
    with Load(running.port) as load:
        set_policy(running, {"name": "hostile", "does": "slow"})
        wait_until(lambda: policy(running).get("demoted"), 20)
        shown = policy(running)
        assert shown["late"] >= 10
        assert "came late" in shown["demoted"]
        load.run_for(50)
        assert running.service["directive"]["policy"] == "lsq"
    load.assert_nothing_lost()


def test_a_slow_policy_on_trial_is_given_up_for_its_incumbent(running):
    """Row 29: beside an incumbent it is this one that goes on, not least connections."""
    with Load(running.port) as load:
        set_policy(running, {"name": "hostile", "does": "slow", "enforcing": 50})
        wait_until(lambda: policy(running)["policy"] == "adaptive", 20)
        load.run_for(50)
        assert running.service["directive"]["policy"] == "adaptive"
    load.assert_nothing_lost()


def test_a_policy_that_harms_is_rolled_back_by_itself_and_cools_down(idle_cpu):
    """Row 30: all flows to one server, another in each cycle: the guard compares with the policy before."""
    running = idle_cpu
    with Load(running.port, connections=16) as load:
        load.run_for(2000)
        wait_until(lambda: float(policy(running)["cycles"]) > 6 / 0.05, 20)
        harm = {"name": "hostile", "does": "swing"}
        set_policy(running, harm)
        assert policy(running)["guard"] == "watching"
        wait_until(lambda: policy(running)["policy"] == "adaptive", 60, 0.2)
        assert running.metrics()['vickrey_policy_rollbacks_total{service="web"}'] == 1
        status, answer = running.request("POST", "/v1/services/web/policy", harm)
        assert status == 409
        assert "cools down" in answer["error"]
        assert "take longer than the p99 before" in answer["error"]
        os.kill(running.pid("controller"), signal.SIGKILL)  # the next one knows of it
        wait_until(lambda: running.process("controller")["restarts"] == 1 and running.process("controller")["up"], 20)
        status, again = running.request("POST", "/v1/services/web/policy", harm)
        assert status == 409
        assert "take longer than the p99 before" in again["error"]
        set_policy(running, harm | {"force": True, "guard": False})
        load.run_for(50)
    load.assert_nothing_lost()
    (told,) = recorded(running, "rolled back")
    assert (told["who"], told["to"]) == ("guard", "adaptive")


def test_shadow_share_and_rollback_from_the_command_line_and_on_record(running):
    """A trial under load by hand: nothing is lost, and who did what is in the audit log."""
    with Load(running.port) as load:
        done = vickrey(running, "policy", "set", "gsed", "c=0.3", "--shadow", "--json")
        assert done.returncode == 0, done.stderr
        assert 0 <= json.loads(done.stdout)["shadow"]["agreement"] <= 1
        load.run_for(100)
        assert running.service["directive"]["policy"] == "adaptive"
        assert vickrey(running, "policy", "set", "--enforcing", "40").returncode == 0
        wait_until(lambda: running.service["directive"]["policy"] == "gsed")
        wait_until(lambda: running.service["directive"]["policy"] == "adaptive")
        assert "gsed (40 %)" in vickrey(running, "status").stdout
        wait_until(lambda: running.service["deployment"].get("trial"))
        assert "beside adaptive agreement" in vickrey(running, "status").stdout
        assert running.metrics()['vickrey_policy_enforcing{service="web"}'] == 0.4
        assert vickrey(running, "policy", "set", "--enforcing", "100").returncode == 0
        assert vickrey(running, "policy", "rollback").returncode == 0
        wait_until(lambda: running.service["directive"]["policy"] == "adaptive")
        assert vickrey(running, "policy", "set", "nosuch").returncode == 1
        load.run_for(50)
    load.assert_nothing_lost()
    wait_until(lambda: recorded(running, "refused"))
    shares = [(record["before"], record["now"]) for record in recorded(running, "share")]
    assert shares == [("0 %", "40 %"), ("40 %", "100 %")]
    assert {record["who"] for record in recorded(running, "share")} == {"127.0.0.1"}
    assert recorded(running, "refused")[0]["policy"] == "nosuch"
    table = vickrey(running, "policy", "audit", "--last", "50")
    assert table.returncode == 0
    assert "rolled back" in table.stdout


def test_a_switchback_on_live_traffic_ends_and_keeps_the_winner(idle_cpu):
    """All flows to one server of four, where they take four times as long, against adaptive bids."""
    running = idle_cpu
    with Load(running.port, connections=32) as load:
        set_policy(running, {"name": "hostile", "does": "one", "switchback": {"seconds": 0.6, "pairs": 10}})
        assert policy(running)["switchback"]["state"] == "running"
        wait_until(lambda: policy(running)["switchback"]["state"] != "running", 60, 0.2)
        shown = policy(running)
        assert shown["policy"] == "adaptive"
        assert shown["switchback"]["state"] in ("worse", "harm")
        wait_until(lambda: running.service["deployment"]["switchback"]["state"] != "running")
        verdicts = [name for name in running.metrics() if name.startswith("vickrey_policy_switchbacks_total")]
        assert verdicts
        load.run_for(50)
    load.assert_nothing_lost()
    (told,) = recorded(running, "switchback")
    assert told["keeps"] == "adaptive"


def test_a_full_disk_for_the_audit_log_costs_nothing(balancer: Callable[..., Running]) -> None:
    """Row 36 for the audit log: records are dropped and counted, the policy changes all the same."""
    made = balancer()
    made.admin["audit"] = "/dev/full"
    made.write()
    with made as running, Load(running.port) as load:
        set_policy(running, {"name": "sed"})
        wait_until(lambda: running.metrics()["vickrey_audit_dropped_total"] >= 3)
        assert [record["what"] for record in running.get("audit?last=500")["records"]].count("enforced") == 1
        load.run_for(20)
    load.assert_nothing_lost()
