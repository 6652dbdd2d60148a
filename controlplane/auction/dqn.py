"""A deep Q-network learns the sensitivity: one network, shared by all servers, so that they learn from each other.

Source    Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015; the white paper,
          section 2, which gives each server's agent these inputs, layers and loss
Network   (ρ, task load, sensitivity, risk aversion) → 64 → 64 → 3, ReLU; task load and sensitivity as logarithms, for
          they span decades
Loss      mean of (Q(s, a) − (r + γ max_a' Q⁻(s', a')))², Q⁻ the target network: a copy, renewed every `target_every`
Replay    the last `memory` transitions of all servers, drawn uniformly; one gradient step a round
Action    moves the sensitivity as in the other modes, and the bid of the coming round: · (1 + η), · (1 − η), unchanged
Departure the white paper asks the network once a task; here it is asked once a round, with the mean load of its tasks:
          its own inputs do not change faster, but for that load
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from controlplane.auction.learning import ACTIONS, ActionLearner, Floats, Options, Rows

INPUTS, HIDDEN = 4, 64


def import_torch() -> Any:
    """Return torch. RuntimeError, in words for the user, when it is not installed."""
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise RuntimeError("mode dqn needs torch, which is not installed: needs vickrey[rl]") from None
    return torch


@contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """Let torch compute in this thread alone: so small a network gains nothing from more, and pays for waking them."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inputs_of(state: Floats) -> Floats:
    """Return what the network sees of states, (rows, 4)."""
    ratio, load, sensitivity, risk = state.T
    return np.column_stack([ratio, np.log1p(np.maximum(load, 0.0)), np.log(np.maximum(sensitivity, 1e-6)), risk])


class DeepQ(ActionLearner):
    mode = "dqn"

    def __init__(self, n: int, rng: np.random.Generator, options: Options) -> None:
        super().__init__(n, rng, options)
        torch = self._torch
        with torch.random.fork_rng(devices=[]):  # the caller's generator decides, and torch's own is left as it was
            torch.manual_seed(int(rng.integers(2**63)))
            self.network, self.target = self._network(), self._network()
        self.target.load_state_dict(self.network.state_dict())
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=options.network_rate)
        self._bid_factor = np.array([1.0 + options.neural_rate, 1.0 - options.neural_rate, 1.0])
        self._memory_state = np.zeros((options.memory, INPUTS), dtype=np.float32)
        self._memory_following = np.zeros((options.memory, INPUTS), dtype=np.float32)
        self._memory_action = np.zeros(options.memory, dtype=np.int64)
        self._memory_reward = np.zeros(options.memory, dtype=np.float32)
        self._remembered = self.updates = 0

    @property
    def _torch(self) -> Any:
        return import_torch()  # not kept: a module cannot be copied, and simulated balancers have copies of a policy

    def _network(self) -> Any:
        nn = self._torch.nn
        layers = nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(HIDDEN, len(ACTIONS)))

    def values(self, state: Floats) -> Floats:
        """Return Q of states (rows, 4), (rows, 3)."""
        torch = self._torch
        with one_thread(torch), torch.no_grad():
            q: Floats = self.network(torch.from_numpy(inputs_of(state).astype(np.float32))).numpy().astype(np.float64)
        return q

    def _choose(self, state: Floats) -> Rows:
        # Before the first update the network is noise: who knows nothing changes nothing.
        value = self.values(state) if self.updates else np.zeros((self.n, len(ACTIONS)))
        return self._epsilon_greedy(value)

    def _changed(self, *args: Any) -> Floats:
        changed = super()._changed(*args)
        self.neural = self._bid_factor[self.action]
        return changed

    def _learn(self, rows: Rows, state: Floats, action: Rows, reward: Floats, following: Floats) -> None:
        size = self.options.memory
        kept = min(rows.size, size)
        slots = (self._remembered + np.arange(kept)) % size
        self._memory_state[slots] = inputs_of(state[:kept])
        self._memory_following[slots] = inputs_of(following[:kept])
        self._memory_action[slots] = action[:kept]
        self._memory_reward[slots] = reward[:kept]
        self._remembered += kept
        with one_thread(self._torch):
            self._step()

    def _step(self) -> None:
        """Take one gradient step on a batch from the replay."""
        torch, o = self._torch, self.options
        drawn = self.rng.integers(min(self._remembered, o.memory), size=o.batch)
        state = torch.from_numpy(self._memory_state[drawn])
        action = torch.from_numpy(self._memory_action[drawn])
        with torch.no_grad():
            best = self.target(torch.from_numpy(self._memory_following[drawn])).max(dim=1).values
            wanted = torch.from_numpy(self._memory_reward[drawn]) + o.gamma * best
        q = self.network(state).gather(1, action[:, None])[:, 0]
        loss = torch.nn.functional.mse_loss(q, wanted)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self.updates += 1
        if self.updates % o.target_every == 0:
            self.target.load_state_dict(self.network.state_dict())
