"""Suites: the shipped one covers what it says, files say where they are wrong, tuning is chosen apart and kept."""

import re
from pathlib import Path

import pytest

from controlplane.config_errors import ConfigError
from controlplane.evaluation import tuning
from controlplane.evaluation.rivals import BY_NAME, Rival
from controlplane.evaluation.suite import DEFAULT, FIRST_SEED, Suite, library, load
from controlplane.simulation.scenario_file import load as load_scenario

TEXT = """\
title: Two
seeds: 3
tuning_seeds: [8, 9]
scenarios:
  - name: one
    family: f
    servers: [{count: 2, speed: 4, weight: 4}, {count: 2}]
    demand: {kind: exponential, mean: 10ms}
    load: 0.8
    flows: 3000
  - {name: two, family: f, base: heterogeneous-4x, load: 0.5, duration: 5s}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tuning.cache_file()


def suite(tmp_path: Path, text: str = TEXT) -> Suite:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load(str(path))


def problems(tmp_path: Path, **changes: str) -> str:
    text = TEXT
    for key, value in changes.items():
        text = re.sub(
            rf"^([ -]*){key}:.*$", rf"\g<1>{key}: {value}" if value else "", text, count=1, flags=re.MULTILINE
        )
    with pytest.raises(ConfigError) as error:
        suite(tmp_path, text)
    return str(error.value)


def test_the_default_suite_has_every_kind_of_scenario():
    shipped = load(DEFAULT)
    assert library() == [DEFAULT]
    assert len(shipped.seeds) >= 10
    worlds = {entry.name: entry.scenario.world(1) for entry in shipped.entries}
    assert {len(world.servers) for world in worlds.values()} >= {2, 4, 16, 64}
    assert {world.balancers for world in worlds.values()} >= {1, 2, 4}
    assert {0.5, 0.7, 0.8, 0.9, 0.95} <= {round(world.load, 2) for world in worlds.values()}
    hard = worlds["four-balancers-90"]
    assert (len(hard.servers), hard.balancers, round(hard.load, 3)) == (16, 4, 0.9)
    assert sorted(server.speed for server in hard.servers) == [1.0] * 12 + [4.0] * 4
    kinds = {(entry.scenario.demand.kind, entry.scenario.arrivals.kind) for entry in shipped.entries}
    assert {("pareto", "poisson"), ("deterministic", "poisson"), ("exponential", "mmpp")} <= kinds
    assert {event.kind for entry in shipped.entries for event in entry.scenario.events} >= {"speed", "crash", "rate"}
    assert any(server.service == "sharing" for world in worlds.values() for server in world.servers)
    assert any(server.workers > 1 for world in worlds.values() for server in world.servers)
    assert sum(entry.recovery is not None for entry in shipped.entries) >= 1


def test_the_window_of_recovery_is_200_service_times():
    for entry in load(DEFAULT).entries:
        if entry.recovery is None:
            continue
        world = entry.scenario.world(1)
        phase = next(p for p in entry.scenario.phases if p.name == entry.recovery)
        mean_service = len(world.servers) * world.demand.mean / sum(s.speed for s in world.servers)
        assert phase.end - phase.start == pytest.approx(200 * mean_service)
        assert {event.at for event in world.events} == {phase.start}


def test_a_suite_takes_its_base_and_what_stands_in_its_place(tmp_path):
    two = suite(tmp_path).entries[1].scenario
    base = load_scenario("heterogeneous-4x")
    assert two.servers == base.servers
    assert two.demand == base.demand
    assert (two.load, two.duration, two.flows) == (0.5, 5.0, None)


def test_a_number_of_seeds_counts_from_where_nobody_else_looks(tmp_path):
    assert suite(tmp_path).seeds == (FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2)


def test_a_scenario_alone_is_a_suite_of_one():
    alone = load("heavy-tail")
    assert [entry.name for entry in alone.entries] == ["heavy-tail"]
    assert len(alone.seeds) == 10
    assert not set(alone.seeds) & set(alone.tuning_seeds)


def test_a_quick_look_is_shorter_but_leaves_events_where_they_are():
    quick, whole = load(DEFAULT).quick(), load(DEFAULT)
    assert len(quick.seeds) < len(whole.seeds)
    for short, long in zip(quick.entries, whole.entries, strict=True):
        if long.scenario.events:
            assert short == long
        else:
            assert short.scenario.world(1).arrivals == long.scenario.world(1).arrivals
            assert (short.scenario.duration or short.scenario.flows) < (long.scenario.duration or long.scenario.flows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"load": "1x"}, r"mine.yaml:9:5: load: expected a number, not '1x'"),
        ({"demand": "{kind: exponental, mean: 1ms}"}, r"mine.yaml:8:.*did you mean 'exponential'"),
        ({"family": "3"}, r"mine.yaml:6:5: scenarios\[0\].family: expected text, not 3"),
        ({"flows": "3\n    flow: 4"}, r"mine.yaml:11:5: flow: unknown key \(did you mean 'flows'\?\)"),
        ({"flows": "3\n    policies: [lsq]"}, r"scenarios\[0\].policies: not of a suite's scenario"),
        ({"flows": "3\n    recovery: after"}, r"recovery: no phase is called 'after'"),
        ({"flows": "3\n    base: nowhere"}, r"scenarios\[0\].base: no scenario is called so"),
        ({"seeds": "0"}, r"mine.yaml:2:1: seeds: expected a number of seeds from 1"),
        ({"seeds": "[1, 1]"}, r"seeds: expected each seed once"),
        ({"seeds": "[7, 8]"}, r"tuning_seeds: expected seeds that are not the evaluation's"),
        ({"title": "x\nsedes: 3"}, r"mine.yaml:2:1: sedes: unknown key \(did you mean 'seeds'\?\)"),
        ({"name": "two"}, r"name: a second scenario called 'two'"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, changes, expected):
    assert re.search(expected, problems(tmp_path, **changes))


def test_no_such_suite(tmp_path):
    with pytest.raises(ConfigError, match=r"no suite or scenario is called so \(did you mean 'default'\?\)"):
        load("defautl")
    with pytest.raises(ConfigError, match="no such file"):
        load(str(tmp_path / "nothing.yaml"))


# Tuning.


def count(calls: list[int]):
    return lambda done, of: calls.append(done)


def test_tuning_finds_the_better_option_and_keeps_it(tmp_path, cache):
    rival = Rival("gsed", ({"c": 0.25}, {"c": 30.0}))  # c = 30: fast servers only, until they are full
    small = suite(tmp_path)
    calls: list[int] = []
    found = tuning.tune(small.families(), small.tuning_seeds, [rival], 1, count(calls))
    assert found == {("f", "gsed"): {"c": 0.25}}
    assert len(calls) == 2 * 2 * 2  # scenarios × options × seeds
    assert "options: {c: 0.25}" in cache.read_text()
    again: list[int] = []
    assert tuning.tune(small.families(), small.tuning_seeds, [rival], 1, count(again)) == found
    assert again == []
    tuning.tune(small.families(), small.tuning_seeds, [rival], 1, count(again), again=True)
    assert len(again) == len(calls)


def test_what_was_tuned_for_another_farm_or_other_seeds_is_not_taken(tmp_path):
    rival = BY_NAME["gsed"]
    small = suite(tmp_path)
    entries = small.families()["f"]
    here = tuning.key_of(entries, small.tuning_seeds, rival)
    assert tuning.key_of(entries[:1], small.tuning_seeds, rival) != here
    assert tuning.key_of(entries, (8, 10), rival) != here
    other = suite(tmp_path, TEXT.replace("load: 0.8", "load: 0.7"))
    assert tuning.key_of(other.families()["f"], small.tuning_seeds, rival) != here


def test_a_cache_that_is_damaged_is_none(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("'a': [1\n\0")
    assert tuning.read_cache() == (tuning.read_cache() | {})
    cache.write_text("[1, 2]")
    assert isinstance(tuning.read_cache(), dict)


def test_the_default_suite_comes_tuned(cache):
    """Whoever evaluates in it the first time does not wait for the tuning."""
    shipped = load(DEFAULT)
    calls: list[int] = []
    found = tuning.tune(shipped.families(), shipped.tuning_seeds, list(BY_NAME.values()), 1, _no_runs(calls))
    assert set(found) == {(f, r.name) for f in shipped.families() for r in BY_NAME.values() if r.grid}


def _no_runs(calls: list[int]):
    def progress(done: int, of: int) -> None:
        raise AssertionError(f"tuned.yaml lacks what {of} runs would find; see docs/learning.md")

    return progress
