"""`vickrey sim` from outside: tables, JSON, files, bad usage, and Ctrl-C."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest

from controlplane.cli import main
from controlplane.simulation.scenario_file import library
from tests.learned.files import neutral, save
from tests.sim.test_scenarios import SMALL


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def run(*arguments) -> int:
    return main(["sim", *arguments])


def test_the_list_names_every_scenario(capsys):
    assert run("--list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in library())
    assert run("--list", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == library()


def test_the_table_has_a_row_for_every_policy_and_the_reference(small, capsys):
    assert run(small, "--jobs", "1") == 0
    out, err = capsys.readouterr()
    header = out.splitlines()[2].split("  ")
    assert {"POLICY", "MEAN", "P50", "P90", "P99", "P99.9", "SLOWDOWN P99", "JAIN", "REJECTED", "VS LSQ", "GAP"} <= {
        cell.strip() for cell in header
    }
    assert [line.split("  ")[0] for line in out.splitlines()[3:]] == ["lsq", "gsed c=0.3", "central queue"]
    assert out.count("±") > 15
    assert err == ""


def test_the_command_line_changes_policies_seeds_flows_and_load(small, capsys):
    arguments = ("--policies", "gsed:c=0,adaptive,lsq", "--seeds", "8,9", "--flows", "900", "--load", "0.4")
    assert run(small, *arguments, "--jobs", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in found["policies"]] == ["gsed c=0", "adaptive", "lsq"]
    assert found["policies"][0]["spec"] == {"name": "gsed", "c": 0}
    assert found["seeds"] == [8, 9]
    assert found["flows"] == 900
    assert found["load"] == pytest.approx(0.4)


def test_a_name_of_the_scenarios_policy_keeps_its_options(small, capsys):
    assert run(small, "--policies", "gsed", "--seeds", "1", "--jobs", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["policies"][0]["spec"] == {"name": "gsed", "c": 0.3}


def test_a_policy_file_is_told_what_the_scenario_tells_its_base_policy(tmp_path, capsys):
    """Else the difference is that of the weights, not of the policies."""
    path = tmp_path / "small.yaml"
    path.write_text(re.sub("policies:.*", "policies: [{name: adaptive, weights: equal}]\nbalancers: 2", SMALL))
    file = save(tmp_path / "mine.safetensors", neutral(), decode="mode", base="adaptive")
    assert run(str(path), "--policies", f"adaptive,{file}", "--seeds", "1", "--jobs", "1", "--json") == 0
    one, other = json.loads(capsys.readouterr().out)["policies"]
    assert one["mean"] == other["mean"]


def test_a_report_is_one_page_and_tables(small, tmp_path, capsys):
    out = tmp_path / "a" / "b"
    assert run(small, "--out", str(out), "--jobs", "1") == 0
    assert capsys.readouterr().out.rstrip().endswith("report.html")
    page = (out / "report.html").read_text()
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        ElementTree.fromstring(plot)
    assert not re.findall(r'(?:src|href)="', page)  # self-contained
    assert "nan" not in page
    with open(out / "runs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert {row["policy"] for row in rows} == {"lsq", "gsed c=0.3", "central queue"}
    assert json.loads((out / "result.json").read_text())["scenario"] == "small"


def test_a_file_can_be_begun_from_a_shipped_one(tmp_path, capsys):
    assert run("homogeneous", "--show") == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out)
    assert run(str(mine), "--flows", "300", "--seeds", "1", "--jobs", "1", "--policies", "lsq") == 0


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ([], 2, "which scenario?"),
        (["homogenous"], 1, "did you mean 'homogeneous'?"),
        (["nowhere.yaml"], 1, "nowhere.yaml: no such file"),
        (["homogeneous", "--seeds", "0"], 2, "--seeds: expected a number of seeds"),
        (["homogeneous", "--seeds", "x"], 2, "expected --seeds as a number or a list"),
        (["homogeneous", "--flows", "0"], 2, "--flows: expected at least 1"),
        (["homogeneous", "--load", "-1"], 2, "--load: expected more than 0"),
        (["homogeneous", "--jobs", "0"], 2, "--jobs"),
        (["homogeneous", "--policies", "lqs"], 2, "did you mean 'lsq'?"),
        (["homogeneous", "--policies", "gsed:c"], 2, "NAME:OPTION=VALUE"),
        (["homogeneous", "--policies", "gsed:b=1"], 2, "unknown option"),
        (["homogeneous", "--out", "/dev/null/x"], 1, "/dev/null/x: not a directory"),
    ],
)
def test_bad_usage_is_one_line_and_a_status(arguments, status, expected, capsys):
    assert run(*arguments) == status
    err = capsys.readouterr().err
    assert expected in err
    assert len(err.splitlines()) == 1


def test_a_bad_file_is_reported_line_by_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(SMALL.replace("load", "laod").replace("speed", "sped"))
    assert run("bad.yaml") == 1
    assert capsys.readouterr().err.splitlines() == [
        "bad.yaml:2:28: servers[0].sped: unknown key (did you mean 'speed'?)",
        "bad.yaml:5:1: laod: unknown key (did you mean 'load'?)",
    ]


def children(group: int) -> list[str]:
    """Return the states of the processes of a group that are not dead."""
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.split() if not line.startswith("Z")]


@pytest.mark.live
@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_ctrl_c_ends_it_quietly_and_leaves_nobody(seconds):
    command = [sys.executable, "-m", "controlplane.cli", "sim", "balancers-6", "--jobs", "2", "--flows", "3000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    # Before Python has set up its handler, the interrupt itself ends it.
    assert process.returncode in (1, -signal.SIGINT)
    assert out == b""
    assert err == b"" or seconds < 1
    deadline = time.monotonic() + 10
    while children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(process.pid) == []
