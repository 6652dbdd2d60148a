"""`vickrey eval` from end to end: table, JSON, CSV, page; the same bytes again; the gate's status; bad usage."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from controlplane.cli import main

SUITE = """\
title: Tiny
seeds: [3, 4, 5]
tuning_seeds: [8, 9]
scenarios:
  - name: one
    servers: [{count: 2, speed: 4, weight: 4}, {count: 2}]
    demand: {kind: exponential, mean: 10ms}
    load: 0.8
    flows: 2500
  - name: swap
    servers: [{name: a, count: 2, speed: 4, weight: 4}, {name: b, count: 2}]
    demand: {kind: exponential, mean: 10ms}
    load: 0.7
    duration: 6s
    events: [{at: 3s, kind: speed, server: a, speed: 1}, {at: 3s, kind: speed, server: b, speed: 4}]
    phases: [{name: after, start: 3s, end: 5s}]
    recovery: after
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return str(path)


def run(*arguments: str) -> int:
    return main(["eval", *arguments, "--workers", "1"])


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_heuristic_against_heuristics_end_to_end(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("gsed_estimated", "--suite", tiny, "--against", "gsed,lsq,gsed_estimated", "--out", str(out)) == 0
    text, err = capsys.readouterr()
    assert "2 scenarios × 3 paired seeds" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("one ", "swap "))]
    assert len(rows) == 2 * 2  # the comparison and the references
    assert re.search(r"[+-]\d+\.\d+% \[[+-][\d.]+, [+-][\d.]+\]", text)
    assert "Recovery" in text
    assert "gsed_estimated untuned: does not pass the gate" in text
    assert "3 paired seeds: expected at least 10" in text
    assert err == ""
    found = json.loads((out / "result.json").read_text())
    assert [s["scenario"] for s in found["scenarios"]] == ["one", "swap"]
    with open(out / "runs.csv", newline="") as stream:
        runs = list(csv.DictReader(stream))
    # four policies and the references central queue, least work left, SRPT; three seeds, two scenarios
    assert len(runs) == len(found["runs"]) == (4 + 3) * 3 * 2
    assert float(runs[0]["mean"]) > 0
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(plot)
    assert page.count("<svg") == 2  # the ratios, and the course of the scenario with events


def test_the_document_says_what_the_runs_say(tiny, capsys):
    found = document(capsys, "sed", "--suite", tiny, "--against", "gsed,lsq", "--only", "one")
    (one,) = found["scenarios"]
    sed = next(row for row in one["policies"] if row["role"] == "candidate")
    runs = {(r["policy"], r["seed"]): r for r in found["runs"]}
    mean = sum(runs["sed", seed]["mean"] for seed in (3, 4, 5)) / 3
    assert sed["mean"]["mean"] == pytest.approx(mean)
    product = 1.0
    for seed in (3, 4, 5):
        product *= runs["sed", seed]["p99"] / runs["lsq", seed]["p99"]
    assert sed["against"]["lsq"]["p99"]["value"] == pytest.approx(product ** (1 / 3))
    assert sed["gap"]["value"] > 0.9
    assert set(one["references"]) == {"central-queue", "least-work-left", "srpt", "birth-death"}
    bound = one["references"]["birth-death"]["mean"]["mean"]
    assert bound < min(row["mean"]["mean"] for row in one["policies"])
    assert found["tuning"]["families"]["one"]["gsed"]["c"] in (0.0, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)


def test_the_same_seeds_give_the_same_bytes_over_any_number_of_processes(tiny, tmp_path, capsys):
    pages = []
    for name, workers in (("a", "1"), ("b", "2")):
        out = tmp_path / name
        arguments = ["eval", "lsq", "--suite", tiny, "--against", "sed,adaptive", "--out", str(out)]
        assert main([*arguments, "--workers", workers]) == 0
        pages.append([(out / file).read_bytes() for file in ("report.html", "result.json", "runs.csv")])
    assert pages[0] == pages[1]


def test_the_gate_is_the_exit_status(tiny, capsys):
    """In a farm of equal servers nobody is better than least connections, and it is not better than itself."""
    arguments = ("--suite", tiny, "--against", "wcmp,lsq", "--only", "one")
    assert run("wcmp", *arguments, "--gate") == 1
    assert run("wcmp", *arguments) == 0
    capsys.readouterr()
    # Ten seeds, against a lottery alone: any rule that looks passes, 2,500 flows tell.
    assert run("sed", "--suite", tiny, "--against", "wcmp", "--only", "one", "--seeds", "10", "--gate") == 0
    assert "sed: passes the gate; better in one" in capsys.readouterr().out


