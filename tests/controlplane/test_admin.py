"""The admin API of a real balancer: what it tells, what it changes, and what it refuses (rows 35, 37)."""

import contextlib
import csv
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.admin import is_local_name
from testbed.farm import Farm
from testbed.processes import free_port
from tests.faults.running import ROOT, Load, Running, wait_until

# One metric line: name, labels, value (Prometheus' text format 0.0.4).
LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\",?"
SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{((?:{LABEL})*)\}})? (-?[0-9.e+-]+|[+-]Inf|NaN)")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Farm.of_speeds([1, 2], workers=8, demand="fixed:1", processes=1) as farm:
        folder = tmp_path_factory.mktemp("admin")
        with Running(folder, farm.addresses, log={"access": str(folder / "access.log")}) as running:
            with Load(running.port, connections=4) as load:
                load.run_for(500)
            yield running


def raw(running: Running, head: str, body: bytes = b"") -> tuple[int, str]:
    """Send a request as it stands and return status and head of the answer."""
    with socket.create_connection(("127.0.0.1", running.admin_port), timeout=10) as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = sock.recv(65536)
            assert more, "closed without an answer"
            answer += more
    return int(answer.split(b" ", 2)[1]), answer.decode(errors="replace")


def text(running: Running, path: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", running.admin_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer, answer.read().decode()


def test_status_tells_processes_services_and_servers(running):
    status = running.get("status")
    assert status["instance"] == running.instance
    assert status["processes"]["dataplane"]["up"] is True
    assert status["processes"]["controller"]["restarts"] == 0
    web = status["services"]["web"]
    assert web["listen"] == [f"127.0.0.1:{running.port}"]
    assert web["policy"]["name"] == "adaptive"
    assert web["fct"]["p50_ms"] <= web["fct"]["p90_ms"] <= web["fct"]["p99_ms"]
    assert sum(server["flows_total"] for server in web["servers"]) == web["totals"]["requests_total"]
    assert sum(server["share"] for server in web["servers"]) == pytest.approx(1, abs=0.001)


def test_the_window_of_the_rates_can_be_chosen(running):
    status, answer = running.request("GET", "/v1/status?window=1")
    assert status == 200
    assert answer["services"]["web"]["window_s"] < 4
    assert running.request("GET", "/v1/status?window=ever")[0] == 400


def test_metrics_are_valid_and_their_histograms_cumulative(running):
    answer, page = text(running, "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    types: dict[str, str] = {}
    seen: set[str] = set()
    family = ""
    buckets: dict[str, list[tuple[float, float]]] = {}
    counts: dict[str, float] = {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in types, "each family once, its samples together"
            types[family] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            name, labels, value = match[1], match[2] or "", float(match[3])
            suffix = name.removeprefix(family)
            assert suffix in (("_bucket", "_sum", "_count") if types[family] == "histogram" else ("",)), line
            assert line.rpartition(" ")[0] not in seen
            seen.add(line.rpartition(" ")[0])
            if types[family] == "counter":
                assert name.endswith("_total")
            if suffix == "_bucket":
                rest, _, edge = labels.rpartition(",le=")
                buckets.setdefault(rest, []).append((float(edge.strip('"').replace("+Inf", "inf")), value))
            elif suffix == "_count":
                counts[labels] = value
    assert len(buckets) == 2
    for labels, steps in buckets.items():
        assert steps == sorted(steps)
        assert steps[-1] == (float("inf"), counts[labels])
        assert counts[labels] > 0
    assert running.metrics()["vickrey_controller_up"] == 1


def test_the_csv_reads_like_haproxys(running):
    _, page = text(running, "/stats;csv")
    assert page.startswith("# pxname,svname,qcur,qmax,scur,")
    rows = list(csv.DictReader(io.StringIO(page[2:])))
    assert [row["svname"] for row in rows if row["svname"].isupper()] == ["FRONTEND", "BACKEND"]
    assert [row["type"] for row in rows] == ["0", "2", "2", "1"]
    assert {row["status"] for row in rows} == {"OPEN", "UP"}
    assert sum(int(row["stot"]) for row in rows if row["type"] == "2") == int(rows[0]["req_tot"])


def test_the_dashboard_needs_nothing_from_elsewhere(running):
    answer, page = text(running, "/")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "/v1/status" in page


def test_health_is_200_while_flows_are_forwarded(running):
    assert running.request("GET", "/v1/health") == (
        200,
        {"ok": True, "dataplane": True, "controller": True, "draining": False, "services": {"web": True}},
    )


def test_policies_are_listed_with_descriptions(running):
    listed = running.get("policies")
    assert "adaptive" in [policy["name"] for policy in listed["policies"]]
    assert listed["aliases"]["leastconn"] == "lsq"


def test_the_policy_in_force_can_be_looked_into(running):
    shown = running.get("services/web/policy")
    assert shown["policy"] == "adaptive"
    assert len(shown["servers"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/v1/nothing", None, 404, "404"),
        ("POST", "/v1/status", {}, 405, "405"),
        ("GET", "/v1/services/wbe/servers", None, 404, "no service is called 'wbe' (did you mean 'web'?)"),
        ("PATCH", "/v1/services/web/servers/nobody", {"state": "ready"}, 404, "has no server called 'nobody'"),
        ("PATCH", "/v1/services/web/servers/SERVER", {"state": "drian"}, 400, "did you mean 'drain'?"),
        ("PATCH", "/v1/services/web/servers/SERVER", {"state": 7}, 400, "expected 'ready', 'drain' or 'maint'"),
        ("PATCH", "/v1/services/web/servers/SERVER", {"weight": 257}, 400, "weight: expected a whole number from 0 to"),
        ("PATCH", "/v1/services/web/servers/SERVER", {"weight": True}, 400, "weight: expected"),
        ("PATCH", "/v1/services/web/servers/SERVER", {"wieght": 1}, 400, "'wieght' (did you mean 'weight'?)"),
        ("PATCH", "/v1/services/web/servers/SERVER", {}, 400, "nothing to change"),
        ("PATCH", "/v1/services/web/servers/SERVER", [], 400, "the body must be a JSON object"),
        ("POST", "/v1/services/web/policy", {"name": "nosuch"}, 409, "unknown policy 'nosuch'"),
        ("POST", "/v1/services/web/policy", {}, 409, "nothing to change: without a name"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_words(running, method, path, body, status, says):
    path = path.replace("SERVER", running.service["servers"][0]["name"])
    got, answer = running.request(method, path, body)
    assert (got, says in answer["error"]) == (status, True), answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /v1/status HTTP/1.1\nHost: evil.example", 403),
        ("GET /v1/status HTTP/1.1\nHost: 127.0.0.1.evil.example:9900", 403),
        ("GET /v1/status HTTP/1.0", 403),
        ("GET /v1/health HTTP/1.1\nHost: localhost:1\nConnection: close", 200),
        ("POST /v1/reload HTTP/1.1\nHost: localhost\nContent-Length: 2", 415),
        ("POST /v1/reload HTTP/1.1\nHost: localhost\nContent-Type: text/plain\nContent-Length: 2", 415),
        (
            "POST /v1/reload HTTP/1.1\nHost: localhost\nOrigin: http://evil.example\nContent-Type: application/json"
            "\nContent-Length: 2",
            403,
        ),
        (
            "POST /v1/reload HTTP/1.1\nHost: localhost\nSec-Fetch-Site: cross-site\nContent-Type: application/json"
            "\nContent-Length: 2",
            403,
        ),
    ],
)
def test_other_peoples_web_pages_can_do_nothing(running, head, status):
    assert raw(running, head, b"{}" if head.startswith("POST") else b"")[0] == status


def test_a_body_that_is_too_long_is_refused_unread(running):
    head = "POST /v1/reload HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 99999999"
    assert raw(running, head, b"{" * 100_000)[0] == 413


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 1000, b"GET " + b"a" * 100_000, b"{}\n\n", b"set server b/s state drain\n"]
)
def test_garbage_is_answered_or_closed_and_hurts_nobody(running, garbage):
    sock = socket.create_connection(("127.0.0.1", running.admin_port), timeout=10)
    with sock, contextlib.suppress(ConnectionError):
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)
    assert running.get("health")["ok"]


def test_deeply_nested_json_is_an_error_not_a_crash(running):
    body = b"[" * 30_000
    head = (
        "POST /v1/services/web/policy HTTP/1.1\nHost: localhost\nConnection: close\nContent-Type: application/json"
        f"\nContent-Length: {len(body)}"
    )
    assert raw(running, head, body)[0] == 400


def test_hundreds_of_idle_clients_lock_nobody_out(running):
    """Row 35: 200 connections that say nothing, then more than are allowed at all; traffic and API go on."""
    with contextlib.ExitStack() as stack, Load(running.port, connections=4) as load:
        for count in (200, 400):
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.admin_port), timeout=10))
            began = time.monotonic()
            assert running.get("health")["ok"]
            assert time.monotonic() - began < 2
            load.run_for(100)
    load.assert_nothing_lost()


