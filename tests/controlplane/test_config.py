"""The configuration file: what it comes to, and what each mistake is called."""

import json
import os
import re
import resource
from pathlib import Path

import pytest
from pydantic import ValidationError

from controlplane import config_checks
from controlplane.config import ADMIN_DEFAULT, Config, ConfigError, from_arguments, load
from controlplane.config_checks import descriptors_needed
from tests.controlplane.config_text import problems, read, resolve, service

# Those that configure a balancer; examples/auction.yaml is a scenario.
EXAMPLES = [e for e in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")) if "service:" in e.read_text()]


def test_the_file_of_the_design_is_read_as_written(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
service:
  web:
    listen: 127.0.0.1:8080          # unix:/path too
    engine: socket
    mode: http
    workers: 1
    policy: adaptive
    fallback: lsq
    servers: [127.0.0.1:9001, {address: 127.0.0.1:9002, name: big, weight: 20, maxconn: 64, backup: false}]
    health: {path: /health, inter: 2s, fall: 3, rise: 2}
    reserve: off
    balancers: 1
    outlier: {consecutive_5xx: 5, base_ejection_time: 30s, max_ejection_percent: 10}
    slowstart: 20s
    timeout: {http-request: 5s, http-keep-alive: 60s, connect: 1s, client: 30s, server: 30s, queue: 10s, tunnel: 1h}
admin:
  listen: 127.0.0.1:9900
""",
    )
    web = config.service["web"]
    assert [(s.name, str(s.address), s.weight, s.maxconn) for s in web.servers] == [
        ("127.0.0.1:9001", "127.0.0.1:9001", 1, 0),
        ("big", "127.0.0.1:9002", 20, 64),
    ]
    assert web.listen[0].sockaddr == ("127.0.0.1", 8080)
    assert web.health is not None
    assert (web.health.type, web.health.path, web.health.inter, web.health.timeout) == ("http", "/health", 2.0, 1.0)
    assert web.outlier is not None
    assert (web.outlier.interval, web.outlier.max_ejection_time) == (10.0, 300.0)
    assert (web.slowstart, web.timeout.http_keep_alive, web.timeout.tunnel) == (20.0, 60.0, 3600.0)
    assert config.admin.listen is not None
    assert str(config.admin.listen) == "127.0.0.1:9900"


def test_two_lines_are_enough_and_the_rest_is_filled_in(tmp_path: Path) -> None:
    web = read(tmp_path, service()).service["web"]
    assert (web.mode, web.policy.name, web.fallback, web.objective) == ("http", "adaptive", "lsq", "mean")
    assert (web.interval, web.stale_after, web.retries, web.retry_budget) == (0.2, 3.0, 3, 20)
    assert web.health is not None
    assert web.health.type == "tcp"
    assert web.outlier is not None
    assert 0 < web.maxconn <= config_checks.MAXCONN_DEFAULT


def test_a_configuration_does_not_change_once_read(tmp_path: Path) -> None:
    config = read(tmp_path, service())
    with pytest.raises(ValidationError, match="frozen"):
        config.service["web"].workers = 2


@pytest.mark.parametrize("example", EXAMPLES, ids=[e.name for e in EXAMPLES])
def test_each_example_reads_and_its_effective_form_reads_the_same(example: Path, tmp_path: Path) -> None:
    from controlplane.commands.check import as_yaml

    config = load(example, resolve=resolve)
    again = read(tmp_path, as_yaml(config.as_tree()))
    assert again == config


def test_the_full_example_has_every_key_there_is() -> None:
    text = next(e for e in EXAMPLES if e.name == "full.yaml").read_text()
    assert keys_of(Config) <= set(re.findall(r"[\w-]+(?=:(?:\s|$))", text, re.MULTILINE))


def keys_of(model: type) -> set[str]:
    """Return every key that a model and those within it have."""
    found = set()
    for key, field in config_checks._fields(model).items():
        if key != "options":  # the policy's own
            found.add(key)
        for inner in config_checks._models_in(field.annotation):
            found |= keys_of(inner)
    return found


# --- values that stand for others ---


def test_off_means_off(tmp_path: Path) -> None:
    for word in ("off", "false"):
        text = service(f"health: {word}", f"outlier: {word}", f"reserve: {word}", f"log: {{access: {word}}}")
        config = read(tmp_path, text + f"admin: {{listen: {word}}}\n")
        web = config.service["web"]
        assert (web.health, web.outlier, web.reserve, web.log.access) == (None, None, "off", "off")
        assert config.admin.listen is None


def test_the_names_that_haproxy_users_know_are_understood(tmp_path: Path) -> None:
    for theirs, ours in {"roundrobin": "wrr", "leastconn": "lsq", "random": "p2c"}.items():
        web = read(tmp_path, service(f"policy: {theirs}", f"fallback: {theirs}")).service["web"]
        assert (web.policy.name, web.fallback) == (ours, ours)


def test_a_policys_own_options_stand_beside_its_name(tmp_path: Path) -> None:
    policy = read(tmp_path, service("policy: {name: gsed, c: 0.3, mode: shadow, enforcing: 40}")).service["web"].policy
    assert policy.spec() == {"name": "gsed", "mode": "shadow", "enforcing": 40, "c": 0.3}


def test_no_workers_means_one_per_core(tmp_path: Path) -> None:
    assert read(tmp_path, service("workers: 0")).service["web"].workers == min(len(os.sched_getaffinity(0)), 64)


def test_a_health_check_with_a_path_is_http(tmp_path: Path) -> None:
    cases = {
        "{path: /up}": ("http", "/up"),
        "{type: http}": ("http", "/"),
        "{status: 200}": ("http", "/"),
        "{inter: 5s}": ("tcp", ""),
    }
    for text, expected in cases.items():
        health = read(tmp_path, service(f"health: {text}")).service["web"].health
        assert health is not None
        assert (health.type, health.path) == expected


def test_a_health_checks_timeout_is_its_interval_but_a_second_at_most(tmp_path: Path) -> None:
    for text, seconds in {"{inter: 200ms}": 0.2, "{inter: 10s}": 1.0, "{inter: 1s, timeout: 3s}": 3.0}.items():
        health = read(tmp_path, service(f"health: {text}")).service["web"].health
        assert health is not None
        assert health.timeout == seconds


def test_host_names_are_resolved_when_the_file_is_read(tmp_path: Path) -> None:
    text = service().replace("[127.0.0.1:9001]", "[app.example:80, db.example:80]")
    servers = read(tmp_path, text).service["web"].servers
    assert [s.address.sockaddr[0] for s in servers] == ["192.0.2.1", "2001:db8::1"]
    assert [s.name for s in servers] == ["app.example:80", "db.example:80"]


def test_the_instance_is_the_same_at_every_start_of_a_file_and_another_for_another(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    first, again = read(tmp_path / "a", service()).instance, read(tmp_path / "a", service("workers: 2")).instance
    assert first == again
    assert first.startswith("web-")
    assert first != read(tmp_path / "b", service()).instance
    assert read(tmp_path, service() + "instance: edge-1\n").instance == "edge-1"


def test_without_a_file_arguments_make_the_same_configuration(tmp_path: Path) -> None:
    config = from_arguments(listen=["127.0.0.1:8080"], servers=["127.0.0.1:9001"], mode=None, resolve=resolve)
    assert config.service == read(tmp_path, service()).service
    assert str(config.admin.listen) == ADMIN_DEFAULT
    assert re.fullmatch(r"cli-[0-9a-f]{6}", config.instance)


# --- mistakes: each is named in one line, where it stands ---

SERVERS = "servers: [127.0.0.1:9001]"
MISTAKES = [
    # lines from line 5 on; the one complaint: place, key within service.web, what
    (["wieght: 3"], "5:5: wieght: unknown key (did you mean 'weight'?), a key of servers"),
    (["polcy: sed"], "5:5: polcy: unknown key (did you mean 'policy'?)"),
    (["xyzzy: 1"], "5:5: xyzzy: unknown key"),
    (["mode: htpp"], "5:5: mode: expected 'http' or 'tcp', not 'htpp' (did you mean 'http'?)"),
    (["mode: [tcp]"], "5:5: mode: expected 'http' or 'tcp', not a list"),
    (["engine: packet"], "5:5: engine: 'packet' is not in this release: the engine is 'socket'"),
    (
        ["reserve: lerned"],
        "5:5: reserve: expected 'auto', 'off', 'classic' or 'learned', not 'lerned' (did you mean 'learned'?)",
    ),
    (["workers: two"], "5:5: workers: expected a whole number, not 'two'"),
    (["workers: 1.5"], "5:5: workers: expected a whole number, not 1.5"),
    (["workers: true"], "5:5: workers: expected a whole number, not true"),
    (["workers: 65"], "5:5: workers: expected at most 64, not 65"),
    (["workers: -1"], "5:5: workers: expected at least 0, not -1"),
    (["workers:"], "5:5: workers: no value: give one, or leave the key out for its default"),
    (["interval: 5ms"], "5:5: interval: expected at least 10ms, not 5ms"),
    (["interval: 200"], "5:5: interval: expected a duration with its unit, like 200ms, 5s, 1m or 1h: 200 has"),
    (["slowstart: soon"], "5:5: slowstart: expected a duration with its unit, like 200ms, 5s, 1m or 1h, not 'so"),
    (["stale_after: 300ms"], "5:5: stale_after: expected at least twice the interval (400ms)"),
    (["timeout: {conect: 1s}"], "5:15: timeout.conect: unknown key (did you mean 'connect'?)"),
    (["timeout: {http_request: 1s}"], "5:15: timeout.http_request: unknown key (did you mean 'http-request'?)"),
    (["timeout: 5s"], "5:5: timeout: expected a mapping, not '5s'"),
    (["timeout: {connect: 0s}"], "5:15: timeout.connect: expected at least 1ms, not 0s"),
    (["policy: adaptve"], "5:5: policy.name: no policy is called 'adaptve' (did you mean 'adaptive'?)"),
    (["policy: {name: gsed, mod: shadow}"], "5:26: policy.mod: unknown option of policy 'gsed' (did you mean 'mode'?)"),
    (["policy: {name: lsq, enforcing: 101}"], "5:25: policy.enforcing: expected at most 100, not 101"),
    (["fallback: adaptive"], "5:5: fallback: expected a rule that needs no controller: "),
    (["health: {path: up}"], "5:14: health.path: expected a path that begins with '/', "),
    (
        ["health: {type: tcp, path: /up}"],
        "5:5: health: a check of type 'tcp' has neither path",
    ),
    (["health: {status: 600}"], "5:14: health.status: expected statuses like 200, 200-399 or 200,204"),
    (["outlier: {max_ejection_percent: 110}"], "5:15: outlier.max_ejection_percent: expected at most 100"),
    (
        ["forwarded: {trust: [10.0.0.1/8]}"],
        "5:25: forwarded.trust[0]: '10.0.0.1/8' has host bits set (did you",
    ),
    (["forwarded: {trust: [all]}"], "5:25: forwarded.trust[0]: expected a network, like "),
    (
        ["mode: tcp", "forwarded: {trust: [10.0.0.0/8]}"],
        "6:5: forwarded: mode 'tcp' does not read HTTP heads",
    ),
    (["log: {format: text}"], "5:11: log.format: expected 'json' or 'combined', not 'text'"),
    (["log: {access: ''}"], "5:11: log.access: expected 'off', 'stdout' or the path of a file, not ''"),
    (["mode: http", "mode: tcp"], "6:5: mode: duplicate key, first given in line 5"),
    (["policy: !python/object:os.system x"], "5:5: policy: the tag '!python/object:os.system' is not"),
]


def whole(complaint: str) -> str:
    """Return a complaint of the tables as it is printed."""
    place, _, rest = complaint.partition(": ")
    return f"web.yaml:{place}: service.web.{rest}"


@pytest.mark.parametrize(("lines", "complaint"), MISTAKES, ids=[m[0][0] for m in MISTAKES])
def test_a_mistake_is_named_where_it_stands(lines: list[str], complaint: str, tmp_path: Path) -> None:
    found = problems(tmp_path, service(*lines))
    assert len(found) == 1
    assert found[0].startswith(whole(complaint))


SERVER_MISTAKES = [
    # servers, in line 4; the first complaint
    ("[127.0.0.1]", "4:15: servers[0].address: expected the address of a server, like 127.0.0.1:9001"),
    ("[':9001']", "4:15: servers[0].address: a server needs a host"),
    ("['h:0']", "4:15: servers[0].address: a server needs a port from 1 to 65535, not 'h:0'"),
    ("['h:65536']", "4:15: servers[0].address: expected a port of at most 65535, not 65536"),
    (
        "['::1:80']",
        "4:15: servers[0].address: an IPv6 address stands in brackets, like [::1]:80, not '::1:80'",
    ),
    ("['http://h:80']", "4:15: servers[0].address: expected the address of a server, like "),
    (
        "[no.such:80]",
        "4:15: servers[0].address: cannot resolve host name 'no.such': Name or service not known",
    ),
    ("[256.1.1.1:80]", "4:15: servers[0].address: expected the address of a server, like "),
    ("['unix:app.sock']", "4:15: servers[0].address: expected unix: and an absolute path"),
    ("[17]", "4:15: servers[0]: expected a mapping, not 17"),
    ("[]", "4:5: servers: expected at least 1 of them, not 0"),
    ("127.0.0.1:9001", "4:5: servers: expected a list, not '127.0.0.1:9001'"),
    ("[{name: a}]", "4:15: servers[0].address: this key is missing"),
    ("[{address: 1.2.3.4:5, weight: 257}]", "4:36: servers[0].weight: expected at most 256, not 257"),
    ("[{address: 1.2.3.4:5, wieght: 2}]", "4:36: servers[0].wieght: unknown key (did you mean 'weight'?)"),
    ("[{address: 1.2.3.4:5, backup: yes}]", "4:36: servers[0].backup: expected true or false, not 'yes'"),
    (
        "[{address: 1.2.3.4:5, state: down}]",
        "4:36: servers[0].state: expected 'ready', 'drain' or 'maint'",
    ),
    ("[{address: 1.2.3.4:5, name: a/b}]", "4:36: servers[0].name: expected a name of letters, digits, "),
    ("[{address: 1.2.3.4:5, backup: true}]", "4:5: servers: every server is a backup: "),
    ("[{address: 1.2.3.4:5, weight: 0}]", "4:5: servers: every weight is 0: no server would get a flow"),
    (
        "[1.2.3.4:5, 1.2.3.4:5]",
        "4:26: servers[1]: a second server called '1.2.3.4:5': servers[0] has that name",
    ),
    (
        "[1.2.3.4:5, {address: 1.2.3.4:5, name: b}]",
        "4:26: servers[1]: a second server at 1.2.3.4:5: servers[0]",
    ),
    ("[127.0.0.1:8080]", "4:15: servers[0]: 127.0.0.1:8080 is where this service itself listens"),
]


@pytest.mark.parametrize(("servers", "complaint"), SERVER_MISTAKES, ids=[m[0] for m in SERVER_MISTAKES])
def test_a_mistake_in_the_servers_is_named_where_it_stands(servers: str, complaint: str, tmp_path: Path) -> None:
    found = problems(tmp_path, service().replace("[127.0.0.1:9001]", servers))
    assert found[0].startswith(whole(complaint))


def test_two_that_listen_in_one_place_are_named(tmp_path: Path) -> None:
    text = """
service:
  a: {listen: ["127.0.0.1:80", "unix:/run/a.sock"], servers: [192.0.2.1:80]}
  b: {listen: ":80", servers: [192.0.2.1:80]}
  c: {listen: unix:/run/a.sock, servers: [192.0.2.1:80]}
admin: {listen: "127.0.0.1:80"}
"""
    assert problems(tmp_path, text) == [
        "web.yaml:4:7: service.b.listen: :80 is already listened on by service.a.listen.0 (127.0.0.1:80)",
        "web.yaml:5:7: service.c.listen: unix:/run/a.sock is already listened on by service.a.listen.1",
        "web.yaml:6:9: admin.listen: 127.0.0.1:80 is already listened on by service.a.listen.0",
    ]


def test_the_kernels_choice_of_port_clashes_with_nothing(tmp_path: Path) -> None:
    text = 'service: {a: {listen: ["127.0.0.1:0", "127.0.0.1:0"], servers: [192.0.2.1:80]}}\n'
    assert problems(tmp_path, text) == []


def test_all_that_is_wrong_is_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
servise: 1
service:
  web:
    listen: [127.0.0.1:8080, foo]
    mode: htp
    servers: [127.0.0.1:9001, {address: 127.0.0.1:9001, weight: 300}]
    timeout: {connect: 1}
    mode: tcp
  a.b: {listen: ":1", servers: [192.0.2.1:1]}
"""
    found = problems(tmp_path, text)
    places = [tuple(map(int, line.split(":")[1:3])) for line in found]
    assert places == sorted(places)
    assert [line.split(": ")[1] for line in found] == [
        "servise", "service.web.listen[1]", "service.web.mode", "service.web.servers[1].weight",
        "service.web.timeout.connect", "service.web.mode", "service.a.b",
    ]  # fmt: skip


def test_a_bad_key_does_not_hide_a_clash_elsewhere(tmp_path: Path) -> None:
    found = problems(tmp_path, service("worker: 1").replace("[127.0.0.1:9001]", "[1.2.3.4:5, 1.2.3.4:5]"))
    assert [line.split(": ")[1] for line in found] == ["service.web.servers[1]", "service.web.worker"]


def test_a_key_that_is_needed_and_misspelt_is_one_mistake(tmp_path: Path) -> None:
    assert problems(tmp_path, service().replace("servers:", "serverz:")) == [
        "web.yaml:4:5: service.web.serverz: unknown key (did you mean 'servers'?)"
    ]


def test_strict_wants_every_timeout_spelled_out(tmp_path: Path) -> None:
    text = service("timeout: {connect: 1s, client: 1s, server: 1s, queue: 1s, tunnel: 1h, http-request: 1s}")
    assert problems(tmp_path, text) == []
    assert problems(tmp_path, text, strict=True) == [
        "web.yaml:5:5: service.web.timeout.http-keep-alive: not given, and --strict wants every timeout spelled out"
    ]
    assert problems(tmp_path, text.replace("{", "{http-keep-alive: 1m, "), strict=True) == []
    assert len(problems(tmp_path, service(), strict=True)) == 7


# --- limits ---


def test_more_servers_than_a_segment_holds_are_refused(tmp_path: Path) -> None:
    addresses = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:80" for i in range(4097)]
    text = service().replace("[127.0.0.1:9001]", "[" + ", ".join(addresses) + "]")
    assert problems(tmp_path, text) == ["web.yaml:4:5: service.web.servers: expected at most 4096 of them, not 4097"]


def test_each_address_has_its_own_threads_and_all_must_fit(tmp_path: Path) -> None:
    text = service("workers: 33").replace("127.0.0.1:8080", '[":1", ":2"]')
    assert problems(tmp_path, text) == [
        "web.yaml:5:5: service.web.workers: 33 workers for each of 2 addresses are 66 threads: expected at most 64"
    ]


def test_connections_that_the_limit_on_open_files_cannot_serve_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1000))
    found = problems(tmp_path, service("maxconn: 500"))
    assert len(found) == 1
    assert re.fullmatch(
        r"web\.yaml:5:5: service\.web\.maxconn: needs about 1\d\d\d descriptors, two for each connection, "
        r"and the limit on open files is 1000 \(raise `ulimit -n`, or lower maxconn\)",
        found[0],
    )
    config = read(tmp_path, service())
    web = config.service["web"]
    assert web.maxconn > 400
    assert descriptors_needed(web, web.maxconn) + config_checks.DESCRIPTORS_RESERVED <= 1000


