"""A round of auctions in plain Python, one server and one task at a time, to compare the compiled one with."""

from dataclasses import dataclass, field

import numpy as np

from controlplane.auction import coalitions
from controlplane.auction import mechanism as m
from controlplane.auction.scenario import Farm
from controlplane.auction.tasks import BRONZE, GOLD


@dataclass
class Rules:
    reserve: float = 0.0
    overload: float = 0.6
    partner_below: float = 0.5
    partners: int = 1
    split: str = "equal"
    sla: bool = True
    deferrals: int = 3


@dataclass
class Result:
    servers: list[int]
    shares: list[float]
    bid: float
    price: float
    completion: float = 0.0
    events: set[str] = field(default_factory=set)


def hold(farm: Farm, load: list[float], sensitivity, task, rules: Rules) -> Result:
    """Auction one task: loads are changed in place."""
    n = farm.n
    bids = [
        float(m.bids(load[i], farm.capacity[i], sensitivity[i], farm.risk_aversion[i], farm.target[i], task["load"]))
        for i in range(n)
    ]
    result = award(farm, load, bids, range(n), task, rules)
    if rules.sla and task["sla"] == GOLD and result.completion > task["latency"]:
        in_time = [i for i in range(n) if task["waited"] + (load[i] + task["work"]) / farm.rate[i] <= task["latency"]]
        if in_time:
            refused = result.servers[0]
            result = award(farm, load, bids, in_time, task, rules)
            result.events |= {"outbid"} if result.servers[0] != refused else set()
    if rules.reserve > 0 and result.bid > rules.reserve:
        if rules.sla and task["sla"] == BRONZE and task["deferrals"] < rules.deferrals:
            return Result([], [], result.bid, result.price, events={"deferred"})
        result.events.add("above")
    if len(result.servers) > 1:
        result.events.add("coalition")
    if result.completion > task["latency"]:
        result.events.add("late")
    for i, share in zip(result.servers, result.shares, strict=True):
        load[i] += task["work"] * share
    return result


def award(farm: Farm, load, bids, among, task, rules: Rules) -> Result:
    ranked = sorted(among, key=lambda i: bids[i])
    winner = ranked[0]
    price = bids[ranked[1]] if len(ranked) > 1 else float("inf")
    ratio = [float(m.load_ratio(load[i], farm.capacity[i])) for i in range(farm.n)]
    helpers = coalitions.partners(
        winner, np.array(ratio), farm.coalition, rules.overload, rules.partner_below, rules.partners
    )
    group = [winner, *map(int, helpers)]
    spare = [max(farm.capacity[i] - load[i], 0.0) for i in group]
    by_value = rules.split == "shapley"
    parts = coalitions.split_shapley(1.0, np.array(spare)) if by_value else coalitions.split_equal(1.0, len(group))
    shares = [float(part) for part in parts]
    done = [(load[i] + task["work"] * s) / farm.rate[i] for i, s in zip(group, shares, strict=True) if s > 0]
    return Result(group, shares, bids[winner], price, task["waited"] + max(done))
