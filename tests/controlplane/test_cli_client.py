"""The commands that talk to a running balancer: what they ask, and what they make of the answers."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli import main
from tests.controlplane.admin_double import SERVER, STATUS, AdminDouble, admin_double, closed_port

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def api() -> Iterator[AdminDouble]:
    with admin_double() as double:
        yield double


def run(api: AdminDouble, *arguments: str) -> int:
    return main([*arguments, "--admin", api.address])


def test_status_is_an_aligned_table(api: AdminDouble, capsys: Capture) -> None:
    assert run(api, "status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vickrey web-1, pid 42, dataplane up (2 restarts), controller down"
    assert lines[2] == "web  http  127.0.0.1:8080  policy adaptive  rule bids  FALLBACK ACTIVE"
    head, row = lines[3], lines[4]
    for name, cell in {"SHARE": "75.5%", "IN FLIGHT": "12", "FLOWS": "123,456", "P90": "-", "P99": "1,234"}.items():
        end = head.index(name) + len(name)
        assert row[:end].endswith(cell)


def test_the_line_of_a_service_says_how_far_its_policy_counts(api: AdminDouble, capsys: Capture) -> None:
    web = {"mode": "tcp", "listen": ["a", "b"], "rps": 1234.5, "fct": {"p50_ms": 4.25, "p99_ms": 120.0}}
    for policy, shown in (({"mode": "shadow"}, "sed (shadow)"), ({"enforcing": 10}, "sed (10 %)"), ({}, "sed")):
        service = {**web, "policy": {"name": "sed", **policy}}
        api.answers["GET", "/v1/status"] = (200, {"services": {"web": service}})
        assert run(api, "status") == 0
        line = capsys.readouterr().out.splitlines()[2]
        assert line == f"web  tcp  a, b  policy {shown}  1,234.5 rps  FCT p50 4.25 p99 120 ms"


def test_status_json_is_what_the_balancer_said(api: AdminDouble, capsys: Capture) -> None:
    assert run(api, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_status_of_one_service(api: AdminDouble, capsys: Capture) -> None:
    assert run(api, "status", "--service", "web") == 0
    assert run(api, "status", "--service", "wbe") == 1
    assert "no service is called 'wbe': there are web" in capsys.readouterr().err


def test_top_once_prints_the_same(api: AdminDouble, capsys: Capture) -> None:
    assert run(api, "status") == 0
    status = capsys.readouterr().out
    assert run(api, "top", "--once") == 0
    assert capsys.readouterr().out == status


def test_top_is_live_in_a_terminal_until_q(api: AdminDouble) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "controlplane.cli", "top", "--interval", "0.1", "--admin", api.address]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "20"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        shown = read_until(ours, lambda text: b"big" in text and len(api.requests) >= 3)
        assert b"FALLBACK ACTIVE" in shown
        os.write(ours, b"q")
        read_until(ours, lambda text: process.poll() is not None)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(fd: int, enough: Any) -> bytes:
    """Read from a terminal until there is enough, for 30 s at most."""
    text = b""
    deadline = time.monotonic() + 30
    while not enough(text) and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.05)[0]:
            try:
                text += os.read(fd, 65536)
            except OSError:  # the other end is closed
                break
    return text


def test_server_list_shows_the_servers_of_each_service(api: AdminDouble, capsys: Capture) -> None:
    assert run(api, "server", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "web"
    assert lines[2].split()[:4] == ["big", "127.0.0.1:9002", "ready", "up"]
    assert run(api, "server", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"web": [SERVER]}


@pytest.mark.parametrize("state", ["drain", "ready", "maint"])
def test_a_servers_state_is_changed(state: str, api: AdminDouble, capsys: Capture) -> None:
    api.answers["PATCH", "/v1/services/web/servers/big"] = (200, {**SERVER, "state": state})
    api.answers["PATCH", "/v1/services/web/servers/127.0.0.1%3A9001"] = (200, {**SERVER, "state": state})
    assert run(api, "server", state, "big", "127.0.0.1:9001") == 0
    assert api.changes() == [
        ("PATCH", "/v1/services/web/servers/big", {"state": state}),
        ("PATCH", "/v1/services/web/servers/127.0.0.1%3A9001", {"state": state}),
    ]
    assert capsys.readouterr().out == f"web/big: state {state}\nweb/127.0.0.1:9001: state {state}\n"


def test_a_servers_weight_is_changed(api: AdminDouble, capsys: Capture) -> None:
    api.answers["PATCH", "/v1/services/web/servers/big"] = (200, {**SERVER, "weight": 7})
    assert run(api, "server", "weight", "big", "7", "--json") == 0
    assert api.changes() == [("PATCH", "/v1/services/web/servers/big", {"weight": 7})]
    assert json.loads(capsys.readouterr().out)["servers"][0]["weight"] == 7


def test_what_the_balancer_refuses_is_said_and_fails(api: AdminDouble, capsys: Capture) -> None:
    message = "service web has no server called 'bgi' (did you mean 'big'?)"
    api.answers["PATCH", "/v1/services/web/servers/bgi"] = (404, {"error": message})
    assert run(api, "server", "drain", "bgi") == 1
    assert capsys.readouterr().err == f"vickrey server: {message}\n"
    assert run(api, "server", "drain", "bgi", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"error": message}


def test_with_several_services_one_must_be_named(api: AdminDouble, capsys: Capture) -> None:
    two = {**STATUS, "services": {"web": STATUS["services"]["web"], "db": {"servers": []}}}  # type: ignore[index]
    api.answers["GET", "/v1/status"] = (200, two)
    assert run(api, "server", "drain", "big") == 2
    assert "--service is needed, one of: web, db" in capsys.readouterr().err
    api.answers["PATCH", "/v1/services/db/servers/big"] = (200, SERVER)
    assert run(api, "server", "drain", "big", "--service", "db") == 0
    assert run(api, "server", "drain", "big", "--service", "dbx") == 1


def test_policy_set_sends_the_name_its_options_and_how_far_it_counts(api: AdminDouble, tmp_path: Path) -> None:
    api.answers["POST", "/v1/services/web/policy"] = (200, {"policy": {"name": "gsed"}})
    file = tmp_path / "mine.yaml"
    file.write_text("{name: gsed, c: 0.3}\n")
    wanted = {
        ("lsq",): {"name": "lsq"},
        ("leastconn", "--shadow"): {"name": "leastconn", "mode": "shadow"},
        ("gsed", "c=0.3", "--enforcing", "10"): {"name": "gsed", "c": 0.3, "enforcing": 10},
        (str(file),): {"name": "gsed", "c": 0.3},
        (str(file), "c=2", "--service", "web"): {"name": "gsed", "c": 2},
    }
    for arguments in wanted:
        assert run(api, "policy", "set", *arguments) == 0
    assert [body for _, _, body in api.changes()] == list(wanted.values())


def test_a_policy_file_that_is_none_is_named(api: AdminDouble, tmp_path: Path, capsys: Capture) -> None:
    shape = "expected a mapping like {name: gsed, c: 0.3}"
    cases = {"a: 1": shape, "[": "mine.yaml:1:2: ", "name: [a]": shape, "name:": "mine.yaml:1:1: name: no value"}
    for text, complaint in cases.items():
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        assert run(api, "policy", "set", str(file)) == 1
        assert complaint in capsys.readouterr().err
    assert run(api, "policy", "set", "./none.yaml") == 1
    assert "./none.yaml: no such file or directory" in capsys.readouterr().err
    assert api.changes() == []


def test_policy_show_and_rollback(api: AdminDouble, capsys: Capture) -> None:
    api.answers["GET", "/v1/services/web/policy"] = (
        200,
        {"policy": {"name": "lsq", "mode": "enforce"}, "history": ["wrr"]},
    )
    assert run(api, "policy", "show") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["web"],
        ["policy.name", "lsq"],
        ["policy.mode", "enforce"],
        ["history", '["wrr"]'],
    ]
    api.answers["POST", "/v1/services/web/policy/rollback"] = (200, {"policy": {"name": "wrr"}})
    assert run(api, "policy", "rollback", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"policy": {"name": "wrr"}}
    assert api.changes() == [("POST", "/v1/services/web/policy/rollback", {})]


def test_reload_says_what_changed(api: AdminDouble, capsys: Capture) -> None:
    api.answers["POST", "/v1/reload"] = (200, {"changes": ["web/big: weight 20 to 30"]})
    assert run(api, "reload") == 0
    assert capsys.readouterr().out == "reloaded:\n  web/big: weight 20 to 30\n"


def test_reload_of_a_bad_file_says_where_it_is_bad_and_fails(api: AdminDouble, capsys: Capture) -> None:
    message = "web.yaml:4:5: service.web.polcy: unknown key (did you mean 'policy'?)"
    api.answers["POST", "/v1/reload"] = (422, {"error": message})
    assert run(api, "reload") == 1
    assert message in capsys.readouterr().err


def test_a_unix_socket_serves_as_well(tmp_path: Path, capsys: Capture) -> None:
    with admin_double(str(tmp_path / "a.sock")) as api:
        assert run(api, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize(
    "command", [["status"], ["top"], ["server", "list"], ["policy", "show"], ["reload"]], ids=" ".join
)
def test_when_nobody_answers_one_line_names_the_address(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    for address in (f"127.0.0.1:{closed_port()}", f"unix:{tmp_path}/none.sock"):
        assert main([*command, "--admin", address]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"vickrey {command[0]}: no balancer answers at {address} (")
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("answer", [b"<html>", b"\xff\xfe", b"[" * 100000], ids=["html", "binary", "nested"])
def test_an_answer_that_is_no_admin_apis_is_one_line(answer: bytes, api: AdminDouble, capsys: Capture) -> None:
    api.answers["GET", "/v1/status"] = (200, answer)
    assert run(api, "status") == 1
    assert f"what answers at {api.address} is not a balancer's admin API" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [[], 17, "text", {"services": []}, {"services": {"web": 3}}, None], ids=repr)
def test_an_answer_of_another_shape_is_one_line(answer: Any, api: AdminDouble, capsys: Capture) -> None:
    api.answers["GET", "/v1/status"] = (200, answer)
    assert run(api, "status") == 1
    assert f"what answers at {api.address} is not a balancer's admin API" in capsys.readouterr().err
