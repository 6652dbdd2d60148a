"""`vickrey testbed`: up, status, config, down; and whatever ends its starter, at any moment, nothing stays behind."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli import main
from controlplane.config_yaml import parse_yaml
from testbed import cgroups, namespaces
from testbed.backends import apache
from testbed.topology_file import validate
from testbed.topology_server import marked
from testbed.topology_state import ID_PREFIX

ROOT = Path(__file__).resolve().parents[2]
TEST_MARK = "VICKREY_TESTBED_TEST"  # in the environment of all that these tests start

needs_apache = pytest.mark.skipif(bool(apache.why_not()), reason=apache.why_not() or "-")

TOPOLOGY = """\
title: Two small ones
balancers: 2
servers:
  - {name: fast, backend: apache, workers: 4, cpu: 0.4}
  - {name: slow, backend: apache, mpm: event, workers: 4, cpu: 0.2}
"""


class Shell:
    """Runs the command with a run folder of its own, and knows what it has left."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.file = folder / "pair.yaml"
        self.file.write_text(TOPOLOGY)
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder / "run"), TEST_MARK: self.mark}
        self.ids_before = self.ids()

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "controlplane.cli", "testbed", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment,
        )

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def ids(self) -> set[str]:
        names = [*namespaces.existing(ID_PREFIX), *namespaces.links(ID_PREFIX)]
        names += [path.name for path in Path("/tmp").glob(f"{ID_PREFIX}*")]
        with contextlib.suppress(cgroups.NoCgroups):
            names += cgroups.find().leftovers(ID_PREFIX)
        return {name[: len(ID_PREFIX) + 4] for name in names}

    def left_behind(self) -> list[str]:
        """Processes with our mark; state files; and things of a topology that is not somebody else's."""
        left = [f"pid {pid}" for pid in self._marked()]
        run = self.folder / "run/vickrey/testbed"
        left += [path.name for path in run.glob("*.json")] + [path.name for path in run.glob("*.new")]
        return left + sorted(one for one in self.ids() - self.ids_before if not self._is_foreign(one))

    def states(self) -> str:
        """The text of all state files."""
        return "".join(path.read_text() for path in (self.folder / "run/vickrey/testbed").glob("*.json"))

    def _marked(self) -> list[int]:
        return [pid for pid in self._living() if f"{TEST_MARK}={self.mark}".encode() in self._environment_of(pid)]

    def _is_foreign(self, topology: str) -> bool:
        """Another test or user has brought it up meanwhile."""
        return any(f"{TEST_MARK}={self.mark}".encode() not in self._environment_of(p) for p in marked(f"{topology}:"))

    @staticmethod
    def _living() -> list[int]:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]

    @staticmethod
    def _environment_of(pid: int) -> list[bytes]:
        try:
            return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return []

    def is_clean_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.left_behind():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    if shell.left_behind():
        shell("down", "--all")  # after a test that failed
    assert shell.left_behind() == []


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@needs_apache
def test_up_in_the_background_status_config_and_down(shell: Shell):
    configuration = shell.folder / "web.yaml"
    up = shell("up", str(shell.file), "--detach", "--write-config", str(configuration))
    assert up.returncode == 0, up.stderr
    assert [line.split()[0] for line in up.stdout.splitlines()[:4]] == ["pair", "SERVER", "fast", "slow"]
    written = [shell.folder / "web-1.yaml", shell.folder / "web-2.yaml"]
    assert [f"vickrey run {path}" in up.stdout for path in written] == [True, True]
    assert [main(["check", "--quiet", str(path)]) for path in written] == [0, 0]

    (found,) = shell.json("status")["topologies"]
    assert (found["name"], found["phase"], found["balancers"]) == ("pair", "running", 2)
    assert [(s["name"], s["up"], s["busy"], s["workers"]) for s in found["servers"]] == [
        ("fast", True, 0, 4),
        ("slow", True, 0, 4),
    ]
    assert all(server["cpu_cores"] < 0.5 for server in found["servers"])
    table = shell("status", "pair").stdout
    assert "pair: running" in table
    assert "0/4" in table
    assert shell("config", "--balancer", "2").stdout == written[1].read_text()
    assert shell.json("config")["service"]["web"]["balancers"] == 2

    again = shell("up", str(shell.file), "-d")
    assert again.returncode == 1
    assert "pair is up already" in again.stderr
    assert shell("config", "--balancer", "3").returncode == 2
    assert shell("status", "other").returncode == 1

    assert shell("down").stdout == "pair is down\n"
    assert shell.left_behind() == []
    assert shell.json("status") == {"topologies": []}
    assert shell("down").returncode == 1


@needs_apache
def test_up_in_the_foreground_prints_one_document_and_ends_with_a_signal(shell: Shell):
    process = shell.start("up", str(shell.file), "--json", "--name", "other")
    assert wait_for(lambda: '"phase": "running"' in shell.states())
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    document = json.loads(output)
    assert (document["name"], document["phase"], len(document["servers"])) == ("other", "running", 2)
    assert errors.endswith("other: down; nothing is left\n")
    assert shell.left_behind() == []


