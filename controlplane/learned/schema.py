"""What a learned policy may do: heads of a few levels each, and how chosen levels become an action of LoadBalance-v0.

curves    row heads mu and k for each server, heads balancers (K), scale (c) and window for all: a correction of
          the base policy's curves, in [−1, 1] of each bound; the middle level is zero, the base policy itself
discrete  a row head: one of the weights {1, 1.5, 2} (MARLLB's action set) for each server
weights   a row head: a weight between the limits on a logarithmic scale
choice    no levels: one of the servers (for exact Markov decision processes, where every flow is a step)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

CORRECTIONS: Final = ("mu", "k")
GLOBALS: Final = ("balancers", "scale", "window")
FIVE: Final = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class ActionSchema:
    """Heads and levels. All heads have the same number of levels."""

    kind: str = "curves"
    levels: tuple[float, ...] = FIVE
    row_heads: tuple[str, ...] = CORRECTIONS
    global_heads: tuple[str, ...] = GLOBALS
    bounds: Mapping[str, float] = field(default_factory=dict)  # of env.Bounds; those left out have its defaults

    def __post_init__(self) -> None:
        if self.kind not in ("curves", "discrete", "weights", "choice"):
            raise ValueError(f"action kind: {self.kind!r} is not one of curves, discrete, weights, choice")
        if self.kind == "choice":
            object.__setattr__(self, "row_heads", ())
            object.__setattr__(self, "global_heads", ())
            object.__setattr__(self, "levels", ())
        elif self.kind != "curves":
            object.__setattr__(self, "row_heads", ("weight",))
            object.__setattr__(self, "global_heads", ())
        for name in ("levels", "row_heads", "global_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind != "choice" and len(self.levels) < 2:
            raise ValueError(f"action levels: expected two or more, not {self.levels}")

    @property
    def zero(self) -> int:
        """The level that does least."""
        return int(np.argmin(np.abs(self.levels))) if self.kind == "curves" else 0

    def to_action(self, rows: Floats, whole: Floats) -> NDArray[Any]:
        """Return the environment's action (R, …) of values rows (R, servers, row heads), whole (R, global heads).

        Values are levels or means of them; for `discrete` they are level numbers, for `choice` rows is not looked at
        and whole (R, 1) is the server.
        """
        if self.kind == "choice":
            return np.asarray(whole[:, 0], dtype=np.int64)
        if self.kind == "discrete":
            return np.asarray(np.rint(rows[:, :, 0]), dtype=np.int64)
        if self.kind == "weights":
            return np.asarray(rows[:, :, 0], dtype=np.float32)
        r, n = rows.shape[:2]
        action = np.zeros((r, len(GLOBALS) + len(CORRECTIONS) * n), dtype=np.float32)
        for head, name in enumerate(self.global_heads):
            action[:, GLOBALS.index(name)] = whole[:, head]
        for head, name in enumerate(self.row_heads):
            action[:, len(GLOBALS) + CORRECTIONS.index(name) :: len(CORRECTIONS)] = rows[:, :, head]
        return action

    def values(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Return what to_action takes for chosen level numbers, of any shape."""
        return np.asarray(numbers, dtype=np.float64) if self.kind in ("discrete", "choice") else self.grid[numbers]

    @property
    def grid(self) -> NDArray[np.float64]:
        return np.asarray(self.levels, dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"bounds": dict(self.bounds)}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        return cls(**fields)
