"""The heuristics that a policy must hold its own against, and which options of each are tuned.

Of gsed's bid, (K·n + c)/w, only c/K decides who is lowest: K stays the number of balancers, and tuning c tunes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from controlplane.simulation.scenario import Policy

Options = dict[str, Any]


def _grid(**values: tuple[float, ...]) -> tuple[Options, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


@dataclass(frozen=True)
class Rival:
    """A heuristic by its policy's name. grid: what may be tuned; empty: nothing.."""

    name: str
    grid: tuple[Options, ...] = ()
    strong: bool = False  # one of those that a quick look is taken against

    def policy(self, options: Options) -> Policy:
        return Policy.model_validate({"name": self.name, "label": self.name, **options})


RIVALS: tuple[Rival, ...] = (
    Rival("adaptive", strong=True),
    Rival("gsed", _grid(c=(0.0, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5)), strong=True),
    Rival("gsed_estimated", _grid(decay=(0.98, 0.995, 0.999), c=(0.1, 0.25, 0.5, 1.0)), strong=True),
    Rival("sed", strong=True),
    Rival("lsq", strong=True),
    Rival("peak_ewma", _grid(decay=(1.0, 3.0, 10.0))),
    Rival("awcmp", _grid(gain=(0.03, 0.1, 0.3))),
    Rival("auction"),
    Rival("p2c"),
    Rival("wcmp"),
    Rival("wrr"),
    Rival("maglev"),
)
BY_NAME = {rival.name: rival for rival in RIVALS}

# Those that learn the speeds, fast or slowly: who recovers from a change of speeds is compared with them.
ESTIMATORS = ("adaptive", "gsed_estimated")
