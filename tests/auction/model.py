"""A round of auctions in plain Python, one server and one task at a time, to compare the compiled one with."""

from dataclasses import dataclass, field

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
    group = [winner]
    if ratio[winner] > rules.overload:
        others = [
            i
            for i in range(farm.n)
            if i != winner and farm.coalition[i] == farm.coalition[winner] and ratio[i] < rules.partner_below
        ]
        group += sorted(others, key=lambda i: ratio[i])[: rules.partners]
    spare = [max(farm.capacity[i] - load[i], 0.0) for i in group]
    if rules.split == "shapley" and sum(spare) > 0:
        shares = [s / sum(spare) for s in spare]
    else:
        shares = [1 / len(group)] * len(group)
    done = [(load[i] + task["work"] * s) / farm.rate[i] for i, s in zip(group, shares, strict=True) if s > 0]
    return Result(group, shares, bids[winner], price, task["waited"] + max(done))
