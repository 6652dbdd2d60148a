"""Scenarios: those that ship run, files say where they are wrong, and the comparison is fair."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from controlplane.cli import main
from controlplane.config_errors import ConfigError
from controlplane.config_yaml import parse_yaml
from controlplane.simulation.outcome import document
from controlplane.simulation.pool import execute_all
from controlplane.simulation.runs import REFERENCE, Job, Run, execute, jobs_of
from controlplane.simulation.scenario import Scenario, length
from controlplane.simulation.scenario_file import library, load, validate
from dataplane.simulator import RateChange, SpeedChange

SMALL = """\
servers:
  - {name: fast, count: 2, speed: 4, weight: 4}
  - {name: slow, count: 2}
demand: {kind: exponential, mean: 10ms}
load: 0.8
policies: [lsq, {name: gsed, c: 0.3}]
flows: 4000
seeds: 2
"""


def scenario(text: str = SMALL, **changes: str) -> Scenario:
    for key, value in changes.items():
        text = re.sub(rf"^{key}:.*\n(  .*\n)*", "", text, flags=re.MULTILINE) + f"{key}: {value}\n"
    return validate(parse_yaml(text, "small.yaml"))


def problems(**changes: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        scenario(**changes)
    return str(error.value).splitlines()


def run_all(small: Scenario) -> list[Run]:
    return list(execute_all(jobs_of(small), 1))


@pytest.mark.parametrize("name", library())
def test_every_shipped_scenario_runs_and_says_what_it_shows(name):
    shipped = load(name)
    assert len(shipped.title) > 10
    assert len(shipped.description) > 200
    assert any(policy.name == "adaptive" for policy in shipped.policies)
    for policy in range(len(shipped.policies)):
        small = shipped.model_copy(update={"flows": 1500, "duration": None})
        run = execute(Job(small, policy, 1))
        assert run.figures["mean"] > 0


def test_the_library_has_what_users_look_for():
    assert {
        *("homogeneous", "heterogeneous-4x", "heterogeneous-10x", "capacity-swap", "failure-and-recovery"),
        *("flash-crowd", "heavy-tail", "elephants-and-mice", "balancers-2", "balancers-4", "balancers-6"),
        *("marllb-2", "marllb-6"),
    } <= set(library())


def test_marllbs_topologies_are_as_published():
    small, large = load("marllb-2"), load("marllb-6")
    assert [(g.count, g.workers) for g in small.servers] == [(4, 2), (3, 4)]
    assert [(g.count, g.workers) for g in large.servers] == [(12, 4), (12, 8)]
    assert (small.balancers.count, large.balancers.count) == (2, 6)


def test_a_world_has_the_load_of_the_file():
    world = scenario().world(1)
    assert world.load == pytest.approx(0.8)
    assert [server.speed for server in world.servers] == [4, 4, 1, 1]
    assert scenario(load="0.5", arrivals="{kind: mmpp, rates: [1, 5], sojourns: [2s, 1s]}").world(
        1
    ).load == pytest.approx(0.5)
    text = SMALL.replace("load: 0.8", "rate: 300")
    assert scenario(text).world(1).arrivals.mean_rate == pytest.approx(300)


def test_events_name_slots_and_groups():
    world = scenario(events="[{at: 9s, kind: rate, factor: 2}, {at: 5s, kind: speed, server: slow, speed: 3}]").world(1)
    assert world.events == [SpeedChange(5.0, 2, 3.0), SpeedChange(5.0, 3, 3.0), RateChange(9.0, 2.0)]


def test_the_length_of_a_run_reckons_with_changes_of_the_rate():
    text = SMALL.replace("load: 0.8", "rate: 100")
    assert length(scenario(text).world(1)) == pytest.approx(40.0)
    assert length(scenario(text, events="[{at: 10s, kind: rate, factor: 3}]").world(1)) == pytest.approx(20.0)
    assert length(scenario(text, events="[{at: 90s, kind: rate, factor: 3}]").world(1)) == pytest.approx(40.0)
    assert length(scenario(text, duration="15s").world(1)) == pytest.approx(15.0)


def test_a_policy_that_is_not_told_the_weights_sees_none():
    told, untold = scenario(policies="[sed, {name: sed, weights: equal, label: untold}]").policies
    small = scenario()
    assert [s.weight for s in small.world(1, told).servers] == [4, 4, 1, 1]
    assert [s.weight for s in small.world(1, untold).servers] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"laod": "0.5"}, "small.yaml:9:1: laod: unknown key (did you mean 'load'?)"),
        ({"balancers": "{cuont: 4}"}, "small.yaml:9:13: balancers.cuont: unknown key (did you mean 'count'?)"),
        ({"demand": "{kind: exponential, mean: 10}"}, "demand.mean: expected a duration with its unit"),
        ({"demand": "{kind: exponental, mean: 10ms}"}, "(did you mean 'exponential'?)"),
        ({"demand": "{mean: 10ms}"}, "demand: expected a mapping with a 'kind'"),
        ({"demand": "{kind: lognormal, mean: 10ms}"}, "demand.cv: this key is missing"),
        ({"demand": "{kind: lognormal, mean: 10ms, cv: 0}"}, "demand.cv: expected more than 0, not 0"),
        ({"servers": "[{speed: fast}]"}, "servers[0].speed: expected a number, not 'fast'"),
        ({"servers": "[{weight: 0}]"}, "servers: no server is there at the start that takes flows"),
        ({"policies": "[lqs]"}, "policies[0]: no policy is called 'lqs' (did you mean 'lsq'?)"),
        ({"policies": "[{name: gsed, d: 1}]"}, "policies[0].d: unknown option of policy 'gsed'"),
        ({"policies": "[{name: gsed, c: -1}]"}, "policies[0]: policy gsed: expected c >= 0"),
        ({"policies": "[lsq, lsq]"}, "policies[1]: a second policy called 'lsq': give it a label"),
        ({"rate": "100"}, "rate: expected either 'load' or 'rate', not both"),
        ({"events": "[{at: 1s, kind: crash, server: 4}]"}, "events[0].server: expected a slot from 0 to 3, not 4"),
        ({"events": "[{at: 1s, kind: crash, server: fats}]"}, "(did you mean 'fast'?)"),
        ({"events": "[{at: 1s, kind: crash, server: 1.5}]"}, "expected a server's slot, a list of slots, or the name"),
        ({"events": "[{at: 1s, kind: crash}]"}, "events[0].server: this key is missing"),
        ({"events": "[{at: 1s, kind: carsh, server: 1}]"}, "(did you mean 'crash'?)"),
        (
            {"reference": "birth-death", "demand": "{kind: pareto, mean: 1ms}"},
            "reference: the birth–death bound is for",
        ),
        ({"seeds": "[1, 1]"}, "seeds: expected each seed once"),
        ({"phases": "[{name: a, start: 5s, end: 5s}]"}, "phases[0].end: expected more than its start, 5s"),
        ({"arrivals": "{kind: on-off, rates: [0, 0], durations: [1s, 1s]}"}, "arrivals.rates: every rate is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named_with_their_place(changes, expected):
    found = problems(**changes)
    assert len(found) == 1
    assert expected in found[0]
    assert re.match(r"small\.yaml:\d+:\d+: ", found[0])


def test_every_policy_meets_the_same_flows():
    small = scenario()
    first, second, reference = (execute(Job(small, i, 7)) for i in (0, 1, REFERENCE))
    assert first.figures["flows"] == second.figures["flows"]
    again = execute(Job(small, 0, 7))
    assert again.figures == first.figures
    assert np.array_equal(again.tail, first.tail, equal_nan=True)
    assert first.figures["mean"] > reference.figures["mean"]


def test_the_document_has_intervals_differences_and_gaps():
    small = scenario(seeds="3")
    found = json.loads(json.dumps(document("small", small, run_all(small)), allow_nan=False))
    lsq, gsed = found["policies"]
    means = {row["policy"]: [r["mean"] for r in found["runs"] if r["policy"] == row["policy"]] for row in (lsq, gsed)}
    assert lsq["mean"]["mean"] == pytest.approx(np.mean(means["lsq"]))
    assert lsq["mean"]["half"] > 0
    assert gsed["against_first"]["mean"] == pytest.approx(np.mean(means["gsed c=0.3"]) / np.mean(means["lsq"]) - 1)
    # What the seeds have in common cancels in the difference.
    assert gsed["against_first"]["half"] < lsq["mean"]["half"] / lsq["mean"]["mean"]
    assert 0 < gsed["gap"]["mean"] < lsq["gap"]["mean"]
    assert found["reference"]["policy"] == "central queue"
    assert len(found["runs"]) == 9


def test_phases_are_told_apart():
    text = SMALL.replace("load: 0.8", "rate: 100")
    small = scenario(
        text,
        seeds="1",
        events="[{at: 10s, kind: speed, server: fast, speed: 0.3}]",
        phases="[{name: before, start: 1s, end: 10s}, {name: after, start: 10s, end: 20s}]",
    )
    rows = document("small", small, run_all(small))["policies"]
    assert all(row["phases"]["after"]["mean"]["mean"] > 2 * row["phases"]["before"]["mean"]["mean"] for row in rows)


@pytest.mark.parametrize("reference", ["central-queue", "least-work-left", "srpt", "birth-death"])
def test_no_reference_is_beaten(reference):
    small = scenario(reference=reference, seeds="2", flows="20000")
    rows = document("small", small, run_all(small))["policies"]
    assert all(row["gap"]["mean"] > 0 for row in rows)


def test_several_cores_find_what_one_finds():
    small = scenario(flows="1000")
    jobs = jobs_of(small)
    alone = {(run.policy, run.seed): run.figures["mean"] for run in execute_all(jobs, 1)}
    together = {(run.policy, run.seed): run.figures["mean"] for run in execute_all(jobs, 2)}
    assert together == alone


def test_four_balancers_come_out_as_in_the_classic_comparison():
    # In mean service times of 10 ms; benchmarks/classic_comparison.py has them with narrow intervals.
    four = load("balancers-4").model_copy(update={"flows": 60_000})
    found = {policy.name: execute(Job(four, i, 1)).figures["mean"] / 0.010 for i, policy in enumerate(four.policies)}
    assert 3.2 < found["lsq"] < 3.8
    assert 4.4 < found["sed"] < 5.0
    assert 2.1 < found["gsed"] < 2.5
    assert 1.7 < found["adaptive"] < 2.1


def test_the_page_on_the_simulator_shows_commands_that_run(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/simulator.md").read_text()
    lines = re.findall(r"^\$ vickrey sim (.*?)(?:\s+#.*)?$", page, re.MULTILINE)
    assert len(lines) >= 8
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        (tmp_path / "mine.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        arguments = line.split(" > ")[0].split()
        assert main(["sim", *arguments, "--flows", "500", "--seeds", "2", "--jobs", "1"]) == 0, line
        assert capsys.readouterr().out
