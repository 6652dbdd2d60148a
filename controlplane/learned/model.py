"""A policy file, ready to decide: where it is found, its network, and one step of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.learned.encoding import Inputs
from controlplane.learned.network import Floats, Network, decide
from controlplane.learned.policy_file import PolicyFileError, read
from controlplane.weights import WeightLimits


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
