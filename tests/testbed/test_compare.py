"""`vickrey compare` with real servers and balancers: the report, what fails, what is missing, that all ends with it."""

import csv
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controlplane import cli
from controlplane.commands import compare
from testbed.compare import figures, measure, outcome, report, results, runner, variant
from testbed.compare.measure import Run
from testbed.compare.runner import Comparison, Reference, Runner, speed_changes
from testbed.compare.scenario import Scenario
from testbed.compare.traffic import Traffic, generate
from testbed.interrupts import Deferred
from testbed.load.connection import ABORTED, CLOSED, OK
from testbed.load.generator import RECORD, Result
from testbed.load.schedule import Schedule
from testbed.peers import envoy, haproxy, nginx
from testbed.processes import process_tree
from testbed.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
RIVALS = [name for name, module in (("haproxy", haproxy), ("nginx", nginx), ("envoy", envoy)) if module.is_installed()]
RULES = {"haproxy": "leastconn", "nginx": "random two least_conn", "envoy": "least_request"}

SMALL = """\
title: Two servers, one of them thrice as fast
shows: that `vickrey compare` works
aim: ahead
servers: [{speed: 1, workers: 2}, {speed: 3, workers: 2}]
traffic:
  - {name: page, demand: {shape: exponential, mean: 30ms}}
  - {name: file, share: 0.5, demand: {shape: fixed, mean: 1ms}, size: 2000}
load: 0.3
seconds: 1500ms
warmup: 400ms
rounds: 1
events: [{at: 200ms, until: 1200ms, server: s2, kind: slow, factor: 3}]
variants: [%s]
"""