@needs_apache
@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_at_any_moment_leaves_nothing(shell: Shell, seed: int):
    """Twice, as people do; between the start of Python and some time after it is up."""
    lots = random.Random(seed)
    process = shell.start("up", str(shell.file))
    time.sleep(lots.uniform(0.1, 1.2))
    process.send_signal(signal.SIGINT)
    time.sleep(lots.choice([0.0, 0.01, 0.1]))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 1, -signal.SIGINT), errors  # the last: before Python has come to our code
    assert process.returncode == -signal.SIGINT or f'File "{ROOT}' not in errors, errors
    assert shell.left_behind() == []


@needs_apache
@pytest.mark.parametrize("seed", range(3))
def test_down_removes_what_a_killed_starter_has_left(shell: Shell, seed: int):
    process = shell.start("up", str(shell.file))
    time.sleep(random.Random(100 + seed).uniform(0.25, 0.9))
    process.kill()
    process.communicate()
    found = shell.json("status")["topologies"]
    assert [topology["phase"] for topology in found] in ([], ["stale"])
    if found:
        done = shell("down", "pair")
        assert done.returncode == 0, done.stderr
        assert "its starter was gone; removed" in done.stdout
    assert shell.is_clean_within(5.0), shell.left_behind()


def test_what_a_killed_writer_left_half_written_is_removed_and_that_of_a_living_one_is_not(shell: Shell):
    run = shell.folder / "run/vickrey/testbed"
    run.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"pair.{ended.pid}.new", f"pair.{os.getpid()}.new"):
        (run / name).write_text("{")
    assert shell.json("status")["topologies"] == []
    assert [path.name for path in run.glob("*.new")] == [f"pair.{os.getpid()}.new"]
    (run / f"pair.{os.getpid()}.new").unlink()


@needs_apache
def test_a_killed_topology_is_replaced_by_the_next_of_its_name(shell: Shell):
    process = shell.start("up", str(shell.file))
    assert wait_for(lambda: '"phase": "running"' in shell.states())
    process.kill()
    process.communicate()
    assert "stale, its starter" in shell("status").stdout
    up = shell("up", str(shell.file), "-d")
    assert up.returncode == 0, up.stderr
    assert "removed what a pair whose starter is gone had left" in up.stderr
    assert len(shell.json("status")["topologies"]) == 1
    shell("down")
    assert shell.left_behind() == []


@needs_apache
def test_a_kill_of_the_launcher_leaves_a_topology_that_down_ends(shell: Shell):
    launcher = shell.start("up", str(shell.file), "-d")
    assert wait_for(lambda: bool(shell.states()))
    launcher.kill()
    launcher.communicate()
    done = shell("down")  # it may have noticed that nobody waits for its word, and have ended by itself
    assert done.stdout.startswith("pair is down") or "no topology is up" in done.stderr
    assert shell.is_clean_within(5.0), shell.left_behind()


def test_shipped_topologies_are_listed_and_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["testbed", "list", "--json"]) == 0
    listed = {row["name"]: row["servers"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {"marllb-large": 24, "marllb-small": 7, "mixed": 3, "simple": 3}
    assert main(["testbed", "show", "simple"]) == 0
    assert capsys.readouterr().out == (ROOT / "testbed/topologies/simple.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["up", "smple"], 1, "did you mean 'simple'?"),
        (["up", "nowhere.yaml"], 1, "nowhere.yaml: no such file"),
        (["up", "simple", "--name", "A B"], 2, "expected --name"),
        (["down", "a", "--all"], 2, "not both"),
        (["down"], 1, "no topology is up"),
        (["config"], 1, "no topology is up"),
    ],
)
def test_bad_usage_is_told_in_words_and_as_json(
    arguments: list[str],
    status: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["testbed", *arguments, "--json"]) == status
    output = capsys.readouterr()
    assert text in output.err
    assert text in json.loads(output.out)["error"]


@needs_apache
@pytest.mark.skipif(bool(namespaces.why_not()), reason=namespaces.why_not() or "-")
def test_the_commands_of_the_page_run(shell: Shell):
    page = (ROOT / "docs/testbed.md").read_text().partition("## Topologies")[2]
    (block,) = re.findall(r"```console\n(.*?)```", page.partition("## Apache")[0], re.DOTALL)
    script = "\n".join(line.removeprefix("$ ") for line in block.splitlines())
    subnet = str(namespaces.free_subnet()).removesuffix("0/24")
    if subnet != "198.18.0.":
        pytest.skip("another topology is up on this machine, at the addresses that the page shows")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=shell.folder,
        env={**shell.environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "X-Server: fast-1" in done.stdout
    assert "simple: running" in done.stdout
    assert done.stdout.endswith("simple is down\n")


def test_the_topology_of_the_page_is_right():
    page = (ROOT / "docs/testbed.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    topology = validate(parse_yaml(block, "page.yaml"))
    assert topology.server_names() == ["small-1", "small-2", "big", "python"]
