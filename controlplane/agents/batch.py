"""What agents learn from: transitions of one vector step as they come, and sequences of them as tensors.

Rows are replica-major, as environments have them: the balancers of a replica stand side by side. Time runs along one
axis, so that recurrent networks can be run over it; the last step of a sequence serves as successor only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlplane.learned.encoding import GLOBAL_COLUMNS, Inputs

_BALANCERS = GLOBAL_COLUMNS.index("balancers")


@dataclass(frozen=True)
class Transition:
    """One step of R rows with n servers: what was seen, what was done, what came of it."""

    inputs: Inputs  # before the step
    numbers_rows: NDArray[np.int64]  # (R, n, row heads) chosen levels
    numbers_whole: NDArray[np.int64]  # (R, global heads) chosen levels; (R, 1) the server, of kind choice
    reward: NDArray[np.float32]  # (R,)
    cost: NDArray[np.float32]  # (R, C) violation of each constraint; C = 0 without constraints
    done: NDArray[
        np.bool_
    ]  # (R,) terminated: nothing comes after. Truncation is told by `fresh` of the next step alone
    fresh: NDArray[np.bool_]  # (R,) the first step of an episode: the network's state before it is the initial one
    hidden: NDArray[np.float32]  # (R, n, H) the acting network's state before the step
    balancers: int = 1  # K: rows of a replica


@dataclass(frozen=True)
class Sequences:
    """B sequences of T steps. With K balancers (agents with `several`), an axis K comes after B everywhere."""

    rows: Tensor  # (B, T, n, F)
    whole: Tensor  # (B, T, G)
    active: Tensor  # (B, T, n) bool
    numbers_rows: Tensor  # (B, T, n, row heads) int64
    numbers_whole: Tensor  # (B, T, global heads or 1) int64
    reward: Tensor  # (B, T)
    cost: Tensor  # (B, T, C)
    done: Tensor  # (B, T) bool
    fresh: Tensor  # (B, T) bool
    hidden: Tensor  # (B, n, H) before the first step
    burn_in: int = 0  # so many first steps only warm the state

    @property
    def valid(self) -> Tensor:
        """Return which steps may be learned from, (B, T − 1) bool: those after the burn-in whose successor is known.

        A step that terminated needs none; one after which an episode was cut off has none in the sequence.
        """
        known = self.done[..., :-1] | ~self.fresh[..., 1:]
        known[..., : self.burn_in] = False
        return known

    def merged(self) -> Self:
        """Return the same with the axes B and K as one, B·K: for networks that look at each balancer alone."""
        return self._map(lambda x: x.flatten(0, 1))

    def _map(self, change: object) -> Self:
        assert callable(change)
        fields = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)


def balancers_of(inputs: Inputs) -> int:
    """Return how many balancers share the servers, as the inputs tell it."""
    return round(float(2.0 ** (2.0 * inputs.whole[0, _BALANCERS]))) if len(inputs.whole) else 1


def tensors(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, whole and active as tensors that share memory with them."""
    return torch.from_numpy(inputs.rows), torch.from_numpy(inputs.whole), torch.from_numpy(inputs.active)


def stack(steps: Sequence[Transition], burn_in: int = 0) -> Sequences:
    """Return successive steps of R rows as R sequences of len(steps)."""

    def over_time(arrays: list[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays, axis=1))

    return Sequences(
        over_time([s.inputs.rows for s in steps]),
        over_time([s.inputs.whole for s in steps]),
        over_time([s.inputs.active for s in steps]),
        over_time([s.numbers_rows for s in steps]),
        over_time([s.numbers_whole for s in steps]),
        over_time([s.reward for s in steps]),
        over_time([s.cost for s in steps]),
        over_time([s.done for s in steps]),
        over_time([s.fresh for s in steps]),
        torch.from_numpy(steps[0].hidden),
        burn_in,
    )
