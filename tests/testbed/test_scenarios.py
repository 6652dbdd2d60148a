"""Scenarios of comparisons: those that are shipped can be read, and mistakes in one's own have their place."""

from pathlib import Path

import numpy as np
import pytest

from controlplane.config_errors import ConfigError
from testbed.compare import scenario_file, traffic, variant
from testbed.compare.scenario import Scenario

SMALL = """\
title: two
shows: how it is read
servers: [{speed: 1}, {speed: 3, workers: 2}]
"""


def load(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return scenario_file.load(str(path))


@pytest.mark.parametrize("name", scenario_file.library())
def test_every_shipped_scenario_says_what_it_shows_and_has_vickrey_first(name: str):
    scenario = scenario_file.load(name)
    assert len(scenario.shows.split()) > 30
    assert scenario.variants[0].name == variant.OURS
    assert {one.program for one in scenario.variants} == set(variant.PROGRAMS)
    assert scenario.aim == ("level" if name == "homogeneous" else "ahead")
    assert scenario.is_heterogeneous == (name != "homogeneous")


def test_the_library_has_the_cases_that_matter():
    wanted = "unequal-speeds unequal-workers degradation failure flash-crowd heavy-tail homogeneous two-balancers"
    assert set(wanted.split()) | {"static-and-dynamic", "long-lived-connections"} <= set(scenario_file.library())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (SMALL + "laod: 0.5\n", "mine.yaml:4:1: laod: unknown key (did you mean 'load'?)"),
        (SMALL + "load: 0\n", "mine.yaml:4:1: load: expected more than 0, not 0"),
        (SMALL + "seconds: 5\n", "mine.yaml:4:1: seconds: "),
        (SMALL + "aim: best\n", "mine.yaml:4:1: aim: expected 'ahead', 'level' or 'none', not 'best'"),
        (SMALL + "variants:\n  - haproxi leastconn\n", "mine.yaml:5:5: variants[0]: expected a balancer, "),
        (SMALL + "variants:\n  - envoy leastconn\n", "mine.yaml:5:5: variants[0]: envoy has no rule 'leastconn'"),
        (SMALL + "variants: [nginx]\n", "mine.yaml:4:12: variants[0]: 'nginx' names no rule: expected something like"),
        (SMALL + "variants: [haproxy leastconn+hold]\n", "'+hold' is not an option of haproxy: 'weights' or 'maxconn'"),
        (SMALL + "variants: [nginx random, nginx  random]\n", "variants[1]: 'nginx random' is there already"),
        (SMALL + "events: [{at: 1s, server: s3, kind: kill}]\n", "no server is called so: s1 … s2"),
        (
            SMALL + "events: [{at: 1s, sevrer: s1, kind: kill}]\n",
            "events[0].sevrer: unknown key (did you mean 'server'?)",
        ),
        (
            SMALL + "events: [{at: 3s, until: 2s, server: s1, kind: hang}]\n",
            "events[0].until: expected a time after 'at'",
        ),
        (SMALL + "events: [{at: 30s, server: s1, kind: hang}]\n", "events[0].at: expected a time before the end"),
        (SMALL + "profile: [{at: 3s, load: 1}, {at: 3s, load: 2}]\n", "profile[1].at: expected a time after that"),
        (SMALL + "traffic: [{path: nowhere}]\n", "traffic[0].path: expected a path like /page?size=100"),
        (SMALL + "traffic: [{demand: {mean: 0ms}}]\n", "traffic: expected some demand"),
        (SMALL + "topology: simple\n", "servers: expected either 'servers' or a 'topology'"),
        ("title: x\nshows: y\n", "servers: expected either 'servers' or a 'topology'"),
        ("shows: y\nservers: [{}]\n", "title: this key is missing"),
        ("", "empty: expected at least 'title:', 'shows:' and 'servers:'"),
        (SMALL + "variants: [vickrey adaptiv]\n", "vickrey has no policy 'adaptiv' (did you mean 'adaptive'?)"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, text: str, error: str):
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert error in str(raised.value)


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(ConfigError, match=r"unequal-sped: no scenario is called so \(did you mean 'unequal-speeds'"):
        scenario_file.load("unequal-sped")


def test_a_name_is_made_regular_and_read_again_to_the_same():
    one = variant.parse("haproxy  leastconn + maxconn+weights")
    assert one.name == "haproxy leastconn+weights+maxconn"
    assert variant.parse(one.name) == one
    assert one.is_told
    assert variant.parse("nginx stream least_conn").name == "nginx tcp least_conn"
    assert not variant.parse("vickrey adaptive+nohold").is_told


def test_what_is_told_is_no_more_than_the_name_says():
    truth = [variant.Server("127.0.0.1:1", 25, 4), variant.Server("127.0.0.1:2", 100, 5)]
    told = variant.parse("haproxy leastconn+weights").servers(truth, 1)
    assert [(s.weight, s.maxconn) for s in told] == [(25, 0), (100, 0)]
    # Two balancers share five workers: three each, since none must be left idle.
    told = variant.parse("haproxy leastconn+maxconn").servers(truth, 2)
    assert [(s.weight, s.maxconn) for s in told] == [(0, 2), (0, 3)]


def test_another_length_moves_events_and_loads_along(tmp_path: Path):
    text = SMALL + "seconds: 20s\nprofile: [{at: 10s, load: 2}]\n"
    scenario = load(tmp_path, text + "events: [{at: 5s, until: 15s, server: s2, kind: slow, factor: 2}]\n").lasting(4.0)
    assert (scenario.events[0].at, scenario.events[0].until, scenario.profile[0].at) == (1.0, 3.0, 2.0)
    assert scenario.warmup == 2.0
    # Whoever learns must not have less time for it because the rest is shorter.
    assert load(tmp_path, SMALL + "seconds: 20s\nwarmup: 5s\n").lasting(12.0).warmup == 5.0


def test_the_same_seed_gives_the_same_requests_and_another_load_the_same_ones_closer_together(tmp_path: Path):
    scenario = load(tmp_path, SMALL + "seconds: 30s\nclients: 5\n")
    a, b = (traffic.generate(scenario, 7.0, 3) for _ in range(2))
    assert np.array_equal(a.schedule.arrival_s, b.schedule.arrival_s)
    assert np.array_equal(a.client, b.client)
    double = traffic.generate(scenario.model_copy(update={"load": scenario.load * 2}), 7.0, 3)
    n = len(a.schedule)
    assert np.allclose(double.schedule.arrival_s[:n] * 2, a.schedule.arrival_s)
    assert np.array_equal(double.schedule.demand_ms[:50], traffic.generate(scenario, 14.0, 3).schedule.demand_ms[:50])


def test_the_load_follows_the_profile(tmp_path: Path):
    scenario = load(tmp_path, SMALL + "load: 0.5\nseconds: 60s\nwarmup: 0s\nprofile: [{at: 20s, load: 1.5}]\n")
    arrivals = traffic.generate(scenario, 7.0, 1).schedule.arrival_s
    before, after = (arrivals < 20).sum(), (arrivals >= 20).sum()
    # 7 / 0.04 s = 175 requests a second are full load: 1,750 in the first 20 s, 10,500 in the other 40 s.
    assert before == pytest.approx(1750, abs=5 * 1750**0.5)
    assert after == pytest.approx(10_500, abs=5 * 10_500**0.5)


def test_kinds_have_their_shares_and_clients_stay_with_their_balancer(tmp_path: Path):
    text = SMALL + "seconds: 60s\nclients: 6\nbalancers: 2\ntraffic:\n"
    text += "  - {name: page, share: 1, path: /page}\n  - {name: file, share: 3, demand: {mean: 1ms}, size: 500}\n"
    scenario = load(tmp_path, text)
    made = traffic.generate(scenario, 7.0, 1)
    assert made.kind.mean() == pytest.approx(0.75, abs=0.02)
    assert made.schedule.demand_ms[made.kind == 1].mean() == pytest.approx(1.0, rel=0.1)
    targets, choice = made.targets(scenario, [("127.0.0.1", 1), ("127.0.0.1", 2)])
    ports = np.array([target.port for target in targets])[choice]
    assert all(len(set(ports[made.client == client])) == 1 for client in range(6))
    paths = {target.path for target in targets}
    assert paths == {"/page", "/?size=500"}
