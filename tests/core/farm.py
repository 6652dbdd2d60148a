"""A segment with servers, as a supervisor and a controller would publish them, and a balancer over it; time is made up.

with Farm(weights=[1, 2]) as farm:
    farm.curves([[0, 1, 2], [5, 6, 7]])
    award = farm.balancer.dispatch(farm.now)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataplane.core import Award, Balancer
from shm_layout.layout import CLASSIC_SERVER, CURVE_LOW, CURVE_POINTS, RULES
from shm_layout.segment import DirectiveData, Limits, Segment, ServerData, SettingsData

SECOND = 1_000_000_000
RULE = {name: number for number, name in enumerate(RULES)}
_numbers = itertools.count()


def whole_curve(start: Sequence[float]) -> NDArray[np.float32]:
    """Return a curve that begins with these values and goes on as their last two do."""
    slope = start[-1] - start[-2] if len(start) > 1 else 0.0
    beyond = start[-1] + slope * (CURVE_LOW - (len(start) - 1))
    curve = np.where(np.arange(CURVE_POINTS) < len(start), np.resize(np.asarray(start, float), CURVE_POINTS), beyond)
    return curve.astype(np.float32)


class Farm:
    """Servers 1 … n in slots 0 … n - 1, one balancer per worker, all at time `now`."""

    def __init__(
        self,
        n: int = 4,
        *,
        weights: Sequence[int] | None = None,
        workers: int = 1,
        seed: int = 1,
        now: int = 1000 * SECOND,
        table_slots: int = 1021,
        max_servers: int | None = None,
        reservoir_slots: int = 16,
        journal_slots: int = 64,
        **settings: Any,
    ) -> None:
        self.now = self.began = now
        weights = [1] * n if weights is None else weights
        limits = Limits(
            max_servers=max_servers or max(len(weights), 1),
            max_workers=workers,
            reservoir_slots=reservoir_slots,
            ring_slots=64,
            journal_slots=journal_slots,
            table_slots=table_slots,
        )
        self.segment = Segment.create(f"/vickrey.test{os.getpid()}.core{next(_numbers)}", limits, "core")
        self.segment.unlink()  # the mapping stays; nothing is left behind whatever happens
        self.servers = [ServerData(id=i + 1, name=f"s{i}", weight=w) for i, w in enumerate(weights)]
        self.settings = SettingsData(version=0, servers=self.servers, **settings)
        self.directive: DirectiveData | None = None
        self.epoch = self.segment.begin_controller()
        self.publish_settings()
        self.balancers = [
            Balancer(self.segment, worker=w, seed=seed + w, now_ns=now, repair=w == 0) for w in range(workers)
        ]
        if workers > 1:
            self.meet()

    @property
    def balancer(self) -> Balancer:
        return self.balancers[0]

    @property
    def ids(self) -> NDArray[np.uint64]:
        return np.array([server.id for server in self.servers], dtype=np.uint64)

    def meet(self) -> None:
        """Let the workers notice each other."""
        self.now += SECOND // 10
        self.refresh()

    def publish_settings(self) -> None:
        """Publish self.settings with self.servers as they are now."""
        self.settings.version += 1
        self.settings.servers = self.servers
        self.segment.publish_settings(self.settings)

    def change(self, slot: int, **fields: Any) -> None:
        """Change one server, publish, and let the balancers take it."""
        for name, value in fields.items():
            setattr(self.servers[slot], name, value)
        self.publish_settings()
        self.refresh()

    def direct(self, rule: str, **fields: Any) -> None:
        """Publish a directive for the servers as they are, and let the balancers take it."""
        sequence = self.directive.sequence + 1 if self.directive else 1
        fields = {"ids": self.ids, "issued_ns": self.now, "sequence": sequence, **fields}
        self.directive = DirectiveData(rule=rule, **fields)
        self.segment.publish_directive(self.directive)
        self.refresh()

    def curves(self, starts: Sequence[Sequence[float]], **fields: Any) -> None:
        """Direct by bid curves that begin like these."""
        self.direct("bids", curves=np.stack([whole_curve(start) for start in starts]), **fields)

    def refresh(self) -> None:
        for balancer in self.balancers:
            balancer.refresh(self.now)

    def load(self, in_flight: Sequence[int], worker: int = 0) -> list[Any]:
        """Open so many flows on each server; return them."""
        balancer = self.balancers[worker]
        return [balancer.open(slot, self.now) for slot, n in enumerate(in_flight) for _ in range(n)]

    def dispatch(self, **fields: Any) -> Award:
        return self.balancer.dispatch(self.now, **fields)

    def close(self) -> None:
        self.balancers.clear()
        self.segment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def classic_rows(rows: Sequence[dict[str, float]]) -> NDArray[Any]:
    """Return classic parameters; what a row leaves out is 1, risk_aversion and target_load_ratio ½."""
    out = np.zeros(len(rows), dtype=CLASSIC_SERVER)
    for record, row in zip(out, rows, strict=True):
        defaults = {"capacity": 1, "sensitivity": 1, "risk_aversion": 0.5, "target_load_ratio": 0.5, "neural": 1}
        for name, value in {**defaults, **row}.items():
            record[name] = value
    return out


def chi_square_p(counts: ArrayLike, expected: ArrayLike) -> float:
    """Return the p-value of counts against expected shares (zero shares must have no counts)."""
    from scipy.stats import chisquare

    seen, shares = np.asarray(counts, float), np.asarray(expected, float)
    assert not seen[shares == 0].any()
    keep = shares > 0
    if keep.sum() == 1:
        return 1.0
    return float(chisquare(seen[keep], shares[keep] / shares[keep].sum() * seen.sum()).pvalue)
