"""Policy files made by hand, for tests that need one: neutral, random, and adversarial networks."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from controlplane import registry
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS
from controlplane.learned.manifest import Manifest, Range, Ranges, Training
from controlplane.learned.network import shapes
from controlplane.learned.policy_file import Parameters, write
from controlplane.learned.schema import ActionSchema
from controlplane.policy import Policy

CURVES = ActionSchema()
WIDE = Range(0.0, 1.0, -100.0, 100.0)


def ranges(one: Range = WIDE, servers: tuple[int, int] = (1, 256), balancers: tuple[int, int] = (1, 8)) -> Ranges:
    """Return the same range for all inputs; without arguments, one in which nothing is new."""
    return Ranges(dict.fromkeys(SERVER_COLUMNS, one), dict.fromkeys(GLOBAL_COLUMNS, one), servers, balancers)


def manifest(schema: ActionSchema = CURVES, hidden: int = 8, **fields: Any) -> Manifest:
    given: dict[str, Any] = {
        "name": "by-hand",
        "agent": "none",
        "schema": schema,
        "hidden": hidden,
        "ranges": ranges(),
        "training": Training("by hand", "0123abc", 1, 2, "default", 3.5, {"gamma": 0.95}),
    }
    return Manifest(**(given | fields))


def neutral(schema: ActionSchema = CURVES, hidden: int = 8) -> Parameters:
    """Return a network whose outputs stand for no correction, to the bit, when decoded as `mode`."""
    found = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes(schema, hidden).items()}
    return always(found, schema, schema.zero)


def always(parameters: Parameters, schema: ActionSchema, level: int, certain: float = 100.0) -> Parameters:
    """Let every head choose one level, whatever is seen."""
    for name in ("row.bias", "all.bias"):
        if name in parameters:
            parameters[name][:] = 0.0
            parameters[name].reshape(-1, len(schema.levels))[:, level] = certain
    return parameters


def random(seed: int = 1, scale: float = 0.3, schema: ActionSchema = CURVES, hidden: int = 8) -> Parameters:
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0.0, scale, shape).astype(np.float32) for k, shape in shapes(schema, hidden).items()}


def oscillating(schema: ActionSchema = CURVES, hidden: int = 8) -> Parameters:
    """Return a network all of whose outputs go from one bound to the other at every step, for ever."""
    found = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes(schema, hidden).items()}
    h, levels = hidden, len(schema.levels)
    found["cell.bias_ih"][:h] = 100.0  # reset: 1
    found["cell.bias_ih"][h : 2 * h] = -100.0  # update: 0, all new
    found["cell.bias_ih"][2 * h :] = 0.5
    found["cell.weight_hh"][2 * h :] = -10.0 * np.eye(h)
    for head in ("row", "all"):
        weight = found[f"{head}.weight"].reshape(-1, levels, found[f"{head}.weight"].shape[1])
        weight[:, 0, 0], weight[:, -1, 0] = -100.0, 100.0
    return found


def save(path: Path, parameters: Parameters | None = None, **fields: Any) -> Path:
    """Write a policy; a random one unless parameters are given."""
    about = manifest(**fields)
    write(path, random(schema=about.schema, hidden=about.hidden) if parameters is None else parameters, about)
    return path


@cache
def _random_file() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vickrey-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save(folder / "random.safetensors")


def make(name: str) -> Policy:
    """Return any policy by its name; `learned` with a random network, which acts in full whatever it sees."""
    return registry.create({"name": name, "file": str(_random_file())} if name == "learned" else name)
