"""The pages on configuration and commands say what is so."""

import re
import shlex
from pathlib import Path

import pytest

from controlplane import config_checks
from controlplane.cli import COMMANDS, main
from controlplane.config import Config, Forwarded, Health, Log, Outlier, Policy, Server, Service, Timeout
from tests.controlplane.config_text import problems, read
from tests.learned.files import save

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
COMMAND_PAGE = (ROOT / "docs/commands.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("block", blocks(CONFIGURATION, "yaml"))
def test_each_configuration_in_the_page_is_right(block: str, tmp_path: Path) -> None:
    assert problems(tmp_path, block) == []


def test_every_key_has_a_row() -> None:
    rows = set(re.findall(r"^\| `([^`]+)`", CONFIGURATION, re.MULTILINE))
    nested = {"forwarded": Forwarded, "log": Log}
    for model in (Service, Server, Policy, Health, Outlier, Timeout):
        keys = set(config_checks._fields(model)) - {"options", *nested}
        assert keys <= rows, model
    for prefix, model in nested.items():
        assert {f"{prefix}.{key}" for key in config_checks._fields(model)} <= rows
    assert set(Config.model_fields) == {"instance", "admin", "service"}


def test_the_defaults_in_the_rows_are_those_in_force(tmp_path: Path) -> None:
    """Rows whose default is a plain value, compared with the effective configuration of a file that gives nothing."""
    tree = read(tmp_path, "service: {web: {listen: ':8080', servers: ['127.0.0.1:1']}}").as_tree()["service"]["web"]
    tables = {"A service": tree, "`policy`": tree["policy"], "`health`": tree["health"], "`outlier`": tree["outlier"]}
    tables |= {"`timeout`": tree["timeout"], "A server": tree["servers"][0]}
    compared = 0
    for title, values in tables.items():
        section = CONFIGURATION.partition(f"### {title}\n")[2].partition("\n##")[0]
        for key, default in re.findall(r"^\| `([\w-]+)` \| `([^`]+)` \|", section, re.MULTILINE):
            if key in values and key != "path":
                expected = {"60s": "1m", "false": "False"}.get(default, default)
                value = values[key]["name"] if key == "policy" else values[key]
                assert str(value) == expected, f"{title}: {key}"
                compared += 1
    assert compared > 35


def test_the_mistakes_shown_are_those_that_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shown,) = blocks(CONFIGURATION, "console")
    file, _, mistakes = shown.removeprefix("$ cat broken.yaml\n").partition("$ vickrey check broken.yaml\n")
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(file)
    assert main(["check", "broken.yaml"]) == 1
    assert capsys.readouterr().err == mistakes


def test_every_command_has_a_row_and_every_row_a_command() -> None:
    table = COMMAND_PAGE.partition("|---|---|\n")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`vickrey ([\w-]+)", row)}
    assert named == set(COMMANDS)


def test_the_command_lines_shown_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is run with --help added, which reads the subcommand, and then against no balancer, which reads the rest."""
    lines = [line[2:] for block in blocks(COMMAND_PAGE, "console") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vickrey ")]
    assert len(commands) > 10
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{name: gsed, c: 0.3}\n")
    save(tmp_path / "mine.safetensors")
    for command in commands:
        if command[0] == "run":
            continue
        if command[-1] == "mine.safetensors" and command[1] != "set":  # needs no balancer
            assert main(command) == 0
            continue
        assert main([*command, "--admin", "unix:/nowhere"]) == 1


def test_the_unit_waits_longer_than_the_drain(tmp_path: Path) -> None:
    unit = (ROOT / "packaging/vickrey.service").read_text()
    assert "Type=notify" in unit
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > Service.model_fields["drain_timeout"].default
