"""Small trainings: three servers, a cheap base policy, short episodes."""

from __future__ import annotations

from pathlib import Path

import pytest

TORCH = "training needs torch: pip install 'vickrey[rl]'"

SCENARIO = """\
servers:
  - {speed: 2, weight: 2}
  - {count: 2, speed: 1}
demand: {kind: exponential, mean: 20ms}
load: 0.8
policies: [lsq]
"""

# Changes that make a training small.
SMALL = (
    "training.base={name: gsed}",
    "training.episode=12",
    "training.replicas=4",
    "training.lanes=2",
    "training.evaluate_episodes=4",
    "training.evaluate_every=100000",
    "training.checkpoint_every=100000",
    "hidden=4",
)
SMALL_REPLAY = ("warmup=24", "capacity=2000", "length=4", "burn_in=2", "batch=4")
SMALL_ES = ("pairs=2", "episodes=1")
SMALL_ARMS = ("farms=2", "arms=1", "epochs=2")


def changes_for(agent: str) -> tuple[str, ...]:
    """Return the changes that make a training of this agent small."""
    own = {"es": SMALL_ES, "arms": SMALL_ARMS, "ppo": ("horizon=11", "length=11")}
    return SMALL + own.get(agent, SMALL_REPLAY)


def write_scenario(folder: Path, text: str = SCENARIO) -> str:
    """Write a scenario and return its path."""
    path = folder / "small.yaml"
    path.write_text(text)
    return str(path)


def options(changes: tuple[str, ...]) -> list[str]:
    """Return --set options."""
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    return write_scenario(tmp_path)
