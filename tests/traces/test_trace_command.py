"""`vickrey trace`: what it prints and writes, and how it ends; and that the page's commands do what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli import main
from testbed.traces import read
from testbed.traces.generate import generated
from testbed.traces.record import checksum
from testbed.traces.writer import Writer
from tests.traces.reading import DATA, MARLLB

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/traces.md").read_text()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trace(*arguments: str) -> int:
    try:
        return main(["trace", *arguments])
    except SystemExit as ended:
        return int(str(ended.code))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert trace(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_info_tells_what_a_trace_is_like(capsys: pytest.CaptureFixture[str]):
    assert trace("info", str(DATA / "marllb_rate_150.csv")) == 0
    shown = capsys.readouterr().out
    assert "marllb" in shown
    assert re.search(r"^rows +30$", shown, re.MULTILINE)
    assert "loop turns" in shown
    assert "sha256" in shown


def test_info_as_json(capsys: pytest.CaptureFixture[str]):
    found = as_json(capsys, "info", str(DATA / "azure2021.csv"))
    (file,) = found["files"]
    assert (file["format"], file["work_unit"], file["bad_rows"]) == ("azure2021", "s", {"count": 0, "first": []})
    assert found["rows"] == found["work"]["known"] == 6
    assert found["work"]["max"] == 42.372


def test_info_of_an_empty_trace_is_no_error(capsys: pytest.CaptureFixture[str]):
    Path("empty.csv").write_text("t_ns,work\n")
    assert trace("info", "empty.csv") == 0
    assert "rows        0" in capsys.readouterr().out


def test_bad_rows_go_to_standard_error_and_strict_refuses(capsys: pytest.CaptureFixture[str]):
    Path("t.csv").write_bytes(MARLLB + b"oops\n")
    assert trace("head", "-n", "2", "t.csv") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err.splitlines() == ["t.csv: 1 bad row left out", "  line 32: no tab between time and query: oops"]
    assert trace("head", "--strict", "t.csv") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "vickrey trace: t.csv:32: no tab between time and query: oops\n"
    assert as_json(capsys, "info", "t.csv")["files"][0]["bad_rows"] == {
        "count": 1,
        "first": [{"line": 32, "reason": "no tab between time and query", "text": "oops"}],
    }


def test_an_error_as_json(capsys: pytest.CaptureFixture[str]):
    assert trace("info", "--json", "nowhere") == 1
    assert json.loads(capsys.readouterr().out) == {"error": "nowhere: No such file or directory"}


def test_head_as_json_has_null_for_what_is_not_known(capsys: pytest.CaptureFixture[str]):
    rows = as_json(capsys, "head", "-n", "1", str(DATA / "wikibench.txt"))["rows"]
    assert rows[0]["work"] is None
    assert rows[0]["t_ns"] == 1190146243311000000


def test_generate_writes_the_published_bytes(capsys: pytest.CaptureFixture[str]):
    written = as_json(capsys, "generate", "poisson", "--flows", "500", "--seed", "3", "-o", "p.npy")
    assert written["written"] == [
        {"file": "p.npy", "format": "npy", "rows": 500, "sha256": checksum([generated("poisson", flows=500, seed=3)])}
    ]
    assert trace("generate", "onoff", "--set", "share=0.5", "--rate", "10", "--flows", "100", "-o", "o.jsonl.gz") == 0
    assert (read("o.jsonl.gz") == generated("onoff", flows=100, rate=10.0, shape={"share": 0.5})).all()


def test_convert_round_trips_and_keeps_the_checksum(capsys: pytest.CaptureFixture[str]):
    sums = set()
    source = str(DATA / "marllb_rate_150.csv")
    for name in ("a.csv", "b.jsonl.gz", "c.npy", "d.csv.gz"):
        sums.add(as_json(capsys, "convert", source, "-o", name)["written"][0]["sha256"])
        source = name
    assert len(sums) == 1


def test_convert_reaches_the_load_that_is_asked_for(capsys: pytest.CaptureFixture[str]):
    assert trace("generate", "mmpp2", "--flows", "5000", "-o", "in.npy") == 0
    assert trace("convert", "in.npy", "--load", "0.7", "--capacity", "3", "-o", "out.npy") == 0
    capsys.readouterr()
    found = as_json(capsys, "info", "out.npy")
    assert found["rate_per_s"] * found["work"]["mean"] / 3 == pytest.approx(0.7)


def test_split_and_merged_a_trace_is_itself():
    assert trace("generate", "poisson", "--flows", "1000", "--balancers", "3", "-o", "{balancer}.csv") == 0
    assert sorted(path.name for path in Path().iterdir()) == ["0.csv", "1.csv", "2.csv"]
    assert trace("convert", "0.csv", "1.csv", "2.csv", "-o", "all.npy") == 0
    assert (read("all.npy") == generated("poisson", flows=1000, balancers=3)).all()
    assert trace("convert", "2.csv", "1.csv", "--balancer-per-file", "-o", "two.npy") == 0
    assert set(read("two.npy")["balancer"].tolist()) == {0, 1}


def test_a_trace_goes_through_pipes(tmp_path: Path):
    command = f"{sys.executable} -m controlplane.cli trace"
    made = f"{command} generate poisson --flows 3000 -o -"
    piped = f"{made} | gzip | {command} convert - --speed 2 -o - | {command} info - --json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(piped, shell=True, capture_output=True, text=True, timeout=60, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["rows"] == 3000
    assert found["rate_per_s"] == pytest.approx(200, rel=0.1)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m controlplane.cli trace generate poisson --flows 100000 -o - | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout == "t_ns,work,bytes,key,balancer\n"
    assert "Traceback" not in done.stderr


BAD_USAGE = [
    [], ["nosuch"], ["info"], ["info", "x", "--format", "nosuch"], ["info", "x", "--column", "y"], ["info", "-", "-"],
    ["info", "x", "--speed", "0"], ["info", "x", "--load", "0.5"], ["info", "-", "--load", "0.5", "--capacity", "1"],
    ["info", "x", "--from", "10"], ["head", "-n", "-1", "x"], ["head", "-n", "x", "x"], ["convert", "x"],
    ["convert", "x", "-o", "x.txt"], ["convert", "x", "-o", "-", "--json"], ["convert", "x", "-o", "a.npy.gz"],
    ["generate", "-o", "x.csv"], ["generate", "nosuch", "-o", "x.csv"], ["generate", "poisson", "-o", "x"],
    ["generate", "poisson", "-o", "x.csv", "--rate", "0"], ["generate", "poisson", "-o", "x.csv", "--set", "x=1"],
    ["generate", "onoff", "-o", "x.csv", "--set", "share"], ["generate", "poisson", "-o", "x.csv", "--flows", "1.5"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_USAGE, ids=" ".join)
def test_bad_usage_ends_with_2_and_says_why(arguments: list[str], capfd: pytest.CaptureFixture[str]):
    with Writer("x", "npy") as writer:
        writer.write(generated("poisson", flows=2))
    assert trace(*arguments) == 2
    err = capfd.readouterr().err
    assert err.strip()
    assert "Traceback" not in err


@pytest.mark.parametrize("action", ["info", "head", "convert", "generate"])
def test_each_action_has_help_and_takes_json(action: str, capsys: pytest.CaptureFixture[str]):
    assert trace(action, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: vickrey trace {action}" in shown
    assert "--json" in shown


def test_help_needs_no_numpy():
    code = (
        "import sys\nfrom controlplane.cli import main\n"
        "try:\n    main(['trace', 'convert', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('numpy' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stderr == "False\n"


def test_the_pages_commands_do_what_it_says(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = "".join(blocks).splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("$ vickrey trace "):
            continue
        arguments = [word.strip("'") for word in line.removeprefix("$ vickrey trace ").split()]
        assert trace(*arguments) == 0, line
        out = capsys.readouterr().out
        if after and not after.startswith("$"):
            assert out == after + "\n"
    assert read("both.jsonl").tolist() == generated("wiki", flows=5000, balancers=2).tolist()
    python = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    namespace: dict[str, Any] = {}
    exec(python, namespace)
    assert float(capsys.readouterr().out) > 0
