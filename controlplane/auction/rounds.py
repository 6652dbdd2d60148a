"""The round-based simulation: servers bid for tasks round after round, work, and learn.

    simulation = Simulation(Scenario(rounds=1000, mode="continuous", seed=7))
    while simulation.step():
        pass
    simulation.metrics.summary()

Source    the white paper, section 7. A round: tasks arrive; they are auctioned one after another, gold first
          (dataplane/auction/rounds.c, which also splits tasks among coalitions); the reserve is set; every server works
          at its fixed rate; every server learns; figures are taken
Service   a server does its work in order of award, so a task's completion is known when it is awarded: its round's
          begin + (load + work) / rate, the last part's where it was split
SLA       gold is auctioned first, and may outbid: when the lowest bidder would be late, the lowest bidder in time wins.
          It is never refused for its bid. Silver is as written. Bronze whose lowest bid exceeds the reserve is
          deferred to the next round, `deferrals` times at most
Seed      farm, arrivals, auctions, learning and the ledger's sample draw from generators of their own: runs of one seed
          that differ in mode see the same servers and the same tasks
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from controlplane.auction import learning
from controlplane.auction.mechanism import Floats, load_ratio, process, reserve_after
from controlplane.auction.metrics import Metrics
from controlplane.auction.scenario import Farm, Scenario, draw_farm
from controlplane.auction.tasks import CLASSES, Tasks, in_order, rounds_of
from dataplane._dataplane import ffi, lib
from shm_layout.layout import dtype_of

AWARD = dtype_of("round_award", ffi)
SUMS = dtype_of("round_sums", ffi)

_FLAGS = (
    ("above", lib.ROUND_ABOVE),
    ("coalition", lib.ROUND_COALITION),
    ("deferred", lib.ROUND_DEFERRED),
    ("outbid", lib.ROUND_OUTBID),
    ("late", lib.ROUND_LATE),
)


class Book(Protocol):
    """Where events are recorded: a Ledger."""

    def append(self, kind: str, /, **fields: Any) -> object: ...


class Auctioneer:
    """The C side: the farm's arrays, bound once."""

    def __init__(self, farm: Farm, scenario: Scenario, rng: np.random.Generator) -> None:
        a, n = scenario.auction, farm.n
        self.load = np.zeros(n)
        self.sensitivity, self.neural = farm.sensitivity.copy(), np.ones(n)
        arrays = {
            "capacity": farm.capacity,
            "sensitivity": self.sensitivity,
            "risk_aversion": farm.risk_aversion,
            "target": farm.target,
            "neural": self.neural,
            "rate": farm.rate,
            "load": self.load,
            "scratch": np.zeros(5 * n),
        }
        words = {"coalition": farm.coalition, "lanes": rng.integers(1, 2**32, size=n, dtype=np.uint32)}
        self._c = ffi.new(
            "struct round_farm *",
            {
                "servers": n,
                "split": lib.ROUND_SPLIT_SHAPLEY if a.split == "shapley" else lib.ROUND_SPLIT_EQUAL,
                "partners": a.partners,
                "classes": a.sla,
                "deferrals": a.deferrals,
                "noise": a.noise,
                "overload": a.overload,
                "partner_below": a.partner_below,
                "random": rng.integers(1, 2**64, size=4, dtype=np.uint64).tolist(),
            },
        )
        self._kept: list[Any] = []  # C holds pointers into these
        for columns, kind in ((arrays, "double[]"), (words, "uint32_t[]")):
            for name, array in columns.items():
                self._kept.append(ffi.from_buffer(kind, array))
                setattr(self._c, name, self._kept[-1])

    def hold(self, tasks: Tasks, reserve: float) -> tuple[np.ndarray[Any, Any], np.void]:
        """Auction tasks (of dtype TASK) in their order; return the awards, (tasks,) of dtype AWARD, and their sums."""
        self._c.reserve = reserve
        awards, sums = np.zeros(tasks.size, dtype=AWARD), np.zeros(1, dtype=SUMS)
        error = lib.round_auction(
            self._c,
            ffi.from_buffer("struct round_task[]", tasks),
            tasks.size,
            ffi.from_buffer("struct round_award[]", awards, require_writable=True),
            ffi.from_buffer("struct round_sums[]", sums, require_writable=True),
        )
        if error:
            raise ValueError("the auction refused its farm or a task")
        return awards, sums[0]


