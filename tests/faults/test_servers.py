"""Servers refuse, die, fail and come back; the last one; nobody left (rows 1, 6, 17, 32, 33)."""

import os
import signal
import time

import pytest

from testbed.farm import Farm
from testbed.processes import free_port
from tests.faults.running import Load, wait_until

HEALTH = {"path": "/health", "inter": "200ms", "fall": 3, "rise": 2}


def test_a_server_that_refuses_costs_nobody_an_error_and_is_taken_out(balancer, farm):
    """Row 1: the same request goes to the next server; after `fall` refusals the server is down, without any check."""
    dead = f"127.0.0.1:{free_port()}"
    keys = {"health": "off", "policy": "wrr"}
    with balancer([*farm.addresses[:2], dead], **keys) as running, Load(running.port) as load:
        wait_until(lambda: running.server(dead)["health"] == "down")
        assert "connections failed in a row" in running.server(dead)["cause"]
        before = running.server(dead)["flows_total"]
        load.run_for(100)
        assert running.server(dead)["flows_total"] == before
    load.assert_nothing_lost()


def test_a_server_killed_under_load_loses_at_most_its_in_flight_and_comes_back(balancer, tmp_path):
    """Row 1: down by its traffic at once, back after `rise` good checks, ramping up."""
    with Farm.of_speeds([1, 1, 1], workers=8, demand="fixed:2") as farm:
        keys = {"health": HEALTH, "slowstart": "1s", "policy": "adaptive"}
        with balancer(farm.addresses, **keys) as running, Load(running.port) as load:
            load.run_for(200)
            farm.kill("s2")
            address = farm.addresses[1]
            wait_until(lambda: running.server(address)["health"] == "down")
            errors = len(load.errors)
            load.run_for(200)
            assert len(load.errors) == errors  # the others go on
            farm.revive("s2")
            wait_until(lambda: running.server(address)["health"] == "up")
            back = running.server(address)["flows_total"]
            wait_until(lambda: running.server(address)["flows_total"] > back)
        # GETs that had no byte of an answer were sent elsewhere; an answer that was begun is lost with its connection.
        assert len(load.errors) + load.statuses[502] <= 8


def test_checks_alone_find_a_server_that_is_down(balancer, farm):
    dead = f"127.0.0.1:{free_port()}"
    with balancer([farm.addresses[0], dead], health=HEALTH) as running:
        wait_until(lambda: running.server(dead)["health"] == "down")
        assert running.server(dead)["cause"] == "check: L4CON Connection refused"
        assert running.server(farm.addresses[0])["health"] == "up"


def test_a_server_that_fails_fast_is_ejected_and_does_not_attract_the_traffic(balancer, farm):
    """Row 6: its answers pass, five in a row eject it. Under adaptive it may be too dear by then to get a fifth."""
    farm.fault("s4", kind="500")
    address = farm.addresses[3]
    outlier = {"base_ejection_time": "1s"}
    with balancer(outlier=outlier, policy="lsq") as running, Load(running.port) as load:
        wait_until(lambda: running.server(address)["health"] == "ejected")
        assert "errors in a row" in running.server(address)["cause"]
        load.run_for(100)
        farm.reset()
        wait_until(lambda: running.server(address)["health"] == "up" and running.server(address)["share"] > 0)
    assert load.errors == []
    assert set(load.statuses) <= {200, 500}


def test_the_last_server_is_never_ejected(balancer, farm):
    """Row 33: when everybody fails, the answers still come from the servers, not from us."""
    for name in ("s1", "s2"):
        farm.fault(name, kind="500")
    outlier = {"max_ejection_percent": 100}
    with balancer(farm.addresses[:2], outlier=outlier) as running:
        with Load(running.port, connections=2):
            wait_until(lambda: sorted(s["health"] for s in running.service["servers"]) == ["ejected", "up"])
            time.sleep(0.5)
            assert sorted(s["health"] for s in running.service["servers"]) == ["ejected", "up"]
        assert running.service["totals"]["answered_here"] == 0


def test_nobody_left_is_503_at_once_and_the_first_good_check_ends_it(balancer):
    """Row 32: with Retry-After; back as soon as one server answers one check."""
    with Farm.of_speeds([1], workers=4) as farm, balancer(farm.addresses, health={**HEALTH, "rise": 50}) as running:
        farm.kill("s1")
        wait_until(lambda: running.server(farm.addresses[0])["health"] == "down")
        assert running.get("health")["ok"] is False
        began = time.monotonic()
        with Load(running.port, connections=1) as load:
            wait_until(lambda: load.statuses[503] >= 3)
            assert time.monotonic() - began < 2
            farm.revive("s1")
            wait_until(lambda: load.statuses[200] > 3)
        assert running.get("health")["ok"] is True


@pytest.mark.parametrize("who", ["supervisor", "everybody"])
def test_nobody_is_blamed_for_a_pause(balancer, farm, who):
    """Row 17: SIGSTOP of four seconds, of the supervisor alone or of all three processes at once."""
    with balancer(health={**HEALTH, "timeout": "100ms", "fall": 1}, timeout={"server": "1s"}) as running:
        with Load(running.port) as load:
            pids = [running.supervisor_pid, *(running.children() if who == "everybody" else [])]
            restarts = [running.process(name)["restarts"] for name in ("dataplane", "controller")]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(4)
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
            load.run_for(200)
            time.sleep(1)
            servers = running.service["servers"]
            assert [s["health"] for s in servers] == ["up"] * 4
            assert [s["downs_total"] + s["ejections_total"] for s in servers] == [0] * 4
            assert [running.process(name)["restarts"] for name in ("dataplane", "controller")] == restarts
        if who == "supervisor":
            load.assert_nothing_lost()


def test_backups_stand_in_only_when_nobody_else_is_up(balancer, farm):
    first, spare = farm.addresses[:2]
    servers = [first, {"address": spare, "backup": True}]
    with balancer(servers) as running, Load(running.port) as load:
        load.run_for(50)
        assert running.server(spare)["flows_total"] == 0
        running.change("PATCH", f"services/web/servers/{first}", {"state": "maint"})
        wait_until(lambda: running.server(spare)["flows_total"] > 0)
    load.assert_nothing_lost()
