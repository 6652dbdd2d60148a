"""`vickrey status`: the state of a running balancer as tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

DESCRIPTION = """\
Show a running balancer: its services, and for each server its share of the flows, flows in flight, and
flow completion times (FCT, milliseconds)."""

EXAMPLES = """
  vickrey status
  vickrey status --json | jq '.services.web.servers[] | {name, fct_p99_ms}'
  vickrey status --admin unix:/run/vickrey/admin.sock
"""

SERVER_COLUMNS = [
    "SERVER", "ADDRESS", "STATE", "HEALTH", ">WEIGHT", ">LEARNED", ">SHARE", ">IN FLIGHT", ">RPS", ">FLOWS", ">ERRORS",
    ">FCT MEAN", ">P50", ">P90", ">P99",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_admin

    parser.add_argument("--service", help="this service only")
    add_admin(parser)


def run(args: argparse.Namespace) -> int:
    from controlplane.client import Client
    from controlplane.command import CommandError, print_json
    from controlplane.table import print_table

    state = Client(args.admin).status()
    services = state["services"]
    if args.service is not None:
        if args.service not in services:
            raise CommandError(f"no service is called '{args.service}': there are {', '.join(services) or 'none'}")
        state = {**state, "services": {args.service: services[args.service]}}
    if args.json:
        print_json(state)
        return 0
    print(headline(state))
    for name, service in state["services"].items():
        print()
        print_table(*server_table(service), title=service_title(name, service))
    return 0


def headline(state: Mapping[str, Any]) -> str:
    """Return one line for the balancer as a whole."""
    processes = state.get("processes", {})
    parts = (
        [f"{name} {_process(process)}" for name, process in processes.items()] if isinstance(processes, dict) else []
    )
    return f"vickrey {state.get('instance', '?')}, pid {state.get('pid', '?')}" + "".join(f", {part}" for part in parts)


def _process(process: Any) -> str:
    if not isinstance(process, dict):
        return str(process)
    words = ["up" if process.get("up", process.get("pid")) else "down"]
    if process.get("restarts"):
        words.append(f"({process['restarts']} restarts)")
    return " ".join(words)


def service_line(name: str, service: Mapping[str, Any]) -> str:
    """Return one line for a service."""
    from controlplane.table import milliseconds, number

    listen = service.get("listen", "")
    listening = ", ".join(str(one) for one in listen) if isinstance(listen, list) else str(listen)
    policy = service.get("policy", "")
    policy_name = policy.get("name", "?") if isinstance(policy, dict) else str(policy)
    if isinstance(policy, dict):
        if policy.get("switchback"):
            policy_name += " (switchback)"
        elif policy.get("mode") == "shadow":
            policy_name += " (shadow)"
        elif policy.get("enforcing", 100) != 100:
            policy_name += f" ({policy['enforcing']} %)"
    words = [name, str(service.get("mode", "")), listening, f"policy {policy_name}"]
    if service.get("rule"):
        words.append(f"rule {service['rule']}")
    if service.get("fallback_active"):
        words.append("FALLBACK ACTIVE")
    if "rps" in service:
        words.append(f"{number(service['rps'], 1)} rps")
    fct = service.get("fct")
    if isinstance(fct, dict) and fct.get("p50_ms") is not None:
        words.append(f"FCT p50 {milliseconds(fct['p50_ms'])} p99 {milliseconds(fct.get('p99_ms'))} ms")
    return "  ".join(word for word in words if word)


def service_title(name: str, service: Mapping[str, Any]) -> str:
    """Return the lines above a service's table: what it is, and its auction where there is one."""
    lines = (service_line(name, service), deployment_line(service), auction_line(service), waiting_line(service))
    return "\n".join(line for line in lines if line)


