"""What the round-based simulation measures: a row of figures a round, the servers' histories, and the summary.

Source    the white paper, sections 5 and 7.5. Everything is taken at the end of a round, after the servers have worked
fairness  fairness_std is the standard deviation of the servers' loads, as written; jain is Jain's index of load over
          capacity (not cut at 1), since equal loads are not fair to unequal servers
shapley   of the seed's game, v(S) = Σ (c − L): additive, so φ_i = c_i − L_i (controlplane/auction/games.py; a test
          compares with all 2^n coalitions)
memory    histories are float32 and keep every round while they fit into HISTORY_CELLS numbers, else every k-th
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.mechanism import OVERLOAD, Floats, jain
from controlplane.auction.tasks import CLASSES

HISTORY_CELLS = 20_000_000

COUNTS = (
    "tasks",
    "auctions",
    "awarded",
    "normal",
    "above",
    "coalitions",
    "deferred",
    "outbid",
    "pending",
    "overloaded",
)
BY_CLASS = ("auctions", "awards", "misses", "above", "completion")
FIGURES = (
    *("reserve", "bid", "price"),
    *("load", "load_max", "ratio", "ratio_max", "sensitivity", "sensitivity_min", "sensitivity_max"),
    *("fairness_std", "jain", "welfare", "shapley_min", "shapley_max", "completion"),
)
COLUMNS = ("round", *COUNTS, *FIGURES, *(f"{name}_{sla}" for name in BY_CLASS for sla in CLASSES))
_KINDS = {
    name: "i8" if name in ("round", *COUNTS) or name.startswith(("auctions_", "awards_")) else "f8" for name in COLUMNS
}
_KINDS |= {f"{name}_{sla}": "i8" for name in ("misses", "above") for sla in CLASSES}
ROW = np.dtype(list(_KINDS.items()))


class Metrics:
    """Figures of the rounds so far; `done` of `rounds` are there."""

    def __init__(self, rounds: int, servers: int) -> None:
        self.servers = servers
        self.done = 0
        self.every = max(1, math.ceil(rounds * servers / HISTORY_CELLS))
        self._rows = np.zeros(rounds, dtype=ROW)
        kept = -(-rounds // self.every)
        self._load = np.zeros((kept, servers), dtype=np.float32)
        self._sensitivity = np.zeros((kept, servers), dtype=np.float32)
        self.wins = np.zeros(servers, dtype=np.int64)
        self.work = np.zeros(servers)  # assigned so far
        self._busy = np.zeros(servers)  # sum of load ratios
        self._carried = np.zeros(servers)  # sum of loads

    def add(
        self,
        sums: Any,
        *,
        arrived: int,
        pending: int,
        reserve: float,
        load: Floats,
        ratio: Floats,
        capacity: Floats,
        target: Floats,
        sensitivity: Floats,
    ) -> None:
        """Take in a round. sums: what its auctions left, of dtype SUMS; ratio as in the mechanism, at most 1."""
        row = self._rows[self.done]
        awards, completions = sums["awards"], sums["completions"]
        awarded = int(awards.sum())
        row["round"] = self.done + 1
        row["tasks"], row["auctions"], row["awarded"] = arrived, sums["auctions"].sum(), awarded
        row["above"], row["pending"] = sums["above"].sum(), pending
        for name in ("normal", "coalitions", "deferred", "outbid"):
            row[name] = sums[name]
        row["overloaded"] = np.count_nonzero(ratio > OVERLOAD)
        row["reserve"] = reserve
        row["bid"] = sums["bids"] / awarded if awarded else np.nan
        row["price"] = sums["prices"] / sums["priced"] if sums["priced"] else np.nan
        row["load"], row["load_max"] = load.mean(), load.max()
        row["ratio"], row["ratio_max"] = ratio.mean(), ratio.max()
        row["sensitivity"] = sensitivity.mean()
        row["sensitivity_min"], row["sensitivity_max"] = sensitivity.min(), sensitivity.max()
        row["fairness_std"], row["jain"] = load.std(), jain(load / capacity)
        row["welfare"] = -np.abs(load - capacity * target).sum()
        spare = capacity - load
        row["shapley_min"], row["shapley_max"] = spare.min(), spare.max()
        row["completion"] = completions.sum() / awarded if awarded else np.nan
        for i, sla in enumerate(CLASSES):
            row[f"auctions_{sla}"], row[f"awards_{sla}"] = sums["auctions"][i], awards[i]
            row[f"misses_{sla}"], row[f"above_{sla}"] = sums["misses"][i], sums["above"][i]
            row[f"completion_{sla}"] = completions[i] / awards[i] if awards[i] else np.nan
        if self.done % self.every == 0:
            self._load[self.done // self.every] = load
            self._sensitivity[self.done // self.every] = sensitivity
        self._busy += ratio
        self._carried += load
        self.done += 1

    @property
    def rows(self) -> NDArray[Any]:
        """One record of dtype ROW a round that is done."""
        return self._rows[: self.done]

    @property
    def history_rounds(self) -> NDArray[np.int64]:
        """Numbers of the rounds that the histories hold, (kept,)."""
        return np.arange(1, self.done + 1, self.every)

    @property
    def loads(self) -> NDArray[np.float32]:
        """(kept, servers)"""
        return self._load[: self.history_rounds.size]

    @property
    def sensitivities(self) -> NDArray[np.float32]:
        """(kept, servers)"""
        return self._sensitivity[: self.history_rounds.size]

    @property
    def mean_ratio(self) -> Floats:
        """Load ratio of each server over the rounds, (servers,)."""
        return self._busy / max(self.done, 1)

    @property
    def mean_load(self) -> Floats:
        """Load of each server over the rounds, (servers,)."""
        return self._carried / max(self.done, 1)

    def summary(self, skip: float = 0.0) -> dict[str, Any]:
        """Return the figures over the rounds after the first `skip` share of them; None where there is nothing."""
        rows = self.rows[int(skip * self.done) :]
        awards = {sla: int(rows[f"awards_{sla}"].sum()) for sla in CLASSES}
        awarded = sum(awards.values())

        def weighted(name: str, by: str = "awarded") -> float | None:
            there = rows[by] > 0
            total = rows[by][there].sum()
            return float((rows[name][there] * rows[by][there]).sum() / total) if total else None

        def mean(name: str) -> float | None:
            return float(np.nanmean(rows[name])) if rows.size else None

        classes: dict[str, dict[str, Any]] = {}
        for sla in CLASSES:
            held, late = int(rows[f"auctions_{sla}"].sum()), int(rows[f"misses_{sla}"].sum())
            classes[sla] = {
                "awarded": awards[sla],
                "completion": weighted(f"completion_{sla}", f"awards_{sla}"),
                "misses": late,
                "miss_share": late / awards[sla] if awards[sla] else None,
                "deferrals": held - awards[sla],
                "deferrals_per_task": (held - awards[sla]) / awards[sla] if awards[sla] else None,
                "above_reserve": int(rows[f"above_{sla}"].sum()),
            }
        return {
            "rounds": int(rows.size),
            "tasks": int(rows["tasks"].sum()),
            "pending": int(rows["pending"][-1]) if rows.size else 0,
            "welfare": mean("welfare"),
            "fairness_std": mean("fairness_std"),
            "jain": mean("jain"),
            "load_ratio": mean("ratio"),
            "completion": weighted("completion"),
            "misses": sum(entry["misses"] for entry in classes.values()),
            "miss_share": sum(entry["misses"] for entry in classes.values()) / awarded if awarded else None,
            "bid": weighted("bid"),
            "reserve": float(rows["reserve"][-1]) if rows.size else None,
            "events": {
                "awarded": awarded,
                **{n: int(rows[n].sum()) for n in ("normal", "above", "coalitions", "deferred", "outbid")},
            },
            "classes": classes,
        }
