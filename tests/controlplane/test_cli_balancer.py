"""The commands against a real balancer in front of two real servers, from start to end."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli import main
from controlplane.client import Client
from controlplane.command import CommandError
from tests.controlplane.admin_double import closed_port

Capture = pytest.CaptureFixture[str]


class _Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@dataclass
class Balancer:
    file: Path
    port: int
    admin: str
    process: subprocess.Popen[bytes]

    def command(self, *arguments: str) -> int:
        return main([*arguments, "--admin", self.admin])

    def get(self) -> int:
        """Send a request through it; returns the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.read() == b"hello"
            return response.status
        finally:
            connection.close()

    def servers(self) -> dict[str, dict[str, Any]]:
        return {server["name"]: server for server in Client(self.admin).status()["services"]["web"]["servers"]}


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    folder = tmp_path_factory.mktemp("balancer")
    backends = [ThreadingHTTPServer(("127.0.0.1", 0), _Hello) for _ in "ab"]
    threads = [threading.Thread(target=backend.serve_forever, args=(0.05,)) for backend in backends]
    for thread in threads:
        thread.start()
    port, admin = closed_port(), f"unix:{folder}/admin.sock"
    file = folder / "web.yaml"
    servers = [f"{{address: 127.0.0.1:{b.server_port}, name: {n}}}" for n, b in zip("ab", backends, strict=True)]
    file.write_text(
        f"admin: {{listen: '{admin}'}}\n"
        f"service:\n  web:\n    listen: 127.0.0.1:{port}\n    policy: lsq\n    servers: [{', '.join(servers)}]\n"
    )
    command = [sys.executable, "-m", "controlplane.cli", "run", str(file)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    balancer = Balancer(file, port, admin, process)
    try:
        wait_until(lambda: answers(balancer), f"it did not start: {(folder / 'log').read_text()}")
        yield balancer
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
            for backend, thread in zip(backends, threads, strict=True):
                backend.shutdown()
                thread.join()
                backend.server_close()


def answers(balancer: Balancer) -> bool:
    assert balancer.process.poll() is None
    try:
        health = Client(balancer.admin).get("health")
    except CommandError:
        return False
    return bool(health["ok"] and health["controller"])


def wait_until(condition: Any, complaint: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def test_status_counts_the_flows(balancer: Balancer, capsys: Capture) -> None:
    for _ in range(10):
        assert balancer.get() == 200
    wait_until(lambda: sum(s["flows_total"] for s in balancer.servers().values()) >= 10, "flows are not counted")
    assert balancer.command("status") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "dataplane up, controller up" in shown[0]
    assert f"127.0.0.1:{balancer.port}  policy lsq" in shown[2]
    assert [line.split()[0] for line in shown[3:]] == ["SERVER", "a", "b"]


def test_a_drained_server_gets_no_flow_until_it_is_ready(balancer: Balancer, capsys: Capture) -> None:
    assert balancer.command("server", "drain", "a") == 0
    wait_until(lambda: balancer.servers()["a"]["state"] == "drain", "it does not drain")
    time.sleep(0.3)  # the workers take new settings within 100 ms
    before = balancer.servers()["a"]["flows_total"]
    for _ in range(10):
        assert balancer.get() == 200
    assert balancer.servers()["a"]["flows_total"] == before
    assert balancer.command("server", "ready", "a") == 0
    assert balancer.command("server", "weight", "b", "7") == 0
    assert balancer.servers()["b"]["weight"] == 7
    assert capsys.readouterr().out.splitlines() == ["web/a: state drain", "web/a: state ready", "web/b: weight 7"]


def test_a_servers_name_that_does_not_exist_fails(balancer: Balancer, capsys: Capture) -> None:
    assert balancer.command("server", "drain", "c") == 1
    assert "no server called 'c'" in capsys.readouterr().err


def test_a_policy_is_set_under_traffic_and_a_wrong_one_refused(balancer: Balancer, capsys: Capture) -> None:
    assert balancer.command("policy", "set", "gsed", "c=0.3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["policy"] in ("gsed", {"name": "gsed", "c": 0.3})
    assert balancer.get() == 200
    assert balancer.command("policy", "set", "gsed", "d=0.3") == 1
    assert "unknown option 'd'" in capsys.readouterr().err
    assert balancer.command("policy", "show") == 0
    assert "gsed" in capsys.readouterr().out
    assert balancer.command("policy", "rollback") == 0


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(balancer: Balancer, capsys: Capture) -> None:
    good = balancer.file.read_text()
    balancer.file.write_text(good.replace("name: a}", "name: a, maxconn: 9}"))
    assert balancer.command("reload") == 0
    assert capsys.readouterr().out.splitlines()[0] == "reloaded:"
    assert balancer.servers()["a"]["maxconn"] == 9
    balancer.file.write_text(good.replace("policy:", "polcy:"))
    assert balancer.command("reload") == 1
    assert f"{balancer.file}:5:5: service.web.polcy: unknown key (did you mean 'policy'?)" in capsys.readouterr().err
    assert balancer.servers()["a"]["maxconn"] == 9
    assert balancer.get() == 200


def test_term_ends_it_with_status_0(balancer: Balancer) -> None:
    balancer.process.send_signal(signal.SIGTERM)
    assert balancer.process.wait(timeout=40) == 0
    with pytest.raises(CommandError, match="no balancer answers"):
        Client(balancer.admin).status()
