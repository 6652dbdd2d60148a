"""A policy file, ready to decide: where it is found, its network, and one step of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.learned.encoding import Inputs, encode
from controlplane.learned.network import Floats, Network, decide
from controlplane.learned.policy_file import PolicyFileError, read
from controlplane.weights import WeightLimits
from shm_layout.features import FEATURES


def find(file: str) -> Path:
    """Return the file of `shipped:NAME`, or of a path; PolicyFileError: there is no such policy in the package."""
    if not file.startswith(registry.PREFIX):
        return Path(file)
    known = registry.shipped()
    if (name := file.removeprefix(registry.PREFIX)) not in known:
        raise PolicyFileError(f"{file}: no such policy in the package; it has: {', '.join(known) or 'none'}")
    return known[name]


# For one balancer, as ActionSchema.to_action makes it.
Action = NDArray[Any]


class Model:
    """A network with its manifest. Raises PolicyFileError when the file is not right."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.path = find(os.fspath(file))
        parameters, self.manifest = read(self.path)
        self.schema = self.manifest.schema
        self.network = Network(parameters, self.schema)
        try:
            self.limits = WeightLimits(**self.manifest.limits)
        except (TypeError, ValueError) as error:
            raise PolicyFileError(f"{self.path}: manifest.limits: {error}") from None

    def step(self, inputs: Inputs, hidden: Floats) -> tuple[Action, Floats] | None:
        """Return the environment's action for one balancer and the new hidden state; None: not finite numbers."""
        rows, whole, state = self.network.forward(inputs, hidden)
        if not (np.isfinite(rows).all() and np.isfinite(whole).all() and np.isfinite(state).all()):
            return None
        values = decide(self.schema, rows, whole, self.manifest.decode)
        return self.schema.to_action(*values)[0], state


def check(file: str, servers: int = 256, rounds: int = 100) -> dict[str, Any]:
    """Return what a file is and how long its network takes, milliseconds (inputs and outputs included), for so many
    servers. PolicyFileError: it is not right, or gives no finite numbers."""
    model = Model(file)
    rng = np.random.default_rng(1)
    features = rng.gamma(2.0, 0.1, (1, servers, len(FEATURES)))
    active = np.ones((1, servers), dtype=bool)
    change, curves = rng.gamma(2.0, 3.0, (1, servers, 4)), np.cumsum(rng.gamma(2.0, 0.1, (1, servers, 9)), axis=2)
    hidden, took = model.network.initial(1, servers), []
    for _ in range(rounds):
        begun = time.perf_counter()
        step = model.step(encode(features, active, change, curves, model.manifest.interval, 1), hidden)
        took.append(time.perf_counter() - begun)
        if step is None:
            raise PolicyFileError(f"{model.path}: its outputs are not finite numbers")
        hidden = step[1]
    return {
        "file": str(model.path),
        "name": model.manifest.name,
        "agent": model.manifest.agent,
        "base": model.manifest.base_name,
        "weights": sum(values.size for values in model.network.parameters.values()),
        "servers": servers,
        "network_ms": round(float(np.median(took)) * 1e3, 4),
        "sha256": model.manifest.sha256,
    }