def vickrey(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controlplane.cli", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=220, env=env, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def compared(folder: Path) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """One short comparison with everybody that is installed, and a setting that HAProxy refuses."""
    if not RIVALS:
        pytest.skip("neither haproxy nor nginx nor envoy is installed")
    settings = ["vickrey adaptive", *(f"{name} {RULES[name]}" for name in RIVALS)]
    if "haproxy" in RIVALS:
        settings.append("haproxy sometimes")
    (folder / "small.yaml").write_text(SMALL % ", ".join(settings))
    done = vickrey("compare", "small.yaml", "--json", "--out", "out", cwd=folder)
    return json.loads(done.stdout), done


def test_everybody_gets_the_same_requests_and_nobody_loses_one(compared: Any):
    document, done = compared
    measured = [one for one in document["balancers"] if one["valid_rounds"]]
    assert [one["name"] for one in document["balancers"]] == ["vickrey adaptive", *(f"{n} {RULES[n]}" for n in RIVALS)]
    assert len({one["requests"] for one in document["balancers"]}) == 1, done.stderr
    assert document["balancers"][0]["requests"] > 50
    for one in document["balancers"]:
        assert one["errors"] == one["unanswered"] == 0
        assert one["p50"] <= one["p90"] <= one["p99"] <= one["p999"]
        assert one["mean"] > 0
        assert one["slowdown"] >= 1
        assert 0.5 <= one["jain"] <= 1
        assert 5 < one["cpu_us"] < 50_000
        assert len(one["utilisation"]) == 2
        assert set(one["kinds"]) == {"page", "file"}
    file, page = (np.median([one["kinds"][kind]["mean"] for one in document["balancers"]]) for kind in ("file", "page"))
    assert file < page  # 1 beside 30 ms of work; of one balancer alone a queue may hide that
    assert sorted(one["rank"] for one in document["balancers"]) == list(range(1, len(RIVALS) + 2))
    assert [one["name"] for one in document["references"]] == [runner.CENTRAL, runner.OVER_PATH, runner.CLAIRVOYANT]
    for one in measured:
        ratio = one["to_base"]["mean"]
        assert ratio["ratio"] == pytest.approx(one["mean"] / document["balancers"][0]["mean"], rel=1e-6)
        assert ratio["low"] is ratio["high"] is None, "so few seconds have no interval"


@pytest.mark.skipif("haproxy" not in RIVALS, reason="haproxy is not installed")
def test_a_competitor_that_does_not_start_is_reported_with_its_own_words_and_the_others_go_on(compared: Any):
    document, done = compared
    assert done.returncode == 1
    assert list(document["not_started"]) == ["haproxy sometimes"]
    assert "Fatal errors found in configuration" in document["not_started"]["haproxy sometimes"]
    assert "did not start: haproxy sometimes" in done.stderr


def test_the_page_needs_nothing_else_and_shows_figures_plots_and_configurations(compared: Any, folder: Path):
    page = (folder / "out" / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=", markup)
    assert not re.search(r"<script[^>]+src=", page)
    assert page.count('class="plotly-graph-div"') >= 4
    for text in ("vickrey adaptive over time", "s2 3 times slower", "central queue (simulated)", "Configurations"):
        assert text in page
    configurations = sorted(path.name for path in (folder / "out" / "configurations").iterdir())
    assert len(configurations) == len(RIVALS) + 1


def test_csv_and_markdown_have_what_the_page_has(compared: Any, folder: Path):
    document, _ = compared
    with (folder / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["balancer"]: float(row["mean"]) for row in rows} == {
        one["name"]: pytest.approx(one["mean"]) for one in document["balancers"]
    }
    with (folder / "out" / "telemetry.csv").open() as file:
        samples = list(csv.DictReader(file))
    ours = [row for row in samples if row["balancer"] == "vickrey adaptive"]
    assert {row["server"] for row in ours} == {"s1", "s2"}
    assert any(row["weight"] for row in ours)
    # The event is in the ground truth: in every run s2 begins well, and is at a third of its speed for a while.
    for one in document["balancers"]:
        mine = [row for row in samples if row["balancer"] == one["name"] and row["server"] == "s2"]
        speeds = [float(row["speed"]) for row in mine]
        assert speeds[0] == 3.0
        assert min(speeds) == pytest.approx(1.0)
    markdown = (folder / "out" / "report.md").read_text()
    assert all(f"| {one['name']}" in markdown for one in document["balancers"])
    assert json.loads((folder / "out" / "result.json").read_text())["base"] == "vickrey adaptive"


def test_the_page_of_results_keeps_the_sections_of_other_scenarios(compared: Any, tmp_path: Path):
    document, _ = compared
    page = tmp_path / "results.md"
    results.update(page, {**document, "scenario": "unequal-speeds"})
    results.update(page, {**document, "scenario": "failure"})
    first = page.read_text()
    assert first.index("[failure](#failure)") < first.index("[unequal-speeds](#unequal-speeds)")
    results.update(page, {**document, "scenario": "failure", "title": "Another time"})
    again = page.read_text()
    assert again.count("<!-- scenario: ") == 2
    assert "## Another time" in again
    assert again.replace("Another time", document["title"]) == first


def test_all_children_are_gone_after_an_interrupt_at_any_moment(folder: Path):
    (folder / "long.yaml").write_text(SMALL.replace("1500ms", "20s") % '"vickrey adaptive", "nginx least_conn"')
    delay = random.uniform(1.5, 7.0)
    command = [sys.executable, "-m", "controlplane.cli", "compare", "long.yaml", "--out", "interrupted"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(delay)
    tree = process_tree(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # an impatient user must not interrupt the clearing up
    _, said = process.communicate(timeout=40)
    assert process.returncode in (1, -signal.SIGINT), said  # the second one may meet an interpreter that ends
    assert "Traceback" not in said
    left = [pid for pid in tree if Path("/proc", str(pid)).exists()]
    assert not left, f"after {delay:.2f} s"
    assert not list(Path("/dev/shm").glob(f"vickrey.testbed-{process.pid}-*"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "which scenario?"),
        (["unequal-speeds", "--with", "haproxi"], "--with: expected 'haproxy', 'nginx' or 'envoy', not 'haproxi'"),
        (["unequal-speeds", "--variants", "squid x"], "--variants: expected a balancer"),
        (["unequal-speeds", "--rounds", "0"], "expected --rounds from 1 to 100"),
        (["unequal-speeds", "--load", "0"], "expected --load as a share"),
        (["unequal-speeds", "--seconds", "soon"], "--seconds: "),
        (["unequal-speeds", "--variants", "vickrey adaptive", "--with", "envoy"], "no setting of envoy"),
    ],
)
def test_bad_usage_is_said_before_anything_is_started(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["compare", *arguments]) == 2
    assert error in capsys.readouterr().err


def test_the_list_has_every_scenario_and_show_gives_a_file_to_begin_with(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["compare", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"name", "title", "shows"} <= set(listed[0])
    assert cli.main(["compare", listed[0]["name"], "--show"]) == 0
    assert f"title: {listed[0]['title']}" in capsys.readouterr().out


# What needs no servers.


def scenario(**keys: Any) -> Scenario:
    given = {"title": "t", "shows": "s", "servers": ({"speed": 1.0}, {"speed": 4.0}), "seconds": "20s", **keys}
    return Scenario.model_validate({**given, "warmup": given.get("warmup", "0s")})


RANKED = """\
title: Speeds 1, 1, 1 and 6, two workers each
shows: that who is ahead is ahead again
servers: [{count: 3, speed: 1, workers: 2}, {speed: 6, workers: 2}]
traffic: [{demand: {shape: exponential, mean: 60ms}}]
load: 0.6
seconds: 3s
warmup: 2s
rounds: 1
variants: [vickrey adaptive, haproxy leastconn, haproxy roundrobin]
"""


@pytest.mark.skipif("haproxy" not in RIVALS, reason="haproxy is not installed")
@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_comparison_that_is_repeated_on_other_arrivals_ranks_alike(seed: str, tmp_path: Path):
    """The p90 is half of leastconn's, who gives the slow ones as much; a standstill of a busy machine, which decides on
    a mean of three seconds, moves it little. Medians are alike."""
    (tmp_path / "ranked.yaml").write_text(RANKED)
    done = vickrey("compare", "ranked.yaml", "--json", "--seed", seed, "--out", seed, cwd=tmp_path)
    found = {one["name"]: one for one in json.loads(done.stdout)["balancers"]}
    assert set(found) == {"vickrey adaptive", "haproxy leastconn", "haproxy roundrobin"}, done.stderr
    assert found["vickrey adaptive"]["p90"] < found["haproxy leastconn"]["p90"], done.stderr
    assert found["haproxy roundrobin"]["rank"] == 3, done.stderr


def run_of(
    fct_ms: Any, *, name: str = "vickrey adaptive", number: int = 0, late_ms: float = 0.0, stall_ms: float = 0.0
) -> Run:
    """A run of these completion times, a request every 10 ms; negative: failed, NaN: still waiting at the end."""
    fct_s = np.asarray(fct_ms, dtype=float) / 1e3
    n = len(fct_s)
    records = np.zeros(n, RECORD)
    records["scheduled_s"] = np.arange(n) * 0.01
    records["sent_s"] = records["scheduled_s"] + late_ms / 1e3
    records["done_s"] = records["scheduled_s"] + fct_s
    records["demand_ms"] = 4.0
    records["status"] = np.where(np.isfinite(fct_s) & (fct_s >= 0), 200, 0)
    records["error"] = np.where(np.isnan(fct_s), ABORTED, np.where(fct_s < 0, CLOSED, OK))
    schedule = Schedule(records["scheduled_s"].copy(), records["demand_ms"].copy())
    made = Traffic(schedule, np.zeros(n, np.intp), np.zeros(n, np.intp), 0.0)
    ended = float(records["scheduled_s"][-1]) + 1.0
    return Run(name, number, Result(records, [], ended, stall_ms / 1e3), made, Telemetry([]), {"all": 0.5}, 0.2, 0.0)


@pytest.mark.parametrize(
    ("late_ms", "others", "kept"),
    [((0, 0), (0.0, 0.9), 0), ((0, 0), (0.15, 0.0), 0), ((0, 0), (0.3, 0.0), 1), ((0, 0), (0.3, 0.4), 0),
     ((9, 0), (0.0, 0.3), 1), ((9, 90), (0.0, 0.0), 0), ((0, 9), (0.3, 0.0), 0)],
)  # fmt: skip
def test_a_run_that_others_disturbed_is_repeated_once_whatever_came_out(late_ms, others, kept, monkeypatch):
    scenario = Scenario.model_validate({"title": "", "shows": "", "servers": ({},), "rounds": 1, "seconds": "1s"})
    runs = [run_of([10.0 * (i + 1)] * 50, late_ms=late_ms[i]) for i in range(2)]
    for run, part in zip(runs, others, strict=True):
        run.others = part
        measure._judge(run)
    left = iter(runs)
    monkeypatch.setattr(Runner, "_measure", lambda *_: next(left))
    told: list[str] = []
    measuring = Runner(scenario, say=told.append, references=False)
    measuring._round(Deferred(), SimpleNamespace(capacity_s=1.0), [], [variant.parse("vickrey adaptive")], 0)  # type: ignore[arg-type]
    assert measuring.found.runs == [runs[kept]]
    asked_twice = late_ms[0] > 5 or others[0] > 0.2
    assert [text.startswith("again: ") for text in told].count(True) == asked_twice
    assert len(list(left)) == 1 - asked_twice


def test_figures_by_hand():
    # 98 requests of 10 ms, one that failed, one that waited for 1 s when the run ended.
    found = figures.figures_of(run_of([10.0] * 98 + [-1.0] + [math.nan]), fastest=4.0)
    assert found.mean == pytest.approx((98 * 10 + 1000) / 99)
    assert found.p50 == pytest.approx(10)
    assert (found.errors, found.unanswered) == (1, 1)
    assert found.slowdown == pytest.approx((98 * 10 + 1000) / 99)  # 4 ms of work take the fastest server 1 ms
    assert found.cpu_us == pytest.approx(0.5 / 98 * 1e6)


def test_three_rounds_are_compared_by_students_t_on_the_logarithms():
    # Ratios 2, 4 and 8 have logarithms ln 2 · (1, 2, 3): mean 2 ln 2, deviation ln 2; t(2) = 4.303.
    theirs = [run_of([10.0] * 50, number=i) for i in range(3)]
    ours = [run_of([10.0 * 2**i] * 50, number=i - 1) for i in (1, 2, 3)]
    ratio = figures.paired(ours, theirs)["mean"]
    half = 4.303 * math.log(2) / math.sqrt(3)
    assert ratio.ratio == pytest.approx(4.0)
    assert (ratio.low, ratio.high) == pytest.approx((4 * math.exp(-half), 4 * math.exp(half)), rel=1e-3)
    assert not ratio.is_clear


def test_one_round_is_compared_by_drawing_its_seconds_anew():
    rng = np.random.default_rng(1)
    base = rng.exponential(10.0, 4000)
    ratio = figures.paired([run_of(base * 1.3)], [run_of(base)])["mean"]
    assert ratio.ratio == pytest.approx(1.3)
    assert ratio.low == pytest.approx(1.3, rel=1e-6)  # paired: what both share cancels
    apart = figures.paired([run_of(rng.exponential(13.0, 4000))], [run_of(base)])["mean"]
    assert apart.low < 1.3 < apart.high
    assert apart.is_clear


def test_rounds_that_only_one_has_are_not_compared():
    ratio = figures.paired([run_of([10.0] * 9, number=1)], [run_of([10.0] * 9, number=0)])["mean"]
    assert math.isnan(ratio.ratio)


def test_a_late_generator_marks_the_run_and_is_left_out_where_there_is_another():
    late, good = run_of([10.0] * 100, late_ms=50.0), run_of([20.0] * 100, number=1)
    measure._judge(late)
    measure._judge(good)
    assert "late by more than 5 ms (p99 50.0)" in late.invalid[0]
    assert figures.usable(Comparison(scenario(), runs=[late, good]), late.variant) == [good]
    assert figures.usable(Comparison(scenario(), runs=[late]), late.variant) == [late]


def test_a_generator_that_stood_still_is_said_to_have_and_the_worse_run_is_left_out():
    runs = [run_of([10.0] * 100, stall_ms=stall_ms) for stall_ms in (900.0, 300.0)]
    runs.append(run_of([10.0] * 100, late_ms=50.0))
    for run in runs:
        measure._judge(run)
    assert "stood still for 900 ms" in runs[0].invalid[0]
    assert not any("late by" in reason for run in runs[:2] for reason in run.invalid)
    assert "--priority" not in runs[2].invalid[0], "there is no such option here"
    assert [run.result.stall_s for run in sorted(runs, key=lambda run: run.doubt)] == [0.0, 0.3, 0.9]


def test_only_rounds_that_all_have_been_through_are_summed_up():
    """A balancer that was measured in a bad round more, or a good one, must not be ranked by it."""
    ours = [run_of([10.0] * 100, number=i) for i in range(2)]
    theirs = [run_of([20.0] * 100, name="haproxy leastconn", number=i) for i in range(3)]
    never = run_of([20.0] * 100, name="nginx least_conn")
    never.invalid.append("late")
    found = Comparison(scenario(), runs=[*ours, *theirs, never])
    assert figures.usable(found, "vickrey adaptive") == ours
    assert figures.usable(found, "haproxy leastconn") == theirs[:2]
    assert figures.usable(found, "nginx least_conn") == [never], "none of its runs is valid: it has what there is"
    made = generate(scenario(), 5.0, 1)
    for number, mean_s in enumerate((0.01, 0.01, 9.0)):
        found.references.append(Reference(runner.CENTRAL, number, np.full(len(made.schedule), mean_s), made))
    assert [one.round for one in figures.references(found, runner.CENTRAL)] == [0, 1]
    (central,) = outcome.document("mine", found)["references"]
    assert central["mean"] == pytest.approx(10.0)
    assert len(figures.references(Comparison(scenario(), references=found.references), runner.CENTRAL)) == 3


def test_too_few_seconds_give_no_interval():
    rng = np.random.default_rng(2)
    short, longer = rng.exponential(10.0, 500), rng.exponential(10.0, 3000)
    ratio = figures.paired([run_of(short)], [run_of(short * 1.3)])["mean"]
    assert (ratio.ratio, math.isnan(ratio.low), ratio.is_clear) == (pytest.approx(1 / 1.3), True, False)
    assert not math.isnan(figures.paired([run_of(longer)], [run_of(longer * 1.3)])["mean"].low)


def test_a_busy_machine_is_said():
    run = run_of([10.0] * 100)
    run.busy, run.others = 0.97, 0.4
    measure._judge(run)
    assert run.is_valid
    assert len(run.notes) == 2
    found = Comparison(scenario(), names=["s1", "s2"], runs=[run])
    notes = " ".join(outcome.notes(found))
    assert "up to 97.0% of its CPU" in notes
    assert "others used up to 40.0%" in notes


def test_the_verdict_takes_each_competitors_setting_of_the_best_mean():
    names = ("vickrey adaptive", "haproxy leastconn", "haproxy random", "haproxy leastconn+weights")
    chosen = tuple(variant.parse(name) for name in names)
    runs = [
        run_of([mean] * 300, name=name, number=i)
        for name, mean in zip(names, (10.0, 12.0, 20.0, 9.0), strict=True)
        for i in range(3)
    ]
    found = Comparison(scenario(aim="ahead", variants=chosen), names=["s1", "s2"], runs=runs)
    rows = [row for row in outcome.verdict(found, list(chosen)) if row["figure"] == "mean"]
    assert [(row["theirs"], row["word"], row["meets"]) for row in rows] == [
        ("haproxy leastconn", "ahead", True),
        ("haproxy leastconn+weights", "behind", False),
    ]
    document = outcome.document("mine", found)
    assert [one["rank"] for one in document["balancers"]] == [2, 3, 4, 1]
    assert "Behind: mean 1.11" in results.not_ahead(document)
    assert report.text(document)


def test_what_has_no_interval_is_neither_ahead_nor_level():
    ours, theirs = variant.parse("vickrey adaptive"), variant.parse("haproxy leastconn")
    wanted = scenario(aim="ahead", variants=(ours, theirs))
    short = [run_of([10.0] * 300), run_of([12.0] * 300, name=theirs.name)]
    document = outcome.document("mine", Comparison(wanted, names=["s1", "s2"], runs=short))
    assert {(row["word"], row["meets"]) for row in document["verdict"]} == {("unknown", True)}
    assert results.not_ahead(document) == (
        "Not known (too short for an interval): mean 0.83 of haproxy leastconn; p99 0.83 of haproxy leastconn."
    )
    apart = [run_of([10.0] * 300), run_of([12.0] * 300, name=theirs.name, number=1)]
    document = outcome.document("mine", Comparison(wanted, names=["s1", "s2"], runs=apart))
    assert {row["meets"] for row in document["verdict"]} == {None}, "nothing was compared, so nothing was missed"
    assert results.summary(document)[1][-1] == "-"
    assert results.not_ahead(document) == (
        "Not compared (no round that both have): mean of haproxy leastconn; p99 of haproxy leastconn."
    )


class Late:
    """Servers whose timers are exact and whose event loop sees the end of every service 2 ms late."""

    capacity_s = 5.0
    addresses = ("127.0.0.1:1", "127.0.0.1:2")

    def __init__(self) -> None:
        self.served = 7  # of the time before

    def stats(self) -> list[dict[str, Any]]:
        totals = {"busy": 0, "queued": 0, "served": self.served, "late_ms": 2.0 * self.served}
        return [totals, {"busy": 0, "queued": 0}]

    def reset(self) -> None:
        self.served = 0

    def send(self, *_: Any, traffic: Traffic, schedule: Schedule, **__: Any) -> Run:
        self.served += len(schedule)
        run = run_of(np.full(len(schedule), 6.0))
        run.result.records["service_ms"] = run.result.records["demand_ms"] = 4.0
        return run


def test_servers_that_see_the_end_of_a_service_late_are_late_although_the_service_was_exact(monkeypatch):
    servers = Late()
    monkeypatch.setattr(runner, "send", lambda *args, **more: servers.send(*args[6:], traffic=args[4], **more))
    wanted = scenario(servers=({}, {}))
    measuring = Runner(wanted, say=lambda _: None)
    plan = generate(wanted, 5.0, 1)
    measuring._reference(Deferred(), servers, plan, 0)  # type: ignore[arg-type]
    assert measuring.found.service_late_ms == [pytest.approx(2.0)]
    assert measuring.found.overhead_ms == [pytest.approx(2.0)]
    # It is part of the path, and no worker's time: the first flow waits for nobody, and takes its demand and the path.
    assert measuring.found.references[0].fct_s[0] * 1e3 == pytest.approx(plan.schedule.demand_ms[0] + 2.0)
    assert runner.late_of([{"busy": 0}], [{"busy": 0}]) is None


def test_the_references_know_the_events():
    events = ({"at": "2s", "until": "4s", "server": "s2", "kind": "slow", "factor": 2.0},)
    events += ({"at": "3s", "server": "s1", "kind": "kill"},)
    assert speed_changes(scenario(events=events), 5.0) == [(7.0, 1, 2.0), (9.0, 1, 4.0), (8.0, 0, 0.0)]


def test_a_competitor_that_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(variant._INSTALLED, "haproxy", lambda: False)
    monkeypatch.setattr(runner, "served", _nothing_served)
    said: list[str] = []
    chosen = (variant.parse("haproxy leastconn"),)
    with Deferred() as signals:
        found = Runner(scenario(variants=chosen), say=said.append).run(signals)
    assert found.absent == {"haproxy leastconn": "haproxy is not installed (Debian: apt-get install haproxy)"}
    assert "left out: haproxy leastconn: haproxy is not installed" in said[0]


def _nothing_served(_: Scenario) -> Any:
    raise KeyboardInterrupt


def test_a_reference_has_figures_like_a_run():
    made = generate(scenario(), 5.0, 1)
    reference = Reference(runner.CENTRAL, 0, np.full(len(made.schedule), 0.02), made)
    found = figures.figures_of(reference, 4.0)
    assert found.mean == pytest.approx(20.0)
    assert found.requests == len(made.schedule)


def test_an_estimate_of_the_time_counts_rounds_and_balancers():
    short = compare.takes_s(scenario(rounds=1))
    assert compare.takes_s(scenario(rounds=2)) == pytest.approx(2 * short)
