"""What the data plane is told, read back from a segment; and what a reload may not change."""

import ipaddress
import os

import pytest

from controlplane import settings
from controlplane.config import Config, from_arguments
from controlplane.servers import ServerTable
from shm_layout.payload import unpack_address
from shm_layout.segment import Segment, segment_name


def config(**service: object) -> Config:
    keys: dict[str, object] = {"listen": ["127.0.0.1:8080"], "servers": ["127.0.0.1:9001", "127.0.0.1:9002"]} | service
    return from_arguments(**keys)  # type: ignore[arg-type]


def test_classes_routes_and_coalitions_arrive_as_they_were_meant():
    routes = ({"prefix": "/api", "class": "gold", "load": 2.5}, {"prefix": "/b"})
    service = config(
        servers=[
            {"address": "127.0.0.1:9001", "capacity": 12.5, "coalition": "left"},
            {"address": "127.0.0.1:9002", "coalition": "left"},
            {"address": "127.0.0.1:9003", "coalition": 3},
            "127.0.0.1:9004",
        ],
        sla={"header": "X-SLA", "trust": "any", "default": "bronze", "routes": routes},
    ).service["web"]
    table = ServerTable(settings.segment_limits(service).max_servers)
    table.configure(service.servers)
    data = settings.settings_of(service, table, 1)
    assert [(r.prefix, r.sla, r.load) for r in data.routes] == [("/api", "gold", 2.5), ("/b", "bronze", 0)]
    assert (data.sla_default, data.sla_header, data.sla_any_client) == ("bronze", "x-sla", True)
    left, again, three, none = (server.coalition for server in data.servers)
    assert left == again >= 1 << 31
    assert (three, none) == (3, 0)
    assert [server.capacity for server in data.servers] == [12.5, 0, 0, 0]


def test_settings_arrive_as_they_were_meant():
    service = config(
        servers=[
            {"address": "127.0.0.1:9001", "name": "big", "weight": 20, "maxconn": 7, "backup": True},
            "[::1]:9002",
            "unix:/run/app.sock",
        ],
        fallback="p2c",
        stale_after="1500ms",
        retries=2,
        queue=5,
        slowstart="20s",
        timeout={"connect": "250ms", "tunnel": "2h"},
        forwarded={"trust": ("10.0.0.0/8",)},
        log={"access": "stdout"},
    ).service["web"]
    table = ServerTable(settings.segment_limits(service).max_servers)
    table.configure(service.servers)
    big = table.slots[0]
    assert big is not None
    big.state, big.up = "drain", False
    table.begin_slowstart(big, 20.0)
    name = segment_name(f"test-{os.getpid()}", "settings")
    with Segment.create(name, settings.segment_limits(service), "web") as segment:
        try:
            segment.publish_settings(settings.settings_of(service, table, 3))
            view = segment.read_settings()
        finally:
            segment.unlink()
    head, servers = view.head, view.servers
    assert (head["version"], head["n_slots"], head["accepting"], head["log_targets"]) == (3, 3, 1, 1)
    assert (head["fallback_rule"], head["fallback_choices"]) == (3, 2)
    assert (head["retries"], head["queue_slots"], head["stale_after_ns"]) == (2, 5, 1_500_000_000)
    assert (head["timeout_connect_ns"], head["timeout_tunnel_ns"]) == (250_000_000, 7200 * 10**9)
    assert bytes(head["trusted"][0]["address"])[12:] == ipaddress.ip_address("10.0.0.0").packed
    assert (servers[0]["weight"], servers[0]["maxconn"], servers[0]["backup"]) == (20, 7, 1)
    assert (servers[0]["state"], servers[0]["health"], servers[0]["slowstart_ns"]) == (2, 1, 20 * 10**9)
    assert servers[1]["slowstart_begin_ns"] == 0
    addresses = [unpack_address(bytes(s["address"])[: s["address_bytes"]]) for s in servers]
    assert addresses == [("127.0.0.1", 9001), ("::1", 9002), ("/run/app.sock", 0)]


@pytest.mark.parametrize(("servers", "slots"), [(1, 64), (32, 64), (33, 128), (1000, 2048), (3000, 4096), (4096, 4096)])
def test_a_segment_has_room_to_grow(servers, slots):
    service = config().service["web"].model_copy(update={"servers": config().service["web"].servers[:1] * servers})
    assert settings.segment_limits(service).max_servers == slots


def test_each_address_has_its_own_workers():
    service = config(listen=["127.0.0.1:8080", "127.0.0.1:8081"], workers=3).service["web"]
    assert settings.threads(service) == settings.segment_limits(service).max_workers == 6


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"weight": 1}, []),
        ({"retries": 3, "maxconn": 99, "policy": "sed", "servers": ["127.0.0.1:9009"], "interval": "1s"}, []),
        ({"workers": 2}, ["workers"]),
        ({"mode": "tcp", "io": "epoll"}, ["io", "mode"]),
        ({"listen": ["127.0.0.1:8081"]}, ["listen"]),
    ],
)
def test_only_sockets_threads_and_mode_need_a_restart(change, refused):
    change = dict(change)
    change.pop("weight", None)
    old = config(maxconn=10)
    new = config(**{"maxconn": 10, **change}).model_copy(update={"instance": old.instance})
    assert [path[-1] for path, _ in settings.refusals(old, new)] == refused


def test_services_cannot_come_or_go_without_a_restart():
    old, new = config(), config()
    new = new.model_copy(update={"instance": old.instance, "service": {"other": new.service["web"]}})
    assert [path for path, _ in settings.refusals(old, new)] == [("service", "other"), ("service", "web")]