def test_a_limit_too_low_for_anything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    assert "the limit on open files is 64" in problems(tmp_path, service())[0]


def test_without_a_limit_on_open_files_the_default_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    assert read(tmp_path, service()).service["web"].maxconn == config_checks.MAXCONN_DEFAULT


def test_a_problem_without_a_file_names_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        from_arguments(listen=["127.0.0.1:8080"], servers=["nowhere"], resolve=resolve)
    assert str(caught.value).startswith(
        "command line: service.web.servers[0].address: expected the address of a server"
    )


CLASSES = (
    "sla: {header: X-SLA, trust: any, default: bronze, routes: [{prefix: /a, class: gold, load: 2}, {prefix: /b}]}"
)


def test_classes_and_routes_are_read_and_written_back(tmp_path: Path) -> None:
    text = service(CLASSES, "reserve: learned", "servers: [{address: 127.0.0.1:9001, capacity: 12, coalition: left}]")
    config = read(tmp_path, text.replace("    servers: [127.0.0.1:9001]\n", ""))
    web = config.service["web"]
    assert (web.reserve, web.sla.header, web.sla.trust, web.sla.default) == ("learned", "X-SLA", "any", "bronze")
    assert [(r.prefix, r.sla_class, r.load) for r in web.sla.routes] == [("/a", "gold", 2), ("/b", None, 0)]
    assert (web.servers[0].capacity, web.servers[0].coalition) == (12, "left")
    again = tmp_path / "again.json"
    again.write_text(json.dumps(config.as_tree()))
    assert load(again, resolve=resolve) == config


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["sla: {header: X SLA}"], "5:11: sla.header: expected the name of a header, like X-SLA"),
        (["sla: {header: X-SLA}"], "5:11: sla.header: 'X-SLA' is believed of the networks in forwarded.trust only"),
        (["sla: {defult: gold}"], "5:11: sla.defult: unknown key (did you mean 'default'?)"),
        (["sla: {default: goldd}"], "did you mean 'gold'?"),
        (["sla: {routes: [{prefix: api}]}"], "5:21: sla.routes[0].prefix: expected the begin of a path, like /api/"),
        (["sla: {routes: [{prefix: /a, load: -1}]}"], "sla.routes[0].load: expected at least 0"),
        (["sla: {routes: [{prefix: /a}, {prefix: /a}]}"], "sla.routes[1].prefix: routes[0] has this prefix already"),
        (["mode: tcp", "reserve: learned"], "6:5: reserve: mode 'tcp' holds no connection back"),
        (["mode: tcp", "sla: {routes: [{prefix: /a}]}"], "sla.routes: mode 'tcp' does not read HTTP heads"),
    ],
)
def test_what_is_wrong_with_a_class_is_said(tmp_path: Path, lines: list[str], said: str) -> None:
    (found,) = problems(tmp_path, service(*lines))
    assert said in found.replace("service.web.", "")
