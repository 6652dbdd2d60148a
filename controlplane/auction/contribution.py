"""What each server of a running service contributes: the view behind `vickrey server contribution`.

Input     μ, k and arrivals of each server as the policy in force fitted them, from the admin API's document of it
Games     spare capacity, pooled M/M/1, the cost of serving all the load (controlplane/auction/games.py)
Draining  in order of the third game's values, as long as those who remain carry the load; beside it what it would
          cost if the server left alone, which need not be in the same order
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from controlplane.auction.coalitions import drain_order, shares
from controlplane.auction.games import PooledMM1, ServingCost, SpareCapacity
from controlplane.auction.shapley import EXACT_MAX, Floats, Values, values

NEEDED = ("mu", "k", "arrivals")
# Coalitions that are sampled where there are more servers than are exact.
SAMPLES = 20_000
# Numbers handed to a game at a time.
CELLS = 1 << 20


class NotFittedError(Exception):
    """Nothing can be said, or not yet; the text says why."""


def contribution(shown: dict[str, Any]) -> dict[str, Any]:
    """Return what each server that takes flows contributes, as JSON takes it. shown: the admin API's policy document.

    Of each server: capacity (kμ), arrivals and spare, flows a second; in each game its Shapley value, the half width
    of its 95 % interval (0: exact) and its share; `alone_out`, flows in flight more if it left; `drain`, its place in
    the drain order, 1 first. Raises NotFittedError.
    """
    active = _fitted_servers(shown)
    mu, k, arrivals = (np.array([float(server[name]) for server in active]) for name in NEEDED)
    k = np.maximum(k, 1.0)
    capacity, load, n = k * mu, float(arrivals.sum()), len(active)
    serving = ServingCost(mu, k, load)
    spare = np.maximum(capacity - arrivals, 0.0)
    found = {
        # Beyond what is exact there is no need to sample: the game is additive.
        "spare": values(SpareCapacity(spare), n) if n <= EXACT_MAX else Values(spare, np.zeros(n), True),
        "pooled": values(PooledMM1(capacity, arrivals), n, np.random.default_rng(0), SAMPLES),
        "serving": values(serving, n, np.random.default_rng(0), SAMPLES),
    }
    share = {game: shares(result.phi) for game, result in found.items()}
    plan = drain_order(found["serving"].phi, capacity, load)
    place = {row: position for position, row in enumerate(plan.order, start=1)}
    alone_out = _cost_of_leaving(serving, n)
    servers = [
        {
            "name": server["name"],
            "capacity": float(capacity[row]),
            "arrivals": float(arrivals[row]),
            "spare": float(spare[row]),
            "games": {
                game: {
                    "shapley": float(result.phi[row]),
                    "error": float(result.error[row]),
                    "share": float(share[game][row]),
                }
                for game, result in found.items()
            },
            "alone_out": float(alone_out[row]),
            "drain": place[row],
        }
        for row, server in enumerate(active)
    ]
    return {
        "policy": shown["policy"],
        "arrivals": load,
        "capacity": float(capacity.sum()),
        "exact": all(result.exact for result in found.values()),
        "servers": servers,
        "drain": [
            {
                "name": active[row]["name"],
                "can_be_spared": step < plan.spared,
                "utilisation_after": used if math.isfinite(used) else None,
            }
            for step, (row, used) in enumerate(zip(plan.order, plan.utilisation, strict=True))
        ],
        "no_flows": [server["name"] for server in shown["servers"] if not server.get("active")],
    }


def _fitted_servers(shown: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the servers that take flows, if something is known of them."""
    policy, everybody = shown.get("policy"), shown.get("servers") or []
    if not everybody:
        raise NotFittedError(f"nothing is fitted yet: policy {policy} has made no decision")
    if not any(name in server for name in NEEDED for server in everybody):
        raise NotFittedError(f"policy {policy} fits no rates and workers: expected adaptive or auction")
    active = [server for server in everybody if server.get("active")]
    if not active:
        raise NotFittedError("no server takes flows: all are drained or down")
    if not any((server.get("samples") or 0) > 0 for server in active):
        raise NotFittedError("nothing is fitted yet: no flow has ended")
    if any(server.get(name) is None for name in NEEDED for server in active):
        raise NotFittedError(f"nothing is fitted yet of some servers: expected {', '.join(NEEDED)} of each")
    if not sum(float(server["arrivals"]) for server in active) > 0:
        raise NotFittedError("nothing arrives: there is no load to contribute to")
    return active


def _cost_of_leaving(game: ServingCost, n: int) -> Floats:
    """Return how many more flows are in flight when one server leaves, (servers,)."""
    costs = np.empty(n)
    rows = max(CELLS // n, 1)
    for at in range(0, n, rows):
        each = np.arange(at, min(at + rows, n))
        inside = np.ones((len(each), n), dtype=np.bool_)
        inside[np.arange(len(each)), each] = False
        costs[each] = game.costs(inside)
    more: Floats = np.maximum(costs - game.costs(np.ones((1, n), dtype=np.bool_)), 0.0)
    return more
