"""What a policy sees in training: a uniform sample of bounded size, from which the manifest's ranges are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.manifest import Ranges

# Samples that a rollout sends home, and that a training keeps, of servers and of balancers.
SENT, KEPT = 256, 20_000

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Inputs of some steps."""

    rows: Floats  # (N, SERVER_COLUMNS) of active servers
    whole: Floats  # (M, GLOBAL_COLUMNS)
    servers: tuple[int, int]
    balancers: tuple[int, int]


class Sampler:
    """Takes a few inputs out of a rollout."""

    def __init__(self, balancers: int, generator: np.random.Generator) -> None:
        self._balancers, self._generator = balancers, generator
        self._rows: list[Floats] = []
        self._whole: list[Floats] = []
        self._servers = (10**9, 0)

    def add(self, inputs: Inputs) -> None:
        """Take in a step."""
        count = inputs.active.sum(axis=1)
        self._servers = min(self._servers[0], int(count.min())), max(self._servers[1], int(count.max()))
        rows = inputs.rows[inputs.active]
        some = self._generator.integers(0, len(rows), min(8, len(rows)))
        self._rows.append(rows[some])
        self._whole.append(inputs.whole[self._generator.integers(0, len(inputs.whole), 4)])

    def sample(self) -> Sample:
        """Return what was taken, thinned out."""
        rows, whole = np.concatenate(self._rows), np.concatenate(self._whole)
        rows, whole = (x[self._generator.permutation(len(x))[:SENT]] for x in (rows, whole))
        least, most = max(self._servers[0], 1), max(self._servers[1], 1)
        return Sample(rows, whole, (least, most), (self._balancers, self._balancers))


class Seen:
    """All samples of a training: each one's lot is drawn once, and the highest lots stay."""

    def __init__(self, seed: int) -> None:
        self._seed, self._count = seed, 0
        self._rows, self._whole = (
            np.zeros((0, len(SERVER_COLUMNS)), np.float32),
            np.zeros((0, len(GLOBAL_COLUMNS)), np.float32),
        )
        self._lots = {"rows": np.zeros(0), "whole": np.zeros(0)}
        self.servers, self.balancers = (10**9, 0), (10**9, 0)

    def add(self, sample: Sample) -> None:
        """Take in a rollout's sample."""
        generator = np.random.default_rng([self._seed, 9, self._count])
        self._count += 1
        self._rows = self._keep("rows", self._rows, sample.rows, generator)
        self._whole = self._keep("whole", self._whole, sample.whole, generator)
        self.servers = min(self.servers[0], sample.servers[0]), max(self.servers[1], sample.servers[1])
        self.balancers = min(self.balancers[0], sample.balancers[0]), max(self.balancers[1], sample.balancers[1])

    def _keep(self, name: str, old: Floats, new: Floats, generator: np.random.Generator) -> Floats:
        lots = np.concatenate([self._lots[name], generator.random(len(new))])
        both = np.concatenate([old, new])
        kept = np.sort(np.argsort(-lots, kind="stable")[:KEPT])
        self._lots[name] = lots[kept]
        return np.asarray(both[kept])

    def __len__(self) -> int:
        return len(self._rows)

    def ranges(self, also: Sequence[Sample] = ()) -> Ranges:
        """Return the manifest's ranges: of what is kept and of these samples."""
        rows = np.concatenate([self._rows, *(sample.rows for sample in also)])
        whole = np.concatenate([self._whole, *(sample.whole for sample in also)])
        servers, balancers = (
            (min(least for least, _ in pairs), max(most for _, most in pairs))
            for pairs in ([self.servers, *(s.servers for s in also)], [self.balancers, *(s.balancers for s in also)])
        )
        return Ranges.measure(rows, whole, servers, balancers)

    def state_dict(self) -> dict[str, Any]:
        """Return arrays and plain values."""
        return {
            "seed": self._seed,
            "count": self._count,
            "rows": self._rows,
            "whole": self._whole,
            "rows_lots": self._lots["rows"],
            "whole_lots": self._lots["whole"],
            "servers": list(self.servers),
            "balancers": list(self.balancers),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return what a state was made from."""
        seen = cls(int(state["seed"]))
        seen._count = int(state["count"])
        seen._rows, seen._whole = np.asarray(state["rows"]), np.asarray(state["whole"])
        seen._lots = {name: np.asarray(state[f"{name}_lots"]) for name in ("rows", "whole")}
        seen.servers, seen.balancers = ((int(a), int(b)) for a, b in (state["servers"], state["balancers"]))
        return seen