class Simulation:
    """One run. ledger: where rounds and a share ledger_auctions (0 … 1) of the auctions are recorded."""

    def __init__(self, scenario: Scenario, ledger: Book | None = None, ledger_auctions: float = 0.0) -> None:
        seeds = np.random.SeedSequence(scenario.seed).spawn(5)
        farm_rng, task_rng, auction_rng, learning_rng, self._sample_rng = map(np.random.default_rng, seeds)
        self.scenario, self.ledger, self._sampled = scenario, ledger, ledger_auctions
        self.farm = draw_farm(scenario, farm_rng)
        self.demand = scenario.demand()
        self.learner = learning.make(scenario.mode, self.farm.n, learning_rng, **scenario.learning.model_dump())
        self.metrics = Metrics(scenario.rounds, self.farm.n)
        self.reserve = 0.0
        self._auctioneer = Auctioneer(self.farm, scenario, auction_rng)
        self._arrivals = rounds_of(self.demand, scenario.rounds, task_rng)
        self._pending: Tasks | None = None
        self._active = np.ones(self.farm.n, dtype=bool)

    @property
    def load(self) -> Floats:
        """Work on each server now, (servers,)."""
        return self._auctioneer.load

    @property
    def sensitivity(self) -> Floats:
        """(servers,)"""
        return self._auctioneer.sensitivity

    def step(self) -> bool:
        """Run a round; False when all are done."""
        fresh = next(self._arrivals, None)
        if fresh is None:
            return False
        tasks = self._order(fresh)
        before = self.load.copy()
        awards, sums = self._auctioneer.hold(tasks, self.reserve if self.scenario.auction.reserve else 0.0)
        won = awards["server"] != lib.ROUND_NOBODY
        self.metrics.wins += np.bincount(awards["server"][won], minlength=self.farm.n)
        self.metrics.work += self.load - before
        if self.ledger is not None and self._sampled > 0:
            self._record_auctions(tasks, awards)
        self._defer(tasks[~won])
        self.reserve = reserve_after(awards["bid"][won], self.reserve)
        self.load[:] = process(self.load, self.farm.rate)
        self._learn(tasks)
        pending = self._pending.size if self._pending is not None else 0
        self.metrics.add(
            sums,
            arrived=fresh.size,
            pending=pending,
            reserve=self.reserve,
            load=self.load,
            ratio=load_ratio(self.load, self.farm.capacity),
            capacity=self.farm.capacity,
            target=self.farm.target,
            sensitivity=self.sensitivity,
        )
        if self.ledger is not None:
            self._record_round()
        return True

    def run(self) -> Metrics:
        """Run all rounds that are left."""
        while self.step():
            pass
        return self.metrics

    def _order(self, fresh: Tasks) -> Tasks:
        tasks = fresh if self._pending is None else np.concatenate([self._pending, fresh])
        return in_order(tasks) if self.scenario.auction.sla else tasks

    def _defer(self, tasks: Tasks) -> None:
        self._pending = None
        if tasks.size:
            tasks["deferrals"] += 1
            tasks["waited"] += 1.0
            self._pending = tasks

    def _learn(self, tasks: Tasks) -> None:
        farm = self.farm
        self.sensitivity[:] = self.learner.update(
            self.sensitivity.copy(),
            load_ratio(self.load, farm.capacity),
            farm.target,
            task_load=float(tasks["load"].mean()) if tasks.size else 0.0,
            risk_aversion=farm.risk_aversion,
            active=self._active,
        )
        self._auctioneer.neural[:] = self.learner.neural

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def _record_auctions(self, tasks: Tasks, awards: np.ndarray[Any, Any]) -> None:
        assert self.ledger is not None
        for i in np.flatnonzero(self._sample_rng.random(tasks.size) < self._sampled):
            task, award = tasks[i], awards[i]
            flags = int(award["flags"])
            members = [int(award["server"]), *map(int, award["partner"][: award["partners"]])]
            self.ledger.append(
                "auction",
                round=self.metrics.done + 1,
                sla=CLASSES[task["sla"]],
                load=float(task["load"]),
                work=float(task["work"]),
                bid=float(award["bid"]),
                price=float(award["price"]) if np.isfinite(award["price"]) else None,
                reserve=self.reserve,
                servers=[] if flags & lib.ROUND_DEFERRED else members,
                shares=[] if flags & lib.ROUND_DEFERRED else award["share"][: len(members)].tolist(),
                events=[name for name, bit in _FLAGS if flags & bit],
            )

    def _record_round(self) -> None:
        assert self.ledger is not None
        row = self.metrics.rows[-1]
        names = ("tasks", "awarded", "normal", "above", "coalitions", "deferred", "outbid")
        figures = ("reserve", "bid", "price", "welfare", "fairness_std", "jain")
        self.ledger.append(
            "round",
            round=int(row["round"]),
            **{name: int(row[name]) for name in names},
            **{name: float(row[name]) if np.isfinite(row[name]) else None for name in figures},
            misses={sla: int(row[f"misses_{sla}"]) for sla in CLASSES},
        )
