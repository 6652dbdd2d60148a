"""Late binding in a whole balancer: flows wait for cheaper servers, processes die meanwhile, and nothing is lost."""

import json
import os
import signal

import pytest

from controlplane.commands.status import server_table, service_title
from testbed.farm import Farm
from tests.faults.running import Load, Running, wait_until

ROUTES = [{"prefix": "/gold", "class": "gold"}, {"prefix": "/bronze", "class": "bronze", "load": 2}]
SLA = {"header": "X-SLA", "trust": "any", "routes": ROUTES}


@pytest.mark.parametrize("workers", [1, 4])
def test_flows_wait_and_none_is_lost(tmp_path, workers):
    file = tmp_path / "access.log"
    with (
        Farm.of_speeds([1, 1, 1, 1, 2, 2, 4, 4], workers=1, demand="exponential:15", processes=2) as farm,
        Running(
            tmp_path, farm.addresses, reserve="learned", sla=SLA, workers=workers, log={"access": str(file)}
        ) as running,
    ):
        with (
            Load(running.port, connections=12) as silver,
            Load(running.port, connections=4, path="/gold") as gold,
            Load(running.port, connections=4, path="/bronze/1") as bronze,
        ):
            wait_until(lambda: running.service["classes"]["silver"]["waited"] > 0, 20)
            service = running.service
            os.kill(running.pid("controller"), signal.SIGKILL)
            silver.run_for(200)
            wait_until(lambda: not running.service["fallback_active"])
            silver.run_for(200)
        for load in (silver, gold, bronze):
            load.assert_nothing_lost()
        assert service["reserve"]["mode"] == "learned"
        assert service["reserve"]["value"] > 0
        assert service["totals"]["held"] > 0
        assert service["totals"]["queue_timeouts"] == 0
        title = service_title("web", service)
        assert "reserve" in title
        assert "silver" in title
        assert server_table(service)[0][-2:] == [">BID", ">PRICE"]
        metrics = running.metrics()
        assert metrics['vickrey_class_waited_total{service="web",class="silver"}'] > 0
        assert metrics['vickrey_class_wait_seconds_total{service="web",class="silver"}'] > 0
        assert metrics['vickrey_class_flows_total{service="web",class="gold"}'] >= gold.good
        assert metrics['vickrey_class_queued{service="web",class="bronze"}'] == 0
        assert metrics['vickrey_auctions_held_total{service="web"}'] > 0
        margins = [value for name, value in metrics.items() if name.startswith("vickrey_server_margin_total")]
        assert len(margins) == 8
        assert sum(margins) > 0
        assert running.service["in_flight"] == running.service["queued"] == 0
        wait_until(lambda: len(file.read_text().splitlines()) == running.service["totals"]["requests_total"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {(line["target"], line["sla"], line["route"]) for line in lines}
    assert found == {("/", "silver", 0), ("/gold", "gold", 1), ("/bronze/1", "bronze", 2)}
    assert max(line["queue_ms"] for line in lines) > 1


def test_a_server_that_dies_while_flows_are_held_holds_nobody(tmp_path):
    with (
        Farm.of_speeds([8, 1, 1], workers=1, demand="exponential:20") as farm,
        Running(tmp_path, farm.addresses, health={"inter": "200ms", "fall": 2}) as running,  # by default
    ):
        with Load(running.port, connections=20) as load:  # more than it may have when it stops
            wait_until(lambda: running.service["classes"]["silver"]["waited"] > 0, 20)
            os.kill(farm.pids[0], signal.SIGSTOP)  # the fast one takes no more, and what it had is not answered
            stopped = load.good
            wait_until(lambda: load.good >= stopped + 30, 20)
            os.kill(farm.pids[0], signal.SIGCONT)
            load.run_for(30)
        load.assert_nothing_lost()
        assert running.service["queued"] == 0


def test_operators_change_servers_and_policies_while_flows_are_held(tmp_path):
    with (
        Farm.of_speeds([8, 1, 1, 1], workers=1, demand="exponential:20") as farm,
        Running(tmp_path, farm.addresses, reserve="learned", sla=SLA) as running,
    ):
        names = [server["name"] for server in running.service["servers"]]
        with Load(running.port, connections=6) as load, Load(running.port, connections=2, path="/gold") as gold:
            wait_until(lambda: running.service["classes"]["silver"]["waited"] > 0, 20)
            policy, server = "services/web/policy", "services/web/servers/{}"
            for method, path, body in (
                ("PATCH", server.format(names[0]), {"state": "drain"}),
                ("POST", policy, {"name": "lsq"}),
                ("PATCH", server.format(names[0]), {"state": "ready"}),
                ("PATCH", server.format(names[1]), {"state": "maint"}),
                ("POST", policy, {"name": "auction"}),
                ("PATCH", server.format(names[1]), {"state": "ready"}),
                ("POST", policy + "/rollback", None),
                ("POST", policy, {"name": "adaptive"}),
                ("PATCH", server.format(names[2]), {"weight": 0}),
            ):
                running.change(method, path, body)
                load.run_for(20)
            before = running.service["totals"]["held"]
            wait_until(lambda: running.service["totals"]["held"] > before, 20)
        load.assert_nothing_lost()
        gold.assert_nothing_lost()
        assert running.service["in_flight"] == running.service["queued"] == 0


@pytest.mark.parametrize(("keys", "mode"), [({}, "off"), ({"reserve": "classic", "policy": "auction"}, "classic")])
def test_in_mode_tcp_nothing_is_held_by_default_and_the_classic_reserve_flags(tmp_path, keys, mode):
    with (
        Farm.of_speeds([4, 1], workers=1, demand="fixed:5") as farm,
        Running(tmp_path, farm.addresses, mode="tcp", **keys) as running,
        Load(running.port, connections=6) as load,
    ):
        load.run_for(200)
        assert running.service["reserve"]["mode"] == mode
        wait_until(lambda: (running.service["reserve"]["value"] is None) == (mode == "off"))
        assert running.service["totals"]["held"] == 0
        load.assert_nothing_lost()