def test_a_policy_that_raises_is_told_and_does_not_pass(tiny, monkeypatch, capsys):
    from controlplane.policies.sed import ShortestExpectedDelay

    def broken(self: object, observation: object) -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(ShortestExpectedDelay, "decide", broken)
    assert run("sed", "--suite", tiny, "--against", "lsq", "--gate") == 1
    out = capsys.readouterr().out
    assert "one: sed: RuntimeError: no idea" in out
    assert "no figure" in out


def test_quick_is_shorter_and_says_so(tiny, capsys):
    found = document(capsys, "lsq", "--suite", tiny, "--quick")
    assert found["quick"]
    assert {row["policy"] for row in found["scenarios"][0]["policies"]} == {
        "lsq",
        "adaptive",
        "gsed",
        "gsed_estimated",
        "sed",
    }
    flows = {run["scenario"]: run["flows"] for run in found["runs"] if run["policy"] == "lsq"}
    assert flows["one"] < 700


def test_the_list_names_the_suite_and_its_scenarios(capsys):
    assert run("--list") == 0
    assert "four-balancers-90" in capsys.readouterr().out
    assert run("--list", "--json") == 0
    assert "capacity-swap-80" in json.loads(capsys.readouterr().out)[0]["scenarios"]


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ((), 2, "which policy?"),
        (("gsedd",), 2, "no policy is called 'gsedd' (did you mean 'gsed'?)"),
        (("gsed:c",), 2, "expected POLICY as NAME:OPTION=VALUE, not 'gsed:c'"),
        (("gsed:d=1",), 2, "unknown option of policy 'gsed'"),
        (("gsed:c=-1",), 2, "expected c >= 0"),
        (("nothing.safetensors",), 2, "nothing.safetensors"),
        (("nothing.yaml",), 1, "no such file"),
        (("lsq", "--suite", "defautl"), 1, "did you mean 'default'?"),
        (("lsq", "--seeds", "x"), 2, "expected --seeds as a number or a list"),
        (("lsq", "--seeds", "0"), 2, "from 1 to"),
        (("lsq", "--seeds", "9001,9003"), 2, "others than those on which heuristics are tuned"),
        (
            ("lsq", "--only", "flash-crowd"),
            2,
            "no scenario of the suite is called 'flash-crowd' (did you mean 'flash-crowd-50'?)",
        ),
        (("lsq", "--against", "lqs"), 2, "no heuristic is called 'lqs' (did you mean 'lsq'?)"),
        (("lsq", "--record"), 2, "lsq is no policy file with a manifest"),
        (("lsq", "--out", "/proc/nowhere"), 1, "/proc/nowhere"),
    ],
)
def test_bad_usage_is_named(arguments, status, expected, capsys):
    assert run(*arguments) == status
    assert expected in capsys.readouterr().err


@pytest.mark.live
def test_interrupt_ends_it_at_once_and_leaves_nothing(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "controlplane.cli", "eval", "adaptive", "--workers", "2", "--retune"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        time.sleep(3.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert out == b""


def test_a_policy_file_is_evaluated_and_carries_its_verdict(tiny, tmp_path, capsys):
    """A network for several balancers is with one its base policy: `adaptive`, to the last flow, held ones included."""
    from controlplane.learned.policy_file import read
    from tests.learned.files import random, ranges, save

    path = save(tmp_path / "nothing.safetensors", random(), ranges=ranges(balancers=(2, 8)))
    arguments = (str(path), "--suite", tiny, "--only", "one", "--against", "adaptive,sed", "--record")
    found = document(capsys, *arguments)
    (candidate, *_) = found["scenarios"][0]["policies"]
    assert candidate["policy"] == "nothing"
    assert candidate["against"]["adaptive"]["mean"]["value"] == 1.0
    recorded = read(path)[1].evaluation
    assert recorded is not None
    assert recorded["gate"] == "failed"
    assert recorded["digest"] == found["digest"]
    assert [row["scenario"] for row in recorded["scenarios"]] == ["one"]
    assert recorded["scenarios"][0]["ratio"] == pytest.approx(
        candidate["against"][candidate["best"]["mean"]]["mean"]["value"]
    )
    # Its weights are what they were: it can be evaluated again, and comes out the same.
    assert document(capsys, *arguments)["runs"] == found["runs"]
