"""The command line itself: help, exit statuses, what is imported, and the commands that need no balancer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane import registry
from controlplane.cli import COMMANDS, main
from tests.controlplane.config_text import service

HEAVY = ("numpy", "pydantic", "aiohttp", "ruamel", "rich", "cffi", "asyncio", "http.client", "json")
LEAVES = [
    *(["check"], ["show-config"], ["run"], ["status"], ["top"], ["reload"]),
    *(["policy", action] for action in ("list", "show", "set", "rollback")),
    *(["server", action] for action in ("list", "drain", "ready", "maint", "weight")),
]


def vickrey(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    command = [sys.executable, "-m", "controlplane.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(service("policy: lsq"))
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.yaml"
    file.write_text(service("policy: lsq", "worker: 1"))
    return file


def test_help_names_every_command_and_an_example() -> None:
    shown = vickrey("--help")
    assert shown.returncode == 0
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    assert "vickrey run --listen :8080 --server" in shown.stdout


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys\nfrom controlplane.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


def test_a_client_command_imports_the_standard_library_alone() -> None:
    code = (
        "import sys\nfrom controlplane.cli import main\nmain(['status', '--admin', '127.0.0.1:1'])\n"
        "print([m for m in ('numpy', 'pydantic', 'aiohttp', 'ruamel', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_each_command_has_help_and_takes_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: vickrey {' '.join(command)}" in shown
    assert "--json" in shown


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_each_commands_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert f"examples:\n  vickrey {name}" in capsys.readouterr().out


BAD_USAGE = [
    [], ["no-such"], ["--no-such"], ["--json", "status"], ["check"], ["status", "extra"], ["policy"],
    ["policy", "sett"], ["server", "weight", "big"], ["server", "weight", "big", "x"], 
    ["server", "weight", "big", "257"], ["server", "drain"],
    ["run"], ["run", "--listen", ":1"], ["run", "x.yaml", "--server", "h:1"], ["run", "x.yaml", "--workers", "0"],
    ["run", "--listen", ":1", "--server", "nowhere"], ["run", "--listen", "::1", "--server", "h:1"],
    ["policy", "set", "lsq", "--enforcing", "101"], ["policy", "set", "gsed", "c"], ["policy", "set", "gsed", "c=["],
    ["status", "--admin", "nowhere"], ["status", "--adm", "127.0.0.1:1"], ["top", "--interval", "0"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_USAGE, ids=" ".join)
def test_bad_usage_ends_with_2_and_says_why(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    status: object = None
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    out, err = capfd.readouterr()
    assert status == 2
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err


def test_a_mistyped_command_is_told_the_nearest() -> None:
    done = vickrey("stauts")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "vickrey: no command is called 'stauts' (did you mean 'status'?); `vickrey --help` lists them\n"
    )


def test_the_version_is_that_of_the_package() -> None:
    assert re.fullmatch(r"vickrey(,| \d+\.\d+\.\d+).*\n", vickrey("--version").stdout)


# --- check and show-config ---


def test_check_prints_what_a_file_comes_to(good: Path, tmp_path: Path) -> None:
    done = vickrey("check", str(good))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"# {good}: ok (1 service, 1 server)\n")
    assert "    http-keep-alive: 1m\n" in done.stdout
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert vickrey("show-config", str(again)).stdout == done.stdout.partition("\n")[2]


def test_check_quiet_says_nothing_when_all_is_right(good: Path) -> None:
    done = vickrey("check", "--quiet", str(good))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_what_is_wrong_and_fails(bad: Path) -> None:
    done = vickrey("check", bad.name, cwd=bad.parent, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bad.yaml:6:5: service.web.worker: unknown key (did you mean 'workers'?)\n"


def test_check_strict_asks_for_every_timeout(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--strict", str(good)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 7


def test_check_json_is_one_document_good_or_bad(good: Path, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(good)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["config"]["service"]["web"]["timeout"]["connect"]) == (True, "1s")
    assert main(["check", "--json", str(bad)]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["ok"] is False
    assert [(p["line"], p["column"], p["key"]) for p in answer["problems"]] == [(6, 5, "service.web.worker")]
    assert err.startswith(str(bad))


def test_show_config_json_is_the_tree(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "--json", str(good)]) == 0
    assert json.loads(capsys.readouterr().out)["service"]["web"]["policy"]["name"] == "lsq"


def test_run_with_a_bad_file_fails_before_anything_starts(bad: Path) -> None:
    done = vickrey("run", str(bad))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{bad}:6:5: service.web.worker: unknown key (did you mean 'workers'?)\n"


@pytest.mark.parametrize("path", ["no-such.yaml", "/", "/proc/self/mem"])
def test_a_file_that_cannot_be_read_is_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", path]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{path}: ")
    assert len(err.splitlines()) == 1


# --- policy list ---


def test_policy_list_names_every_policy_and_its_other_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *registry.names(),
        *(registry.PREFIX + name for name in registry.shipped()),
    ]
    assert next(line for line in lines if line.startswith("lsq")).split()[1].startswith("leastconn")


def test_policy_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name", "description", "aliases"} == set(found[0])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    piped = f"{sys.executable} -m controlplane.cli policy list | head -1"
    done = subprocess.run(piped, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
