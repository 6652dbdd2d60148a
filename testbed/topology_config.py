"""A configuration for `vickrey run` over the servers of a topology: it tells their addresses, and no more."""

from __future__ import annotations

from typing import Any

from testbed.topology_state import State

PORT, ADMIN_PORT = 8080, 9900  # of the first balancer; the others follow


def tree(state: State, balancer: int = 1) -> dict[str, Any]:
    """Return the configuration of the balancer of this number, from 1, as a tree."""
    service: dict[str, Any] = {"listen": f"127.0.0.1:{PORT + balancer - 1}"}
    if state.balancers > 1:
        service["balancers"] = state.balancers
    service["servers"] = [{"address": server.address, "name": server.name} for server in state.servers]
    name = state.name if state.balancers == 1 else f"{state.name}-{balancer}"
    return {
        "instance": name,
        "service": {"web": service},
        "admin": {"listen": f"127.0.0.1:{ADMIN_PORT + balancer - 1}"},
    }


def configuration(state: State, balancer: int = 1) -> str:
    """Return the same as YAML."""
    wanted = tree(state, balancer)
    service = wanted["service"]["web"]
    which = f", balancer {balancer} of {state.balancers}" if state.balancers > 1 else ""
    lines = [
        f"# {state.title or state.name}{which}",
        f"instance: {wanted['instance']}",
        "service:",
        "  web:",
        f"    listen: {service['listen']}",
    ]
    if "balancers" in service:
        lines.append(f"    balancers: {service['balancers']}")
    lines.append("    servers:")
    lines += [f"      - {{address: '{row['address']}', name: {row['name']}}}" for row in service["servers"]]
    lines += ["admin:", f"  listen: {wanted['admin']['listen']}"]
    return "\n".join([*lines, ""])
