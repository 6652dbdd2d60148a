"""Changes while traffic flows: reload, states, weights, policies; broken files (rows 14, 34)."""

import signal

import pytest

from tests.faults.running import Load, Running, wait_until


def reload_until_good(running: Running) -> list[str]:
    changes: list[str] = running.change("POST", "reload")["changes"]
    return changes


def test_servers_come_and_go_under_load_without_a_lost_request(balancer, farm):
    """Rows 14 and 34: forty reloads, of servers, weights, limits, timeouts and policy."""
    a, b, c, d = farm.addresses
    sets = [[a, b], [c, d], [a, b, c, d], [{"address": d, "weight": 9}, b], [a, {"address": c, "maxconn": 3}, d]]
    with balancer([a, b]) as running, Load(running.port) as load:
        for round_ in range(40):
            running.write(servers=sets[round_ % len(sets)], timeout={"connect": f"{round_ + 1}s"})
            if round_ % 10 == 9:
                running.write(policy=["sed", "lsq", "adaptive", "wrr"][round_ // 10])
            reload_until_good(running)
            load.run_for(20)
        wait_until(lambda: len(running.service["servers"]) == 3)  # those that left have left
        assert running.service["policy"]["name"] == "wrr"
        assert running.process("dataplane")["restarts"] == 0
        assert running.process("controller")["restarts"] == 0
        assert running.metrics()['vickrey_reloads_total{result="success"}'] == 40
    load.assert_nothing_lost()


def test_hup_reloads(balancer, farm):
    with balancer(farm.addresses[:1]) as running:
        running.write(servers=farm.addresses[:2])
        running.signal(signal.SIGHUP)
        wait_until(lambda: len(running.service["servers"]) == 2)


BROKEN = [
    ("not yaml", ": [", "web.yaml:1:"),
    ("unknown key", None, "service.web.wieght: unknown key (did you mean"),
    ("another port", None, "service.web.listen: cannot change from"),
    ("another number of workers", None, "service.web.workers: cannot change from 1 to 2 without a restart"),
    ("policy option", None, "service.web.policy.wrong"),
]


@pytest.mark.parametrize(("case", "text", "message"), BROKEN, ids=[case for case, *_ in BROKEN])
def test_a_file_that_cannot_be_taken_changes_nothing(balancer, case, text, message):
    """Row 14: the old configuration stays, the answer names line and key, and the metric says so."""
    with balancer() as running, Load(running.port) as load:
        before = [server["name"] for server in running.service["servers"]]
        kept = dict(running.keys)
        match case:
            case "unknown key":
                running.write(servers=["127.0.0.1:1"], wieght=3)
            case "another port":
                running.write(servers=["127.0.0.1:1"], listen="127.0.0.1:2")
            case "another number of workers":
                running.write(servers=["127.0.0.1:1"], workers=2)
            case "policy option":
                running.write(servers=["127.0.0.1:1"], policy={"name": "sed", "wrong": 1})
        if text is not None:
            running.file.write_text(text)
        status, answer = running.request("POST", "/v1/reload", {})
        assert status == 422
        assert message in answer["error"]
        assert answer["problems"][0]["line"] >= 1
        assert running.metrics()["vickrey_last_reload_success"] == 0
        assert [server["name"] for server in running.service["servers"]] == before
        load.run_for(100)
        running.keys = kept
        running.write()
        assert reload_until_good(running) == []
        assert running.metrics()["vickrey_last_reload_success"] == 1
    load.assert_nothing_lost()


def test_policies_are_swapped_under_load_without_a_lost_request(balancer):
    """Hot swap, rollback, and a policy that does not exist."""
    with balancer() as running, Load(running.port) as load:
        for name in ("wrr", "lsq", "p2c", "maglev", "wcmp", "auction", "adaptive"):
            assert running.change("POST", "services/web/policy", {"name": name})["policy"]["name"] == name
            wait_until(lambda: running.service["directive"]["policy"] == running.service["policy"]["name"])
            load.run_for(50)
        assert running.change("POST", "services/web/policy/rollback")["policy"]["name"] == "auction"
        status, answer = running.request("POST", "/v1/services/web/policy", {"name": "adaptiv"})
        assert status == 409
        assert "did you mean 'adaptive'?" in answer["error"]
        assert running.service["policy"]["name"] == "auction"
    load.assert_nothing_lost()


def test_drain_and_maint_empty_a_server_and_ready_fills_it_again(balancer, farm):
    with balancer(farm.addresses[:2]) as running, Load(running.port) as load:
        for state in ("drain", "maint"):
            first = farm.addresses[0]
            running.change("PATCH", f"services/web/servers/{first}", {"state": state})
            wait_until(lambda: running.server(first)["in_flight"] == 0)  # noqa: B023
            before = running.server(first)["flows_total"]
            load.run_for(100)
            assert running.server(first)["flows_total"] == before
            running.change("PATCH", f"services/web/servers/{first}", {"state": "ready"})
            wait_until(lambda: running.server(first)["flows_total"] > before)  # noqa: B023
    load.assert_nothing_lost()


def test_a_weight_of_zero_takes_no_new_flows_and_a_reload_keeps_what_was_set_by_hand(balancer, farm):
    with balancer(farm.addresses[:2], policy="wrr") as running, Load(running.port) as load:
        first = farm.addresses[0]
        running.change("PATCH", f"services/web/servers/{first}", {"weight": 0})
        load.run_for(20)
        before = running.server(first)["flows_total"]
        running.write(retries=2)
        assert reload_until_good(running) == ["web: retries changed"]
        load.run_for(100)
        assert running.server(first)["flows_total"] == before
        running.write(servers=[{"address": first, "weight": 3}, farm.addresses[1]])
        reload_until_good(running)
        assert running.server(first)["weight"] == 3
        wait_until(lambda: running.server(first)["flows_total"] > before)
    load.assert_nothing_lost()


def test_an_interval_that_changes_restarts_the_controller_alone(balancer):
    with balancer() as running, Load(running.port) as load:
        running.write(interval="100ms")
        assert "web: interval changed" in reload_until_good(running)
        wait_until(lambda: running.process("controller")["restarts"] == 1 and running.process("controller")["up"], 20)
    load.assert_nothing_lost()