def deployment_line(service: Mapping[str, Any]) -> str:
    """Return a line for how the policy comes into force; empty where there is nothing to tell."""
    from controlplane.table import percent

    deployment = service.get("deployment")
    if not isinstance(deployment, dict):
        return ""
    words = []
    if deployment.get("blend") is not None:
        words.append(f"blend {percent(deployment['blend'])} novelty {digits(deployment.get('novelty'))}")
    trial = deployment.get("trial")
    if isinstance(trial, dict):
        words.append(f"beside {trial['incumbent']['name']} agreement {percent(trial.get('agreement_mean'))}")
    switchback = deployment.get("switchback")
    if isinstance(switchback, dict):
        words.append(f"switchback {switchback['state']}, {switchback['pairs']} pairs{_effect(switchback.get('mean'))}")
    adapt = deployment.get("adapt")
    if isinstance(adapt, dict):
        words.append(f"adapting, {adapt['kept']} steps kept, {adapt['dropped']} not")
    return "  ".join(["", *words]) if words else ""


def _effect(effect: Any) -> str:
    if not isinstance(effect, dict) or any(effect.get(key) is None for key in ("change", "low", "high")):
        return ""
    return f", mean {effect['change']:+.1%} ({effect['low']:+.1%} … {effect['high']:+.1%})"


def auction_line(service: Mapping[str, Any]) -> str:
    """Return a line for how bids go; empty where nobody bids."""
    words = []
    if service.get("bid_mean") is not None and service.get("price_mean"):
        words.append(
            f"bid {digits(service['bid_mean'])} price {digits(service['price_mean'])}"
            f" margin {digits(service.get('margin_mean'))}"
        )
    reserve = service.get("reserve")
    if isinstance(reserve, dict) and reserve.get("value") is not None:
        words.append(f"reserve {digits(reserve['value'])} ({reserve.get('mode')})")
    return "  ".join(["", *words]) if words else ""


def waiting_line(service: Mapping[str, Any]) -> str:
    """Return a line for who waits, by class; empty where nobody does or did lately."""
    from controlplane.table import milliseconds, percent

    classes = service.get("classes")
    if not isinstance(classes, dict):
        return ""
    shown = {name: c for name, c in classes.items() if c.get("rps") or c.get("queued")}
    if not service.get("queued") and not any(c.get("waited") for c in shown.values()):
        return ""
    each = (
        f"{name} {c['queued']}, {percent(c['waited'])} waited"
        + (f" {milliseconds(c['wait_mean_ms'])} ms" if c.get("wait_mean_ms") is not None else "")
        for name, c in shown.items()
    )
    return f"  waiting {service.get('queued', 0)}: " + "; ".join(each)


def digits(value: Any) -> str:
    """Return a bid with three digits that matter."""
    from controlplane.table import NOTHING

    return NOTHING if value is None else f"{value:.3g}"


def server_table(service: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a service's servers; bids and prices stand there where servers bid."""
    servers = service.get("servers", [])
    if not any(server.get("bid_mean") for server in servers):
        return SERVER_COLUMNS, server_rows(service)
    rows = [
        [*row, digits(server.get("bid_mean")), digits(server.get("price_mean"))]
        for row, server in zip(server_rows(service), servers, strict=True)
    ]
    return [*SERVER_COLUMNS, ">BID", ">PRICE"], rows


def server_rows(service: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of SERVER_COLUMNS for each server."""
    from controlplane.table import NOTHING, milliseconds, number, percent

    return [
        [
            str(server.get("name", NOTHING)),
            str(server.get("address", NOTHING)),
            str(server.get("state", NOTHING)),
            str(server.get("health", NOTHING)),
            str(server.get("weight", NOTHING)),
            number(server.get("learned_weight"), 3),
            percent(server.get("share")),
            number(server.get("in_flight")),
            number(server.get("rps"), 1),
            number(server.get("flows_total")),
            number(server.get("errors")),
            *(milliseconds(server.get(f"fct_{which}_ms")) for which in ("mean", "p50", "p90", "p99")),
        ]
        for server in service.get("servers", [])
    ]
