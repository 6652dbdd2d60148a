"""Learning from a recorded dataset alone: a round is a number of updates, and a step is one update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from controlplane.agents.offline import OfflineAgent, inputs_of
from controlplane.command import CommandError
from controlplane.env.dataset import DatasetError, read_dataset
from controlplane.learned.encoding import GLOBAL_COLUMNS, Inputs
from controlplane.training.learners import Hold, Parameters, Round
from controlplane.training.ranges import SENT, Sample
from controlplane.training.workers import Workers

UPDATES = 100  # of a round
_BALANCERS = GLOBAL_COLUMNS.index("balancers")


class Offline:
    """An offline agent and its dataset."""

    def __init__(self, agent: OfflineAgent, file: str) -> None:
        """Raises CommandError when the file is no dataset, or not one for this agent."""
        torch.set_num_threads(1)
        self.agent, self.decode, self.recorded, self.cumulative = agent, agent.decode, True, False
        try:
            data = read_dataset(file)
            self._inputs = inputs_of(data, "observation", agent.config.interval)
            agent.load(data)
        except DatasetError as error:
            text = str(error)
            raise CommandError(text if file in text else f"{file}: {text}", status=2) from None
        except OSError as error:
            raise CommandError(f"{file}: {(error.strerror or str(error)).lower()}", status=2) from None

    def round(self, number: int, workers: Workers, hold: Hold) -> Round:
        losses: dict[str, list[float]] = defaultdict(list)
        hold()
        for _ in range(UPDATES):
            for name, value in self.agent.learn().items():
                losses[name].append(value)
        figures = {name: float(np.mean(values)) for name, values in losses.items()}
        figures["off_grid"] = self.agent.off_grid
        return Round(UPDATES, figures, [sample_of(self._inputs, number)])

    def settle(self) -> dict[str, float]:
        return {}

    def parameters(self) -> Parameters:
        return self.agent.actor().parameters_numpy()

    def begin_from(self, parameters: Mapping[str, Any]) -> None:
        self.agent.load_actor(parameters)

    def state_dict(self) -> dict[str, Any]:
        # The dataset is read again.
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)


def sample_of(inputs: Inputs, number: int) -> Sample:
    """Return some of the recorded inputs, others for each number."""
    generator = np.random.default_rng([number])
    some = generator.integers(0, len(inputs.whole), SENT)
    active = inputs.active[some]
    rows = inputs.rows[some][active]
    count = inputs.active.sum(axis=1)
    balancers = np.rint(2.0 ** (2.0 * inputs.whole[:, _BALANCERS])).astype(np.int64)
    return Sample(
        rows[generator.permutation(len(rows))[:SENT]],
        inputs.whole[some],
        (max(int(count.min()), 1), max(int(count.max()), 1)),
        (int(balancers.min()), int(balancers.max())),
    )
