"""`vickrey auction`: what it prints and writes, how it fails, and how it ends early."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from controlplane.auction import outputs
from controlplane.auction.rounds import Simulation
from controlplane.auction.scenario import Scenario
from controlplane.cli import main
from controlplane.command import CommandError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "auction.yaml"


def auction(capsys, *arguments):
    status = main(["auction", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def ran(rounds):
    """Return a simulation of so many rounds, all done."""
    simulation = Simulation(Scenario(rounds=rounds), None, 0.0)
    while simulation.step():
        pass
    return simulation


def test_the_summary_names_the_seed_and_what_happened(capsys):
    status, out, err = auction(capsys, "--rounds", 40, "--servers", 4, "--seed", 9)
    assert status == 0
    assert "seed 9" in err
    assert out.startswith("auction: 40 rounds, 4 servers, 8 tasks a round, mode continuous, split equal, seed 9\n")
    for words in ("social welfare", "Jain", "reserve", "gold outbid", "deferrals", "silver", "Shapley"):
        assert words in out


@pytest.mark.parametrize("mode", ["off", "continuous", "qlearning", "bandit", "ucb1", "thompson"])
def test_every_mode_runs_and_repeats(capsys, mode):
    runs = [auction(capsys, "--rounds", 60, "--mode", mode, "--csv", "--split", "shapley") for _ in range(2)]
    assert runs[0][0] == 0
    assert runs[0][1] == runs[1][1]
    assert len(runs[0][1].splitlines()) == 61


def test_json_is_one_document_with_everything(capsys):
    status, out, _ = auction(capsys, "--rounds", 30, "--tasks", 12, "--json", "--mode", "ucb1")
    found = json.loads(out)
    assert status == 0
    assert found["scenario"]["mode"] == "ucb1"
    assert found["effective"]["tasks_base"] == 12
    assert found["interrupted"] is False
    assert len(found["servers"]) == 8
    events = found["summary"]["events"]
    assert events["awarded"] + found["summary"]["pending"] == found["summary"]["tasks"]
    assert set(found["summary"]["classes"]) == {"gold", "silver", "bronze"}


def test_a_run_without_tasks_is_a_run(capsys):
    status, out, _ = auction(capsys, "--rounds", 3, "--tasks", 0, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["summary"]["completion"] is None
    assert found["summary"]["tasks"] == 0


def test_a_folder_gets_every_plot_and_table(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: needs vickrey[testbed]")
    pytest.importorskip("plotly", reason="plotly is not installed: needs vickrey[testbed]")
    folder = tmp_path / "new" / "out"
    status, out, _ = auction(capsys, "--rounds", 30, "--servers", 20, "--out", folder)
    assert status == 0
    assert str(folder / "report.html") in out
    pngs = {path.stem for path in folder.glob("*.png")}
    wanted = {"tasks", "loads", "sensitivities", "reserve", "fairness_std", "jain", "welfare", "events", "shapley"}
    assert pngs == wanted | {"sla_misses", "completion", "deferrals", "overview"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.count('class="plotly-graph-div"') == 12
    outside = re.search(r'<(?:script|link|img)[^>]*(?:src|href)="http', html)
    assert outside is None
    rows = list(csv.DictReader((folder / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["round"] for row in rows] == [str(i) for i in range(1, 31)]
    assert len((folder / "servers.csv").read_text(encoding="utf-8").splitlines()) == 21
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["summary"]["rounds"] == len(result["rounds"]["welfare"]) == 30
    history = list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))
    assert len(history) == 30 * 20
    last = history[-1]
    assert (last["round"], last["server"]) == ("30", "19")
    assert float(last["load"]) == pytest.approx(result["servers"][-1]["load"], rel=1e-5)
    assert float(last["shapley"]) == pytest.approx(result["servers"][-1]["capacity"] - float(last["load"]), rel=1e-4)


def test_an_interrupt_leaves_the_pictures_whole(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: needs vickrey[testbed]")
    from matplotlib.figure import Figure

    from controlplane.auction.plots import Panel, save_png

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "loads.png").write_bytes(b"whole")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        list(save_png([Panel("loads", "Loads", "flows", np.arange(3), [])], tmp_path, "title"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("loads.png", b"whole")]


def test_the_example_runs_and_options_take_precedence(capsys):
    status, out, _ = auction(capsys, EXAMPLE, "--rounds", 20, "--json")
    assert status == 0
    assert json.loads(out)["summary"]["rounds"] == 20
    again = auction(capsys, "--scenario", EXAMPLE, "--rounds", 20, "--json")[1]
    first, second = json.loads(out), json.loads(again)
    assert first["summary"] == second["summary"]


def test_a_scenarios_mistakes_have_their_place(capsys, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("rounds: 10\nservers:\n  cuont: 3\ntasks:\n  load: [9, 1]\nmode: greedy\n", encoding="utf-8")
    status, _, err = auction(capsys, file)
    assert status == 1
    assert f"{file}:3:3: servers.cuont: unknown key (did you mean 'count'?)" in err
    assert f"{file}:5:3: tasks.load: expected [low, high] with low at most high, not [9, 1]" in err
    assert f"{file}:6:1: mode: expected 'off', 'continuous'" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1, not 0"),
        (["--servers", "-1"], "--servers: expected at least 1, not -1"),
        (["--epsilon", "2"], "--epsilon: expected at most 1"),
        (["--tasks", "nan"], "--tasks: expected a finite number"),
        (["--json", "--csv"], "choose one"),
        (["--ledger-auctions", "1"], "needs --ledger FILE"),
        (["verify"], "which ledger?"),
        (["--amplitude", "1e12"], "--amplitude: expected at most 10,000,000 tasks a round"),
        (["verify", "x.jsonl", "--anchor", "abc"], "--anchor: expected 64 hexadecimal digits"),
        (["--anchor", "0" * 64], "--anchor belongs to"),
        (["a.yaml", "b.yaml"], "expected one scenario file"),
    ],
)
def test_bad_usage_is_said_and_is_status_2(capsys, arguments, words):
    status, _, err = auction(capsys, *arguments)
    assert status == 2
    assert words in err


def test_a_file_that_is_not_there(capsys, tmp_path):
    status, _, err = auction(capsys, tmp_path / "none.yaml")
    assert (status, "no such file" in err) == (1, True)
    status, _, err = auction(capsys, "verify", tmp_path / "none.jsonl")
    assert (status, "no such file" in err.lower()) == (1, True)


def test_without_torch_the_dqn_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, err = auction(capsys, "--mode", "dqn")
    assert status == 1
    assert "needs vickrey[rl]" in err


def test_a_ledger_holds_the_rounds_and_an_altered_one_is_found(capsys, tmp_path):
    file = tmp_path / "events.jsonl"
    assert auction(capsys, "--rounds", 12, "--ledger", file, "--ledger-auctions", 1)[0] == 0
    records = [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]
    rounds = [record for record in records if record["kind"] == "round"]
    auctions = [record for record in records if record["kind"] == "auction"]
    assert [record["round"] for record in rounds] == list(range(1, 13))
    assert len(auctions) == sum(record["awarded"] + record["deferred"] for record in rounds)
    assert all(record["price"] is None or record["price"] >= record["bid"] for record in auctions)
    status, out, _ = auction(capsys, "verify", file)
    assert (status, "unbroken" in out) == (0, True)

    lines = file.read_bytes().splitlines(keepends=True)
    at = next(i for i, record in enumerate(records) if record["kind"] == "round")
    file.write_bytes(b"".join([*lines[:at], lines[at].replace(b'"reserve":', b'"reserve":9'), *lines[at + 1 :]]))
    status, out, _ = auction(capsys, "verify", file)
    assert (status, f"record {at} was altered" in out) == (1, True)
    status, out, _ = auction(capsys, "verify", file, "--json")
    assert (status, json.loads(out)["ok"]) == (1, False)


def test_the_same_seed_writes_the_same_ledger(capsys, tmp_path):
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for file in files:
        auction(capsys, "--rounds", 10, "--ledger", file, "--ledger-auctions", 0.5)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ctrl_c_ends_with_valid_files_of_the_rounds_so_far(tmp_path):
    ledger, folder = tmp_path / "l.jsonl", tmp_path / "out"
    command = [sys.executable, "-m", "controlplane.cli", "auction", "--rounds", "5000000", "--servers", "4", "--json"]
    process = subprocess.Popen(
        [*command, "--ledger", str(ledger), "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (ledger.exists() and ledger.stat().st_size > 200_000):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "interrupted after" in err
    assert "Traceback" not in err
    found = json.loads(out)
    assert found["interrupted"] is True
    done = found["summary"]["rounds"]
    assert 0 < done < 5_000_000
    assert len((folder / "rounds.csv").read_text(encoding="utf-8").splitlines()) == done + 1
    assert main(["auction", "verify", str(ledger)]) == 0


@pytest.mark.parametrize(("rounds", "every", "first"), [(4, 1, 1), (11, 3, 2), (12, 3, 3), (16, 4, 4)])
def test_a_long_runs_series_keep_every_kth_round_and_the_last(rounds, every, first, monkeypatch):
    monkeypatch.setattr(outputs, "SERIES_ROUNDS", 4)
    simulation = ran(rounds)
    found = outputs.series(simulation)
    assert found["rounds_every"] == every
    assert found["rounds"]["round"] == list(range(first, rounds + 1, every))
    assert len(found["rounds"]["welfare"]) == len(found["rounds"]["round"]) <= 4
    assert found["rounds"]["welfare"][-1] == simulation.metrics.rows["welfare"][-1]


def test_the_rows_of_a_long_run_are_made_in_parts(monkeypatch):
    simulation = ran(10)
    whole = "".join(outputs.rounds_csv(simulation))
    monkeypatch.setattr(outputs, "_PART", 4)
    parts = list(outputs.rounds_csv(simulation))
    assert [part.count("\n") for part in parts] == [1, 4, 4, 2]
    assert "".join(parts) == whole


def test_what_was_written_before_the_disk_was_full_stays(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: needs vickrey[testbed]")
    pytest.importorskip("plotly", reason="plotly is not installed: needs vickrey[testbed]")

    def full(simulation):
        yield "round\n"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "rounds_csv", full)
    simulation = ran(5)
    with pytest.raises(CommandError, match=r"rounds\.csv: no space left on device"):
        outputs.Folder(str(tmp_path)).write(simulation, outputs.document(simulation, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "servers.csv"]
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["rounds_every"], result["rounds"]["round"]) == (1, [1, 2, 3, 4, 5])


def test_help_does_not_import_numpy():
    code = "import sys; from controlplane.cli import main\ntry: main(['auction', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('numpy' in sys.modules or 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--ledger-auctions" in done.stdout