def test_every_change_leaves_a_line_in_the_log(running):
    """Row 37: who, what, and how it went; control characters cannot forge a line."""
    name = running.service["servers"][0]["name"]
    running.change("PATCH", f"services/web/servers/{name}", {"weight": 7})
    running.request("PATCH", "/v1/services/web/servers/x%0Aforged", {"weight": 7})
    wait_until(lambda: "forged" in running.log())
    lines = [line for line in running.log().splitlines() if "PATCH" in line and name in line]
    assert re.search(
        rf"PATCH /v1/services/web/servers/{re.escape(name)} by 127\.0\.0\.1: 200 .*\"weight\": 7", lines[-1]
    )
    assert not any(line.startswith("forged") for line in running.log().splitlines())
    running.change("PATCH", f"services/web/servers/{name}", {"weight": 1})


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        return sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_unix_socket_is_its_owners_alone_and_needs_no_host(tmp_path):
    path = tmp_path / "admin.sock"
    with Farm.of_speeds([1]) as farm:
        running = Running(tmp_path, farm.addresses)
        document = json.loads(running.file.read_text())
        document["admin"]["listen"] = f"unix:{path}"
        running.file.write_text(json.dumps(document))
        running.is_healthy = lambda: path.exists() and answers(path)  # type: ignore[method-assign]
        with running:
            assert path.stat().st_mode & 0o777 == 0o600
            assert answers(path)
        assert not path.exists()


def test_an_admin_port_that_is_taken_is_a_clear_error(tmp_path):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        running = Running(tmp_path, ["127.0.0.1:1"])
        running.file.write_text(running.file.read_text().replace(str(running.admin_port), str(port)))
        command = [sys.executable, "-m", "controlplane.cli", "run", str(running.file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: another process listens there already" in done.stderr
    assert running.segments() == []


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:9900", True),
        ("[::1]:9900", True),
        ("localhost", True),
        ("LOCALHOST.:9900", True),
        ("app.localhost:80", True),
        ("10.1.2.3:9900", True),
        ("mine:9900", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_a_host_is_ours_when_no_foreign_name_server_could_have_made_it_up(host, local):
    assert is_local_name(host, frozenset({"mine"})) is local
