"""Telemetry: what servers say they did, and what the controller thinks of them, on one axis of time."""

import csv
import math
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from testbed.farm import Farm
from testbed.peers import vickrey
from testbed.peers.peer import Server
from testbed.telemetry import Sampler, Telemetry, jain, write_csv


def totals(*values: float) -> Telemetry:
    telemetry = Telemetry(["s1"])
    for i, value in enumerate(values):
        telemetry.add(float(i), 0.0, {"service_ms": [value], "workers": [2.0], "busy": [1.0]})
    return telemetry


def test_utilisation_is_the_time_served_over_the_time_that_there_was():
    # From 1 s to 3 s the total grows from 500 to 2,500 ms: 2 s of work in 2 s by two workers.
    assert totals(0, 500, 1500, 2500, 9000).utilisation(1, 3).tolist() == [0.5]


def test_a_total_that_begins_anew_counts_from_zero():
    assert totals(0, 800, 100, 300).increase("service_ms", 0, 3).tolist() == [1100.0]


def test_a_server_that_did_not_say_for_a_while_loses_no_work():
    assert totals(0, math.nan, 700).increase("service_ms", 0, 2).tolist() == [700.0]


def test_without_totals_the_busy_workers_that_were_seen_are_taken():
    telemetry = Telemetry(["a", "b"])
    for i, busy in enumerate(([0.0, 2.0], [4.0, 2.0])):
        telemetry.add(float(i), 0.0, {"busy": busy, "workers": [4.0, 4.0]})
    assert telemetry.utilisation(0, 1).tolist() == [0.5, 0.5]
    assert np.isnan(telemetry.utilisation(5, 6)).all()


def test_jain_is_one_for_equals_and_one_nth_for_a_single_one():
    assert jain(np.array([0.3, 0.3, 0.3])) == pytest.approx(1.0)
    assert jain(np.array([0.8, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_a_sampler_sees_servers_and_controller_and_goes_on_without_a_killed_server(tmp_path: Path):
    with Farm.of_speeds([1, 4], workers=2) as farm:
        servers = [Server(address) for address in farm.addresses]
        with vickrey.start(servers, policy="adaptive", health={"path": "/health"}) as balancer:
            sampler = Sampler(farm, ["s1", "s2"], [balancer], time.monotonic())
            sampler.sample()
            for _ in range(60):
                urllib.request.urlopen(f"{balancer.url}?d=8", timeout=10).read()
            time.sleep(0.5)
            sampler.sample()
            farm.kill("s1")
            sampler.sample()
            farm.revive("s1")
            sampler.sample()
    seen = sampler.telemetry
    served = seen.increase("served", 0, seen.at_s[1])
    assert served.sum() == 60
    assert seen.column("up")[:, 0].tolist() == [1, 1, 0, 1]
    assert seen.column("up")[:, 1].tolist() == [1, 1, 1, 1]
    assert seen.column("memory")[1].min() > 1 << 20
    weights = seen.column("weight")
    assert weights[1].sum() == pytest.approx(1.0, abs=0.01)
    assert np.isfinite(seen.column("bid")[1]).all()
    assert seen.balancer_cpu_s[1] >= seen.balancer_cpu_s[0] > 0
    write_csv(tmp_path / "telemetry.csv", [({"balancer": "b", "round": 1}, seen)])
    with (tmp_path / "telemetry.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["server"] for row in rows} == {"s1", "s2"}
    assert rows[-1]["balancer"] == "b"
